"""Strategies: one method per file, each a subclass of harness.strategy.Strategy."""
