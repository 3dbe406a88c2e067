"""Penalties against autograd and by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from harness import tree
from harness.toolbox.penalty import distance, quadratic
from harness.types import Params

SHAPES = {"a": (2, 3, 4), "b": (2, 5), "c": (2, 2, 2, 2, 2)}


def normal(seed: int) -> Params:
    draw = torch.Generator().manual_seed(seed)
    return {k: torch.randn(s, generator=draw, dtype=torch.float64) for k, s in SHAPES.items()}


@pytest.mark.parametrize("name", ["quadratic", "distance"])
def test_has_the_gradient_that_finite_differences_find(name: str) -> None:
    p, anchor, weight = normal(0), normal(1), normal(2)

    def penalty(*values: Tensor) -> Tensor:
        params = dict(zip(p, values))
        return quadratic(params, anchor, weight) if name == "quadratic" else distance(params, anchor)

    assert torch.autograd.gradcheck(penalty, [v.requires_grad_() for v in p.values()])


def test_values_are_each_seed_s_sum() -> None:
    p, anchor, weight = normal(0), normal(1), normal(2)
    square = tree.mul(tree.sub(p, anchor), tree.sub(p, anchor))
    torch.testing.assert_close(quadratic(p, anchor, weight), tree.dot(weight, square), rtol=1e-12, atol=0)
    ones = {k: torch.ones_like(v) for k, v in p.items()}
    torch.testing.assert_close(distance(p, anchor), tree.dot(ones, square), rtol=1e-12, atol=0)


def test_only_names_of_the_anchor_count() -> None:
    p, anchor, weight = normal(0), normal(1), normal(2)
    leaves = {k: v.requires_grad_() for k, v in p.items()}
    for value in (quadratic(leaves, {"b": anchor["b"]}, weight), distance(leaves, {"b": anchor["b"]})):
        grads = torch.autograd.grad(value.sum(), list(leaves.values()), allow_unused=True)
        assert [g is not None for g in grads] == [False, True, False]
