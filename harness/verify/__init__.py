"""Published numbers against ours: `python -m harness verify` runs the rows of published tables, and compares."""
