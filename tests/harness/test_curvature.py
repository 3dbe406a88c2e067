"""Curvature against dense float64 references, closed forms and laws of invariance."""

import gc
import math
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from harness import curvature, tree
from harness.curvature import (
    Hessian,
    flatten,
    hutchpp,
    lanczos,
    top_eigenvalues,
    top_of,
    trace,
    unflatten,
    value_and_grad,
    worst_rise,
)
from harness.models.mlp import MLP
from harness.random import keys
from harness.types import Loss, Params

F64 = torch.float64

# torch.func.hessian, forward over reverse, loads torch's own scripted decompositions, which torch 2.15 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")


def net(seeds: list[int]) -> tuple[Loss, Params]:
    """A ReLU net of 244 parameters and its mean cross-entropy on 40 rows of each seed."""
    model = MLP((8,), 4, (10, 10))
    params = {k: v.double() for k, v in model.init(keys(seeds, "init"))[0].items()}
    x = torch.stack([torch.randn(40, 8, dtype=F64, generator=torch.Generator().manual_seed(s)) for s in seeds])
    y = x[:, :, :4].argmax(2)

    def loss(p: Params) -> Tensor:
        logits = model(p, {}, x, y * 0).logits
        return torch.stack([cross_entropy(a, b) for a, b in zip(logits, y)])

    return loss, params


def alone(loss: Loss, params: Params, s: int) -> Callable[[Tensor], Tensor]:
    """Loss of seed s as a function of its own parameters [P]."""
    flat = flatten(params)
    return lambda v: loss(unflatten(torch.cat([flat[:s], v[None], flat[s + 1 :]]), params))[s]


def dense(loss: Loss, params: Params, s: int) -> Tensor:
    """Hessian [P, P] of seed s, by torch.func."""
    return torch.func.hessian(alone(loss, params, s))(flatten(params)[s])


def quadratic(h: Tensor) -> curvature.Matvec:
    """v -> H v for one matrix [P, P], or one a seed."""
    return lambda v: {"w": (h @ v["w"][..., None])[..., 0]}


@pytest.mark.parametrize("seeds", [[4], [4, 1, 7]])
def test_product_trace_and_eigenvalues_are_those_of_the_dense_hessian(seeds: list[int]) -> None:
    loss, params = net(seeds)
    key = keys(seeds, "test")
    v = torch.randn(len(seeds), flatten(params).shape[1], dtype=F64, generator=torch.Generator().manual_seed(0))
    hessian = Hessian(loss, params)
    product = flatten(hessian(unflatten(v, params)))
    gradients = [flatten(g) for g in (hessian.gradient, value_and_grad(loss, params)[1])]
    top = top_eigenvalues(loss, params, key, k=5, steps=70, vectors=True)
    value, stderr = trace(loss, params, key, probes=60)
    assert top.vectors is not None
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
        assert abs(value[s] - h.trace()) < 4 * stderr[s]
        assert stderr[s] < true.abs().sum() / 20  # of order nuclear norm / probes (Meyer et al. 2021)


def test_residual_says_when_too_few_steps_were_taken() -> None:
    # hessian-eigenthings takes 2k steps by default and is then wrong in the second digit of the second value
    loss, params = net([0, 1])
    few = top_eigenvalues(loss, params, keys([0, 1], "test"), k=3, steps=6, vectors=True)
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
    top = top_eigenvalues(
        lambda p: (x @ p["w"] - y).square().sum(2).mean(1), params, keys([0, 1], "test"), k=9, steps=20
    )
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
    assert top_eigenvalues(loss, params, key, k=2, steps=3).values.tolist() == [[0, 0]] * 2
    assert [v.tolist() for v in trace(loss, params, key, probes=6)] == [[0, 0]] * 2
    straight = {"a": torch.ones(2, 3)}
    assert top_eigenvalues(lambda p: p["a"].sum(1), straight, key, k=1, steps=2).values.tolist() == [[0]] * 2


def test_hutchpp_is_exact_where_the_sketch_spans_the_range() -> None:
    low = torch.randn(2, 50, 4, dtype=F64, generator=torch.Generator().manual_seed(5))
    h = low @ torch.diag(torch.tensor([3.0, 1.0, -2.0, 0.5], dtype=F64)) @ low.mT
    value, stderr = hutchpp(quadratic(h), {"w": torch.zeros(2, 50, dtype=F64)}, keys([0, 1], "test"), 15)
    torch.testing.assert_close(value, h.diagonal(dim1=1, dim2=2).sum(1), rtol=1e-10, atol=0)
    assert (stderr < 1e-9).all()


def test_hutchpp_is_unbiased_and_its_standard_error_is_the_spread() -> None:
    # 1000 draws at once, as 1000 seeds of one flat spectrum, which leaves the most to the residual
    g = torch.randn(30, 30, dtype=F64, generator=torch.Generator().manual_seed(6))
    h = g @ g.T / 30 + torch.eye(30, dtype=F64)
    value, stderr = hutchpp(quadratic(h), {"w": torch.zeros(1000, 30, dtype=F64)}, keys(range(1000), "test"), 6)
    error = value - h.trace()
    assert abs(error.mean()) < 4 * error.std() / 1000**0.5
    assert 0.85 < (stderr.square().mean() / error.square().mean()).sqrt() < 1.15


