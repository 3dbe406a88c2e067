"""The committed pages about strategies, streams and metrics."""
