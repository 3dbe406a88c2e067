"""What was typed: the options that exist, their ranges, and what was probably meant."""
