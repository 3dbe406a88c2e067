"""The plain values that flow from stream to learner to metric.

Every tensor of a learner has the seed axis first. Letters in shape comments:
S seeds, B rows of a batch, C outputs, H units, T tasks, N samples of a data set, n rows of a task.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any, NamedTuple, Protocol, TypedDict, Unpack, overload

import torch
from torch import Tensor

Params = dict[str, Tensor]  # name -> [S, *shape]
Buffers = dict[str, Tensor]  # name -> [S, *shape], e.g. batch-norm statistics
Gates = dict[str, Tensor]  # act -> factor of each hidden unit [S, B, H]
Numbers = tuple[float, ...] | tuple[Tensor, ...]  # of one optimizer step
Loss = Callable[[Params], Tensor]  # parameters -> loss of each seed [S]; deterministic


class Bytes(int):
    """Bytes held outside our tensors (an Avalanche plugin, a whole data set)."""


class Out(NamedTuple):
    """What one forward pass returns."""

    logits: Tensor  # [S, B, C]
    acts: Mapping[str, Tensor]  # hidden units after the nonlinearity: [S, B, H], or [S, B, H, ...] at all positions
    buffers: Buffers  # new values of the buffers (the old ones when train is false)
    inputs: dict[str, Tensor] = {}  # input of each Layer, only with record=True
    preacts: dict[str, Tensor] = {}  # output of each Layer before any norm, only with record=True

    def detach(self) -> Out:
        """The same values without the graph behind them."""
        return self._each(lambda v: v.detach())

    def to(self, dtype: torch.dtype) -> Out:
        """The same values in another precision."""
        return self._each(lambda v: v.to(dtype) if v.is_floating_point() else v)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Out:
        parts = (p.each(change) if hasattr(p, "each") else {k: change(v) for k, v in p.items()} for p in self[1:])
        return Out(change(self.logits), *parts)


class How(TypedDict, total=False):
    """Options of a forward pass. A wrapper passes them on as `**how: Unpack[How]`."""

    train: bool  # default False: evaluation mode
    key: Tensor | None  # [S] fixes every random draw (dropout)
    record: bool  # default False; True: also return Out.inputs and Out.preacts


class Apply(Protocol):
    """A forward pass: pure; x is [S, B, *shape], t is [S, B]."""

    def __call__(self, params: Params, buffers: Buffers, x: Tensor, t: Tensor, **how: Unpack[How]) -> Out: ...


class Slice(NamedTuple):
    """The part of a parameter that belongs to a layer's units.

    Unit j owns the indices `offset + j * repeat ... offset + (j + 1) * repeat - 1` along `axis`
    (the seed axis is axis 0). `repeat` is h*w if a linear layer reads a flattened feature map;
    `offset` reaches the second half of a CReLU.
    """

    name: str
    axis: int
    repeat: int = 1
    offset: int = 0
    bias: bool = False  # reset to zero, not to a fresh draw


class Unit(NamedTuple):
    """One layer of hidden units, with every parameter slice that writes or reads them."""

    act: str  # name in Out.acts; its channel axis holds `size` units, or k*size (CReLU: k = 2)
    size: int
    producers: tuple[Slice, ...]  # incoming weights and bias
    consumers: tuple[Slice, ...]  # every outgoing weight: several in residual and CReLU nets
    norm: tuple[Slice, ...] = ()  # gain, shift and running statistics (params or buffers) of the units
    asymptote: float | None = None  # limit of |act| as the nonlinearity saturates (tanh: 1)


class Layer(NamedTuple):
    """One linear or convolutional map, for Fisher, Kronecker factors and gradient projection.

    Recorded inputs and outputs: [S, B, features], [S, B, C, h, w] of a convolution, or [S, B, L, features] of a linear
    map that all L positions share.
    """

    weight: str
    bias: str | None
    input: str  # name in Out.inputs
    preact: str  # name in Out.preacts
    conv: dict[str, int] | None = None  # stride, padding of a convolution


class Scale(NamedTuple):
    """A gain that multiplies, or a shift that is added to, the features of every row; it has a closed-form gradient.

    A row's gradient of the gain [S, H] is the sum over positions of δ input, that of the shift the sum of δ, with δ the
    gradient by the output. A shift [S, L, H] has a vector for each position: its gradient is δ.
    """

    gain: str | None
    shift: str | None
    input: str  # name in Out.inputs; unused without a gain
    preact: str  # name in Out.preacts; both are [S, B, L, H]


class Model(Apply, Protocol):
    """A network over stacked parameters. It owns no tensors: `init` creates them, `__call__` uses them.

    It may also declare `scales: tuple[Scale, ...]`: without them, the Fisher information of such parameters costs a
    gradient per row.
    """

    units: tuple[Unit, ...]
    layers: tuple[Layer, ...]
    head: tuple[str, ...]  # names of the parameters of the read-out
    outputs: int
    stochastic: bool  # draws random numbers in training (dropout): needs a key

    def init(self, key: Tensor) -> tuple[Params, Buffers]:
        """Fresh float32 parameters and buffers; row s depends on `key[s]` alone."""
        ...


@dataclass(frozen=True)
class Batch:
    """Rows to train on. Fresh rows of the stream come first; strategies append theirs."""

    x: Tensor  # [S, B, *shape]
    y: Tensor  # [S, B] class, or [S, B, C] regression target
    t: Tensor  # [S, B] task id of each row; 0 everywhere unless scenario=task
    w: Tensor  # [S, B] loss weight: task loss = (w * nll).sum(1)
    mask: Tensor | None = None  # [S, B, C] or [1, 1, C]; outputs that compete; None: all of them
    key: Tensor | None = None  # [S] fixes dropout: both passes of SAM share their masks
    extra: dict[str, Any] = field(default_factory=dict)  # what a strategy drew for its own loss, by its name

    def carry(self, **extra: Any) -> Batch:
        """A copy with these entries added to `extra`."""
        return replace(self, extra={**self.extra, **extra})


class Joined(NamedTuple):
    batch: Batch
    rows: slice  # of the appended rows, along B


def cat(a: Batch, b: Batch) -> Joined:
    """The rows of `a`, then those of `b`; the key is that of `a`."""
    mask = a.mask
    if a.mask is not b.mask or (mask is not None and mask.shape[1] > 1):
        outputs = next(m.shape[-1] for m in (a.mask, b.mask) if m is not None)
        mask = torch.cat([_dense_mask(a, outputs), _dense_mask(b, outputs)], 1)
    x, y, t, w = (torch.cat([getattr(a, n), getattr(b, n)], 1) for n in ("x", "y", "t", "w"))
    joined = replace(a, x=x, y=y, t=t, w=w, mask=mask, extra={**a.extra, **b.extra})
    return Joined(joined, slice(a.w.shape[1], w.shape[1]))


def _dense_mask(batch: Batch, outputs: int) -> Tensor:
    shape = (*batch.w.shape, outputs)
    if batch.mask is None:
        return torch.ones(shape, dtype=torch.bool, device=batch.w.device)
    return batch.mask.expand(shape)


class Source(Protocol):
    """Rows of a task: an indexed gather, a union of others, or a generator of (seed, position)."""

    @property
    def size(self) -> Tensor:
        """Rows of each seed: [S]."""
        ...

    def take(self, position: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rows at `position` [S, B] -> x [S, B, *shape], y [S, B], t [S, B].

        A source that is `augmented` also takes a key [S], which fixes its random augmentation.
        """
        ...

    def labels(self) -> Tensor:
        """Class of every row, for stratified samples: [S, n]; -1 on padding; 0 for regression."""
        ...


