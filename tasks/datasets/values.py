"""Inputs and labels of any type that NumPy, pandas, PyTorch and Python lists have, checked where they enter.

No conversion loses anything: inputs become float32 only if float32 resolves them.
"""

from __future__ import annotations

import math
import numbers
import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.wording import first_line
from tasks.datasets.errors import DataError

EXACT = 2**24  # float32 represents all whole numbers up to here
LARGEST = float(np.finfo(np.float32).max)
SHARP = 1e-4  # largest rounding error of float32, in standard deviations of a feature
# columns of row numbers: an index that was reset, exported or asked for
NUMBERING = re.compile(r"|index|level_\d+|Unnamed: \d+|row_nr|rownames|row\.names")
LAYOUTS = ("channels_first", "channels_last")
REMEDY = "labels must be whole numbers from 0, or words"


def array(value: Any, where: str) -> NDArray[Any]:
    """Anything with a shape as an array. A list keeps the types of its items: NumPy would turn [1, "a"] into words."""
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        raise DataError(f"{where}: {int(np.ma.getmaskarray(value).sum())} values are masked; fill or drop them")
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.float() if str(value.dtype) == "torch.bfloat16" else value
    try:
        made = np.asarray(value)
        if isinstance(value, (list, tuple)) and made.ndim == 1 and made.dtype.kind in "USfT":
            made = np.array(value, dtype=object)
    except (ValueError, TypeError) as error:  # rows of different lengths
        raise DataError(f"{where}: cannot be read as an array ({first_line(error)})") from error
    return made


def inputs(value: Any, where: str, layout: str | None = None) -> NDArray[Any]:
    """[n, ...] as bytes of images with the channels first, or as finite float32 or float64."""
    x = array(value, where)
    if x.dtype.kind == "O" and all(isinstance(v, (numbers.Real, np.bool_)) for v in x.flat):
        x = x.astype(np.float64)
    if x.dtype.kind not in "buif":
        raise DataError(f"{where}: type {x.dtype}; expected numbers")
    for i, name in enumerate(getattr(value, "columns", ()) if x.ndim == 2 else ()):
        if NUMBERING.fullmatch(str(name)) and (x[:, i] % 1 == 0).all() and len(np.unique(x[:, i])) == len(x):
            raise DataError(f"{where}: column {name} numbers the rows; drop it, or rename it if it is a feature")
    if x.ndim not in (2, 3, 4):
        raise DataError(f"{where}: shape {list(x.shape)}; expected [n, features], [n, h, w] or [n, channels, h, w]")
    if not x.size:
        raise DataError(f"{where}: empty, shape {list(x.shape)}; expected at least one row")
    if x.ndim == 4 and _last(x.shape[1:], where, layout):
        x = x.transpose(0, 3, 1, 2)
    x = x[:, None] if x.ndim == 3 else x
    if x.dtype == np.uint8 and x.ndim == 4:
        return x
    return floats(x, where)


def _last(shape: Sequence[int], where: str, layout: str | None) -> bool:
    """Whether images of this shape have their channels last. DataError if the shape does not settle it."""
    if layout is not None:
        return layout == "channels_last"
    a, b, c = shape
    if (a in (1, 3)) != (c in (1, 3)):
        return c in (1, 3)
    if b == c and a != b and a not in (1, 3):
        return False  # square, whatever the number of channels
    raise DataError(
        f"{where}: images of shape {list(shape)} are {a} channels of {b}x{c}, or {c} channels of {a}x{b}; set "
        "dataset.layout=channels_first or channels_last"
    )


