"""Rows of data that lives on the device once (a batch is a gather), their order, and fixed subsets of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from harness import rng

Transform = Callable[[Tensor, Tensor], Tensor]  # (x [S, B, *shape], transform id [S, B or 1]) -> x


class Data(Protocol):
    """The source of a gather: a tensor [N, *shape], or anything that yields one when indexed."""

    @property
    def shape(self) -> torch.Size: ...
    @property
    def device(self) -> torch.device: ...
    def index_select(self, dim: int, index: Tensor, /) -> Tensor: ...
    def __getitem__(self, index: Any, /) -> Tensor: ...


@dataclass(frozen=True)
class Rows:
    """Rows (sample index, transform id, target, task id) of each seed.

    If seeds have different numbers of rows, row s is valid up to `size[s]` and padded after it.
    """

    data: Data  # [N, *shape], shared by all tasks and seeds
    index: Tensor  # [S, n] into data
    y: Tensor  # [S, n] classes, or [S, n, C] regression targets
    t: Tensor  # [S, n] or [S, 1]
    size: Tensor  # [S]
    transform: Transform | None = None
    transform_id: Tensor | None = None  # [S, n] or [S, 1]
    relabel: Tensor | None = None  # [S, T, C] new class of each class under a transform id

    @property
    def augmented(self) -> bool:
        """Whether training rows are randomly augmented; `take` then needs a key."""
        return getattr(self.data, "augment", None) is not None

    @property
    def nbytes(self) -> int:
        """Bytes of all seeds' rows as `take` returns them: the size of a memory of all rows."""
        row = self.take(torch.zeros_like(self.size)[:, None])
        return int(self.size.sum()) * sum(part[0, 0].nbytes for part in row)

    def take(self, position: Tensor, key: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Rows at `position` [S, B] -> x [S, B, *shape], y [S, B], t [S, B].

        With `key` [S] they are randomly augmented, before the task's transform.
        """
        index = self.index.gather(1, position)
        x = self.data.index_select(0, index.flatten()).view(*position.shape, *self.data.shape[1:])
        if key is not None and self.augmented:
            x = self.data.drawn(x, key)  # type: ignore[attr-defined]
        if self.transform is not None and self.transform_id is not None:
            x = self.transform(x, _pick(self.transform_id, position))
        y = self.y.gather(1, position) if self.y.dim() == 2 else _take_vectors(self.y, position)
        if self.relabel is not None and self.transform_id is not None:
            y = _renamed(self.relabel, _pick(self.transform_id, position), y)
        return x, y, _pick(self.t, position).expand_as(position)

    def labels(self) -> Tensor:
        """Class of every row [S, n], -1 on padding, 0 for regression targets."""
        classes = self.y if self.y.dim() == 2 else torch.zeros_like(self.index)
        if self.relabel is not None and self.transform_id is not None:
            classes = _renamed(self.relabel, self.transform_id, classes)
        inside = torch.arange(self.index.shape[1], device=self.size.device) < self.size[:, None]
        return classes.masked_fill(~inside, -1)


def _pick(column: Tensor, position: Tensor) -> Tensor:
    return column if column.shape[1] == 1 else column.gather(1, position)


def _renamed(table: Tensor, transform_id: Tensor, y: Tensor) -> Tensor:
    """table[s, transform_id, y]: [S, B]."""
    return table.flatten(1).gather(1, transform_id * table.shape[2] + y)


def _take_vectors(y: Tensor, position: Tensor) -> Tensor:
    return y.gather(1, position[..., None].expand(*position.shape, y.shape[-1]))


def union(sources: Sequence[Rows]) -> Rows:
    """All rows of several sources over the same data."""
    first = sources[0]
    if any(getattr(s, k) is not getattr(first, k) for s in sources for k in ("data", "transform", "relabel")):
        raise ValueError("a union needs sources over the same data, transform and relabel")
    widths = [s.index.shape[1] for s in sources]
    valid = torch.cat([torch.arange(w, device=s.size.device) < s.size[:, None] for s, w in zip(sources, widths)], 1)
    front = (~valid).to(torch.uint8).argsort(dim=1, stable=True)  # valid rows first, in order

    def joined(column: str) -> Tensor:
        parts = [getattr(s, column) for s in sources]
        whole = torch.cat([p.expand(p.shape[0], w, *p.shape[2:]) for p, w in zip(parts, widths)], 1)
        return _take_vectors(whole, front) if whole.dim() == 3 else whole.gather(1, front)

    return replace(
        first,
        index=joined("index"),
        y=joined("y"),
        t=joined("t"),
        size=torch.stack([s.size for s in sources]).sum(0),
        transform_id=None if first.transform_id is None else joined("transform_id"),
    )


def order(key: Tensor, size: Tensor, start: int, stop: int) -> Tensor:
    """Positions start ... stop - 1 of each seed's endless sequence of shuffled passes: [S, stop - start].

    Every seed visits all its `size[s]` rows before it repeats one, and reshuffles at each pass. A seed's
    batches depend neither on the other seeds nor on their sizes.

    >>> o = order(rng.keys([0, 1], "order"), torch.tensor([3, 5]), 0, 15)
    >>> o[0].view(5, 3).sort(1).values.unique(dim=0), o[1].view(3, 5).sort(1).values.unique(dim=0)
    (tensor([[0, 1, 2]]), tensor([[0, 1, 2, 3, 4]]))
    """
    sizes = size.tolist()
    width, ragged = max(sizes), min(sizes) < max(sizes)
    first, last = start // width, (stop - 1) // min(sizes)
    passes = [rng.permutation(rng.fold(key, p), width, size if ragged else None) for p in range(first, last + 1)]
    position = torch.arange(start, stop, device=key.device).expand(len(sizes), -1)
    flat = (position // size[:, None] - first) * width + position % size[:, None]
    return torch.cat(passes, 1).gather(1, flat)


def by_step(v: Tensor, steps: int) -> list[Tensor]:
    """The rows of each step [S, B, ...], from those of all steps one after the other [S, steps * B, ...].

    Each is a tensor as if gathered alone: who keeps one does not keep all. What all rows of a seed share stays
    expanded.

    >>> [part.tolist() for part in by_step(torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]]), 2)]
    [[[1, 2], [5, 6]], [[3, 4], [7, 8]]]
    """
    parts = v.split(v.shape[1] // steps, 1)
    if v.stride(1) == 0:
        return [parts[0]] * steps
    return [part.clone(memory_format=torch.contiguous_format) for part in parts]


def stratified(y: Tensor, n: int, key: Tensor) -> Tensor:
    """Sorted indices [S, n] of a random subset with each class in proportion, to within one sample.

    Systematic sampling (Madow & Madow 1944) over the samples sorted by class and shuffled within it: of N
    samples, N_c in class c, every one is drawn with probability n / N, and floor or ceil of n N_c / N are
    drawn from class c. `y` is [N], or [S, N] if seeds have different labels; a label below 0 marks
    padding at the end, which is never drawn. Row s depends only on `key[s]` and `y[s]`.
    Raises ValueError if a row has fewer than n samples.

    >>> y = torch.tensor([0, 1, 0, 0, 2, 0, 0, 1, 2, 0])
    >>> picked = stratified(y, 5, torch.tensor([7, 8]))
    >>> y[picked].sort(1).values.tolist()
    [[0, 0, 0, 1, 2], [0, 0, 0, 1, 2]]
    """
    y = y.expand(len(key), -1)  # [S, N]
    total = (y >= 0).sum(1, keepdim=True)  # [S, 1]
    if not 0 <= n <= int(total.min()):
        raise ValueError(f"n={n}: a stratified subset must have 0 to {int(total.min())} samples")
    order = rng.permutation(key, y.shape[1])
    label = y.gather(1, order)
    label = label.masked_fill(label < 0, torch.iinfo(label.dtype).max)
    order = order.gather(1, label.argsort(dim=1, stable=True))  # class by class, padding last
    start = rng.integers(rng.fold(key, "start"), total, 1)  # [S, 1]
    step = torch.arange(n, device=y.device)
    return order.gather(1, (step * total + start) // max(n, 1)).sort(1).values
