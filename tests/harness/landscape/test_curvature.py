"""Curvature against dense float64 references, closed forms and laws of invariance."""

import gc
import math
import weakref

import pytest
import torch
from torch import Tensor

from harness import tree
from harness.landscape import curvature
from harness.landscape.curvature import (
    Hessian,
    Quadrature,
    curvature_rank,
    density,
    flatten,
    krylov,
    lanczos,
    moments,
    negative_mass,
    quadrature,
    random_signs,
    ritz,
    scaled,
    top_of,
    unflatten,
    value_and_grad,
)
from harness.rng import fold, keys
from harness.types import Loss, Params
from tests.harness.dense import SCRIPTED, alone, dense, net, relabelled, rescaled

F64 = torch.float64
pytestmark = pytest.mark.filterwarnings(SCRIPTED)


def quadratic(h: Tensor) -> curvature.Matvec:
    """v -> H v for one matrix [P, P], or one a seed."""
    return lambda v: {"w": (h @ v["w"][..., None])[..., 0]}


@pytest.mark.parametrize("seeds", [[4], [4, 1, 7]])
def test_product_and_eigenvalues_at_both_ends_are_those_of_the_dense_hessian(seeds: list[int]) -> None:
    loss, params = net(seeds)
    key = keys(seeds, "test")
    v = torch.randn(len(seeds), flatten(params).shape[1], dtype=F64, generator=torch.Generator().manual_seed(0))
    hessian = Hessian(loss, params)
    product = flatten(hessian(unflatten(v, params)))
    gradients = [flatten(g) for g in (hessian.gradient, value_and_grad(loss, params)[1])]
    top = top_of(Hessian(loss, params), params, key, k=5, steps=70, vectors=True)
    assert top.vectors is not None
    whole = ritz(krylov(hessian, random_signs(key, params), 150))
    for s in range(len(seeds)):
        for g in gradients:
            torch.testing.assert_close(g[s], torch.func.grad(alone(loss, params, s))(flatten(params)[s]))
        h = dense(loss, params, s)
        torch.testing.assert_close(product[s], h @ v[s], rtol=0, atol=1e-12)
        true = torch.linalg.eigvalsh(h).flip(0)
        torch.testing.assert_close(top.values[s], true[:5], rtol=1e-10, atol=0)
        u = top.vectors[s]
        torch.testing.assert_close(u.mT @ u, torch.eye(5, dtype=F64), rtol=0, atol=1e-10)
        assert ((h @ u - u * top.values[s]).norm(dim=0) < 1e-8).all()
        torch.testing.assert_close(whole.values[s, -3:], true[-3:], rtol=1e-8, atol=0)
        assert (whole.residuals[s, [0, 1, 2, -3, -2, -1]] < 1e-6).all()
        moved = torch.linalg.eigvalsh(flatten(params)[s].abs()[:, None] * h * flatten(params)[s].abs())
        adaptive = scaled(hessian, {k: w.abs() for k, w in params.items()})
        torch.testing.assert_close(top_of(adaptive, params, key, k=1, steps=60).values[s, 0], moved[-1])


def test_residual_says_when_too_few_steps_were_taken() -> None:
    # hessian-eigenthings takes 2k steps by default and is then wrong in the second digit of the second value
    loss, params = net([0, 1])
    few = top_of(Hessian(loss, params), params, keys([0, 1], "test"), k=3, steps=6, vectors=True)
    assert few.vectors is not None
    for s in range(2):
        h = dense(loss, params, s)
        u = few.vectors[s]
        torch.testing.assert_close((h @ u - u * few.values[s]).norm(dim=0), few.residuals[s], rtol=1e-7, atol=1e-12)
        nearest = (torch.linalg.eigvalsh(h)[:, None] - few.values[s]).abs().amin(0)
        assert (nearest <= few.residuals[s] + 1e-12).all()
        assert few.residuals[s, 2] > 1e-3 * few.values[s, 2]