@pytest.mark.parametrize("adaptive", [False, True])
def test_worst_rise_is_the_maximum_over_the_ball(adaptive: bool) -> None:
    w = torch.tensor([[2.0, -0.5]], dtype=F64)
    h = torch.tensor([[1.0, 0.6], [0.6, 3.0]], dtype=F64)

    def loss(p: Params) -> Tensor:
        d = p["w"]
        return (d @ h * d).sum(1) / 2 + d.sin().sum(1)

    rho = 0.3
    angle = torch.linspace(0, 2 * math.pi, 200_001, dtype=F64)
    ball = rho * torch.stack([angle.cos(), angle.sin()], 1) * (w.abs() if adaptive else 1)
    highest = loss({"w": w + ball}).max() - loss({"w": w})
    rise = worst_rise(loss, {"w": w}, rho, 50, adaptive=adaptive)
    torch.testing.assert_close(rise.worst, highest, rtol=1e-7, atol=0)
    gradient = w @ h + w.cos()
    t = w.abs() if adaptive else torch.ones_like(w)
    step = rho * t**2 * gradient / (t * gradient).norm()  # Kwon et al. 2021, equation 8
    torch.testing.assert_close(rise.one_step, loss({"w": w + step}) - loss({"w": w}))
    one = worst_rise(loss, {"w": w}, rho, 1, adaptive=adaptive)
    torch.testing.assert_close(one.worst, one.one_step.clamp(min=0))


def test_worst_rise_of_a_concave_loss_is_found_inside_and_never_negative() -> None:
    def loss(p: Params) -> Tensor:
        return -(p["w"] - 0.01).square().sum(1)

    rise = worst_rise(loss, {"w": torch.zeros(1, 1, dtype=F64)}, 1.0, 40)
    assert rise.one_step < 0
    torch.testing.assert_close(rise.worst, torch.tensor([1e-4], dtype=F64), rtol=1e-3, atol=0)


def measures(loss: Loss, params: Params, key: Tensor) -> Tensor:
    """Everything of the module, side by side: [S, M]."""
    top = top_eigenvalues(loss, params, key, k=3, steps=10)
    rises = [worst_rise(loss, params, 0.1, 5), worst_rise(loss, params, 0.5, 5, adaptive=True)]
    columns = [*trace(loss, params, key, probes=9), *rises[0], *rises[1]]
    return torch.cat([top.values, top.residuals, torch.stack(columns, 1)], 1)


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


def test_rescaling_a_relu_layer_moves_lambda_and_leaves_the_adaptive_rise() -> None:
    # Dinh et al. 2017: the same function, 5 times the weights here and a fifth there
    loss, params = net([2])
    scaled = tree.copy(params)
    for name in ("fc1.weight", "fc1.bias"):
        scaled[name] = params[name] * 5
    scaled["fc2.weight"] = params["fc2.weight"] / 5
    torch.testing.assert_close(loss(scaled), loss(params))
    key = keys([2], "test")
    before, after = (top_eigenvalues(loss, p, key, k=1, steps=30).values for p in (params, scaled))
    assert abs(after - before) > 0.5 * before
    before, after = (worst_rise(loss, p, 0.5, 8, adaptive=True).worst for p in (params, scaled))
    torch.testing.assert_close(after, before, rtol=1e-9, atol=0)
    before, after = (worst_rise(loss, p, 0.1, 8).worst for p in (params, scaled))
    assert abs(after - before) > 0.1 * before


def test_permuting_units_changes_nothing() -> None:
    loss, params = net([2])
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    moved = {**params, "fc1.weight": params["fc1.weight"][:, order], "fc1.bias": params["fc1.bias"][:, order]}
    moved["fc2.weight"] = params["fc2.weight"][:, :, order]
    key = keys([2], "test")
    for f in (
        lambda p: top_eigenvalues(loss, p, key, k=3, steps=70).values,
        lambda p: worst_rise(loss, p, 0.1, 8).worst,
        lambda p: worst_rise(loss, p, 0.5, 8, adaptive=True).worst,
    ):
        torch.testing.assert_close(f(moved), f(params), rtol=1e-8, atol=0)


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


@pytest.mark.parametrize("call", ["eigenvalues", "trace", "rise"])
def test_settings_out_of_range_are_refused(call: str) -> None:
    like, key = {"w": torch.zeros(1, 5)}, keys([0], "test")
    with pytest.raises(ValueError, match=r"steps=2.*raise steps|probes=10.*multiple of 3|rho=0"):
        if call == "eigenvalues":
            top_of(lambda v: v, like, key, k=3, steps=2)
        elif call == "trace":
            hutchpp(lambda v: v, like, key, 10)
        else:
            worst_rise(lambda p: p["w"].sum(1), like, 0.0, 1)


def test_rademacher_vectors_are_balanced_and_independent_of_the_other_seeds() -> None:
    v = curvature.signs(keys([1, 2], "test"), 100_003, torch.float32)
    assert v.shape == (2, 100_003) and set(v.unique().tolist()) == {-1.0, 1.0}
    assert (v.mean(1).abs() < 4 / 100_003**0.5).all()
    lagged = torch.stack([(v[:, d:] * v[:, :-d]).mean(1) for d in (1, 2, 7, 8, 63, 64)])
    assert (lagged.abs() < 4 / 100_003**0.5).all()
    assert torch.equal(v[1:], curvature.signs(keys([2], "test"), 100_003, torch.float32))
