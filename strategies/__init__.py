"""Strategies: one method a file, each a subclass of harness.strategy.Strategy."""