def floats(x: NDArray[Any], where: str | Callable[[int], str]) -> NDArray[Any]:
    """Numbers [n, ...] as float32 if that is exact for their type, else as float64; all finite and within float32."""
    kind = x.dtype.kind
    small = kind == "b" or (kind in "iu" and (x.itemsize <= 2 or max(abs(int(x.min())), int(x.max())) <= EXACT))
    if small:
        return x.astype(np.float32)
    wide = x.astype(np.float32 if kind == "f" and x.itemsize <= 4 else np.float64)
    if x.itemsize > 4 and wide.dtype != x.dtype and not _resolved(x, wide):
        largest = max(abs(int(x.max())), abs(int(x.min()))) if kind in "iu" else x.max()
        place = where(0) if callable(where) else where
        raise DataError(f"{place}: values up to {largest} differ by less than float64 resolves; subtract an offset")
    bad = ~(np.abs(wide) <= LARGEST).reshape(len(wide), -1).all(1)
    if bad.any():
        row = int(bad.argmax())
        value = wide[row][~(np.abs(wide[row]) <= LARGEST)][0] if wide.ndim > 1 else wide[row]
        place = where(row) if callable(where) else f"{where}[{row}]"
        count = f"{int(bad.sum())} of {len(wide)} rows are not finite"
        raise DataError(f"{place}: {value}; {count}, or beyond float32; fill, scale or drop them")
    return wide


def _resolved(x: NDArray[Any], wide: NDArray[Any]) -> bool:
    """Whether float64 keeps whole numbers beyond 2^53, or long doubles, to a small part of their spread."""
    axes = _axes(x)
    if x.dtype.kind == "f":
        error, above = np.abs(x - wide), x - x.min(axes, keepdims=True)
    elif max(abs(int(x.max())), abs(int(x.min()))) <= 2**53:
        return True
    else:
        above = (x - x.min(axes, keepdims=True)).view(f"u{x.itemsize}")  # the difference is exact modulo 2^64
        error = np.spacing(np.abs(wide))
    return bool((error.max(axes) <= SHARP * _spread(above.astype(np.float64))).all())


def _axes(x: NDArray[Any]) -> tuple[int, ...]:
    return (0, *range(2, x.ndim))


def _spread(x: NDArray[Any]) -> NDArray[np.float64]:
    """Standard deviation of each channel or feature; infinite if it is constant, which any type keeps."""
    axes = _axes(x)
    return np.where(x.max(axes) > x.min(axes), x.std(axes, dtype=np.float64), np.inf)


def narrowed(x: NDArray[Any], train: int, normalise: str, name: str) -> NDArray[Any]:
    """float64 as float32. Features that float32 would round too much lose their training minimum first.

    Both normalisations are the same after such a shift, and `none` is refused (DataError).
    """
    if x.dtype != np.float64:
        return x
    narrow, axes = x.astype(np.float32), _axes(x)
    bad = np.abs(x - narrow).max(axes) > SHARP * _spread(x[:train])
    if bad.any() and normalise == "none":
        feature = int(bad.argmax())
        raise DataError(
            f"dataset.normalise=none: float32 cannot tell values of feature {feature} of {name} apart (such as "
            f"{float(x[:, feature].flat[0])!r}); use standard or unit, which centre first, or subtract an offset"
        )
    narrow[:, bad] = x[:, bad] - x[:train, bad].min(axes, keepdims=True)
    return narrow


