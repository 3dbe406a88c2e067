"""Straight lines between two points in parameter space, and what the literature calls a barrier on them.

A path is [S, K]: a loss (or an error, 1 - accuracy) at K points alpha of a grid from 0 to 1. The three barrier
definitions answer different questions and are three functions (research note: on a naive step of a continual
learner Entezari's is 0.00 while Frankle's is 1.65).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from harness import tree
from harness.types import Net, Params


def grid(points: int) -> tuple[float, ...]:
    """`points` values of alpha, evenly from 0 to 1.

    >>> grid(5)
    (0.0, 0.25, 0.5, 0.75, 1.0)
    """
    if points < 3:
        raise ValueError(f"points={points}: a path needs its two ends and a point between them, at least 3")
    return tuple(i / (points - 1) for i in range(points))


@torch.no_grad()
def line(a: Params, b: Params, evaluate: Callable[[Params], Tensor], alphas: Sequence[float]) -> Tensor:
    """`evaluate` [S, ...] at (1 - alpha) a + alpha b for every alpha: [S, K, ...].

    `evaluate` sees parameters only. Batch-norm statistics belong to one point of the line and are wrong at the
    others (variance collapse, Jordan et al. 2023): where a net has them, `evaluate` must renew them (`refresh`).
    """
    return torch.stack([evaluate(tree.lerp(a, b, alpha)) for alpha in alphas], 1)


def refresh(net: Net, x: Tensor, t: Tensor) -> Net:
    """The net with running statistics replaced by those of the rows x [S, B, ...]; unchanged if it has none.

    Every floating buffer is taken for a moving average, new = (1 - m) old + m statistic, and the statistic is
    solved for exactly from two forward passes in training mode (from old = 0 and old = 1), whatever m is; a
    buffer that a training pass leaves alone stays. Not for nets whose buffers are anything else.
    """
    moving = {k for k, v in net.buffers.items() if v.is_floating_point()}
    if not moving:
        return net
    key = torch.zeros(len(x), dtype=torch.int64, device=x.device)  # dropout, if the net has any, needs one

    def updated(old: float) -> dict[str, Tensor]:
        start = {k: torch.full_like(v, old) if k in moving else v for k, v in net.buffers.items()}
        return net.apply(net.params, start, x, t, train=True, key=key).buffers

    zero, one = updated(0.0), updated(1.0)
    renewed = dict(net.buffers)
    for k in moving:
        weight = 1 - (one[k] - zero[k])  # m
        renewed[k] = torch.where(weight.abs() > 1e-6, zero[k] / weight, net.buffers[k])
    return Net(net.params, renewed, net.apply)


def _ends(path: Tensor, alphas: Sequence[float]) -> tuple[Tensor, Tensor]:
    if len(alphas) != path.shape[1] or alphas[0] != 0 or alphas[-1] != 1:
        raise ValueError(f"alphas={tuple(alphas)}: need one for each of {path.shape[1]} points, from 0 to 1")
    return path[:, :1], path[:, -1:]


def entezari(path: Tensor, alphas: Sequence[float]) -> Tensor:
    """max over alpha of L(alpha) - [(1 - alpha) L(0) + alpha L(1)]: [S], at least 0 (Entezari et al. 2022).

    Non-convexity alone: 0 on every convex loss, however different the ends are.

    >>> path = torch.tensor([[1.0, 3.0, 2.0], [0.0, 1.0, 4.0]])
    >>> entezari(path, (0, 0.5, 1)), frankle(path, (0, 0.5, 1)), excess(path, (0, 0.5, 1))
    (tensor([1.5000, 0.0000]), tensor([1.5000, 2.0000]), tensor([1., 0.]))
    """
    a, b = _ends(path, alphas)
    alpha = torch.tensor(alphas, dtype=path.dtype, device=path.device)
    return (path - ((1 - alpha) * a + alpha * b)).amax(1)


def frankle(path: Tensor, alphas: Sequence[float]) -> Tensor:
    """max over alpha of L(alpha) - [L(0) + L(1)] / 2: [S], at least 0 (linear instability, Frankle et al. 2020).

    Between unequal ends it is half their difference even on a monotone slide: not a barrier there.
    """
    a, b = _ends(path, alphas)
    return path.amax(1) - ((a + b) / 2)[:, 0]


def excess(path: Tensor, alphas: Sequence[float]) -> Tensor:
    """max over alpha of L(alpha) - max(L(0), L(1)): [S], at least 0; a hill that is higher than both ends."""
    a, b = _ends(path, alphas)
    return path.amax(1) - a.maximum(b)[:, 0]


def best(path: Tensor, alphas: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Where the path is lowest, and how far below the better end: alpha* [S], gain [S] at least 0; NaN with NaN.

    The gain is what averaging the two ends could give for nothing.

    >>> best(torch.tensor([[4.0, 0.5, 2.0], [1.0, 2.0, 3.0]]), (0, 0.5, 1))
    (tensor([0.5000, 0.0000]), tensor([1.5000, 0.0000]))
    """
    a, b = _ends(path, alphas)
    lowest, index = path.min(1)
    alpha = torch.tensor(alphas, dtype=path.dtype, device=path.device)[index]
    return alpha.masked_fill(lowest.isnan(), math.nan), a.minimum(b)[:, 0] - lowest


def area(path: Tensor, alphas: Sequence[float]) -> Tensor:
    """Integral over alpha of L(alpha) - min(L(0), L(1)), by trapezoids: [S]; negative in a valley.

    >>> area(torch.tensor([[1.0, 3.0, 2.0]]), (0, 0.5, 1))
    tensor([1.2500])
    """
    a, b = _ends(path, alphas)
    alpha = torch.tensor(alphas, dtype=path.dtype, device=path.device)
    return torch.trapezoid(path - a.minimum(b), alpha, dim=1)
