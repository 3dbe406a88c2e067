"""Permutation alignment: copies are found again exactly, nothing computed changes, small cases by brute force."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from harness import rng, tree
from harness.landscape import paths
from harness.landscape.alignment import (
    align,
    identity_orders,
    match_activations,
    match_weights,
    moved_share,
    permute,
    reorder,
)
from harness.learner import Budget
from harness.models.cnn import CNN
from harness.models.mlp import MLP
from harness.models.recurrent import LSTM
from harness.models.resnet18 import ResNet18
from harness.models.vit import ViT
from harness.optim import SGD
from harness.rng import keys
from harness.run import run
from harness.types import Model, Net, Params, Slice, Unit
from tasks.permuted import permuted
from tests.toy import OneStage, digits

F64 = torch.float64
PERMUTATIONS = list(itertools.permutations(range(4)))
IMAGE = (2, 8, 8)
MODELS: dict[str, Callable[[], Model]] = {
    "mlp": lambda: MLP(IMAGE, 4, (12, 10, 8)),
    "crelu": lambda: MLP(IMAGE, 4, (12, 10), activation="crelu"),
    "layer_norm": lambda: MLP(IMAGE, 4, (12, 10), layer_norm=True),
    "cnn": lambda: CNN(IMAGE, 4, (6, 7), (9,)),  # 7 maps of 2x2 are read flattened
    "cnn_crelu": lambda: CNN(IMAGE, 4, (6, 7), (9,), activation="crelu", layer_norm=True),
    "one_stage": lambda: OneStage(IMAGE, 4, width=6),
    "resnet18": lambda: ResNet18(IMAGE, 4, width=3),
    "vit": lambda: ViT(IMAGE, 4, 4, 12, 2, 4, 9),
    "lstm": lambda: LSTM(IMAGE, 4, (9, 8)),
}


def drawn(model: Model, seeds: tuple[int, ...] = (3, 5), purpose: str = "net") -> Net:
    """A net in which every parameter and running statistic differs from unit to unit."""
    key = keys(seeds, purpose)

    def jitter(name: str, v: Tensor) -> Tensor:
        return v.double() + 0.2 * rng.uniform(rng.fold(key, name), *v.shape[1:], dtype=F64)

    params, buffers = model.init(key)
    return Net({k: jitter(k, v) for k, v in params.items()}, {k: jitter(k, v) for k, v in buffers.items()}, model)


def rows(seeds: tuple[int, ...] = (3, 5), n: int = 40) -> tuple[Tensor, Tensor]:
    return rng.normal(keys(seeds, "rows"), n, *IMAGE, dtype=F64), torch.zeros(len(seeds), n).long()


def shuffled(net: Net, model: Model, seeds: tuple[int, ...] = (3, 5)) -> Net:
    return reorder(net, model.units, {u.act: rng.permutation(keys(seeds, u.act), u.size) for u in model.units})


def barrier(a: Net, b: Net, x: Tensor, t: Tensor) -> Tensor:
    """Entezari's, of the squared distance from what `a` says; batch-norm statistics renewed at every point."""
    said = paths.refresh(a, [(x, t, None)])(x, t).logits

    def loss(params: Params) -> Tensor:
        net = paths.refresh(Net(params, a.buffers, a.apply), [(x, t, None)])
        return (net(x, t).logits - said).square().mean((1, 2))

    return paths.entezari(paths.line(a.params, b.params, loss, paths.grid(5)), paths.grid(5))


@pytest.mark.parametrize("name", MODELS)
def test_a_permuted_copy_is_the_same_function_and_is_found_again(name: str) -> None:
    model = MODELS[name]()
    net = drawn(model)
    (x, t), other = rows(), shuffled(net, model)
    logits = net(x, t).logits
    assert logits.std() > 1e-3
    torch.testing.assert_close(other(x, t).logits, logits, rtol=1e-11, atol=1e-12)
    assert tree.norm(tree.sub(net.params, other.params)).min() > 0.5
    back, orders = align(net, other, model.units, x, t)
    assert all(torch.equal(v, net.params[k]) for k, v in back.params.items())
    assert all(torch.equal(v, net.buffers[k]) for k, v in back.buffers.items())
    assert moved_share(orders).min() > 0.6
    assert barrier(net, other, x, t).min() > 1e-3
    assert barrier(net, back, x, t).abs().max() < 1e-12


