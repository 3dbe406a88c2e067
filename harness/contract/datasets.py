"""What a data set promises. Each check raises Broken, with what is wrong and the remedy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from harness.contract import streams
from harness.contract.generators import moved
from harness.contract.strategies import Broken
from harness.contract.streams import SHARED, repeated
from tasks.datasets import Dataset
from tasks.permuted import permuted
from tasks.stream import PARTS

SAMPLE = 20_000  # rows of a part whose values are looked at: as floats they fit into memory
NEAR = 0.1  # largest distance of a mean from 0 and of a standard deviation from 1, after `normalise=standard`


@dataclass
class Case:
    """A data set with its settings."""

    make: Callable[..., Dataset]  # of the settings that change
    normalise: str = "none"  # what its inputs are said to be
    settings: tuple[str, ...] = ()  # that may change

    @cached_property
    def data(self) -> Dataset:
        """What several checks look at."""
        return self.make()


def fits(case: Case) -> None:
    """Inputs are finite floats [N, *shape], classes whole numbers [N], parts rising positions of rows."""
    data = case.data
    if not isinstance(data, Dataset):
        raise Broken(f"it is a {type(data).__name__}; expected a tasks.datasets.Dataset")
    n = len(data.y)
    if data.x.shape[0] != n:
        raise Broken(f"it has {data.x.shape[0]} inputs for {n} classes; every row needs both")
    if data.y.dtype != torch.int64 or data.y.dim() != 1:
        raise Broken(f"y is {data.y.dtype} {list(data.y.shape)}; expected int64 [N]")
    if not bool(((data.y >= 0) & (data.y < data.classes)).all()):
        raise Broken(f"y has values from {int(data.y.min())} to {int(data.y.max())}; expected 0 to {data.classes - 1}")
    if data.names and len(data.names) != data.classes:
        raise Broken(f"it names {len(data.names)} of {data.classes} classes; name all or none")
    if not data.name or not data.digest:
        raise Broken("its name or digest is empty; runs are told apart by them")
    for part in PARTS:
        index = getattr(data, part)
        if index.dtype != torch.int64 or index.dim() != 1 or not bool(((index >= 0) & (index < n)).all()):
            raise Broken(f"{part} must be positions of rows: int64 [n] from 0 to {n - 1}")
        if not bool((index[1:] > index[:-1]).all()):
            raise Broken(f"{part} must rise, without a row twice; use {part}.sort()")
    for x in _batches(data, torch.arange(n)):
        if not x.is_floating_point() or not bool(x.isfinite().all()):
            raise Broken(f"inputs are {x.dtype}, some not finite; expected finite floats")


def _batches(data: Dataset, index: Tensor) -> Iterator[Tensor]:
    return (data.x.index_select(0, some) for some in index.split(4096))


def _sample(data: Dataset, index: Tensor) -> Tensor:
    """At most SAMPLE rows, evenly spaced."""
    return data.x.index_select(0, index[:: max(1, len(index) // SAMPLE)])


def apart(case: Case) -> None:
    """A row is in one part, and hardly any test input is a training input as well."""
    data = case.data
    for i, part in enumerate(PARTS):
        for other in PARTS[i + 1 :]:
            if shared := int(torch.isin(getattr(data, part), getattr(data, other)).sum()):
                raise Broken(f"{shared} rows are in {part} and {other}; a row belongs to one part")
    share = repeated(_sample(data, data.test), _sample(data, data.train))
    if share > SHARED:
        raise Broken(f"{share:.0%} of the test inputs are training inputs; remove doubles before rows are held out")


def trainable(case: Case) -> None:
    """Every class has training rows, there are test rows, and inputs and classes differ."""
    data = case.data
    counts = data.y[data.train].bincount(minlength=data.classes)
    if empty := (counts == 0).nonzero()[:, 0].tolist():
        raise Broken(f"class {empty[0]} has no training row; number the classes that occur from 0")
    if not len(data.test):
        raise Broken("it has no test row; hold some out")
    if data.classes < 2:
        raise Broken("it has one class; there is nothing to learn")
    x = _sample(data, data.train)
    if bool((x == x[:1]).all()):
        raise Broken("all training inputs are equal; check what is read")


def scaled(case: Case) -> None:
    """Inputs are normalised by the rows that are not tested, as `normalise` says."""
    data = case.data
    x = _sample(data, torch.cat([data.train, data.val]).sort().values).double()
    flat = x.transpose(0, 1).flatten(1) if x.dim() > 2 else x.T  # a channel or a feature in each row
    if case.normalise == "unit" and not (float(flat.min()) >= -1e-6 and float(flat.max()) <= 1 + 1e-6):
        raise Broken(
            f"inputs are from {float(flat.min()):.3g} to {float(flat.max()):.3g}, but normalise=unit means 0 to 1"
        )
    if case.normalise == "standard":
        mean, std = flat.mean(1), flat.std(1, unbiased=False)
        wrong = (mean.abs() > NEAR) | ((std - 1).abs() > NEAR) & (std > 0)
        if bool(wrong.any()):
            i = int(wrong.nonzero()[0])
            raise Broken(
                f"channel {i} has mean {mean[i]:.3g} and standard deviation {std[i]:.3g}, but normalise=standard means"
                " 0 and 1; normalise by the training rows, or set normalise=none"
            )


def draws(case: Case) -> None:
    """Reading it moves no global random generator."""
    _, names = moved(case.make)
    if names:
        raise Broken(f"reading it draws from {names[0]}'s global generator; draw from one with a fixed seed")


def repeats(case: Case) -> None:
    """Read again, it is the same."""
    if where := _differs(case.data, case.make()):
        raise Broken(f"{where} is another when it is read again; draw with a fixed seed, and sort what is listed")


def _differs(a: Dataset, b: Dataset) -> str:
    """What two data sets differ in; "" if in nothing that a run sees."""
    for part in ("y", *PARTS):
        if not torch.equal(getattr(a, part), getattr(b, part)):
            return part
    every = torch.arange(len(a.y))
    if a.x.shape != b.x.shape or not all(torch.equal(u, v) for u, v in zip(_batches(a, every), _batches(b, every))):
        return "x"
    return next((word for word in ("name", "classes", "digest") if getattr(a, word) != getattr(b, word)), "")


def says(case: Case) -> None:
    """Its digest differs if a setting changes what a run sees."""
    changes: dict[str, Any] = {"val": 0.37, "normalise": "unit" if case.normalise != "unit" else "standard"}
    for key, value in changes.items():
        if key in case.settings:
            other = case.make(**{key: value})
            if _differs(case.data, other) not in ("", "digest") and other.digest == case.data.digest:
                raise Broken(f"its digest is the same with {key}={value}; make it from x, y and the parts")


def streams_take(case: Case) -> None:
    """A stream of two tasks of it keeps what streams promise, and trains."""
    data = case.data
    small = few(data)

    def make(dataset: Dataset = small, **changes: Any) -> Any:
        return permuted(dataset=dataset, scenario="domain", n_tasks=2, **{"fixed": False, **changes})

    stream = streams.Case(make, "domain", (small,), seeds=(0, 1))
    for check in (streams.fits, streams.apart, streams.trains):
        check(stream)


def few(data: Dataset, most: int = 200) -> Dataset:
    """The same data set with few rows of each class, and about `most` rows in a part."""
    each = max(2, most // data.classes)

    def first(index: Tensor) -> Tensor:
        """The first rows of every class."""
        y = data.y[index]
        order, count = y.argsort(stable=True), y.bincount(minlength=data.classes)
        place = torch.arange(len(y)) - (count.cumsum(0) - count)[y[order]]
        return index[order[place < each]].sort().values

    train, val, test = (first(getattr(data, part)) for part in PARTS)
    rows = torch.cat([train, val, test]).sort().values
    at = [torch.searchsorted(rows, index) for index in (train, val, test)]
    x, y = data.x.index_select(0, rows), data.y[rows]
    return replace(data, x=x, y=y, train=at[0], val=at[1], test=at[2], facts=None)


CHECKS: dict[str, Callable[[Case], None]] = {
    "inputs, classes and parts fit": fits,
    "every class can be learnt and tested": trainable,
    "test rows are not trained on": apart,
    "inputs are normalised as it says": scaled,
    "reading it draws from no global generator": draws,
    "read again, it is the same": repeats,
    "its digest says what it is": says,
    "a stream of it trains": streams_take,
}
