"""Replaced units: against hand-built nets, by finite differences of the function, and after real updates."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from harness import rng, tree
from harness.models.mlp import MLP
from harness.optim import SGD, Adam
from harness.toolbox.surgery import Replacement, channel_mean, magnitude, reset_units, spread, transfer_mean
from harness.types import Layer, Slice, Unit

S = 2


def learner_of(model: Any, optimizer: Any) -> Any:
    params, buffers = model.init(rng.keys(range(S), "init"))
    params = {k: v.double() for k, v in params.items()}
    buffers = {k: v.double() for k, v in buffers.items()}
    return SimpleNamespace(model=model, params=params, buffers=buffers, optimizer=optimizer, S=S)


def fresh_of(model: Any) -> dict[str, torch.Tensor]:
    params, buffers = model.init(rng.keys(range(S), "again"))
    return {k: v.double() for k, v in {**params, **buffers}.items()}


def noise(params: dict[str, torch.Tensor], purpose: str) -> dict[str, torch.Tensor]:
    key = rng.keys(range(S), purpose)
    return {k: rng.normal(rng.fold(key, k), *v.shape[1:], dtype=v.dtype) for k, v in params.items()}


def inputs(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    return rng.normal(rng.keys(range(S), "x"), rows, 3, dtype=torch.float64), torch.zeros(S, rows).long()


def train(learner: Any, steps: int) -> None:
    for i in range(steps):
        learner.optimizer.update(learner.params, noise(learner.params, f"grad{i}"))


OPTIMIZERS = {
    "sgd": lambda: SGD(lr=0.1),
    "momentum": lambda: SGD(lr=0.1, momentum=0.9),
    "adam": lambda: Adam(lr=0.1),
}


@pytest.fixture(params=OPTIMIZERS)
def optimizer(request: pytest.FixtureRequest) -> Any:
    return OPTIMIZERS[request.param]()


def test_a_replaced_unit_is_fresh_inside_silent_outside_and_nothing_else_moves(optimizer: Any) -> None:
    model = MLP((3,), 4, (5, 6))
    learner, fresh = learner_of(model, optimizer), fresh_of(model)
    train(learner, 3)
    before = tree.copy(learner.params)
    where = torch.tensor([[False, True, False, False, True], [True, False, False, False, False]])
    reset_units(learner, [Replacement(model.units[0], where, fresh)])
    expected = tree.copy(before)
    for s, j in [(0, 1), (0, 4), (1, 0)]:  # by hand, unit by unit
        expected["fc1.weight"][s, j] = fresh["fc1.weight"][s, j]
        expected["fc1.bias"][s, j] = 0
        expected["fc2.weight"][s, :, j] = 0
    for name, value in expected.items():
        assert torch.equal(learner.params[name], value), name
    assert (learner.params["fc1.weight"][0, 1] != before["fc1.weight"][0, 1]).all()


def test_a_zero_gradient_step_leaves_a_replaced_unit_where_it_is(optimizer: Any) -> None:
    # catches momentum, or moments, that outlive the unit they belonged to
    model = MLP((3,), 4, (5,))
    learner = learner_of(model, optimizer)
    train(learner, 5)
    where = torch.zeros(S, 5, dtype=torch.bool)
    where[:, 2] = True
    reset_units(learner, [Replacement(model.units[0], where, fresh_of(model))])
    after = tree.copy(learner.params)
    learner.optimizer.update(learner.params, tree.zeros(after))
    assert torch.equal(learner.params["fc1.weight"][:, 2], after["fc1.weight"][:, 2])
    assert torch.equal(learner.params["fc1.bias"][:, 2], torch.zeros(S, dtype=torch.float64))
    assert torch.equal(learner.params["head.weight"][:, :, 2], torch.zeros(S, 4, dtype=torch.float64))
    if not (isinstance(optimizer, SGD) and optimizer.momentum == 0):  # the others still coast
        assert not torch.equal(learner.params["fc1.weight"][:, 1], after["fc1.weight"][:, 1])


def test_adams_first_update_of_a_replaced_unit_is_one_learning_rate_long() -> None:
    # 3.16 = (1 - b1) / sqrt(1 - b2) where the step count survives
    model, adam = MLP((3,), 4, (5,)), Adam(lr=0.01)
    learner = learner_of(model, adam)
    train(learner, 500)
    where = torch.zeros(S, 5, dtype=torch.bool)
    where[:, 2] = True
    reset_units(learner, [Replacement(model.units[0], where, fresh_of(model))])
    before = tree.copy(learner.params)
    adam.update(learner.params, noise(before, "next"))
    step = {k: (learner.params[k] - before[k]).abs() / 0.01 for k in before}
    for part in (step["fc1.weight"][:, 2], step["fc1.bias"][:, 2], step["head.weight"][:, :, 2]):
        assert torch.allclose(part, torch.ones_like(part), atol=1e-5)
    assert step["fc1.weight"][:, [0, 1, 3, 4]].mean() < 0.5  # the old ones go on with small steps


def test_neighbouring_layers_replaced_at_once_do_not_read_each_other() -> None:
    # one layer after the other would leave fresh weights from new unit to new unit
    model = MLP((3,), 4, (5, 6))
    fresh = fresh_of(model)
    first, second = torch.zeros(S, 5, dtype=torch.bool), torch.zeros(S, 6, dtype=torch.bool)
    first[:, 1], second[:, 3] = True, True
    for order in (1, -1):
        learner = learner_of(model, SGD(lr=0.1))
        jobs = [Replacement(model.units[0], first, fresh), Replacement(model.units[1], second, fresh)]
        reset_units(learner, jobs[::order])
        w = learner.params["fc2.weight"]
        assert torch.equal(w[:, :, 1], torch.zeros(S, 6, dtype=torch.float64))
        kept = [0, 2, 3, 4]
        assert torch.equal(w[:, 3][:, kept], fresh["fc2.weight"][:, 3][:, kept])


@pytest.mark.parametrize("activation", ["relu", "tanh", "crelu"])
def test_the_function_no_longer_depends_on_what_a_replaced_unit_computes(activation: str) -> None:
    model = MLP((3,), 4, (5, 6), activation=activation)
    learner = learner_of(model, SGD(lr=0.1))
    x, t = inputs(7)
    for unit in model.units:
        where = torch.zeros(S, unit.size, dtype=torch.bool)
        where[0, 1], where[1, 4] = True, True
        reset_units(learner, [Replacement(unit, where, fresh_of(model))])
        logits = model(learner.params, learner.buffers, x, t).logits
        for s, j in [(0, 1), (1, 4)]:
            learner.params[unit.producers[0].name][s, j] += 1
        assert torch.equal(model(learner.params, learner.buffers, x, t).logits, logits)


class Tiny:
    """conv -> batch norm -> relu -> flatten (2x2) -> linear, with a second reader: slices written by hand."""

    unit = Unit(
        "h",
        3,
        (Slice("conv.weight", 1),),
        (Slice("fc.weight", 2, repeat=4, offset=2), Slice("skip.weight", 2)),
        (Slice("gain", 1), Slice("shift", 1), Slice("mean", 1), Slice("var", 1)),
    )
    units = (unit,)
    layers = (
        Layer("conv.weight", None, "x", "conv"),
        Layer("fc.weight", "fc.bias", "h", "fc"),
        Layer("skip.weight", None, "h", "skip"),
    )

    def init(self, key: torch.Tensor) -> tuple[Any, Any]:
        shapes = {"conv.weight": (3, 2, 3, 3), "fc.weight": (5, 14), "fc.bias": (5,), "skip.weight": (2, 3, 1, 1)}
        params = {n: rng.normal(rng.fold(key, n), *s) for n, s in shapes.items()}
        ones, zeros = torch.ones(len(key), 3), torch.zeros(len(key), 3)
        return {**params, "gain": ones, "shift": zeros}, {"mean": zeros.clone(), "var": ones.clone()}


def test_every_reader_flattened_columns_norm_and_running_statistics_are_reset() -> None:
    model = Tiny()
    learner, fresh = learner_of(model, SGD(lr=0.1, momentum=0.9)), fresh_of(model)
    train(learner, 2)
    for v in learner.buffers.values():
        v.add_(7)
    where = torch.tensor([[False, True, False], [True, False, True]])
    before = {**tree.copy(learner.params), **tree.copy(learner.buffers)}
    reset_units(learner, [Replacement(model.unit, where, fresh)])
    expected = tree.copy(before)
    for s, j in [(0, 1), (1, 0), (1, 2)]:
        expected["conv.weight"][s, j] = fresh["conv.weight"][s, j]
        expected["gain"][s, j], expected["shift"][s, j] = 1, 0
        expected["mean"][s, j], expected["var"][s, j] = 0, 1
        expected["fc.weight"][s, :, 2 + 4 * j : 2 + 4 * (j + 1)] = 0
        expected["skip.weight"][s, :, j] = 0
    after = {**learner.params, **learner.buffers}
    assert all(torch.equal(after[k], expected[k]) for k in expected)
    velocity = learner.optimizer.state["momentum"]
    forgotten = spread(model.unit.consumers[0], where, velocity["fc.weight"])
    assert torch.equal(velocity["fc.weight"] == 0, forgotten.expand(S, 5, 14))


def test_the_mean_output_survives_the_transfer_of_the_mean() -> None:
    for activation in ("relu", "crelu"):
        model = MLP((3,), 4, (6,), activation=activation)
        learner = learner_of(model, SGD(lr=0.1))
        x, t = inputs(9)
        out = model(learner.params, learner.buffers, x, t)
        where = torch.tensor([[False, True, True, False, False, False], [False, False, False, False, False, True]])
        transfer_mean(learner, model.units[0], where, channel_mean(out.acts["fc1"]))
        reset_units(learner, [Replacement(model.units[0], where, fresh_of(model))])
        after = model(learner.params, learner.buffers, x, t).logits
        assert torch.allclose(after.mean(1), out.logits.mean(1), atol=1e-12)
        assert not torch.allclose(after, out.logits, atol=1e-3)


def test_the_transfer_through_a_flattened_map_adds_every_column_of_the_unit() -> None:
    model = Tiny()
    learner = learner_of(model, SGD(lr=0.1))
    bias, w = learner.params["fc.bias"].clone(), learner.params["fc.weight"]
    where = torch.tensor([[False, True, False], [False, False, False]])
    transfer_mean(learner, model.unit, where, torch.tensor([[9.0, 0.5, 9.0], [9.0, 9.0, 9.0]]).double())
    assert torch.allclose(learner.params["fc.bias"][0], bias[0] + 0.5 * w[0, :, 6:10].sum(1))
    assert torch.equal(learner.params["fc.bias"][1], bias[1])


def test_magnitude_averages_over_batch_and_space_and_adds_both_halves_of_a_crelu() -> None:
    unit = Unit("h", 2, (), ())
    act = torch.zeros(1, 2, 4, 1, 3)
    act[0, :, 0], act[0, 0, 2], act[0, 1, 2], act[0, 1, 3, 0, 2] = 2.0, -3.0, 3.0, 6.0
    # unit 0: 2 everywhere in its first copy, 3 of either sign in its second; unit 1: one 6 in 6 places
    assert torch.equal(magnitude(unit, act), torch.tensor([[5.0, 1.0]]))
