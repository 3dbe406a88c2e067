"""How much a loss rises near a point, for all seeds at once: the worst rise within a ball, or the average.

Each is plain (distance of the weights) or adaptive (relative to |w|, invariant to rescaled ReLU layers), for the loss
itself or with normalised logits (invariant to confidence).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from harness import tree
from harness.landscape.curvature import flatten, unflatten, value_and_grad
from harness.rng import fold, normal
from harness.types import Apply, Buffers, Loss, Out, Params, Stream


class Rise(NamedTuple):
    """How much the loss rises within a ball around the point."""

    one_step: Tensor  # [S] after a gradient step of length rho; may be negative
    worst: Tensor  # [S] largest rise found by the ascent; never negative


def worst_rise(
    loss: Loss,
    params: Params,
    rho: float,
    steps: int,
    *,
    adaptive: bool = False,
    here: tuple[Tensor, Params] | None = None,
) -> Rise:
    """max of L(w + e) - L(w) over ||e / T|| <= rho, by projected gradient ascent: `steps` gradients and a pass.

    T = 1 (Foret et al. 2021) or, with `adaptive`, T = |w| for every parameter (Kwon et al. 2021 with eta = 0 and
    biases included, invariant to rescaled ReLU units; a weight of exactly 0 does not move).
    With u = e / T the step is u <- project(u + step T g / ||T g||), from the best point so far; step = 2 rho,
    halved for a seed after a step without improvement. The first step is SAM's, e = rho T^2 g / ||T g||.
    A lower bound of the maximum; at a stationary point the ascent has no direction, and both values are 0. `here`: loss
    and gradient at w, if they are known.
    """
    if rho <= 0 or steps < 1:
        raise ValueError(f"rho={rho}, steps={steps}: the worst rise needs rho > 0 and at least 1 step")
    size = {k: v.detach().abs() for k, v in params.items()}

    def stretch(v: Params) -> Params:
        return tree.mul(size, v) if adaptive else v

    u = tree.zeros(params)
    base, grads = here or value_and_grad(loss, params)
    tiny = torch.finfo(base.dtype).tiny
    best, one_step, step = base, base, torch.full_like(base, 2 * rho)
    for i in range(steps):
        uphill = stretch(grads)
        tried = tree.add(u, uphill, step / tree.norm(uphill).clamp(min=tiny))
        tried = tree.scale(tried, (rho / tree.norm(tried).clamp(min=tiny)).clamp(max=1))
        at = tree.add(params, stretch(tried))
        value, there = value_and_grad(loss, at) if i + 1 < steps else (_value(loss, at), grads)
        one_step = value if i == 0 else one_step
        up = value.isfinite() & (value > best)
        best, step = torch.where(up, value, best), torch.where(up, step, step / 2)
        u, grads = _choose(up, tried, u), _choose(up, there, grads)
    return Rise(one_step - base, best - base)


@torch.no_grad()
def _value(loss: Loss, params: Params) -> Tensor:
    return loss(params)


def _choose(where: Tensor, a: Params, b: Params) -> Params:
    """Seed by seed, `a` where `where` [S] and `b` elsewhere."""
    if where.all():
        return a
    return {k: torch.where(where.view(-1, *[1] * (v.dim() - 1)), v, b[k]) for k, v in a.items()}


@torch.no_grad()
def average_rise(
    loss: Loss, params: Params, key: Tensor, rho: float, pairs: int, *, adaptive: bool = False
) -> tuple[Tensor, Tensor]:
    """E[L(w + e) - L(w)] over e = rho T z, z standard normal, and its standard error: [S], [S]; 2 `pairs` + 1 passes.

    T = 1 or, with `adaptive`, T = |w|; rho is per coordinate (Andriushchenko et al. 2023). To second order it is
    rho^2 / 2 tr(T H T), as long as no ReLU crosses its kink, which the Hessian does not see: on a small net rho = 0.001
    gave three times as much. Draws come in pairs z and -z, which removes the slope from the variance. May be negative.
    Invariances as in `worst_rise`. ValueError unless rho > 0 and pairs >= 2.
    """
    if rho <= 0 or pairs < 2:
        raise ValueError(f"rho={rho}, pairs={pairs}: the average rise needs rho > 0 and at least 2 pairs")
    size, flat = {k: v.abs() for k, v in params.items()}, flatten(params)
    base, rises = loss(params), []
    for i in range(pairs):
        z = unflatten(normal(fold(key, i), flat.shape[1], dtype=flat.dtype), params)
        e = tree.mul(size, z) if adaptive else z
        rises.append((loss(tree.add(params, e, rho)) + loss(tree.add(params, e, -rho))) / 2 - base)
    each = torch.stack(rises, 1)  # [S, pairs]
    return each.mean(1), each.std(1) / math.sqrt(pairs)


def normalised(apply: Apply, stream: Stream, now: int) -> Apply:
    """The forward pass with every row's competing logits z made (z - mean z) / ||z - mean z||.

    Invariant to the scale of the logits, and so to confidence (Andriushchenko et al. 2023). The norm is 1, so the loss
    stays near chance level. NaN if all competing logits of a row are equal. `now`: as in `Stream.mask`.
    """

    def normal(params: Params, buffers: Buffers, x: Tensor, t: Tensor, **how: Any) -> Out:
        out = apply(params, buffers, x, t, **how)
        mask = stream.mask(t, now)
        z = out.logits
        if mask is None:
            z = z - z.mean(-1, keepdim=True)
        else:
            mean = z.masked_fill(~mask, 0).sum(-1, keepdim=True) / mask.sum(-1, keepdim=True)
            z = (z - mean).masked_fill(~mask, 0)
        return out._replace(logits=z / torch.linalg.vector_norm(z, dim=-1, keepdim=True))

    return normal
