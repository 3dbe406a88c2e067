"""The class Dataset, and how raw arrays of any origin become one."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.rng import keys
from harness.rows import stratified
from tasks.datasets.images import Augment, Images, Scale, resized

FITS = 2**30  # largest size of images as floats, in bytes; larger ones stay uint8 and are converted batch by batch


@dataclass(frozen=True)
class Facts:
    """What a data set consists of, for the line at the start of a run and for the manifest.

    >>> print(Facts(1438, 0, 359, 10, 12, 0, ("24 of 60 files used: 36 .gif",)))
    1,438 train, 359 test, 10 classes; smallest class 12 rows; 24 of 60 files used: 36 .gif
    """

    train: int
    val: int
    test: int
    classes: int
    smallest: int  # training rows of the smallest class
    untested: int  # classes without a test row
    notes: tuple[str, ...] = ()  # what was left out or looks doubtful

    @classmethod
    def of(cls, y: Tensor, split: Sequence[Tensor], classes: int, notes: tuple[str, ...]) -> Facts:
        """From labels [N] and the indices of train, val and test."""
        train, val, test = (torch.bincount(y[i], minlength=classes) for i in split)
        rows = [int(part.sum()) for part in (train, val, test)]
        return cls(rows[0], rows[1], rows[2], classes, int(train.min()), int((test == 0).sum()), notes)

    def __str__(self) -> str:
        counts = [f"{n:,} {part}" for part in ("train", "val", "test") if (n := getattr(self, part)) or part != "val"]
        rows = f"smallest class {self.smallest:,} row{'s' * (self.smallest != 1)}"
        untested = [f"{self.untested:,} class{'es' * (self.untested != 1)} without a test row"] * (self.untested > 0)
        whole = ", ".join([*counts, f"{self.classes:,} class{'es' * (self.classes != 1)}"])
        return "; ".join([whole, rows, *untested, *self.notes])


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training samples first, then test samples; `train`, `val` and `test` are sorted indices into them."""

    name: str
    x: Tensor | Images  # [N, *shape] float32, normalised; Images are converted when they are gathered
    y: Tensor  # [N] int64
    train: Tensor
    val: Tensor  # of the training samples
    test: Tensor
    classes: int
    digest: str  # of raw values, labels, normalisation, split and augmentation
    names: tuple[str, ...] = ()  # of the classes, if they have any
    facts: Facts | None = None
    sources: tuple[Path, ...] = ()  # all files, there or missing, that determine it; none if others might

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return tuple(self.x.shape[1:])

    def to(self, device: torch.device | str) -> Dataset:
        """The same data on another device."""
        return replace(self, **{k: getattr(self, k).to(device) for k in ("x", "y", "train", "val", "test")})


class Raw(NamedTuple):
    """Arrays as read: training rows, then validation rows if given, then test rows."""

    x: NDArray[Any]  # [N, C, h, w] uint8, or [N, *shape] float32
    y: NDArray[Any]  # [N] 0 ... classes - 1
    train: int  # rows of training
    val: int | None  # rows of validation; None: drawn from the training rows
    names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()  # for Facts
    sources: tuple[Path, ...] = ()  # as in Dataset


@dataclass(frozen=True)
class Preparation:
    """The settings that all loaders share. ValueError names key, value and remedy of the first one out of range."""

    val: float  # fraction of the training rows, if the data has no validation part
    test: float = 0.2  # fraction of all rows, if a user's own data has no test part
    normalise: str = "standard"
    pad: int = 0
    size: int | None = None
    features: Any = None  # as in tasks.datasets.features.backbone
    augment: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not _fraction(self.val):
            raise ValueError(f"dataset.val={self.val}: must be at least 0 and below 1")
        if not _fraction(self.test) or self.test == 0:
            raise ValueError(f"dataset.test={self.test}: must be above 0 and below 1")
        if self.normalise not in ("standard", "unit", "symmetric", "none"):
            raise ValueError(
                f"dataset.normalise={self.normalise}: must be standard (mean 0, std 1), unit (0..1), symmetric (-1..1)"
                " or none"
            )
        if isinstance(self.pad, bool) or not isinstance(self.pad, int) or self.pad < 0:
            raise ValueError(f"dataset.pad={self.pad}: must be a whole number of at least 0")
        size = self.size
        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
            raise ValueError(f"dataset.size={size}: must be a whole number of at least 1, or null")
        Augment.of(self.augment)


