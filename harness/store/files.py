"""Files that are written whole or not at all: text, and archives of tensors."""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.store.errors import Damaged, StoreError, check_version, kind_of, regular
from harness.wording import first_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def now() -> str:
    """UTC time, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path; on success it is flushed to disk and renamed to `path`.

    StoreError if `path` is a folder, a device or a pipe: these are not replaced.
    """
    if kind := kind_of(path):
        raise StoreError(f"{path}: is {kind}, and only files are replaced; choose another name")
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


def save_figure(figure: Figure, path: Path) -> None:
    """Replace a figure atomically, and without a date."""
    with replacing(path) as tmp:
        date = {"metadata": {"Date": None}} if path.suffix == ".svg" else {}
        figure.savefig(tmp, format=path.suffix[1:], dpi=160, **date)  # type: ignore[arg-type]


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
    """Read a file of tensors and primitives onto the CPU; no code in the file is run. Raises Damaged, SchemaError."""
    import torch

    regular(path)
    try:
        with zipfile.ZipFile(path) as file:
            _check_members(file, path.stat().st_size)
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(loaded, dict):
            raise ValueError(f"holds a {type(loaded).__name__}, not a mapping")
        version = loaded["schema_version"]
        _check_tensors(loaded)
    except OSError:
        raise
    except Exception as error:  # a damaged file may fail anywhere in zip, pickle or torch
        raise Damaged(path, first_line(error, 200)) from error
    check_version(path.parent, version)
    return loaded


def _check_members(file: zipfile.ZipFile, size: int) -> None:
    """ValueError for an archive that needs more memory than its size, or whose checksums differ."""
    members = file.infolist()
    if any(m.compress_type != zipfile.ZIP_STORED for m in members) or sum(m.file_size for m in members) > size:
        raise ValueError("its contents are larger than the file")
    if damaged := file.testzip():  # torch.load compares no checksums: a flipped bit would load
        raise ValueError(f"the checksum of {damaged} differs")


def _check_tensors(value: Any) -> None:
    """ValueError for a tensor that is larger than its storage, as a stride of 0 makes it."""
    import torch

    if isinstance(value, torch.Tensor):
        if value.is_sparse or value.untyped_storage().nbytes() < value.numel() * value.element_size():
            raise ValueError("a tensor is larger than what is stored of it")
    elif isinstance(value, Mapping):
        for part in value.values():
            _check_tensors(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            _check_tensors(part)


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
