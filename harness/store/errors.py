"""What can be wrong with a results folder: one line that names the path."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.wording import first_line

SCHEMA_VERSION = 1


class StoreError(ValueError):
    """The results folder cannot be written or read as asked."""


class RunLocked(StoreError):
    """Another process holds the run's lock."""


class SchemaError(StoreError):
    """The run was written under another schema version."""


def check_version(folder: Path, version: object) -> None:
    """SchemaError unless `version` is this program's."""
    if version != SCHEMA_VERSION:
        raise SchemaError(
            f"{folder}: written under schema version {version}, but this program reads version {SCHEMA_VERSION};"
            " use the program that wrote it, or rerun with force=true"
        )


@contextmanager
def reporting(path: Path, remedy: str = "results=FOLDER") -> Iterator[None]:
    """Turn an OSError (disk full, no permission) into a StoreError: the path, and how to choose another."""
    try:
        yield
    except OSError as error:
        what = error.strerror or first_line(error)
        raise StoreError(
            f"{path}: {what[0].lower()}{what[1:]}; check permissions and free space, or choose another path with"
            f" {remedy}"
        ) from error
