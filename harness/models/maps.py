"""Feature maps of all seeds, which no layer stacks.

Between the layers of a convolutional net the seeds lie apart: on a CPU in a tensor [B, C, h, w] each, on a GPU side by
side in the channels of one tensor [B, S C, h, w], which grouped layers take. A CPU spends a third of a CNN's step on
copies if every layer stacks its maps, and convolves groups slowly unless their channels are a multiple of 16.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.models.layers import EPS
from harness.types import Gates

MOMENTUM = 0.1

Maps = Sequence[Tensor]  # S tensors [B, C, h, w], or one [B, S C, h, w]


def apart(x: Tensor) -> Maps:
    """[S, B, C, ...] as maps, without a copy."""
    return (x.transpose(0, 1).flatten(1, 2),) if len(x) == 1 or x.is_cuda else x.unbind()


def together(maps: Maps, seeds: int) -> Tensor:
    """[S, B, C, h, w]: a copy where the seeds lie in separate tensors."""
    return torch.stack(list(maps)) if len(maps) > 1 else _split(maps[0], seeds).transpose(0, 1)


class Acts(Mapping[str, Tensor]):
    """`Out.acts`: maps are put together when they are read, since few strategies read them and copies take time."""

    def __init__(self, parts: Mapping[str, Tensor | Maps], seeds: int) -> None:
        self.parts, self.seeds = parts, seeds

    def __getitem__(self, name: str) -> Tensor:
        part = self.parts[name]
        return part if isinstance(part, Tensor) else together(part, self.seeds)

    def __iter__(self) -> Iterator[str]:
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)

    def each(self, change: Callable[[Tensor], Tensor]) -> Acts:
        """The same with every tensor changed, not yet put together."""
        changed = {k: change(v) if isinstance(v, Tensor) else [*map(change, v)] for k, v in self.parts.items()}
        return Acts(changed, self.seeds)


def conv2d(maps: Maps, w: Tensor, b: Tensor | None, stride: int = 1, padding: int = 0) -> Maps:
    """w [S, O, C, k, k], b [S, O]."""
    biases = [None] * len(maps) if b is None else _own(b, maps)
    own = zip(maps, _own(w, maps), biases, strict=True)
    return [F.conv2d(h, ws, bs, stride, padding, groups=len(w) // len(maps)) for h, ws, bs in own]


def activate(act: Callable[[Tensor], Tensor], maps: Maps, seeds: int) -> Maps:
    """An activation of `layers.activation`, which finds the channels in axis 2."""
    return [act(_split(h, seeds // len(maps))).flatten(1, 2) for h in maps]


def max_pool(maps: Maps, size: int) -> Maps:
    """Non-overlapping windows: h // size, w // size."""
    return [F.max_pool2d(h, size) for h in maps]


def group_norm(maps: Maps, gain: Tensor, shift: Tensor, groups: int) -> Maps:
    """Normalises each group of a seed's channels (Wu & He 2018); gain, shift [S, C]."""
    count = groups * len(gain) // len(maps)
    own = zip(maps, _own(gain, maps), _own(shift, maps), strict=True)
    return [torch.addcmul(s[:, None, None], F.group_norm(h, count, eps=EPS), g[:, None, None]) for h, g, s in own]


def batch_norm(
    maps: Maps, gain: Tensor, shift: Tensor, mean: Tensor, var: Tensor, train: bool
) -> tuple[Maps, Tensor, Tensor]:
    """Normalises each channel over B, h, w (Ioffe & Szegedy 2015).

    Returns it with the new running mean and variance [S, C]. As in torch, a batch is normalised by its biased
    variance, and the running variance averages the unbiased one.
    Raises ValueError if a channel has a single value to train on.
    """
    if train:
        if maps[0][:, 0].numel() == 1:
            raise ValueError(
                "train.batch_size=1: batch norm needs more than one value a channel; use a larger batch, or a model"
                " without batch norm (model.norm=group)"
            )
        # F.batch_norm writes into them through flat views: they must be contiguous
        mean, var = (v.clone(memory_format=torch.contiguous_format) for v in (mean, var))
    own = zip(maps, *(_own(v, maps) for v in (mean, var, gain, shift)), strict=True)
    return [F.batch_norm(h, m, v, g, s, train, MOMENTUM, EPS) for h, m, v, g, s in own], mean, var


def gate(maps: Maps, gates: Gates | None, name: str) -> Maps:
    """Each unit's maps times its gate [S, B, H], the same for all k copies of a unit (CReLU)."""
    if gates is None or name not in gates:
        return maps
    factor = gates[name]
    copies = sum(h.shape[1] for h in maps) // (len(factor) * factor.shape[2])
    return [h * g[..., None, None] for h, g in zip(maps, apart(factor.repeat(1, 1, copies)), strict=True)]


def _own(v: Tensor, maps: Maps) -> Sequence[Tensor]:
    """A parameter [S, C, ...] as each of the maps takes it: [C, ...], or [S C, ...]."""
    return (v.flatten(0, 1),) if len(maps) == 1 else v.unbind()


def _split(h: Tensor, seeds: int) -> Tensor:
    """[B, S C, h, w] -> [B, S, C, h, w]."""
    return h.view(len(h), seeds, -1, *h.shape[2:])
