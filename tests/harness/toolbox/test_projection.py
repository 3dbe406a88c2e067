"""The small QP against enumeration and scipy; layer inputs against the layers; the constrained update."""

import itertools

import pytest
import torch
from scipy.optimize import nnls
from torch import Tensor
from torch.nn.functional import conv2d

from harness import tree
from harness.models.cnn import CNN
from harness.models.mlp import MLP
from harness.optim import SGD
from harness.toolbox.projection import constrain, free, nonnegative_qp, vectors
from harness.types import Layer
from tests.toy import gaussian


def problem(seeds: int, k: int, common: float = 0.0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(k)
    G = torch.randn(seeds, k, 30, generator=draw, dtype=torch.float64)
    G = G + common * torch.randn(seeds, 1, 30, generator=draw, dtype=torch.float64)
    g = 3 * torch.randn(seeds, 30, 1, generator=draw, dtype=torch.float64) - 0.3 * G.mean(1)[..., None]
    return G @ G.mT, (G @ g)[..., 0]


def enumerated(P: Tensor, q: Tensor) -> Tensor:
    """The only active set of all 2^k whose solution has no wrong sign."""
    k = len(q)
    for chosen in itertools.product([False, True], repeat=k):
        on = torch.tensor(chosen)
        u = torch.zeros_like(q)
        u[on] = torch.linalg.solve(P[on][:, on], -q[on])
        if (u >= 0).all() and ((P @ u + q)[~on] >= -1e-12).all():
            return u
    raise AssertionError("no active set")


@pytest.mark.parametrize("common", [0.0, 3.0])
@pytest.mark.parametrize("k", [1, 2, 3, 6])
def test_the_qp_agrees_with_all_active_sets_tried_one_by_one(k: int, common: float) -> None:
    P, q = problem(20, k, common)
    expected = torch.stack([enumerated(p, r) for p, r in zip(P, q)])
    torch.testing.assert_close(nonnegative_qp(P, q, ridge=0), expected, rtol=1e-8, atol=1e-10)
    assert 0 < (expected > 0).double().mean() < 1 or k == 1
    torch.testing.assert_close(nonnegative_qp(P, q), expected, rtol=1e-3, atol=1e-4)  # with the ridge


@pytest.mark.parametrize("k", [5, 19])
def test_the_qp_agrees_with_scipy(k: int) -> None:
    draw = torch.Generator().manual_seed(1)
    A, b = (torch.randn(6, 40, n, generator=draw, dtype=torch.float64) for n in (k, 1))
    ours = nonnegative_qp(A.mT @ A, -(A.mT @ b)[..., 0], ridge=0)
    theirs = torch.stack([torch.as_tensor(nnls(a.numpy(), r.numpy()[:, 0])[0]) for a, r in zip(A, b)])
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


CYCLES = (  # P, q: exchanging all wrong signs at once goes round in circles from u = 0 on
    ([[24, -14, -20], [-14, 14, 19], [-20, 19, 26]], [7, -2, -5]),
    ([[24, -8, -14], [-8, 19, 23], [-14, 23, 29]], [-9, 2, 5]),
    ([[9, -12, 13], [-12, 17, -17], [13, -17, 19]], [4, -7, 3]),
    ([[17, -11, -22], [-11, 10, 15], [-22, 15, 29]], [7, -2, -9]),
)


def test_the_qp_ends_where_exchanging_all_wrong_signs_would_not() -> None:
    P, q = (torch.tensor(v).double() for v in zip(*CYCLES))
    expected = torch.stack([enumerated(p, r) for p, r in zip(P, q)])
    torch.testing.assert_close(nonnegative_qp(P, q, ridge=0), expected, rtol=1e-9, atol=1e-12)


def test_the_qp_takes_few_rounds() -> None:
    """One exchange at a time would need a round for each of some ten positive entries."""
    P, q = problem(200, 19)
    torch.testing.assert_close(nonnegative_qp(P, q, rounds=8), nonnegative_qp(P, q), rtol=1e-9, atol=1e-12)


def test_the_qp_s_units_do_not_matter() -> None:
    P, q = problem(4, 5, 1.0)
    D = torch.tensor([1e-6, 1e3, 1.0, 10.0, 1e-2], dtype=torch.float64)
    u = nonnegative_qp(P, q, ridge=0)
    scaled = nonnegative_qp(D[:, None] * P * D, D * q, ridge=0)
    torch.testing.assert_close(scaled * D, u, rtol=1e-7, atol=1e-12)


def test_dependent_and_empty_rows_have_a_finite_solution_without_wrong_signs() -> None:
    G = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]]], dtype=torch.float64)
    g = torch.tensor([[-2.0, 3.0]], dtype=torch.float64)
    u = nonnegative_qp(G @ G.mT, (G @ g[..., None])[..., 0])
    assert u.isfinite().all() and (u >= 0).all()
    torch.testing.assert_close(g + (u[:, None] @ G)[:, 0], torch.tensor([[0.0, 3.0]]).double(), rtol=0, atol=1e-5)


