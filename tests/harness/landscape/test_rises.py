"""Rises of the loss nearby against brute force, closed forms and laws of invariance."""

import math

import pytest
import torch
from torch import Tensor

from harness.landscape.curvature import flatten
from harness.landscape.rises import average_rise, normalised, worst_rise
from harness.models.mlp import MLP
from harness.rng import keys
from harness.types import Loss, Params, Stream
from tests.harness.dense import SCRIPTED, dense, net, relabelled, rescaled

F64 = torch.float64
pytestmark = pytest.mark.filterwarnings(SCRIPTED)


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


@pytest.mark.parametrize("adaptive", [False, True])
def test_average_rise_of_a_quadratic_is_half_rho_squared_times_the_scaled_trace(adaptive: bool) -> None:
    g = torch.randn(6, 6, dtype=F64, generator=torch.Generator().manual_seed(1))
    h, w = g @ g.T, torch.tensor([[0.5, -2.0, 1.0, 3.0, -0.1, 0.7]] * 400, dtype=F64)

    def loss(p: Params) -> Tensor:
        return (p["w"] @ h * p["w"]).sum(1) / 2 + 50 * p["w"].sum(1)  # a slope that would drown the curvature

    mean, error = average_rise(loss, {"w": w}, keys(range(400), "test"), 0.1, 5, adaptive=adaptive)
    true = 0.1**2 / 2 * (h.diagonal() * (w[0].square() if adaptive else 1)).sum()
    assert abs(mean.mean() - true) < 4 * mean.std() / 20 < 0.2 * true
    assert 0.85 < (error.square().mean() / (mean - true).square().mean()).sqrt() < 1.15  # 400 seeds, 5 pairs each


def test_rises_of_a_net_are_those_of_its_dense_hessian_to_second_order() -> None:
    loss, params = net([4, 1, 7], trained=60)
    key, rho = keys([4, 1, 7], "test"), 1e-5  # too small to cross a kink of a ReLU, which the Hessian does not see
    mean, error = average_rise(loss, params, key, rho, 60)
    scaled, scaled_error = average_rise(loss, params, key, rho, 60, adaptive=True)
    for s in range(3):
        h, w = dense(loss, params, s), flatten(params)[s]
        assert abs(mean[s] - rho**2 / 2 * h.trace()) < 4 * error[s] < rho**2 / 2 * h.trace()
        true = rho**2 / 2 * (h.diagonal() * w.square()).sum()
        assert abs(scaled[s] - true) < 4 * scaled_error[s] < true


def rises(loss: Loss, params: Params, key: Tensor, *, adaptive: bool) -> Tensor:
    """Worst, one-step and average rise with its error: [S, 4]."""
    worst = worst_rise(loss, params, 0.1, 8, adaptive=adaptive)
    return torch.stack([*worst, *average_rise(loss, params, key, 0.05, 4, adaptive=adaptive)], 1)


def test_rescaling_a_relu_layer_leaves_the_adaptive_rises_alone() -> None:
    loss, params = net([2])
    key = keys([2], "test")
    before, after = (rises(loss, p, key, adaptive=True) for p in (params, rescaled(params)))
    torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-13)
    before, after = (rises(loss, p, key, adaptive=False) for p in (params, rescaled(params)))
    assert ((after / before - 1).abs()[:, [0, 1, 2]] > 0.1).all()


def test_relabelling_units_and_splitting_the_batch_change_nothing() -> None:
    loss, params = net([2], trained=60)
    split, key = net([2], parts=3)[0], keys([2], "test")
    for adaptive in (False, True):
        here = rises(loss, params, key, adaptive=adaptive)
        torch.testing.assert_close(rises(split, params, key, adaptive=adaptive), here, rtol=1e-9, atol=1e-13)
        there = rises(loss, relabelled(params), key, adaptive=adaptive)
        torch.testing.assert_close(there[:, :2], here[:, :2], rtol=1e-9, atol=1e-13)
        many = [average_rise(loss, p, key, 0.05, 100, adaptive=adaptive) for p in (params, relabelled(params))]
        assert (many[0][0] - many[1][0]).abs() < 4 * (many[0][1] + many[1][1])


def test_row_s_is_seed_s_alone_and_a_diverged_seed_leaves_the_others() -> None:
    loss, params = net([4, 1, 7])
    key = keys([4, 1, 7], "test")
    for adaptive in (False, True):
        together = rises(loss, params, key, adaptive=adaptive)
        for s, seed in enumerate([4, 1, 7]):
            own = rises(*net([seed]), keys([seed], "test"), adaptive=adaptive)
            torch.testing.assert_close(together[s : s + 1], own, rtol=1e-9, atol=1e-13)
        lost = {**params, "fc2.weight": params["fc2.weight"].clone()}
        lost["fc2.weight"][1, 2, 3] = math.inf
        after = rises(loss, lost, key, adaptive=adaptive)
        assert after[1].isnan().all() and torch.equal(after[[0, 2]], together[[0, 2]])


def test_normalised_logits_have_mean_0_and_norm_1_over_those_that_compete() -> None:
    model = MLP((8,), 4, (10, 10))
    params = {k: v.double() for k, v in model.init(keys([3, 4], "init"))[0].items()}
    x = torch.randn(2, 5, 8, dtype=F64, generator=torch.Generator().manual_seed(0))
    t = torch.zeros(2, 5).long()
    masks = torch.tensor([[[True, False, True, True]]])
    free = Stream("toy", 1, "domain", (), (8,), 4, (3, 4), "")
    masked = Stream("toy", 1, "class", (), (8,), 4, (3, 4), "", masks)
    z = model(params, {}, x, t).logits
    out = normalised(model, free, 0)(params, {}, x, t).logits
    torch.testing.assert_close(out.sum(2), torch.zeros(2, 5, dtype=F64))
    torch.testing.assert_close(out.square().sum(2), torch.ones(2, 5, dtype=F64))
    torch.testing.assert_close(torch.linalg.cross(out[..., :3] - out[..., 3:], z[..., :3] - z[..., 3:]), 0 * z[..., :3])
    some = normalised(model, masked, 0)(params, {}, x, t).logits
    left = some[..., [0, 2, 3]]
    torch.testing.assert_close(left.sum(2), torch.zeros(2, 5, dtype=F64))
    torch.testing.assert_close(left.square().sum(2), torch.ones(2, 5, dtype=F64))
    louder = {k: v * 7 if k.startswith("head") else v for k, v in params.items()}
    for stream in (free, masked):
        after, before = (normalised(model, stream, 0)(p, {}, x, t).logits for p in (louder, params))
        torch.testing.assert_close(after, before)
    even = {**params, "head.weight": params["head.weight"] * 0, "head.bias": params["head.bias"] * 0}
    assert normalised(model, free, 0)(even, {}, x, t).logits.isnan().all()


def test_settings_out_of_range_are_refused() -> None:
    like = {"w": torch.zeros(1, 5)}
    with pytest.raises(ValueError, match=r"rho=0.*rho > 0"):
        worst_rise(lambda p: p["w"].sum(1), like, 0.0, 1)
    with pytest.raises(ValueError, match=r"pairs=1.*at least 2"):
        average_rise(lambda p: p["w"].sum(1), like, keys([0], "test"), 0.1, 1)
