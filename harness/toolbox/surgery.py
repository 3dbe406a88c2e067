"""Unit replacement: fresh incoming weights, zero outgoing weights, and no optimizer state for either.

It uses the slices that a model declares; residual, flattened, CReLU and batch-norm nets need no special
code. Every write is `copy_`, `add_` or `masked_fill_` on the whole tensor: writing through an index
(`w[mask].zero_()`) changes only a copy. Nothing here waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from harness.types import Params, Slice, Unit

if TYPE_CHECKING:
    from harness.learner import Learner


class Replacement(NamedTuple):
    """Units of one layer to replace."""

    unit: Unit
    where: Tensor  # [S, size] bool
    fresh: Params  # new values of their incoming weights and norms, broadcastable to the parameter or buffer


def hidden(learner: Learner, method: str) -> tuple[Unit, ...]:
    """The model's hidden units. Raises ValueError if it has none."""
    if not learner.model.units:
        raise ValueError(f"{method}: {type(learner.model).__name__} has no hidden units to replace; add a hidden layer")
    return learner.model.units


@torch.no_grad()
def reset_units(learner: Learner, replaced: Sequence[Replacement]) -> None:
    """Replace hidden units in place.

    Incoming weights become `fresh`, biases 0, norm gain, shift and running statistics `fresh`, every
    outgoing weight 0; the optimizer's state of all these entries is reset.

    Incoming weights of all layers are written before outgoing ones: if two neighbouring layers
    lose units at once, the weights between the new units must end at zero.
    """
    for unit, where, fresh in replaced:
        for s in (*unit.producers, *unit.norm):
            _write(learner, s, where, None if s.bias else fresh[s.name])
    for unit, where, _ in replaced:
        for s in unit.consumers:
            _write(learner, s, where, None)


def _write(learner: Learner, s: Slice, where: Tensor, value: Tensor | None) -> None:
    trained = s.name in learner.params
    old = (learner.params if trained else learner.buffers)[s.name]
    here = spread(s, where, old)
    if value is None:
        old.masked_fill_(here, 0)
    else:
        old.copy_(torch.where(here, value, old))
    if trained:
        learner.optimizer.reset(s.name, here)


def spread(s: Slice, values: Tensor, like: Tensor) -> Tensor:
    """One value per unit [S, size], placed along the slice's axis of `like`, zero elsewhere: [S, 1.., n, ..1].

    >>> spread(Slice("w", 2, repeat=2, offset=1), torch.tensor([[3.0, 4.0]]), torch.zeros(1, 7, 6))
    tensor([[[0., 3., 3., 4., 4., 0.]]])
    """
    owned = values.repeat_interleave(s.repeat, 1) if s.repeat > 1 else values
    n = like.shape[s.axis]
    if owned.shape[1] < n:
        owned = pad(owned, (s.offset, n - s.offset - owned.shape[1]))
    return owned.view(len(values), *[n if a == s.axis else 1 for a in range(1, like.dim())])


def weight_norm(s: Slice, weight: Tensor, size: int) -> Tensor:
    """Sum of |w| over each unit's weights in the slice: [S, size].

    >>> weight_norm(Slice("w", 1, repeat=2), torch.tensor([[[1.0], [-2.0], [3.0], [4.0]]]), 2)
    tensor([[3., 7.]])
    """
    total = weight.abs().sum([a for a in range(1, weight.dim()) if a != s.axis])  # [S, n]
    owned = total.narrow(1, s.offset, size * s.repeat)
    return owned.view(len(total), size, s.repeat).sum(2) if s.repeat > 1 else owned


def copies(unit: Unit) -> int:
    """Number of copies of each unit in its activation: 1, or 2 for a CReLU."""
    return 1 + max((_copy(s, unit.size) for s in unit.consumers), default=0)


def read(s: Slice, values: Tensor, size: int) -> Tensor:
    """The copy of the units that a consumer reads, out of [S, copies * size]: [S, size].

    >>> read(Slice("w", 2, offset=2), torch.tensor([[1.0, 2.0, 3.0, 4.0]]), 2)
    tensor([[3., 4.]])
    """
    return values.narrow(1, _copy(s, size) * size, size)


def _copy(s: Slice, size: int) -> int:
    return s.offset // (size * s.repeat)


def channel_mean(act: Tensor) -> Tensor:
    """Mean over batch and space: [S, B, H, ...] -> [S, H]."""
    return act.mean([1, *range(3, act.dim())])


def magnitude(unit: Unit, act: Tensor) -> Tensor:
    """Mean over batch and space of |h|, summed over the copies of a unit: [S, size].

    >>> unit = Unit("h", 2, (), ())
    >>> magnitude(unit, torch.tensor([[[1.0, 0.0, 0.0, 4.0], [3.0, 0.0, 0.0, 0.0]]]))  # CReLU: h+ then h-
    tensor([[2., 2.]])
    """
    return channel_mean(act.abs()).view(len(act), -1, unit.size).sum(1)


@torch.no_grad()
def transfer_mean(learner: Learner, unit: Unit, where: Tensor, mean: Tensor) -> None:
    """Add the mean contribution of the units `where` to each reader's bias: b += W[:, r] mean[r].

    mean: [S, copies * size]. Exact for linear readers of a flat layer; if a reader sees a feature
    map, through pooling or padding, the map counts as constant. A reader without bias is skipped (a
    convolution before batch norm, which subtracts the mean anyway).
    """
    biases = {layer.weight: layer.bias for layer in learner.model.layers}
    for s in unit.consumers:
        bias = biases.get(s.name)
        if bias is None:
            continue
        weight = learner.params[s.name]
        lost = spread(s, torch.where(where, read(s, mean, unit.size), 0), weight)
        outputs = 3 - s.axis  # a weight has its inputs and outputs on axes 1 and 2
        moved = (weight * lost).sum([a for a in range(1, weight.dim()) if a != outputs])
        learner.params[bias].add_(moved.view_as(learner.params[bias]))