@dataclass(frozen=True)
class Task:
    index: int
    train: Source
    val: Source
    test: Source
    epoch: int | None = None  # training rows in an epoch; None: all of them; 0: no step
    ordered: bool = False  # visit the training rows in their own order; else reshuffle for each pass

    @cached_property
    def rows(self) -> int:
        """Training rows of every seed. ValueError if seeds differ: those are trained apart (harness/groups.py)."""
        sizes = self.train.size.tolist()
        if min(sizes) < max(sizes):
            raise ValueError(
                f"task {self.index}: has {min(sizes)} training rows for one seed and {max(sizes)} for another; the"
                " stream must say so in Stream.sizes"
            )
        return int(sizes[0])


class Tasks(Sequence[Task]):
    """Tasks built on demand: a stream of thousands has only a few in memory.

    >>> tasks = Tasks(lambda t: Task(t, None, None, None), 1000)
    >>> len(tasks[990:]), tasks[990:][0].index, tasks[-1].index
    (10, 990, 999)
    """

    KEPT = 8  # in memory: those at a boundary are used several times

    def __init__(self, make: Callable[[int], Task], n: int) -> None:
        self.make, self.numbers = lru_cache(self.KEPT)(make), range(n)

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, i: int) -> Task: ...
    @overload
    def __getitem__(self, i: slice) -> Tasks: ...
    def __getitem__(self, i: int | slice) -> Task | Tasks:
        if isinstance(i, int):
            return self.make(self.numbers[i])
        part = Tasks(self.make, 0)
        part.make, part.numbers = self.make, self.numbers[i]
        return part

    def __iter__(self) -> Iterator[Task]:
        return map(self.make, self.numbers)