def test_linear_model_with_squared_loss_has_hessian_two_over_n_x_x_for_each_output() -> None:
    x = torch.randn(2, 30, 5, dtype=F64, generator=torch.Generator().manual_seed(3))
    y = x[..., :3].sin()
    params = {"w": torch.randn(2, 5, 3, dtype=F64, generator=torch.Generator().manual_seed(4))}
    hessian = Hessian(lambda p: (x @ p["w"] - y).square().sum(2).mean(1), params)
    top = top_of(hessian, params, keys([0, 1], "test"), k=9, steps=20)
    true = torch.linalg.eigvalsh(2 / 30 * x.mT @ x).flip(1)[:, :3].repeat_interleave(3, 1)
    # one Krylov space holds each multiple eigenvalue once: the copies come from the restart
    torch.testing.assert_close(top.values, true, rtol=1e-10, atol=0)


def test_lanczos_goes_on_where_the_krylov_space_of_one_seed_is_exhausted() -> None:
    h = torch.diag_embed(torch.tensor([[3.0, 3.0, 3.0, -1.0, -1.0, -1.0], [6.0, 5.0, 4.0, 3.0, 2.0, 1.0]], dtype=F64))
    start = {"w": torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]] * 2, dtype=F64)}
    values = lanczos(quadratic(h), start, 6).values
    torch.testing.assert_close(values, h.diagonal(dim1=1, dim2=2), rtol=1e-12, atol=1e-12)
    assert lanczos(quadratic(h), start, 50).values.shape == (2, 6)


def test_flat_seed_has_curvature_zero_not_nan() -> None:
    def loss(p: Params) -> Tensor:
        return p["a"].sum(1) + (p["b"] * 0).square().sum(1)  # linear in a, constant in b

    params = {"a": torch.ones(2, 3), "b": torch.ones(2, 4)}
    key = keys([0, 1], "test")
    assert top_of(Hessian(loss, params), params, key, k=2, steps=3).values.tolist() == [[0, 0]] * 2
    matvec = Hessian(loss, params)
    m = moments(matvec, krylov(matvec, random_signs(key, params), 3), params, key, 2)
    assert [v.tolist() for v in m] == [[0, 0]] * 4
    q = quadrature(matvec, params, key, vectors=2, steps=3)
    assert all(v.isnan().all() for v in (*negative_mass(q), curvature_rank(q, [0.1])))
    straight = {"a": torch.ones(2, 3)}
    assert top_of(Hessian(lambda p: p["a"].sum(1), straight), straight, key, k=1, steps=2).values.tolist() == [[0]] * 2


def test_moments_are_exact_where_the_space_holds_the_range() -> None:
    low = torch.randn(2, 50, 4, dtype=F64, generator=torch.Generator().manual_seed(5))
    h = low @ torch.diag(torch.tensor([3.0, 1.0, -2.0, 0.5], dtype=F64)) @ low.mT
    like, key = {"w": torch.zeros(2, 50, dtype=F64)}, keys([0, 1], "test")
    m = moments(quadratic(h), krylov(quadratic(h), random_signs(key, like), 5), like, key, 4)
    torch.testing.assert_close(m.trace, h.diagonal(dim1=1, dim2=2).sum(1), rtol=1e-10, atol=0)
    torch.testing.assert_close(m.square, (h @ h).diagonal(dim1=1, dim2=2).sum(1), rtol=1e-10, atol=0)
    assert (m.trace_error < 1e-9).all() and (m.square_error < 1e-8).all()


def test_moments_are_unbiased_and_their_standard_errors_are_the_spread() -> None:
    # 1000 draws at once, as 1000 seeds of one flat spectrum, which leaves the most to chance
    g = torch.randn(30, 30, dtype=F64, generator=torch.Generator().manual_seed(6))
    h = g @ g.T / 30 + torch.eye(30, dtype=F64)
    like, key = {"w": torch.zeros(1000, 30, dtype=F64)}, keys(range(1000), "test")
    for steps in (1, 3):  # the last of `off` counts most where the space is small
        m = moments(quadratic(h), krylov(quadratic(h), random_signs(fold(key, "start"), like), steps), like, key, 3)
        for value, stderr, true in ((m.trace, m.trace_error, h.trace()), (m.square, m.square_error, (h @ h).trace())):
            error = value - true
            assert abs(error.mean()) < 4 * error.std() / 1000**0.5
            assert 0.85 < (stderr.square().mean() / error.square().mean()).sqrt() < 1.15


