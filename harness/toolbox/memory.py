"""Episodic memories on the device, one per seed, filled and read without a loop over rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from harness.rng import RandomStream, uniform

POLICIES = ("reservoir", "class_balanced", "ring")
ROWS = 2**38  # rows whose age a ring can tell apart, with 2**15 queues: float64 has 53 bits


class Memory:
    """Up to `capacity` rows of each seed, in fields [S, capacity, ...] that the first `add` declares.

    * `reservoir`: after n rows each is stored with probability min(1, capacity / n) (algorithm R,
      Vitter 1985).
    * `class_balanced`: equal shares of the classes seen so far. Room that a rare class cannot fill goes to the
      other classes: counts are min(n_c, level), to within one row, as with GDumb's greedy sampler
      (Prabhu, Torr & Dokania 2020). Within a class every row seen is stored with the same probability: each
      row gets one random rank, and a class keeps its smallest. The content depends on the rows seen and
      their ranks, not on their split into batches.
    * `ring`: a first-in first-out queue for each value of the field `y` or of the optional field `queue`, which
      is not stored: the newest rows of each, in equal shares as above. Published rings have a queue for each task
      (Lopez-Paz & Ranzato 2017) or for each class of each task (Chaudhry et al. 2019, "On tiny episodic
      memories"), all `capacity` / queues long from the start. Here the queues seen so far share the whole
      capacity; once all queues have been seen and filled, both store the same rows.

    All are full after `capacity` rows: `len` is a number on the host, the same for all seeds. Row s depends
    only on seed s. Raises ValueError for a capacity below 1 or an unknown policy.

    >>> from harness.rng import keys
    >>> m = Memory(4, "class_balanced", RandomStream(keys([0], "doctest")))
    >>> m.add(y=torch.tensor([[0, 0, 0, 0, 0, 0, 1, 2]]))
    >>> len(m), m.rows()["y"][0].bincount().tolist()
    (4, [2, 1, 1])
    """

    def __init__(self, capacity: int, policy: str, random: RandomStream) -> None:
        if capacity < 1:
            raise ValueError(f"capacity={capacity}: must be at least 1")
        if policy not in POLICIES:
            raise ValueError(f"policy={policy}: choose one of {', '.join(POLICIES)}")
        self.capacity, self.policy, self.random = capacity, policy, random
        self.seen = 0  # rows offered to each seed
        self._data: dict[str, Tensor] = {}  # [S, capacity + 1, ...]; the last row takes rejected ones
        self._rank = torch.empty(0)  # [S, capacity + 1] class + fraction: random, or the age in a ring
        self._draws = _Draws(random)

    def __len__(self) -> int:
        return min(self.seen, self.capacity)

    @property
    def nbytes(self) -> int:
        """Bytes of the rows of all seeds."""
        return sum(v[:, : self.capacity].nbytes for v in self._data.values())

    def rows(self) -> dict[str, Tensor]:
        """The stored rows: fields [S, len, ...]."""
        return {k: v[:, : len(self)] for k, v in self._data.items()}

    @torch.no_grad()
    def add(self, **fields: Tensor) -> None:
        """Offer B rows to every seed: fields [S, B, ...], the same names each time.

        `class_balanced` and `ring` read the classes from the field `y`, and raise ValueError if they are not
        integers; `ring` reads `queue` instead if it is given.
        """
        label = fields.pop("queue", None) if self.policy == "ring" else None
        S, B = next(iter(fields.values())).shape[:2]
        balanced = self.policy != "reservoir"
        if balanced and label is None:
            label = fields["y"]
            if label.dtype.is_floating_point:
                raise ValueError(f"policy={self.policy}: needs classes, not regression targets; use reservoir")
        if not self._data:
            width = self.capacity + 1
            self._data = {k: v.new_zeros(S, width, *v.shape[2:]) for k, v in fields.items()}
            self._rank = torch.zeros(S, width if balanced else 0, dtype=torch.float64, device=self.random.base.device)
        if self.policy == "ring":
            age = torch.arange(self.seen + 1, self.seen + B + 1, dtype=torch.float64, device=self._rank.device)
            u = (1 - age / ROWS).expand(S, B)  # the newest has the smallest rank of its class
        else:
            u = self._draws.take(B)
        rank = u if label is None else label + u
        fill = min(B, self.capacity - len(self))
        if fill:
            self._fill(fields, rank, fill)
        if fill < B:
            slot = self._balanced(rank[:, fill:]) if balanced else self._reservoir(u[:, fill:])
            self._write(fields, rank, slot, fill)
        self.seen += B

    def sample(self, size: int, *, replacement: bool = False) -> dict[str, Tensor]:
        """Random rows: fields [S, size, ...]; without replacement at most `len`.

        Without replacement costs one draw per stored row, with replacement one per returned row.
        """
        n = len(self)
        if not n:
            raise ValueError("the memory is empty: add rows before sampling")
        if replacement:
            index = (self._draws.take(size) * n).long()
        elif size < n:
            index = self._draws.take(n).topk(size).indices
        else:
            return self.rows()
        return pick(self._data, index)

    def _fill(self, fields: dict[str, Tensor], rank: Tensor, count: int) -> None:
        where = slice(len(self), len(self) + count)
        for k, v in fields.items():
            self._data[k][:, where] = v[:, :count]
        if self._rank.numel():
            self._rank[:, where] = rank[:, :count]

    def _reservoir(self, u: Tensor) -> Tensor:
        """Slot of each row [S, B]; rejected rows get slot `capacity`."""
        before = max(self.seen, self.capacity)
        n = torch.arange(before + 1, before + u.shape[1] + 1, device=u.device)  # rows seen up to and with each
        return (u * n).long().clamp_(max=self.capacity)

    def _balanced(self, rank: Tensor) -> Tensor:
        """As `_reservoir`, for a full memory: the B worst of the stored and offered rows leave."""
        B, full = rank.shape[1], self.capacity
        value, order = torch.cat([self._rank[:, :full], rank], 1).sort(1)  # class by class, best rank first
        label = value.floor()
        position = torch.arange(full + B, device=rank.device)
        start = (position * torch.nn.functional.pad(label.diff(dim=1) != 0, (1, 0))).cummax(1).values
        level = position - start + (value - label)  # place inside the class; the random fraction breaks ties
        leaves = order.gather(1, level.topk(B).indices).sort(1).values  # stored rows first
        enters = torch.ones_like(order, dtype=torch.bool).scatter_(1, leaves, False)[:, full:]
        # as many stored rows leave as offered rows enter
        slot = leaves.gather(1, (enters.cumsum(1) - 1).clamp_(min=0))
        return torch.where(enters, slot, full)

    def _write(self, fields: dict[str, Tensor], rank: Tensor, slot: Tensor, first: int) -> None:
        """Write the rows from `first` on into their slots; the last of those with the same slot stays."""
        row = torch.arange(first, first + slot.shape[1], device=slot.device).expand_as(slot)
        target, source = _flat(slot, self.capacity + 1), _flat(row, first + slot.shape[1])
        if _sorts_out(slot):
            stored = (slot < self.capacity).flatten().nonzero()[:, 0]
            if not len(stored):
                return
            target, source = target.index_select(0, stored), source.index_select(0, stored)
        source = _last(target, source, slot.shape[0] * (self.capacity + 1))
        for k, v in fields.items():
            self._data[k].flatten(0, 1).index_copy_(0, target, v.flatten(0, 1).index_select(0, source))
        if self._rank.numel():
            self._rank.flatten(0, 1).index_copy_(0, target, rank.flatten().index_select(0, source))

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen, "data": self._data, "rank": self._rank, "draws": self._draws.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        device = self.random.base.device
        self.seen = state["seen"]
        self._data = {k: v.to(device).clone() for k, v in state["data"].items()}
        self._rank = state["rank"].to(device).clone()
        self._draws.load_state_dict(state["draws"])


def pick(fields: dict[str, Tensor], index: Tensor) -> dict[str, Tensor]:
    """Rows `index` [S, B] of fields [S, n, ...].

    >>> pick({"x": torch.tensor([[1, 2, 3], [4, 5, 6]])}, torch.tensor([[2, 0], [1, 1]]))
    {'x': tensor([[3, 1], [5, 5]])}
    """
    flat = _flat(index, next(iter(fields.values())).shape[1])
    return {k: v.flatten(0, 1).index_select(0, flat).view(*index.shape, *v.shape[2:]) for k, v in fields.items()}


def pick_rows(v: Tensor, index: Tensor) -> Tensor:
    """Rows `index` [S, B] of v [S, n, ...]: [S, B, ...].

    >>> pick_rows(torch.tensor([[[1], [2]], [[3], [4]]]), torch.tensor([[1, 1], [0, 1]]))[..., 0]
    tensor([[2, 2],
            [3, 4]])
    """
    return v.flatten(0, 1).index_select(0, _flat(index, v.shape[1])).view(*index.shape, *v.shape[2:])


class _Draws:
    """Uniform float64 numbers [S, n], drawn in blocks: each small draw would cost forty kernels."""

    BLOCK = 8192

    def __init__(self, random: RandomStream) -> None:
        self.random, self.key = random, random.base
        self.width = self.used = 0
        self.block = torch.empty(len(random.base), 0)

    def take(self, n: int) -> Tensor:
        if self.used + n > self.width:
            self.key, self.width, self.used = self.random.key(), max(n, self.BLOCK), 0
            self.block = uniform(self.key, self.width, dtype=torch.float64)
        self.used += n
        return self.block[:, self.used - n : self.used]

    def state_dict(self) -> dict[str, Any]:
        return {"key": self.key, "width": self.width, "used": self.used}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.key, self.width, self.used = state["key"].to(self.random.base.device), state["width"], state["used"]
        self.block = uniform(self.key, self.width, dtype=torch.float64)


def _sorts_out(slot: Tensor) -> bool:
    """Whether to find the few rows that are stored, not copy all: a GPU would have to be waited for."""
    return not slot.is_cuda


def _last(target: Tensor, source: Tensor, slots: int) -> Tensor:
    """For each target the last source with the same: a scatter with repeated indices has no defined order.

    >>> _last(torch.tensor([0, 1, 0]), torch.tensor([3, 4, 5]), 2)
    tensor([5, 4, 5])
    """
    return source.new_zeros(slots).scatter_reduce_(0, target, source, "amax").index_select(0, target)


def _flat(index: Tensor, width: int) -> Tensor:
    """Rows [S, B] of [S, width, ...] as rows of [S * width, ...]: [S * B]."""
    if len(index) == 1:
        return index.flatten()
    offset = torch.arange(len(index), device=index.device)[:, None] * width
    return (index + offset).flatten()