def finish(
    name: str,
    raw: Raw,
    classes: int,
    how: Preparation,
    constants: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
    top: int = 255,
) -> Dataset:
    """Resize, pad, pass through a frozen network, split, normalise and digest, in this order.

    Normalised values are (x / top - mean) / std, with constants per image channel or per feature: those of the training
    set, or `constants` if published (standard); those that map to 0..1 (unit); none.
    """
    x, n = raw.x, raw.train + (raw.val or 0)
    pad, size, augment = how.pad, how.size, how.augment
    if x.ndim != 4 and (pad or size or how.features or augment):
        raise ValueError(
            f"dataset={name}: inputs of shape {list(x.shape[1:])} are not images; leave out pad, size, features and "
            "augment"
        )
    if size is not None and x.shape[2:] != (size, size):
        x, constants = resized(x, size), None
    if pad:
        x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    if how.features is not None:
        from tasks.datasets.features import extract

        if augment:
            names = ",".join(augment)
            raise ValueError(f"dataset.augment=[{names}]: cannot be combined with dataset.features; use one of them")
        if x.dtype == np.uint8 and top != 255:
            x = np.rint(x * (255 / top)).astype(np.uint8)
        (x, about), constants = extract(how.features, x, name), None
        raw = raw._replace(notes=(*raw.notes, about))
    x = np.ascontiguousarray(x)  # concatenate keeps the strides of a transposed input
    y = torch.from_numpy(np.ascontiguousarray(raw.y).astype(np.int64))
    split = _split(name, y, raw.train, raw.val, n, how.val)
    scale = _scale(x[:n], how.normalise, constants, top)
    sha = hashlib.sha256(
        repr((x.shape, scale.top, tuple(scale.mean), tuple(scale.std), [len(i) for i in split])).encode()
    )
    for part in (x, *(i.numpy() for i in (y, *split))):
        sha.update(part.data)
    if augment:
        sha.update(repr(list(augment)).encode())
    pixels = torch.from_numpy(x)
    kept = pixels.dtype == torch.uint8 and 4 * pixels.numel() > FITS
    images = Images(pixels, scale, Augment.of(augment)) if kept or augment else scale(pixels)
    facts = Facts.of(y, split, classes, raw.notes)
    sources = () if how.features else raw.sources  # the network is another
    return Dataset(name, images, y, *split, classes, sha.hexdigest()[:16], raw.names, facts, sources)


def _split(name: str, y: Tensor, train: int, given: int | None, n: int, val: float) -> tuple[Tensor, Tensor, Tensor]:
    """Indices of training, validation and test rows. The split depends on the name and `val`, never on a seed."""
    if given is not None:
        return torch.arange(train), torch.arange(train, n), torch.arange(n, len(y))
    held = stratified(y[:n], min(round(val * n), n - 1), keys([0], f"{name}/val"))[0]
    kept = torch.ones(n, dtype=torch.bool).index_fill(0, held, False).nonzero()[:, 0]
    return kept, held, torch.arange(n, len(y))


def _scale(
    x: NDArray[Any], normalise: str, constants: tuple[tuple[float, ...], tuple[float, ...]] | None, top: int
) -> Scale:
    c = x.shape[1]
    if normalise == "none":
        return Scale(1, (0.0,) * c, (1.0,) * c)
    start = {"unit": 0.0, "symmetric": 0.5}.get(normalise)  # the value that becomes 0, as a share of the range
    if x.dtype == np.uint8:
        if start is not None:
            return Scale(top, (start,) * c, (1 - start,) * c)
        return Scale(top, *(constants or _pixels(x, top)))
    axes = (0, *range(2, x.ndim))
    if start is not None:
        low, high = x.min(axes).astype(np.float64), x.max(axes).astype(np.float64)
        span = np.where(high > low, high - low, 1)
        return Scale(1, tuple((low + start * span).tolist()), tuple(((1 - start) * span).tolist()))
    mean, std = x.mean(axes, dtype=np.float64), x.std(axes, dtype=np.float64)
    return Scale(1, tuple(mean.tolist()), tuple(np.where(std > 0, std, 1).tolist()))


def _pixels(x: NDArray[Any], top: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel on 0..1, to four decimals like published constants."""
    value, mean, std = np.arange(256) / top, [], []
    for c in range(x.shape[1]):
        share = np.zeros(256)
        for some in np.array_split(x[:, c], max(1, len(x) // 4096)):  # in parts, to avoid a copy of the whole channel
            share += np.bincount(some.ravel(), minlength=256)
        share /= share.sum()
        mean.append(float(share @ value))
        std.append(math.sqrt(float(share @ (value - mean[-1]) ** 2)))
    return tuple(round(m, 4) for m in mean), tuple(round(s, 4) or 1.0 for s in std)


def _fraction(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1


def hold_out(y: NDArray[Any], test: float, key: str) -> NDArray[np.int64]:
    """Sorted indices of a fixed stratified test set, for data without one."""
    held = stratified(torch.from_numpy(np.asarray(y).astype(np.int64)), round(len(y) * test), keys([0], key))
    return np.asarray(held[0].numpy(), np.int64)
