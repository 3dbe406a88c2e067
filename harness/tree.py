"""Arithmetic on Params. Every reduction keeps the seed axis; a factor is a number or one per seed."""

from __future__ import annotations

import torch
from torch import Tensor

from harness.types import Params

Factor = float | Tensor  # a number, or [S]


def _like(c: Factor, v: Tensor) -> Factor:
    return c.view(-1, *[1] * (v.dim() - 1)) if isinstance(c, Tensor) and c.dim() else c


def zeros(p: Params) -> Params:
    return {k: torch.zeros_like(v) for k, v in p.items()}


def copy(p: Params) -> Params:
    return {k: v.detach().clone() for k, v in p.items()}


def detach(p: Params) -> Params:
    return {k: v.detach() for k, v in p.items()}


def scale(a: Params, c: Factor) -> Params:
    return {k: v * _like(c, v) for k, v in a.items()}


def add(a: Params, b: Params, c: Factor = 1.0) -> Params:
    """a + c b."""
    return {k: v + _like(c, v) * b[k] for k, v in a.items()}


def sub(a: Params, b: Params) -> Params:
    return {k: v - b[k] for k, v in a.items()}


def mul(a: Params, b: Params) -> Params:
    return {k: v * b[k] for k, v in a.items()}


def lerp(a: Params, b: Params, c: Factor) -> Params:
    """(1 - c) a + c b."""
    return {k: v + _like(c, v) * (b[k] - v) for k, v in a.items()}


def dot(a: Params, b: Params) -> Tensor:
    """Inner product of each seed: [S].

    >>> dot({"w": torch.tensor([[1.0, 2.0], [3.0, 0.0]])}, {"w": torch.ones(2, 2)})
    tensor([3., 3.])
    """
    parts = [(v * b[k]).reshape(len(v), -1).sum(1) for k, v in a.items()]
    return torch.stack(parts).sum(0)


def norm(a: Params) -> Tensor:
    """Euclidean norm of each seed: [S]."""
    return dot(a, a).sqrt()


def finite(a: Params) -> Tensor:
    """Whether every entry of each seed is finite: [S]."""
    return torch.stack([v.isfinite().reshape(len(v), -1).all(1) for v in a.values()]).all(0)


@torch.no_grad()
def assign(dst: Params, src: Params) -> None:
    """Copy values in place: references to `dst` (optimizer state, closures) stay valid."""
    for k, v in src.items():
        dst[k].copy_(v)
