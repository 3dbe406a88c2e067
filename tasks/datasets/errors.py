"""What a loader raises when data are missing or broken."""

from __future__ import annotations

from pathlib import Path


class DataError(ValueError):
    """Data that is missing or corrupt: one line with what, where, and the remedy."""


def corrupt(path: Path, reason: str) -> DataError:
    return DataError(f"{path}: unreadable or corrupt data file ({reason}); replace it, or delete it and rerun")
