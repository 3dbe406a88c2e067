"""Commands on a finished run: show, measure, atlas, card."""