@pytest.mark.parametrize("name", ["mlp", "crelu", "cnn_crelu", "one_stage", "vit", "lstm"])
def test_activations_find_a_permuted_copy_too(name: str) -> None:
    model = MODELS[name]()
    net = drawn(model)
    x, t = rows()
    back, _ = align(net, shuffled(net, model), model.units, x, t, by="activations")
    torch.testing.assert_close(back.params, net.params, rtol=0, atol=0)


def test_one_hidden_layer_is_matched_globally() -> None:
    model = MLP((3,), 2, (5,))
    a, b = drawn(model, purpose="a").params, drawn(model, purpose="b").params
    found = match_weights(a, b, model.units)["fc1"]
    for s in range(2):
        distances = {}
        for order in itertools.permutations(range(5)):
            o = list(order)
            moved = {
                "fc1.weight": b["fc1.weight"][s][o],
                "fc1.bias": b["fc1.bias"][s][o],
                "head.weight": b["head.weight"][s][:, o],
                "head.bias": b["head.bias"][s],
            }
            distances[order] = sum(float((a[k][s] - v).square().sum()) for k, v in moved.items())
        assert tuple(found[s].tolist()) == min(distances, key=lambda o: distances[o])


def test_two_hidden_layers_end_where_no_layer_alone_could_gain() -> None:
    model = MLP((3,), 2, (4, 4))
    a, b = drawn(model, purpose="a").params, drawn(model, purpose="b").params
    found = match_weights(a, b, model.units)

    def distance(orders: dict[str, Tensor]) -> Tensor:
        return tree.norm(tree.sub(a, permute(b, model.units, orders)))

    least = distance(found)
    assert (least < distance(identity_orders(model.units, a))).all()
    for act in ("fc1", "fc2"):
        for order in torch.tensor(PERMUTATIONS):
            assert (distance({**found, act: order.expand(2, -1)}) >= least - 1e-12).all()


def test_a_noisy_copy_of_a_wide_net_comes_back() -> None:
    model = MLP((20,), 5, (60, 60))
    net = drawn(model)
    other = shuffled(net, model)
    noisy = {k: v + 0.02 * rng.normal(keys((3, 5), k), *v.shape[1:], dtype=F64) for k, v in other.params.items()}
    found = match_weights(net.params, noisy, model.units)
    torch.testing.assert_close(permute(other.params, model.units, found), net.params, rtol=0, atol=0)


@pytest.mark.parametrize("by", ["weights", "activations"])
def test_row_s_is_seed_s_alone_and_a_diverged_one_keeps_its_order(by: str) -> None:
    model = MODELS["cnn"]()
    seeds = (3, 5, 8)
    a, b = drawn(model, seeds, "a"), drawn(model, seeds, "b")
    x, t = rows(seeds)
    whole = align(a, b, model.units, x, t, by=by)[1]

    def only(net: Net, s: slice) -> Net:
        return Net({k: v[s] for k, v in net.params.items()}, {}, model)

    alone = align(only(a, slice(1, 2)), only(b, slice(1, 2)), model.units, x[1:2], t[1:2], by=by)[1]
    b.params["fc1.weight"][0, 0, 0] = math.nan
    lost = align(a, b, model.units, x, t, by=by)[1]
    for act, order in whole.items():
        assert torch.equal(order[1:2], alone[act]), act
        assert torch.equal(lost[act][1:], order[1:]), act
    assert torch.equal(lost["fc1"][0], torch.arange(9))


