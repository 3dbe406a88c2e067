"""What the loaders of a user's own data share.

Every error is one line that names the file and, if there is one, the row (counted from 0).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.wording import first_line
from tasks.datasets.dataset import Dataset, Preparation, Raw, finish, hold_out
from tasks.datasets.errors import DataError
from tasks.datasets.limits import check_readable
from tasks.datasets.parts import PARTS
from tasks.datasets.values import alike, narrowed

Where = Callable[[str, int], str]  # (part, row) -> its place in the file, for messages


def existing(path: str | Path | None, what: str) -> Path:
    if path is None or not str(path):
        raise ValueError(f"dataset.path=null: must be the path of {what}")
    try:
        found = Path(str(path)).expanduser()
        there = found.exists()
    except (OSError, RuntimeError) as error:  # a name that is too long, or an unknown ~user
        raise DataError(f"dataset.path={str(path)[:100]}: cannot be read ({first_line(error, 60)})") from error
    if not there:
        above = next((p for p in found.parents if p.exists()), Path("."))
        close = get_close_matches(found.name, [p.name for p in above.iterdir()], 1) if above == found.parent else []
        hint = f"; did you mean {above / close[0]}?" if close else f"; looked in {Path.cwd()}"
        if above != found.parent:
            hint = f"; the folder {found.parent} does not exist either"
        raise DataError(f"dataset.path={path}: not found{hint}")
    check_readable(found, "dataset.path=")
    return found


def numbered(parts: Mapping[str, NDArray[Any]], where: Where) -> tuple[dict[str, NDArray[np.int64]], tuple[str, ...]]:
    """Labels as 0 ... classes - 1, and the classes' names if labels are words. Each class must have a training row."""
    train = parts["train"]
    for part, y in parts.items():
        if (y.dtype.kind == "U") != (train.dtype.kind == "U"):
            kinds = ["words" if v.dtype.kind == "U" else "numbers" for v in (y, train)]
            raise DataError(f"{where(part, 0)}: labels are {kinds[0]}, those of the training rows {kinds[1]}")
    if train.dtype.kind == "U":
        names = sorted(set(train.tolist()))
        number = {n: i for i, n in enumerate(names)}
        for part, y in parts.items():
            for row, label in enumerate(y.tolist()):
                if label not in number:
                    raise DataError(f"{where(part, row)}: class {label} has no training row")
        return {p: np.array([number[v] for v in y.tolist()], np.int64) for p, y in parts.items()}, tuple(names)
    made = {p: y.astype(np.int64) for p, y in parts.items()}
    classes = int(made["train"].max()) + 1
    for part, y in made.items():
        wrong = (y < 0) | (y >= classes)
        if wrong.any():
            row = int(wrong.argmax())
            raise DataError(
                f"{where(part, row)}: label {y[row]} is not in 0 ... {classes - 1}, the labels of the training rows"
            )
    present = np.unique(made["train"])  # an array over all classes would not fit into memory for a label of 1e12
    if len(present) < classes:
        first = int((present != np.arange(len(present))).argmax())
        raise DataError(
            f"{where('train', int(made['train'].argmax()))}: labels go up to {classes - 1}, but class {first} has "
            f"no training row ({classes - len(present)} such classes); number the classes without gaps, or use words "
            "as labels"
        )
    return made, ()


def joined(
    name: str,
    parts: Mapping[str, tuple[NDArray[Any], NDArray[Any]]],
    where: Where,
    how: Preparation,
    notes: Sequence[str] = (),
) -> Dataset:
    """The data set of (inputs, labels) of train and, if there are any, of val and test."""
    labels, names = numbered({p: y for p, (_, y) in parts.items()}, where)
    order = [p for p in PARTS if p in parts]
    x, y = np.concatenate([parts[p][0] for p in order]), np.concatenate([labels[p] for p in order])
    said = [*notes, *alike(names, where("train", 0).rpartition("[")[0] or name)]
    return finished(name, x, y, {p: len(labels[p]) for p in order}, names, how, said)


def finished(
    name: str,
    x: NDArray[Any],
    y: NDArray[np.int64],
    counts: Mapping[str, int],
    names: Sequence[str],
    how: Preparation,
    notes: Sequence[str] = (),
) -> Dataset:
    """The data set of the rows of train, val and test, concatenated. Without test, some training rows are held out."""
    train, given = counts["train"], counts.get("val")
    x = narrowed(x, train, how.normalise, name)
    if "test" not in counts:
        n = train + (given or 0)
        held = hold_out(y[:train], how.test, f"{name}/test")
        kept = np.concatenate([np.delete(np.arange(train), held), np.arange(train, n), held])
        x, y, train = x[kept], y[kept], train - len(held)
        if not train or not len(held):
            raise DataError(
                f"dataset.test={how.test}: leaves {train} of {n} rows for training, {len(held)} for testing; change it"
            )
        _check_classes(y[:train], y, names, f"dataset.test={how.test}")
        if len(held) < (classes := int(y.max()) + 1):
            raise DataError(
                f"dataset.test={how.test}: leaves {len(held)} test rows for {classes} classes; raise it or add rows"
            )
    data = finish(name, Raw(x, y, train, given, tuple(names), tuple(notes)), int(y.max()) + 1, how)
    _check_classes(data.y[data.train].numpy(), y, names, f"dataset.val={how.val}")
    return data


def _check_classes(train: NDArray[np.int64], y: NDArray[np.int64], names: Sequence[str], key: str) -> None:
    missing = np.flatnonzero(np.bincount(train, minlength=int(y.max()) + 1) == 0)
    if len(missing):
        first = names[missing[0]] if names else missing[0]
        raise DataError(f"{key}: leaves class {first} without a training row; lower it or add rows")
