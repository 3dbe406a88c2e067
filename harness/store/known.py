"""What a data set was when it was last read: a run that is finished is then found without reading it again.

One small file for each configuration of a data set, in the user's cache folder. It counts only as long as the files
that the data were read from have their sizes and times.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from harness.store.files import write_text

SETTLED = 2.0  # seconds; a file older than this gets a new time if it changes again


def home() -> Path:
    """The user's folder for data that can be recomputed or downloaded again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "harness"


def remember(spec: Mapping[str, Any], data: Any) -> None:
    """Note name and digest of a data set with this configuration, and the state of its `sources`.

    Not if it has none, if one is a folder, or is so recent that another change might keep its time.
    """
    state = _state(getattr(data, "sources", ()))
    if state and time.time() - max(entry[2] for entry in state) / 1e9 > SETTLED:
        with suppress(OSError, ValueError):  # with a full or read-only disk, the data are read again
            _file(spec).parent.mkdir(parents=True, exist_ok=True)
            write_text(_file(spec), json.dumps({"name": data.name, "digest": data.digest, "state": state}))


def recall(spec: Mapping[str, Any]) -> tuple[str, str] | None:
    """Name and digest of the data set with this configuration; None if unknown, or if a file has changed since."""
    try:
        found = json.loads(_file(spec).read_bytes())
        name, digest, state = str(found["name"]), str(found["digest"]), found["state"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return (name, digest) if state and state == _state([Path(entry[0]) for entry in state]) else None


def _state(sources: Sequence[Path]) -> list[list[Any]]:
    """Path, size and time of each file, -1 and 0 if it is missing; empty if one is neither a file nor missing."""
    found: list[list[Any]] = []
    for path in sources:
        try:
            about = os.stat(path)
        except FileNotFoundError:
            found.append([str(path), -1, 0])
            continue
        except OSError:
            return []
        if not stat.S_ISREG(about.st_mode):
            return []
        found.append([str(path), about.st_size, about.st_mtime_ns])
    return found


def _file(spec: Mapping[str, Any]) -> Path:
    text = json.dumps(spec, sort_keys=True)
    return home() / "known" / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