@dataclass(frozen=True)
class Stream:
    """A sequence of tasks over data that lives on the device once."""

    name: str
    version: int
    scenario: str  # task, domain or class
    tasks: Sequence[Task]
    shape: tuple[int, ...]  # of one input
    outputs: int
    seeds: tuple[int, ...]
    hash: str  # digest of the data and of every seed's draws
    masks: Tensor | None = None  # [S or 1, T, C] outputs of each task; None: all compete
    sizes: Tensor | None = None  # [S, T] training rows of each task; None: the same for all seeds
    classes: str = "seen"  # softmax over the classes seen so far, or all
    loss: str = "cross_entropy"  # or mse
    announced: bool = True  # False: the strategy does not learn when a task begins or ends
    split: str = "test"  # or val: each task's `test` holds its validation rows
    info: dict[str, Any] = field(default_factory=dict)  # settings, for the manifest
    _seen: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def mask(self, t: Tensor, now: int) -> Tensor | None:
        """Outputs that compete for rows of task id `t` [S, B] while task `now` is current."""
        if self.masks is None:
            return None
        if self.scenario == "task":
            rows = torch.arange(len(self.masks), device=t.device)[:, None]
            return self.masks[rows.expand(len(t), 1) if len(self.masks) > 1 else 0, t]
        if self.classes == "all":
            return None
        if now not in self._seen:  # one object for a task: `cat` sees that all rows share it
            self._seen[now] = self.masks[:, : now + 1].any(1)[:, None]
        return self._seen[now]  # [S or 1, 1, C]


@dataclass(frozen=True)
class Net:
    """Parameters and the forward pass that uses them."""

    params: Params
    buffers: Buffers
    apply: Apply
    probabilistic: bool = True  # whether the softmax is a probability: not for distances to means

    def same(self, other: Net) -> bool:
        """Whether the other net has these very parameters, buffers and forward pass."""
        return self.params is other.params and self.buffers is other.buffers and self.apply == other.apply

    def __call__(self, x: Tensor, t: Tensor, *, record: bool = False) -> Out:
        """Evaluation mode: no dropout, running statistics."""
        return self.apply(self.params, self.buffers, x, t, record=record)


class Aux(NamedTuple):
    loss: Tensor  # [S] task loss plus every penalty
    out: Out
    penalty: Tensor | float = 0.0  # [S] what the strategies added


# values of Strategy.needs: each costs time
BEFORE = "before"  # a copy of the parameters before each update, as Step.before
INPUTS = "inputs"  # inputs and outputs of each Layer in training, as Out.inputs and Out.preacts

GradFn = Callable[[Params, Batch], tuple[Params, Aux]]


class Moved(NamedTuple):
    """What a step leaves behind."""

    grads: Params  # what the optimizer received
    aux: Aux
    before: Params  # parameters before the update; empty unless a strategy needs BEFORE


Move = Callable[[GradFn, Params, Batch, Numbers], Moved]  # a step in place, given the optimizer's numbers


class Step(NamedTuple):
    """What a strategy may read after the optimizer's update."""

    fresh: Batch  # from the stream
    batch: Batch  # after every `batch` hook
    out: Out  # of `batch`, before the update
    grads: Params  # what the optimizer received
    before: Params  # parameters before the update; empty unless a strategy needs BEFORE


class Reading(NamedTuple):
    """A metric with a standard error or along an axis (evaluated task, layer, α, k)."""

    value: Tensor  # [S] or [S, K]
    stderr: Tensor | None = None  # as value
    axis: str = ""  # "" for [S]; "task", "layer", "alpha", "k"... for [S, K]
    coords: Sequence[float | int | str] = ()  # K coordinates; () means 0 ... K-1
    tasks: Sequence[int] = ()  # K evaluated tasks, if each coordinate of another axis has one


class Column(NamedTuple):
    """What a metric's column means."""

    better: str  # "higher", "lower" or "" if neither is better
    unit: str
    text: str  # one line
    data: str = ""  # split that it is measured on: train, val, test or "" for none
    net: str = "trained"  # net that it is of: trained, deployed, both (what sets them apart) or "" for neither