@pytest.mark.parametrize("seeds", [[4], [4, 1, 7]])
def test_trace_rank_density_and_negative_mass_are_those_of_the_dense_spectrum(seeds: list[int]) -> None:
    loss, params = net(seeds, trained=60)
    key, hessian = keys(seeds, "test"), Hessian(loss, params)
    m = moments(hessian, krylov(hessian, random_signs(key, params), 12), params, fold(key, "trace"), 30)
    q = quadrature(hessian, params, key, vectors=20, steps=60)
    assert q.size == 244
    torch.testing.assert_close(q.weights.sum(2), torch.ones(len(seeds), 20, dtype=F64))
    mass, mass_error = negative_mass(q)
    rank = curvature_rank(q, [0.1, 0.01])
    grid = torch.linspace(-1.05, 1.05, 211, dtype=F64)
    phi, radius = density(q, grid, 0.05)
    for s in range(len(seeds)):
        true = torch.linalg.eigvalsh(dense(loss, params, s))
        assert abs(m.trace[s] - true.sum()) < 4 * m.trace_error[s] < 0.2 * true.sum()
        assert abs(m.square[s] - true.square().sum()) < 4 * m.square_error[s] + 1e-9 < 0.1 * true.square().sum()
        assert abs(mass[s] - -true.clamp(max=0).sum() / true.abs().sum()) < 4 * mass_error[s] < 0.6 * mass[s]
        counts = torch.tensor([(true > c * true[-1]).sum() for c in (0.1, 0.01)])
        assert (abs(rank[s] - counts) < 0.25 * counts).all()
        torch.testing.assert_close(radius[s], true.abs().max(), rtol=1e-6, atol=0)
        bumps = (-((grid[:, None] - true / radius[s]) / 0.05).square() / 2).exp().mean(1) / (
            0.05 * math.sqrt(2 * math.pi)
        )
        assert (phi[s] - bumps).abs().max() < 0.05 * bumps.max()
        torch.testing.assert_close((phi[s] * 0.01).sum(), torch.tensor(1.0, dtype=F64), rtol=0.01, atol=0)


def test_quadrature_of_a_small_matrix_is_exact_in_its_moments_and_stops_where_the_space_does() -> None:
    # three distinct eigenvalues: after three steps nothing is left, and what follows must weigh nothing
    h = torch.diag(torch.tensor([2.0, 2.0, -1.0, -1.0, 0.5, 0.5], dtype=F64))
    like = {"w": torch.zeros(2, 6, dtype=F64)}
    q = quadrature(quadratic(h), like, keys([0, 1], "test"), vectors=3, steps=6)
    for power in range(4):  # of a diagonal matrix every Rademacher vector sees the exact moments
        got = (q.weights * q.nodes**power).sum(2) * 6
        torch.testing.assert_close(got, torch.full((2, 3), (h.diagonal() ** power).sum().item(), dtype=F64))
    share, error = negative_mass(q)
    torch.testing.assert_close(share, torch.full((2,), 2 / 7, dtype=F64))
    assert (error < 1e-12).all()
    assert curvature_rank(q, [0.3, 0.1]).round(decimals=9).tolist() == [[2, 4]] * 2


