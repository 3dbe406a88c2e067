"""Quadratic penalties."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from harness.types import Params


def quadratic(params: Params, anchor: Params, weight: Params) -> Tensor:
    """Σ_i weight_i (θ_i - anchor_i)² of each seed [S], over the names of `anchor`; differentiable (once) in params.

    Its gradient is written out: autograd's twelve kernels for each parameter take twice as long.

    >>> p = {"w": torch.tensor([[1.0, 3.0], [0.0, 0.0]])}
    >>> quadratic(p, {"w": torch.ones(2, 2)}, {"w": torch.tensor([[5.0, 2.0], [1.0, 0.5]])})
    tensor([8.0000, 1.5000])
    """
    values = [*(params[k] for k in anchor), *anchor.values(), *(weight[k] for k in anchor)]
    total: Tensor = _Quadratic.apply(*values)
    return total


def distance(params: Params, anchor: Params) -> Tensor:
    """Σ_i (θ_i - anchor_i)² of each seed [S], over the names of `anchor`; differentiable (once) in params.

    >>> distance({"w": torch.tensor([[1.0, 3.0]])}, {"w": torch.zeros(1, 2)})
    tensor([10.])
    """
    total: Tensor = _Distance.apply(*(params[k] for k in anchor), *anchor.values())
    return total


def stiffest(weight: Params) -> Tensor:
    """The largest weight of a penalty, for each seed [S]: half the largest curvature of `quadratic`.

    >>> stiffest({"a": torch.tensor([[1.0, 3.0], [0.0, 2.0]]), "b": torch.tensor([[2.0], [5.0]])})
    tensor([3., 5.])
    """
    return torch.stack([v.flatten(1).amax(1) for v in weight.values()]).amax(0)


class _Quadratic(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *values: Tensor) -> Tensor:
        n = len(values) // 3
        shift = torch._foreach_sub(values[:n], values[n : 2 * n])
        pull = torch._foreach_mul(shift, values[2 * n :])
        ctx.save_for_backward(*pull)
        parts = [torch.linalg.vecdot(a.reshape(len(a), -1), b.reshape(len(b), -1)) for a, b in zip(pull, shift)]
        return torch.stack(parts).sum(0)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        pull, g = ctx.saved_tensors, 2 * g
        grads = [v * g.view(-1, *[1] * (v.dim() - 1)) for v in pull]
        return (*grads, *[None] * (2 * len(grads)))


class _Distance(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *values: Tensor) -> Tensor:
        n = len(values) // 2
        shift = torch._foreach_sub(values[:n], values[n:])
        ctx.save_for_backward(*shift)
        parts = [torch.linalg.vecdot(a.reshape(len(a), -1), a.reshape(len(a), -1)) for a in shift]
        return torch.stack(parts).sum(0)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        shift, g = ctx.saved_tensors, 2 * g
        grads = [v * g.view(-1, *[1] * (v.dim() - 1)) for v in shift]
        return (*grads, *[None] * len(grads))
