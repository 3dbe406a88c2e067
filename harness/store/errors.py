"""What can be wrong with a results folder: one line that names the path."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.wording import first_line

SCHEMA_VERSION = 2
READABLE = (1, SCHEMA_VERSION)  # harness/store/versions.py reads the first as the second


class StoreError(ValueError):
    """The results folder cannot be written or read as asked."""


class RunLocked(StoreError):
    """Another process holds the run's lock."""


class SchemaError(StoreError):
    """The run was written under another schema version."""


class Damaged(StoreError):
    """A file of a run cannot be read, or does not contain what it should."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"{path}: damaged ({why}); rerun with force=true, or delete the run")
        self.path = path


SPECIAL = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device",
           stat.S_IFBLK: "a device"}  # fmt: skip


def kind_of(path: Path) -> str:
    """What a path is if it is not a regular file; empty if it is, or nothing is there."""
    try:
        return SPECIAL.get(stat.S_IFMT(os.stat(path).st_mode), "")
    except OSError:
        return ""


def regular(path: Path) -> None:
    """Damaged unless `path` is a regular file or missing: to read a pipe would wait for ever."""
    if kind := kind_of(path):
        raise Damaged(path, f"{kind}, not a file")


def check_version(folder: Path, version: object) -> None:
    """SchemaError unless this program reads `version`."""
    if version not in READABLE:
        raise SchemaError(
            f"{folder}: written under schema version {version}, but this program reads versions"
            f" {' and '.join(map(str, READABLE))};"
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
