"""Arithmetic on Params against flat vectors, seed by seed."""

import pytest
import torch
from torch import Tensor

from harness import rng, tree
from harness.types import Params

S = 3
SHAPES = {"w": (4, 5), "b": (4,), "scalar": ()}


def draw(purpose: str) -> Params:
    key = rng.keys(range(S), purpose)
    return {k: rng.normal(rng.fold(key, k), *s, dtype=torch.float64) for k, s in SHAPES.items()}


def vector(p: Params, s: int) -> Tensor:
    """All numbers of one seed in a row."""
    return torch.cat([v[s].reshape(-1) for v in p.values()])


A, B = draw("a"), draw("b")
C = torch.tensor([0.5, -2.0, 3.0], dtype=torch.float64)


def test_reductions_are_those_of_each_seed_s_own_vector() -> None:
    for s in range(S):
        torch.testing.assert_close(tree.dot(A, B)[s], vector(A, s) @ vector(B, s))
        torch.testing.assert_close(tree.norm(A)[s], torch.linalg.vector_norm(vector(A, s)))
    assert tree.dot(A, B).shape == (S,)


@pytest.mark.parametrize("c", [2.0, C], ids=["number", "one per seed"])
def test_scale_add_and_lerp_take_a_number_or_one_per_seed(c: float | Tensor) -> None:
    for s in range(S):
        factor = float(c[s]) if isinstance(c, Tensor) else c
        a, b = vector(A, s), vector(B, s)
        torch.testing.assert_close(vector(tree.scale(A, c), s), factor * a)
        torch.testing.assert_close(vector(tree.add(A, B, c), s), a + factor * b)
        torch.testing.assert_close(vector(tree.lerp(A, B, c), s), (1 - factor) * a + factor * b)
        torch.testing.assert_close(vector(tree.sub(A, B), s), a - b)
        torch.testing.assert_close(vector(tree.mul(A, B), s), a * b)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_finite_names_the_seed_that_is_not(bad: float) -> None:
    spoiled = tree.copy(A)
    spoiled["b"][1, 2] = bad
    assert tree.finite(spoiled).tolist() == [True, False, True]
    assert tree.finite(A).tolist() == [True] * S


def test_copy_shares_nothing_and_assign_writes_in_place() -> None:
    a = tree.copy(A)
    storage = {k: v.data_ptr() for k, v in a.items()}
    tree.assign(a, {"b": B["b"]})
    assert torch.equal(a["b"], B["b"]) and torch.equal(a["w"], A["w"])
    assert {k: v.data_ptr() for k, v in a.items()} == storage
    assert not torch.equal(A["b"], B["b"])  # the original of the copy stayed
    assert all((v == 0).all() and v.shape == A[k].shape for k, v in tree.zeros(A).items())


def test_detach_cuts_the_graph_and_shares_memory() -> None:
    leaf = {"w": A["w"].clone().requires_grad_()}
    cut = tree.detach(tree.scale(leaf, 2.0))
    assert not cut["w"].requires_grad
    assert tree.detach(leaf)["w"].data_ptr() == leaf["w"].data_ptr()