def test_the_spread_of_curvature_rank_over_vectors_is_not_its_error() -> None:
    """Few steps: every vector overstates the number of eigenvalues above 0.001, so the column has no standard error."""
    loss, params = net([3], trained=100)
    h = dense(loss, params, 0)
    true = torch.linalg.eigvalsh(h)
    q = quadrature(quadratic(h[None]), {"w": torch.zeros(1, 244, dtype=F64)}, keys([3], "test"), vectors=10, steps=20)
    counts = 244 * (q.weights * (q.nodes > 0.001 * q.nodes.max())).sum(2)[0]  # of each vector
    off = counts.mean() - (true > 0.001 * true[-1]).sum()
    torch.testing.assert_close(curvature_rank(q, [0.001]), counts.mean().view(1, 1))
    assert off > 4 * counts.std() / math.sqrt(10) and (counts.mean() - counts[:5].mean()).abs() < 0.3 * off


def test_curvature_rank_has_no_meaning_where_nothing_curves_upwards() -> None:
    q = Quadrature(torch.tensor([[[-1.0, -2.0]] * 2]), torch.full((1, 2, 2), 0.5), 4)
    assert curvature_rank(q, [0.1]).isnan().all()
    assert negative_mass(q)[0].tolist() == [1.0]


def test_float32_basis_stays_orthogonal_and_gives_the_float64_values() -> None:
    loss, params = net([4, 1], trained=60)
    single = {k: v.float() for k, v in params.items()}
    exact = Hessian(loss, params)
    space = krylov(
        lambda v: {k: u.float() for k, u in exact({k: u.double() for k, u in v.items()}).items()},
        random_signs(keys([4, 1], "test"), single),
        80,
    )
    inner = space.basis @ space.basis.mT
    assert (inner - torch.eye(80)).abs().max() < 1e-5
    true = ritz(krylov(exact, random_signs(keys([4, 1], "test"), params), 80)).values
    torch.testing.assert_close(ritz(space).values[:, :5], true[:, :5], rtol=1e-5, atol=0)
    assert (ritz(space).values[:, -1] - true[:, -1]).abs().max() < 1e-5 * true[:, 0].max()


def measures(loss: Loss, params: Params, key: Tensor) -> Tensor:
    """Everything of the module, side by side: [S, M]."""
    hessian = Hessian(loss, params)
    space = krylov(hessian, random_signs(key, params), 10)
    pairs, m = ritz(space), moments(hessian, space, params, key, 3)
    q = quadrature(hessian, params, key, vectors=2, steps=10)
    phi, radius = density(q, torch.linspace(-1, 1, 9, dtype=F64), 0.2)
    columns = torch.stack([*m, radius, *negative_mass(q)], 1)
    return torch.cat([pairs.values, pairs.residuals, columns, curvature_rank(q, [0.1]), phi], 1)


def test_row_s_is_seed_s_alone() -> None:
    together = measures(*net([4, 1, 7]), keys([4, 1, 7], "test"))
    for s, seed in enumerate([4, 1, 7]):
        torch.testing.assert_close(
            together[s : s + 1], measures(*net([seed]), keys([seed], "test")), rtol=1e-9, atol=1e-13
        )


def test_diverged_seed_is_nan_and_leaves_the_others_as_they_are_alone() -> None:
    loss, params = net([4, 1, 7])
    before = measures(loss, params, keys([4, 1, 7], "test"))
    params["fc2.weight"][1, 2, 3] = math.inf
    after = measures(loss, params, keys([4, 1, 7], "test"))
    assert after[1].isnan().all()
    assert torch.equal(after[[0, 2]], before[[0, 2]])


def test_rescaling_a_relu_layer_moves_the_raw_values_and_leaves_the_adaptive_one() -> None:
    loss, params = net([2])
    assert torch.allclose(loss(rescaled(params)), loss(params))
    key = keys([2], "test")

    def raw(p: Params) -> Tensor:
        hessian = Hessian(loss, p)
        space = krylov(hessian, random_signs(key, p), 60)
        return torch.stack([ritz(space).values[0, 0], moments(hessian, space, p, key, 30).trace[0]])

    def adaptive(p: Params) -> Tensor:
        return top_of(scaled(Hessian(loss, p), {k: v.abs() for k, v in p.items()}), p, key, k=3, steps=60).values

    assert (raw(rescaled(params)) / raw(params) - 1).abs().min() > 0.5
    torch.testing.assert_close(adaptive(rescaled(params)), adaptive(params), rtol=1e-9, atol=0)


