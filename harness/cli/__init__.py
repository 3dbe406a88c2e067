"""The command line."""

from harness.cli.entry import main

__all__ = ["main"]
