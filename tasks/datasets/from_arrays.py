"""A user's arrays: from an npz file, from a Python function, or passed in."""

from __future__ import annotations

import math
import tokenize
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from harness.wording import first_line
from tasks.datasets.dataset import Dataset, Preparation
from tasks.datasets.errors import DataError
from tasks.datasets.limits import check_memory, size_of
from tasks.datasets.own import existing, joined
from tasks.datasets.parts import PARTS, arrays_of
from tasks.datasets.values import LAYOUTS, check_order, inputs, labels

# what zipfile and NumPy raise for damaged or encrypted files
UNREADABLE = (OSError, ValueError, EOFError, RuntimeError, SyntaxError, TypeError, KeyError, tokenize.TokenError,
              zipfile.BadZipFile, zlib.error)  # fmt: skip


def npz(
    path: str | Path | None,
    val: float = 0.1,
    test: float = 0.2,
    normalise: str = "standard",
    pad: int = 0,
    size: int | None = None,
    features: Any = None,
    augment: Sequence[str] = (),
    layout: str | None = None,
) -> Dataset:
    """A NumPy file (numpy.savez): x_train, y_train, x_test, y_test and optionally x_val, y_val; or x, y.

    Inputs are [n, features], or images [n, h, w], [n, channels, h, w] or [n, h, w, channels]; `layout`
    (channels_first, channels_last) settles shapes that could be either. Bytes are pixels. Other numbers are normalised
    in float64 if float32 would round them, and become float32 then. Labels are words, or whole numbers from 0; each
    class needs a training row. With x, y, a stratified fraction `test` is held out. Other spellings of the names, such
    as X_train and x_valid, are understood. Raises DataError for data that does not fit.
    """
    how = Preparation(val, test, normalise, pad, size, features, augment)
    file = existing(path, "a file written by numpy.savez")
    names = _headers(file)
    return _prepared(names, lambda name: _read(file, name), file.stem, str(file), how, layout)


def _headers(file: Path) -> list[str]:
    """Names of the arrays. DataError if a header claims another size than its array has."""
    try:
        with zipfile.ZipFile(file) as packed:
            entries = packed.infolist()
            for name, count in Counter(e.filename for e in entries).items():
                if count > 1:
                    raise DataError(f"{file}: array {name.removesuffix('.npy')} is stored {count} times; store it once")
            for entry in entries:
                if entry.filename.endswith(".npy"):
                    _check_header(packed, entry, file)
    except DataError:
        raise
    except UNREADABLE as error:
        raise _unreadable(file, error) from error
    return [e.filename.removesuffix(".npy") for e in entries]


def _check_header(packed: zipfile.ZipFile, entry: zipfile.ZipInfo, file: Path) -> None:
    with packed.open(entry) as stream:
        version = np.lib.format.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            return  # 3.0 has field names, which neither inputs nor labels have
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(stream)
        claimed, there = math.prod(shape) * dtype.itemsize, entry.file_size - stream.tell()
    if not dtype.hasobject and claimed != there:
        name = entry.filename.removesuffix(".npy")
        raise DataError(
            f"{file}: {name}: its header says {size_of(claimed)}, but it has {size_of(there)}; write the file again"
        )
    check_memory(entry.file_size, f"{file}: {entry.filename.removesuffix('.npy')}", "store fewer or smaller rows")


def _read(file: Path, name: str) -> Any:
    try:
        with np.load(file, allow_pickle=False) as loaded:
            return loaded[name]
    except UNREADABLE as error:
        raise _unreadable(file, error) from error
    except MemoryError as error:
        raise DataError(f"{file}: {name}: does not fit into memory; store fewer or smaller rows") from error


def _unreadable(file: Path, error: Exception) -> DataError:
    if "Object arrays" in str(error):
        return DataError(f"{file}: contains Python objects, which could run code; save numbers or words")
    return DataError(f"{file}: cannot be read as npz ({first_line(error)}); write it with numpy.savez")