def test_independent_nets_come_closer_and_their_barrier_falls() -> None:
    # Entezari et al.'s conjecture at the size of a test: two seeds of one net, on the same digits
    stream = permuted(dataset=digits(), seeds=[0, 1], n_tasks=1, fixed=True)
    model = MLP(stream.shape, stream.outputs, (64,))
    learner = run(stream, model=model, optimizer=SGD(lr=0.1), budget=Budget(epochs=30, batch_size=10)).learner
    batch = learner.probe(stream.tasks[0], 90)
    a = learner.net
    b = Net({k: v.flip(0) for k, v in a.params.items()}, {}, a.apply)  # each seed's partner is the other
    loss = learner.objective([batch], stream, 0)
    moved, _ = align(a, b, model.units, batch.x, batch.t)
    raw, matched = (paths.line(a.params, n.params, loss, paths.grid(11)) for n in (b, moved))
    torch.testing.assert_close(matched[:, -1], raw[:, -1], rtol=1e-4, atol=1e-5)
    assert (paths.entezari(matched, paths.grid(11)) < 0.5 * paths.entezari(raw, paths.grid(11))).all()
    assert (tree.norm(tree.sub(a.params, moved.params)) < tree.norm(tree.sub(a.params, b.params))).all()


def test_what_cannot_be_aligned_is_refused() -> None:
    grouped = ResNet18(IMAGE, 4, width=4, norm="group", groups=2)
    net = drawn(grouped)
    x, t = rows()
    with pytest.raises(ValueError, match="group norm ties units"):
        align(net, shuffled(net, grouped), grouped.units, x, t)
    linear = MLP(IMAGE, 4, ())
    flat = drawn(linear)
    with pytest.raises(ValueError, match="declares no units"):
        align(flat, flat, linear.units, x, t)
    with pytest.raises(ValueError, match="by=luck: choose from weights, activations"):
        align(net, net, grouped.units, x, t, by="luck")


def test_activations_are_matched_by_summed_correlations() -> None:
    # CReLU, maps of 2 x 2, and a mean that is no part of a correlation
    unit = Unit("h", 4, (Slice("w", 1),), ())
    acts = [rng.normal(keys([0, 1], p), 9, 8, 2, 2, dtype=F64) + torch.arange(8.0)[:, None, None] for p in "ab"]
    found = match_activations({"h": acts[0]}, {"h": acts[1]}, [unit])["h"]
    for s in range(2):
        za, zb = (act[s].transpose(0, 1).flatten(1) for act in acts)  # [8, samples]
        corr = torch.corrcoef(torch.cat([za, zb]))[:8, 8:]
        total = {o: sum(float(corr[i, o[i]] + corr[4 + i, 4 + o[i]]) for i in range(4)) for o in PERMUTATIONS}
        assert tuple(found[s].tolist()) == max(total, key=lambda o: total[o])


def test_a_unit_that_never_varies_is_matched_to_what_is_left() -> None:
    unit = Unit("h", 3, (Slice("w", 1),), ())
    z = rng.normal(keys([0], "z"), 50, 3, dtype=F64)
    z[..., 1] = 1e-3
    order = match_activations({"h": z}, {"h": z[..., [1, 2, 0]]}, [unit])["h"]
    assert order.tolist() == [[2, 0, 1]]


def test_nothing_is_changed_and_scale_does_not_matter_to_activations() -> None:
    model = MODELS["mlp"]()
    a, b = drawn(model, purpose="a"), drawn(model, purpose="b")
    x, t = rows()
    kept, state = [tree.copy(n.params) for n in (a, b)], torch.get_rng_state()
    align(a, b, model.units, x, t)
    orders: Any = align(a, b, model.units, x, t, by="activations")[1]
    assert all(torch.equal(v, c[k]) for n, c in zip((a, b), kept) for k, v in n.params.items())
    assert torch.equal(torch.get_rng_state(), state)
    acts = [n(x, t).acts for n in (a, b)]
    again = match_activations(
        {k: 7 * v for k, v in acts[0].items()}, {k: v / 3 for k, v in acts[1].items()}, model.units
    )
    assert all(torch.equal(o, again[k]) for k, o in orders.items())
