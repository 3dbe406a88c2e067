"""A user's arrays: from an npz file, from a Python function, or passed in."""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.wording import first_line
from tasks.datasets.dataset import Dataset, Preparation
from tasks.datasets.errors import DataError
from tasks.datasets.own import PARTS, existing, joined


def npz(
    path: str | Path | None,
    val: float = 0.1,
    test: float = 0.2,
    normalise: str = "standard",
    pad: int = 0,
    size: int | None = None,
    features: str | None = None,
    augment: Sequence[str] = (),
) -> Dataset:
    """A NumPy file (numpy.savez): x_train, y_train, x_test, y_test and optionally x_val, y_val; or x, y.

    Inputs are [n, features], or images [n, h, w], [n, channels, h, w] or [n, h, w, channels]; bytes are pixels, other
    numbers become float32. Labels are words, or whole numbers from 0; each class needs a training row. With x, y, a
    stratified fraction `test` is held out. Raises DataError for data that does not fit.
    """
    how = Preparation(val, test, normalise, pad, size, features, augment)
    file = existing(path, "a file written by numpy.savez")
    return _prepared(_npz(file), file.stem, str(file), how)


def _npz(file: Path) -> dict[str, NDArray[Any]]:
    try:
        with zipfile.ZipFile(file) as packed:
            for name, count in Counter(packed.namelist()).items():
                if count > 1:
                    raise DataError(f"{file}: array {name.removesuffix('.npy')} is stored {count} times; store it once")
        with np.load(file, allow_pickle=False) as loaded:
            return {k: loaded[k] for k in loaded.files}
    except DataError:
        raise
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        if "Object arrays" in str(error):
            raise DataError(f"{file}: contains Python objects, which could run code; save numbers or words") from error
        raise DataError(f"{file}: cannot be read as npz ({first_line(error)}); write it with numpy.savez") from error


def arrays(
    found: Mapping[str, Any],
    name: str,
    *,
    val: float = 0.1,
    test: float = 0.2,
    normalise: str = "standard",
    pad: int = 0,
    size: int | None = None,
    features: str | None = None,
    augment: Sequence[str] = (),
    where: str = "",
) -> Dataset:
    """A data set from arrays in memory, with the names that `npz` reads.

    >>> x, y = np.arange(24.0).reshape(12, 2), np.arange(12) % 3
    >>> data = arrays({"x": x, "y": y}, "mine", test=0.25)
    >>> data.shape, data.classes, len(data.train), len(data.val), len(data.test)
    ((2,), 3, 8, 1, 3)
    """
    how = Preparation(val, test, normalise, pad, size, features, augment)
    return _prepared(found, name, where or f"dataset={name}", how)


def _prepared(found: Mapping[str, Any], name: str, where: str, how: Preparation) -> Dataset:
    if not isinstance(found, Mapping):
        raise DataError(f"{where}: type {type(found).__name__}; expected a mapping with x_train, y_train, ... or x, y")
    whole = "x" in found or "y" in found
    wanted = [("train", "x", "y")] if whole else [(p, f"x_{p}", f"y_{p}") for p in PARTS]
    known = [n for _, *pair in wanted for n in pair]
    if not whole:
        wanted = [w for w in wanted if w[0] != "val" or w[1] in found or w[2] in found]
    for n in [n for _, *pair in wanted for n in pair]:
        if n not in found:
            raise DataError(f"{where}: no array {n}; found {', '.join(found) or 'none'}; expected {', '.join(known)}")
    parts = {}
    for part, kx, ky in wanted:
        x, y = _inputs(np.asarray(found[kx]), f"{where}: {kx}"), _labels(np.asarray(found[ky]), f"{where}: {ky}")
        if len(x) != len(y):
            raise DataError(f"{where}: {len(y)} labels in {ky} for {len(x)} rows in {kx}")
        parts[part] = x, y
    first, width = parts["train"][0], wanted[0][1]
    for part, kx, _ in wanted:
        x = parts[part][0]
        if x.shape[1:] != first.shape[1:] or x.dtype != first.dtype:
            raise DataError(
                f"{where}: rows of {kx} are {x.dtype} of shape {list(x.shape[1:])}, "
                f"those of {width} {first.dtype} of shape {list(first.shape[1:])}"
            )
    called = {part: ky for part, _, ky in wanted}
    return joined(name, parts, lambda part, row: f"{where}: {called[part]}[{row}]", how)


def _inputs(x: NDArray[Any], where: str) -> NDArray[Any]:
    """[n, ...] as bytes of images with the channels first, or as finite float32."""
    if x.dtype.kind not in "buif":
        raise DataError(f"{where}: type {x.dtype}; expected numbers")
    if x.ndim not in (2, 3, 4):
        raise DataError(f"{where}: shape {list(x.shape)}; expected [n, features], [n, h, w] or [n, channels, h, w]")
    if not x.size:
        raise DataError(f"{where}: empty, shape {list(x.shape)}; expected at least one row")
    if x.ndim == 4 and x.shape[3] in (1, 3) and x.shape[1] not in (1, 3):
        x = x.transpose(0, 3, 1, 2)
    x = x[:, None] if x.ndim == 3 else x
    if x.dtype == np.uint8 and x.ndim == 4:
        return x
    with np.errstate(over="ignore"):
        x = x.astype(np.float32)
    bad = ~np.isfinite(x.reshape(len(x), -1)).all(1)
    if bad.any():
        row = int(bad.argmax())
        value = x[row][~np.isfinite(x[row])][0]
        raise DataError(f"{where}[{row}]: {value}; {int(bad.sum())} of {len(x)} rows are not finite; fill or drop them")
    return x


def _labels(y: NDArray[Any], where: str) -> NDArray[Any]:
    if y.ndim != 1:
        raise DataError(f"{where}: shape {list(y.shape)}; expected one label per row, [n]")
    if y.dtype.kind not in "biuU":
        raise DataError(f"{where}: type {y.dtype}; expected whole numbers from 0, or words")
    return y


def function(
    make: Any,
    val: float = 0.1,
    test: float = 0.2,
    normalise: str = "standard",
    pad: int = 0,
    size: int | None = None,
    features: str | None = None,
    augment: Sequence[str] = (),
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
    return _prepared(make, "function", "dataset.make", how)


def nothing() -> None:
    """The placeholder in dataset=function."""
    raise ValueError("dataset.make._target_: name your function, as in dataset.make._target_=my_module.my_function")
