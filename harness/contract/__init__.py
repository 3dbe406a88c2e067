"""What strategies, models, metrics, streams and data sets promise, as checks: of ours in tests, of yours by `check`."""
