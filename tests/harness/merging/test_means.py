"""Means of nets against dense computations in float64: least squares, quadratic forms, known permutations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import unfold

from harness.landscape.alignment import permute
from harness.learner import Learner
from harness.merging.means import average, fisher, grams, matched, rebasin, regmean
from harness.models.mlp import MLP
from harness.optim import SGD
from harness.rng import keys, permutation
from harness.types import Layer, Net, Out, Params
from tests.toy import gaussian

LAYER = Layer("w", "b", "in", "out")


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def layers_of(count: int, rows: int = 9) -> tuple[list[Params], list[Tensor]]:
    """Weights [2, 3, 4] with biases, and each net's own inputs [2, rows, 4]."""
    nets = [{"w": draw(2, 3, 4, seed=i), "b": draw(2, 3, seed=10 + i)} for i in range(count)]
    return nets, [draw(2, rows, 4, seed=20 + i) * (1 + i) for i in range(count)]


def moment(x: Tensor) -> dict[str, Tensor]:
    a = torch.cat([x, torch.ones_like(x[..., :1])], 2)
    return {"w": a.mT @ a / x.shape[1]}


def test_regmean_is_the_least_squares_fit_of_the_layers_outputs() -> None:
    nets, inputs = layers_of(3)
    found = regmean(nets, [moment(x) for x in inputs], [LAYER], keep=1.0)
    for s in (0, 1):
        x = torch.cat([torch.cat([i[s], torch.ones(9, 1).double()], 1) for i in inputs])
        y = torch.cat([i[s] @ net["w"][s].T + net["b"][s] for i, net in zip(inputs, nets)])
        w = torch.linalg.lstsq(x, y).solution.T
        torch.testing.assert_close(found["w"][s], w[:, :-1], rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(found["b"][s], w[:, -1], rtol=1e-6, atol=1e-7)


def test_regmean_of_a_diagonal_is_a_mean_weighted_by_the_squared_inputs() -> None:
    nets, inputs = layers_of(2)
    found = regmean(nets, [moment(x) for x in inputs], [LAYER], keep=0.0)
    weight = torch.stack([x.square().mean(1) for x in inputs])[:, :, None]  # [K, 2, 1, 4]
    expected = (weight * torch.stack([n["w"] for n in nets])).sum(0) / weight.sum(0)
    torch.testing.assert_close(found["w"], expected, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(found["b"], average(nets)["b"], rtol=1e-6, atol=1e-8)  # its input is 1 in every net


def test_regmean_shrinks_only_what_is_off_the_diagonal() -> None:
    nets, inputs = layers_of(2)
    moments = [moment(x) for x in inputs]
    half = [{"w": (m["w"] + torch.diag_embed(m["w"].diagonal(dim1=1, dim2=2))) / 2} for m in moments]
    found, expected = regmean(nets, moments, [LAYER], keep=0.5), regmean(nets, half, [LAYER], keep=1.0)
    torch.testing.assert_close(found["w"], expected["w"])


def test_regmean_keeps_the_mean_where_no_row_says_anything() -> None:
    nets, inputs = layers_of(2)
    inputs = [torch.cat([x[..., :3], torch.zeros_like(x[..., :1])], 2) for x in inputs]
    for keep in (0.3, 1.0):
        found = regmean(nets, [moment(x) for x in inputs], [LAYER], keep=keep)
        torch.testing.assert_close(found["w"][..., 3], average(nets)["w"][..., 3])
        assert not torch.allclose(found["w"][..., :3], average(nets)["w"][..., :3])
    nothing = [{"w": torch.zeros(2, 5, 5)} for _ in nets]
    torch.testing.assert_close(regmean(nets, nothing, [LAYER]), average(nets))


def test_regmean_of_a_convolution_fits_its_outputs() -> None:
    layer = Layer("w", None, "in", "out", {"stride": 1, "padding": 0})
    nets = [{"w": draw(1, 2, 1, 2, 2, seed=i)} for i in range(2)]
    images = [draw(1, 5, 1, 3, 3, seed=5 + i) for i in range(2)]

    def net(params: Params) -> Net:
        def apply(p: Params, buffers: Any, x: Tensor, t: Tensor, **how: Any) -> Out:
            return Out(x, {}, {}, {"in": x}, {})

        return Net(params, {}, apply)

    made = gaussian(lambda s: MLP(s.shape, s.outputs, (5,)), SGD(lr=0.1), tasks=1)
    moments = []
    for p, x in zip(nets, images):
        batch = made.make_batch(x, torch.zeros(1, 5, dtype=torch.int64), torch.zeros(1, 5, dtype=torch.int64))
        moments.append(grams(net(p), [layer], [batch]))
    found = regmean(nets, moments, [layer], keep=1.0)["w"][0].flatten(1)
    a = [unfold(x[0], 2).mT.reshape(-1, 4) for x in images]
    y = torch.cat([x @ p["w"][0].flatten(1).T for x, p in zip(a, nets)])
    torch.testing.assert_close(found, torch.linalg.lstsq(torch.cat(a), y).solution.T, rtol=1e-6, atol=1e-7)


def trained(seed: int = 0) -> Learner:
    return gaussian(lambda s: MLP(s.shape, s.outputs, (6, 5)), SGD(lr=0.3), tasks=1)


def test_grams_are_means_of_the_inputs_of_each_layer() -> None:
    made = trained()
    batches = list(made.scan(made.stream.tasks[0].train, 7))
    found = grams(made.net, made.model.layers, batches)
    x, _, t = made.stream.tasks[0].train.take(torch.arange(int(made.stream.tasks[0].rows)).expand(made.S, -1))
    out = made.apply(made.params, made.buffers, x, t, record=True)
    for layer in made.model.layers:
        a = torch.cat([out.inputs[layer.input], torch.ones_like(x[..., :1])], 2).double()
        torch.testing.assert_close(found[layer.weight], a.mT @ a / a.shape[1])


def test_fisher_is_the_minimum_of_the_summed_quadratic_forms() -> None:
    nets, _ = layers_of(3)
    information = [{k: v.exp() for k, v in net.items()} for net in layers_of(3)[0]]
    theta = {k: v.requires_grad_() for k, v in fisher(nets, information).items()}
    total = sum((f[k] * (theta[k] - net[k]).square()).sum() for net, f in zip(nets, information) for k in ("w", "b"))
    assert isinstance(total, Tensor)
    slope = torch.autograd.grad(total, list(theta.values()))
    assert max(float(g.abs().max()) for g in slope) < 1e-12


def test_fisher_below_the_floor_is_the_plain_mean() -> None:
    nets, _ = layers_of(2)
    tiny = [{k: torch.full_like(v, 1e-9 * (1 + i)) for k, v in net.items()} for i, net in enumerate(nets)]
    torch.testing.assert_close(fisher(nets, tiny), average(nets))
    assert not torch.allclose(fisher(nets, tiny, floor=1e-12)["w"], average(nets)["w"])


def shuffled(made: Learner, number: int) -> Params:
    orders = {u.act: permutation(keys([number, number + 50], u.act), u.size) for u in made.model.units}
    return permute(made.params, made.model.units, orders)


def test_rebasin_finds_the_net_behind_its_permutations() -> None:
    made = trained()
    nets = [made.params, shuffled(made, 1), shuffled(made, 2), shuffled(made, 3)]
    assert not torch.allclose(average(nets)["head.weight"], made.params["head.weight"])
    found = rebasin(nets, made.model.units)
    x, _, t = made.stream.tasks[0].test.take(torch.arange(8).expand(made.S, -1))
    torch.testing.assert_close(made.apply(found, {}, x, t).logits, made.apply(made.params, {}, x, t).logits)
    for moved, net in zip(matched(nets, made.model.units), nets):  # each is still the net that it was
        torch.testing.assert_close(made.apply(moved, {}, x, t).logits, made.apply(net, {}, x, t).logits)


def test_nets_that_agree_are_not_moved() -> None:
    made = trained()
    near = {k: v + 1e-3 * draw(*v.shape).to(v) for k, v in made.params.items()}
    assert all(torch.equal(v, near[k]) for k, v in matched([made.params, near], made.model.units)[1].items())


def test_a_seed_that_diverged_does_not_touch_the_others() -> None:
    nets, inputs = layers_of(2)
    lost = [{k: v.clone() for k, v in net.items()} for net in nets]
    lost[1]["w"][0] = torch.nan
    moments, information = [moment(x) for x in inputs], [{k: v.exp() for k, v in net.items()} for net in nets]
    broken = [{"w": m["w"].clone()} for m in moments]
    broken[1]["w"][0] = torch.nan
    for found, whole in (
        (regmean(lost, broken, [LAYER]), regmean(nets, moments, [LAYER])),
        (fisher(lost, information), fisher(nets, information)),
        (average(lost), average(nets)),
    ):
        assert found["w"][0].isnan().all()
        torch.testing.assert_close(found["w"][1], whole["w"][1])


def test_what_cannot_be_merged_is_refused() -> None:
    nets, inputs = layers_of(2)
    moments = [moment(x) for x in inputs]
    for call, said in (
        (lambda: average(nets[:1]), "at least 2 nets, not 1"),
        (lambda: average([nets[0], {"w": nets[1]["w"]}]), "different parameters"),
        (lambda: fisher(nets, nets[:1]), "1 informations for 2 nets"),
        (lambda: fisher(nets, nets, floor=0.0), "floor=0.0"),
        (lambda: regmean(nets, moments, [LAYER], keep=1.5), "keep=1.5"),
        (lambda: regmean(nets, moments[:1], [LAYER]), "1 moments for 2 nets"),
        (lambda: rebasin(nets, ()), "declares no units"),
    ):
        with pytest.raises(ValueError, match=said):
            call()