def test_a_seed_s_problem_depends_on_no_other_even_a_diverged_one() -> None:
    P, q = problem(3, 4, 1.0)
    whole = nonnegative_qp(P, q)
    P[1] = torch.nan
    hurt = nonnegative_qp(P, q)
    for s in (0, 2):
        torch.testing.assert_close(hurt[s], whole[s], rtol=1e-12, atol=0)
        torch.testing.assert_close(nonnegative_qp(P[s : s + 1], q[s : s + 1])[0], whole[s], rtol=1e-12, atol=0)


def test_vectors_of_a_convolution_are_what_its_flat_weight_multiplies() -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 4, 7, 6, generator=draw, dtype=torch.float64)
    w = torch.randn(2, 5, 4, 3, 3, generator=draw, dtype=torch.float64)
    b = torch.randn(2, 5, generator=draw, dtype=torch.float64)
    found = vectors(Layer("w", "b", "in", "out", {"stride": 2, "padding": 1}), x, w, bias=True)
    ours = found @ torch.cat([w.flatten(2), b[..., None]], 2).mT[:, None]
    for s in range(2):
        z = conv2d(x[s], w[s], b[s], stride=2, padding=1)  # [B, O, h, w]
        torch.testing.assert_close(ours[s].mT, z.flatten(2), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bias", [False, True])
def test_an_update_is_multiplied_by_what_is_allowed_and_the_rest_stays_put(bias: bool) -> None:
    learner = gaussian(lambda s: MLP(s.shape, 2, (3,), layer_norm=True), SGD(lr=0.1))
    Q = free(learner, "x", bias=bias)
    assert [v.shape[1:] for v in Q.values()] == [(4 + bias, 4 + bias), (3 + bias, 3 + bias)]
    draw = torch.Generator().manual_seed(0)
    Q = {k: torch.randn(v.shape, generator=draw, dtype=v.dtype) for k, v in Q.items()}
    before = tree.copy(learner.params)
    move = {k: torch.randn(v.shape, generator=draw, dtype=v.dtype) for k, v in before.items()}
    tree.assign(learner.params, tree.add(before, move))
    constrain(learner, before, Q)
    for s in range(learner.S):
        for name in ("fc1", "head"):
            U = move[f"{name}.weight"][s]
            if bias:
                U = torch.cat([U, move[f"{name}.bias"][s, :, None]], 1)
            U = U @ Q[f"{name}.weight"][s]
            n = U.shape[1] - bias
            new = {k: learner.params[f"{name}.{k}"][s] - before[f"{name}.{k}"][s] for k in ("weight", "bias")}
            torch.testing.assert_close(new["weight"], U[:, :n], rtol=1e-10, atol=1e-12)
            torch.testing.assert_close(new["bias"], U[:, n] if bias else torch.zeros_like(new["bias"]))
    assert torch.equal(learner.params["fc1.norm.gain"], before["fc1.norm.gain"])


def test_a_model_without_layers_is_refused_in_one_line() -> None:
    learner = gaussian(lambda s: CNN(s.shape, 2, (3,), (4,)), SGD(lr=0.1), shape=(1, 4, 4))
    learner.model.layers = ()
    with pytest.raises(ValueError, match=r"^gpm: CNN declares no layers; use one of ours, such as model=mlp"):
        free(learner, "gpm", bias=False)
