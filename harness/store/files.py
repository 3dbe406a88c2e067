"""Files that are written whole or not at all: text, and archives of tensors."""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness.store.errors import check_version


def now() -> str:
    """UTC time, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path; on success it is flushed to disk and renamed to `path`."""
    # never ends in .parquet: DuckDB's wildcard reads dot files too
    tmp = path.parent / f".{path.name}.{os.getpid()}.tmp"
    try:
        yield tmp
        flush(tmp)
        os.replace(tmp, path)
    finally:
        tmp.unlink(missing_ok=True)
    flush(path.parent)


def flush(path: Path) -> None:
    """Force a file or a folder's entries to the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_text(path: Path, text: str) -> None:
    """Replace a text file atomically."""
    with replacing(path) as tmp:
        tmp.write_text(text, "utf-8")


def save(path: Path, value: Mapping[str, Any], previous: Path | None = None) -> None:
    """Write tensors and primitives; the file that was at `path` becomes `previous`."""
    import torch

    with replacing(path) as tmp:
        with tmp.open("wb") as file:
            try:
                torch.save(value, file)
            except RuntimeError as error:  # torch closes its archive after an interruption, and fails a second time
                if isinstance(error.__context__, (OSError, KeyboardInterrupt)):
                    raise error.__context__ from None
                raise
        if previous is not None and path.exists():
            flush(tmp)  # the disk always holds one complete checkpoint
            os.replace(path, previous)


def load(path: Path) -> dict[str, Any]:
    """Read a file of tensors and primitives onto the CPU; no code in the file is run. SchemaError."""
    import torch

    with zipfile.ZipFile(path) as file:  # torch.load compares no checksums: a flipped bit would load
        if damaged := file.testzip():
            raise ValueError(f"{damaged} is damaged")
    loaded: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    check_version(path.parent, loaded["schema_version"])
    return loaded


def portable(value: Any, key: str) -> Any:
    """A copy that `torch.load(weights_only=True)` reads anywhere: CPU tensors and primitives. ValueError for others."""
    import torch

    if isinstance(value, torch.Tensor):
        tensor = value.detach().cpu()
        # a view would save its whole storage, e.g. the whole data set for one task's rows
        return tensor.clone() if tensor.untyped_storage().nbytes() > tensor.numel() * tensor.element_size() else tensor
    if value is None or type(value) in (bool, int, float, str, bytes, torch.dtype, torch.device):
        return value
    if isinstance(value, Mapping):
        return {portable(k, f"{key} key"): portable(v, f"{key}.{k}") for k, v in value.items()}
    if type(value) in (list, tuple, torch.Size):
        return type(value)(portable(v, f"{key}.{i}") for i, v in enumerate(value))
    raise ValueError(
        f"{key}: a {type(value).__name__} cannot be saved in a checkpoint; use tensors, numbers and strings"
        " (array -> tensor, scalar -> .item(), config -> dict)"
    )


def jsonable(value: Any) -> Any:
    """A value that JSON can hold: NaN and infinity become null, paths and other objects their text."""
    if isinstance(value, Mapping):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [jsonable(v) for v in value]
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str, list)) else str(value)
