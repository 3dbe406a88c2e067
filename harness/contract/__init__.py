"""What strategies, models and metrics promise, as checks on toy runs: ours in the tests, and your own by `check`."""