def test_relabelling_units_and_splitting_the_batch_change_nothing() -> None:
    loss, params = net([2], trained=60)
    split = net([2], parts=3, trained=60)[0]
    key = keys([2], "test")

    def exact(loss: Loss, p: Params) -> Tensor:
        space = krylov(Hessian(loss, p), random_signs(key, p), 150)
        adaptive = top_of(scaled(Hessian(loss, p), {k: v.abs() for k, v in p.items()}), p, key, k=3, steps=70)
        return torch.cat([ritz(space).values[:, [0, 1, 2, -1]], adaptive.values], 1)

    torch.testing.assert_close(exact(loss, relabelled(params)), exact(loss, params), rtol=1e-8, atol=0)
    # with the batch split every draw stays the same as well, so that estimates must agree; with units relabelled
    # they see other draws, and agree within their standard errors
    torch.testing.assert_close(measures(split, params, key), measures(loss, params, key), rtol=1e-8, atol=1e-12)
    found = [
        [(m.trace, m.trace_error), (m.square, m.square_error), negative_mass(q)]
        for p in (params, relabelled(params))
        for hessian in [Hessian(loss, p)]
        for m in [moments(hessian, krylov(hessian, random_signs(key, p), 12), p, key, 30)]
        for q in [quadrature(hessian, p, key, vectors=10, steps=40)]
    ]
    for (a, a_error), (b, b_error) in zip(*found):
        assert ((a - b).abs() <= 4 * (a_error.square() + b_error.square()).sqrt() + 1e-9).all()


def test_products_leave_no_grad_no_random_draw_and_no_graph_behind() -> None:
    # PyHessian's backward(create_graph=True) leaks the graph through .grad
    loss, params = net([2])
    kept = tree.copy(params)
    leaf = {k: v.requires_grad_() for k, v in params.items()}
    rng = torch.get_rng_state()
    gc.collect()
    gc.disable()
    try:
        hessian = Hessian(loss, leaf)
        hessian(kept)
        seen = weakref.ref(hessian.gradient["fc1.weight"])
        del hessian
        assert seen() is None
    finally:
        gc.enable()
    measures(loss, leaf, keys([2], "test"))
    assert all(v.grad is None and torch.equal(v, kept[k]) for k, v in leaf.items())
    assert torch.equal(torch.get_rng_state(), rng)


def test_settings_out_of_range_are_refused() -> None:
    like, key = {"w": torch.zeros(1, 5)}, keys([0], "test")
    with pytest.raises(ValueError, match=r"steps=2.*raise steps"):
        top_of(lambda v: v, like, key, k=3, steps=2)
    with pytest.raises(ValueError, match=r"trace_probes=1: must be at least 2"):
        moments(lambda v: v, krylov(lambda v: v, like, 1), like, key, 1)
    for bad in ({"vectors": 1, "steps": 5}, {"vectors": 2, "steps": 0}):
        with pytest.raises(ValueError, match=r"vectors=.*at least 2 vectors"):
            quadrature(lambda v: v, like, key, **bad)


def test_rademacher_vectors_are_balanced_and_independent_of_the_other_seeds() -> None:
    v = curvature.signs(keys([1, 2], "test"), 100_003, torch.float32)
    assert v.shape == (2, 100_003) and set(v.unique().tolist()) == {-1.0, 1.0}
    assert (v.mean(1).abs() < 4 / 100_003**0.5).all()
    lagged = torch.stack([(v[:, d:] * v[:, :-d]).mean(1) for d in (1, 2, 7, 8, 63, 64)])
    assert (lagged.abs() < 4 / 100_003**0.5).all()
    assert torch.equal(v[1:], curvature.signs(keys([2], "test"), 100_003, torch.float32))