def arrays(
    found: Mapping[str, Any],
    name: str,
    *,
    val: float = 0.1,
    test: float = 0.2,
    normalise: str = "standard",
    pad: int = 0,
    size: int | None = None,
    features: Any = None,
    augment: Sequence[str] = (),
    layout: str | None = None,
    where: str = "",
) -> Dataset:
    """A data set from arrays in memory, with the names that `npz` reads.

    >>> x, y = np.arange(24.0).reshape(12, 2), np.arange(12) % 3
    >>> data = arrays({"x": x, "y": y}, "mine", test=0.25)
    >>> data.shape, data.classes, len(data.train), len(data.val), len(data.test)
    ((2,), 3, 8, 1, 3)
    """
    how = Preparation(val, test, normalise, pad, size, features, augment)
    return _of(found, name, where or f"dataset={name}", how, layout)


def _of(found: Mapping[str, Any], name: str, where: str, how: Preparation, layout: str | None) -> Dataset:
    if not isinstance(found, Mapping):
        raise DataError(f"{where}: type {type(found).__name__}; expected a mapping with x_train, y_train, ... or x, y")
    given = {str(k): v for k, v in found.items()}
    return _prepared(list(given), given.__getitem__, name, where, how, layout)


def _prepared(
    names: Sequence[str], get: Callable[[str], Any], name: str, where: str, how: Preparation, layout: str | None
) -> Dataset:
    if layout is not None and layout not in LAYOUTS:
        raise ValueError(f"dataset.layout={layout}: must be {' or '.join(LAYOUTS)}, or null if the shape settles it")
    wanted, others = arrays_of(names, where)
    known = ["x", "y"] if wanted["train"][0] in ("x", "X") else [f"{a}_{p}" for p in PARTS for a in "xy"]
    for n in [n for pair in wanted.values() for n in pair]:
        if n not in names:
            raise DataError(f"{where}: no array {n}; found {', '.join(names) or 'none'}; expected {', '.join(known)}")
    parts = {}
    for part, (kx, ky) in wanted.items():
        given = get(kx), get(ky)
        x, y = inputs(given[0], f"{where}: {kx}", layout), labels(given[1], f"{where}: {ky}")
        if len(x) != len(y):
            raise DataError(f"{where}: {len(y)} labels in {ky} for {len(x)} rows in {kx}")
        check_order(*given, f"{where}: {kx} and {ky}")
        parts[part] = x, y
    first, width = parts["train"][0], wanted["train"][0]
    for part, (kx, _) in wanted.items():
        x = parts[part][0]
        if x.shape[1:] != first.shape[1:] or (x.dtype == np.uint8) != (first.dtype == np.uint8):
            raise DataError(
                f"{where}: rows of {kx} are {x.dtype} of shape {list(x.shape[1:])}, "
                f"those of {width} {first.dtype} of shape {list(first.shape[1:])}"
            )
    notes = [f"arrays left out: {', '.join(others)}"] if others else []
    return joined(name, parts, lambda part, row: f"{where}: {wanted[part][1]}[{row}]", how, notes)


def function(
    make: Any,
    val: float = 0.1,
    test: float = 0.2,
    normalise: str = "standard",
    pad: int = 0,
    size: int | None = None,
    features: Any = None,
    augment: Sequence[str] = (),
    layout: str | None = None,
) -> Dataset:
    """The result of a user's function: a mapping with the arrays that `npz` reads, or a tuple of them.

    The tuple is (x_train, y_train, x_test, y_test) or (x, y). `dataset.make._target_=my_module.my_function` names the
    function.
    """
    if isinstance(make, Dataset):
        return make
    if isinstance(make, (tuple, list)) and len(make) in (2, 4):
        make = dict(zip(("x", "y") if len(make) == 2 else ("x_train", "y_train", "x_test", "y_test"), make))
    if not isinstance(make, Mapping):
        raise ValueError(
            f"dataset.make: returned {type(make).__name__}; expected (x, y), (x_train, y_train, x_test, y_test) or a "
            "mapping with these names"
        )
    how = Preparation(val, test, normalise, pad, size, features, augment)
    return _of(make, "function", "dataset.make", how, layout)


def nothing() -> None:
    """The placeholder in dataset=function."""
    raise ValueError("dataset.make._target_: name your function, as in dataset.make._target_=my_module.my_function")
