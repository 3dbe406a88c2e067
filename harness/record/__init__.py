"""The observer of a run: evaluation, rows, sinks, costs."""