def labels(value: Any, where: str, at: Callable[[int], str] | None = None) -> NDArray[Any]:
    """[n] words, or whole numbers; `at` gives a row's place. DataError for anything else, with the remedy."""
    place = at or (lambda row: f"{where}[{row}]")
    y = array(value, where)
    if y.ndim != 1:
        if not y.ndim:
            raise DataError(f"{where}: type {type(value).__name__}; expected one label per row, [n]")
        hint = "; use y.argmax(1)" if y.ndim == 2 and y.shape[1] > 1 else "; use y.ravel()"
        raise DataError(f"{where}: shape {list(y.shape)}; expected one label per row, [n]{hint}")
    if y.dtype.kind in "OST":
        y = _of_objects(y.tolist(), where, place)
    if y.dtype.kind == "f":
        if (empty := np.isnan(y)).any():
            raise DataError(f"{place(int(empty.argmax()))}: empty; {_share(empty)}; fill or drop them")
        wrong = ~(np.isfinite(y) & (y == np.floor(y)) & (np.abs(y) < 2.0**63))
        if wrong.any():
            row = int(wrong.argmax())
            raise DataError(f"{place(row)}: {y[row]} is not a whole number; {REMEDY}; round or group them")
        y = y.astype(np.int64)
    if y.dtype.kind == "u" and y.size and y.max() > np.iinfo(np.int64).max:
        raise DataError(f"{place(int(y.argmax()))}: label {y.max()} is too large; {REMEDY}")
    if y.dtype.kind == "U":
        blank = np.flatnonzero(np.char.strip(y) == "")
        if len(blank):
            raise DataError(
                f"{place(int(blank[0]))}: empty; {len(blank)} of {len(y)} rows are empty; fill or drop them"
            )
    if y.dtype.kind not in "biuU":
        raise DataError(f"{where}: type {y.dtype}; expected whole numbers from 0, or words")
    return y


def _share(empty: NDArray[Any]) -> str:
    return f"{int(empty.sum())} of {len(empty)} rows are empty"


def _of_objects(values: Sequence[Any], where: str, place: Callable[[int], str]) -> NDArray[Any]:
    """Python objects (and what pandas makes of its own types) as words, or as whole numbers."""
    made: list[Any] = []
    for row, v in enumerate(values):
        if v is None or type(v).__name__ in ("NAType", "NaTType") or (isinstance(v, float) and math.isnan(v)):
            raise DataError(f"{place(row)}: empty; fill or drop it")
        if isinstance(v, bytes):
            try:
                v = v.decode()
            except UnicodeDecodeError as error:
                raise DataError(f"{place(row)}: {v!r} is not UTF-8; decode the labels") from error
        if isinstance(v, str):
            made.append(str(v))
        elif isinstance(v, (numbers.Real, np.bool_)) or type(v).__name__ == "Decimal":
            if v != (whole := math.floor(v) if math.isfinite(v) else None):
                raise DataError(f"{place(row)}: {v} is not a whole number; {REMEDY}; round or group them")
            if not -(2**63) <= whole < 2**63:
                raise DataError(f"{place(row)}: label {v} is too large; {REMEDY}")
            made.append(whole)
        else:
            raise DataError(f"{place(row)}: type {type(v).__name__}; {REMEDY}")
        if isinstance(made[row], str) != isinstance(made[0], str):
            raise DataError(f"{place(row)}: {v!r}, but {place(0)} is {values[0]!r}; use words or numbers, not both")
    return np.array(made, dtype=np.str_ if made and isinstance(made[0], str) else np.int64)


def check_order(x: Any, y: Any, where: str) -> None:
    """DataError for pandas' x and y with one index in two orders: rows would get labels of other rows."""
    both = hasattr(x, "iloc") and hasattr(y, "iloc") and len(x) == len(y) and not x.index.equals(y.index)
    if both and x.index.is_unique and len(x.index.union(y.index)) == len(x):
        raise DataError(f"{where} have the same pandas index in another order; use y.loc[x.index]")


def alike(names: Sequence[str], where: str) -> list[str]:
    """A note on names that differ only by case. DataError for names that look the same (spaces, forms of a letter)."""
    seen: dict[str, str] = {}
    cased: dict[str, str] = {}
    notes = []
    for name in names:
        plain = " ".join(unicodedata.normalize("NFC", name).split())
        if plain in seen:
            raise DataError(
                f"{where}: classes {seen[plain]!r} and {name!r} differ only by spaces or by the encoding of a letter; "
                "spell them the same way"
            )
        seen[plain] = name
        twin = cased.setdefault(plain.casefold(), name)
        if twin != name:
            notes.append(f"{twin} and {name} differ only by case")
    return [notes[0] + (f" ({len(notes)} such pairs)" if notes[1:] else "")] if notes else []
