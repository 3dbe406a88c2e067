"""Decoded arrays on disk: one file per data set, checked by digest, rebuilt when its sources change."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from harness.store.known import SETTLED, home

Arrays = dict[str, NDArray[Any]]
T = TypeVar("T")
VERSION = 2  # of the file format and of how images are decoded


def cached(name: str, sources: Iterable[Path], settings: Any, make: Callable[[], Arrays]) -> Arrays:
    """The result of `make`, read from the user's cache if sources and settings are unchanged.

    A source is identified by its path, size and modification time. Cached content is checked by its sha256; a damaged
    file is rebuilt. Files are written under a temporary name and renamed. Nothing is cached if that fails, or if a
    source is so recent that another change might keep its time.
    """
    files = [p for source in sources for p in ([source] if source.is_file() else _below(source))]
    stats = [p.stat() if p.exists() else p.lstat() for p in files]  # lstat: a broken link
    facts = [[str(p), s.st_size, s.st_mtime_ns] for p, s in zip(files, stats)]
    stamp = hashlib.sha256(json.dumps([VERSION, settings, facts]).encode()).hexdigest()
    where = hashlib.sha256(json.dumps([settings, sorted({str(p.parent) for p in files})]).encode()).hexdigest()[:12]
    file = home() / "decoded" / f"{''.join(c if c.isalnum() or c in '-_' else '-' for c in name)}-{where}"
    found = _read(file, stamp) if files else None
    if found is not None:
        return found
    made = make()
    if files and time.time() - max(s.st_mtime for s in stats) > SETTLED:
        with suppress(OSError):  # with a full or read-only disk, the next call decodes again
            _write(file, stamp, made)
    return made


def _below(folder: Path) -> Iterator[Path]:
    for base, folders, names in os.walk(folder):
        folders.sort()
        yield from (Path(base, name) for name in sorted(names))


def _read(file: Path, stamp: str) -> Arrays | None:
    """None if the file is missing, damaged, or of other sources."""
    try:
        with file.open("rb") as stream:
            head = json.loads(stream.readline(1 << 20))
            if head["stamp"] != stamp:
                return None
            data = bytearray(head["bytes"])
            if stream.readinto(data) != len(data) or stream.read(1):
                return None
    except (OSError, ValueError, KeyError, TypeError, MemoryError):
        return None
    if hashlib.sha256(data).hexdigest() != head["sha256"]:
        return None
    found, start = {}, 0
    for name, dtype, shape in head["arrays"]:
        count = int(np.prod(shape, dtype=np.int64))
        found[name] = np.frombuffer(data, np.dtype(dtype), count, start).reshape(shape)
        start += found[name].nbytes
    return found


def _write(file: Path, stamp: str, arrays: Arrays) -> None:
    whole = {k: np.ascontiguousarray(v) for k, v in arrays.items()}
    sha = hashlib.sha256()
    for v in whole.values():
        sha.update(v.data.cast("B") if v.nbytes else b"")
    head = {
        "stamp": stamp,
        "sha256": sha.hexdigest(),
        "bytes": sum(v.nbytes for v in whole.values()),
        "arrays": [[k, v.dtype.str, list(v.shape)] for k, v in whole.items()],
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=file.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(json.dumps(head).encode() + b"\n")
            for v in whole.values():
                stream.write(v.data.cast("B") if v.nbytes else b"")
        os.replace(temporary, file)
    except BaseException:
        os.unlink(temporary)
        raise


def progress(items: Sequence[T], what: str) -> Iterator[T]:
    """The items, with a progress bar if standard error is a terminal, else one line; nothing for fewer than 1000."""
    if len(items) < 1000:
        yield from items
    elif not sys.stderr.isatty():
        print(f"{what}: {len(items):,}", file=sys.stderr)
        yield from items
    else:
        from rich.console import Console
        from rich.progress import track

        yield from track(items, what, console=Console(stderr=True), transient=True)
