"""Optimizers over stacked parameters against torch.optim, one of torch's for every seed."""

import io
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from harness import rng, tree
from harness.optim import SGD, Adam, AdamW, Optimizer
from harness.types import Params

S, STEPS = 3, 200
SHAPES = {"w": (4, 5), "b": (4,)}
KEY = rng.keys(range(S), "test")

CASES: dict[str, tuple[type[Optimizer], type[torch.optim.Optimizer], dict[str, Any]]] = {
    "sgd": (SGD, torch.optim.SGD, {"lr": 0.05}),
    "sgd decay": (SGD, torch.optim.SGD, {"lr": 0.05, "weight_decay": 0.1}),
    "momentum": (SGD, torch.optim.SGD, {"lr": 0.02, "momentum": 0.9}),
    "momentum decay": (SGD, torch.optim.SGD, {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.1}),
    "nesterov": (SGD, torch.optim.SGD, {"lr": 0.02, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    "adam": (Adam, torch.optim.Adam, {"lr": 0.01}),
    "adam decay": (Adam, torch.optim.Adam, {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-4, "weight_decay": 0.1}),
    "adamw": (AdamW, torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.1}),
    "adamw no decay": (AdamW, torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.0}),
}


def start(dtype: torch.dtype = torch.float64) -> Params:
    return {k: rng.normal(rng.fold(KEY, k), *s, dtype=torch.float64).to(dtype) for k, s in SHAPES.items()}


def gradient(params: Params, step: int) -> Params:
    """A noisy quadratic's, so that an error in the parameters feeds back."""
    key = rng.fold(KEY, step)
    noise = {k: rng.normal(rng.fold(key, k), *v.shape[1:], dtype=v.dtype) for k, v in params.items()}
    return {k: 0.3 * v + noise[k] for k, v in params.items()}


class Reference:
    """One optimizer of torch's for each seed."""

    def __init__(self, cls: type[torch.optim.Optimizer], options: dict[str, Any], params: Params) -> None:
        self.leaves = [{k: v[s].clone().requires_grad_() for k, v in params.items()} for s in range(S)]
        self.optimizers = [cls(list(leaf.values()), **options) for leaf in self.leaves]

    @property
    def params(self) -> Params:
        return {k: torch.stack([leaf[k].detach() for leaf in self.leaves]) for k in self.leaves[0]}

    def update(self, grads: Params) -> None:
        for s, (leaf, optimizer) in enumerate(zip(self.leaves, self.optimizers)):
            for k, v in leaf.items():
                v.grad = grads[k][s].clone()
            optimizer.step()


def distance(a: Params, b: Params) -> float:
    return max(float((v - b[k]).abs().max()) for k, v in a.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("case", CASES)
def test_stacked_parameters_follow_torch_s_own_optimizers(case: str, dtype: torch.dtype) -> None:
    ours, theirs, options = CASES[case]
    params = start(dtype)
    optimizer, reference = ours(**options), Reference(theirs, options, params)
    moved = tree.copy(params)
    for step in range(60):
        reference.update(gradient(reference.params, step))
        optimizer.update(params, gradient(params, step))
    assert distance(params, reference.params) < 1e-6
    assert distance(params, moved) > 0.1


def test_an_entry_that_is_reset_follows_a_fresh_adam_and_no_other_entry_moves_off() -> None:
    """Weights of one unit of two seeds start afresh at step 50, half of them again at step 120."""
    options: dict[str, Any] = {"lr": 0.01, "weight_decay": 0.1}
    params = start()
    optimizer, kept = Adam(**options), Reference(torch.optim.Adam, options, params)
    where = torch.zeros(S, 4, 1, dtype=torch.bool)
    where[0, 1] = where[2, 3] = True
    again = where.clone()
    again[2, 3] = False
    fresh: list[Reference] = []
    for step in range(STEPS):
        grads = gradient(kept.params, step)  # of one trajectory, so that the rules alone are compared
        if step == 50:
            optimizer.reset("w", where)
            fresh.append(Reference(torch.optim.Adam, options, params))
        if step == 120:
            optimizer.reset("w", again)
            fresh.append(Reference(torch.optim.Adam, options, params))
        for reference in (kept, *fresh):
            reference.update(grads)
        optimizer.update(params, grads)
    expected = torch.where(where, fresh[0].params["w"], kept.params["w"])
    expected = torch.where(again, fresh[1].params["w"], expected)
    torch.testing.assert_close(params["w"], expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(params["b"], kept.params["b"], rtol=0, atol=1e-9)


def first_step_after_reset(optimizer: Adam, steps: int) -> Tensor:
    """Length of the step that follows a reset of row 0, in learning rates: [S, 4, 5]."""
    params = start()
    for step in range(steps):
        optimizer.update(params, gradient(params, step))
    where = torch.zeros(4, 1, dtype=torch.bool)
    where[0] = True
    optimizer.reset("w", where)
    before = params["w"].clone()
    optimizer.update(params, gradient(params, steps))
    return (params["w"] - before).abs() / optimizer.lr


@pytest.mark.parametrize("cls", [Adam, AdamW])
def test_a_reset_entry_s_first_adam_step_is_lr_not_3_15_times_it_as_with_a_kept_count(cls: type[Adam]) -> None:
    length = first_step_after_reset(cls(lr=1e-3), 30)
    torch.testing.assert_close(length[:, 0], torch.ones(S, 5, dtype=torch.float64), rtol=0, atol=1e-6)
    assert (length[:, 1:] - 1).abs().min() > 1e-3

    # the trap: moments zeroed, count kept, as with torch's own state
    leaf = torch.zeros(1, requires_grad=True)
    trapped = torch.optim.Adam([leaf], lr=1e-3)
    leaf.grad = torch.ones(1)
    trapped.step()
    state = trapped.state[leaf]
    state["exp_avg"].zero_()
    state["exp_avg_sq"].zero_()
    state["step"].fill_(5000)
    before = leaf.item()
    trapped.step()
    assert abs(leaf.item() - before) / 1e-3 == pytest.approx(3.15, abs=0.01)


def test_a_reset_entry_loses_its_momentum_and_no_other() -> None:
    params = start()
    optimizer = SGD(lr=0.1, momentum=0.9)
    for step in range(5):
        optimizer.update(params, gradient(params, step))
    velocity = tree.copy(optimizer.state["momentum"])
    where = torch.zeros(S, 1, 5, dtype=torch.bool)
    where[1, 0, 2] = True
    optimizer.reset("w", where)
    expected = velocity["w"].clone()
    expected[1, :, 2] = 0
    assert torch.equal(optimizer.state["momentum"]["w"], expected)
    assert torch.equal(optimizer.state["momentum"]["b"], velocity["b"])


@pytest.mark.parametrize("case", CASES)
def test_a_full_reset_makes_the_next_steps_those_of_a_new_optimizer(case: str) -> None:
    ours, theirs, options = CASES[case]
    params, optimizer = start(), ours(**options)
    for step in range(20):
        optimizer.update(params, gradient(params, step))
    optimizer.reset("w", torch.ones(1, dtype=torch.bool))
    optimizer.reset()
    reference = Reference(theirs, options, params)
    for step in range(20, 40):
        reference.update(gradient(reference.params, step))
        optimizer.update(params, gradient(params, step))
    assert distance(params, reference.params) < 1e-9


@pytest.mark.parametrize("cls", [Adam, AdamW])
def test_every_parameter_may_have_had_an_entry_reset(cls: type[Adam]) -> None:
    options = {"lr": 0.01, "weight_decay": 0.1}
    params, optimizer = start(), cls(**options)
    for step in range(20):
        optimizer.update(params, gradient(params, step))
    for name in params:
        optimizer.reset(name, torch.ones(1, dtype=torch.bool))
    reference = Reference(getattr(torch.optim, cls.__name__), options, params)
    for step in range(20, 40):
        reference.update(gradient(reference.params, step))
        optimizer.update(params, gradient(params, step))
    assert distance(params, reference.params) < 1e-9


@pytest.mark.parametrize("case", CASES)
def test_a_reset_before_the_first_step_changes_nothing(case: str) -> None:
    ours, _, options = CASES[case]
    a, b, untouched, reset = start(), start(), ours(**options), ours(**options)
    reset.reset("w", torch.ones(1, dtype=torch.bool))
    reset.reset()
    for step in range(3):
        untouched.update(a, gradient(a, step))
        reset.update(b, gradient(b, step))
    assert distance(a, b) == 0


@pytest.mark.parametrize("case", CASES)
def test_state_survives_a_file(case: str) -> None:
    ours, _, options = CASES[case]
    params, optimizer = start(), ours(**options)
    for step in range(10):
        optimizer.update(params, gradient(params, step))
        if step == 5:
            optimizer.reset("w", torch.eye(4, 5, dtype=torch.bool))
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    other, copy = ours(**options), tree.copy(params)
    other.load_state_dict(torch.load(file, weights_only=True))
    for step in range(10, 20):
        optimizer.update(params, gradient(params, step))
        other.update(copy, gradient(copy, step))
    assert distance(params, copy) == 0


def test_loaded_state_is_a_copy() -> None:
    params, optimizer, other = start(), Adam(lr=0.01), Adam(lr=0.01)
    optimizer.update(params, gradient(params, 0))
    optimizer.reset("w", torch.eye(4, 5, dtype=torch.bool))
    other.load_state_dict(optimizer.state_dict())
    kept = tree.copy(other.state["mean"]), [v.clone() for v in other.powers["w"]]
    optimizer.update(params, gradient(params, 1))
    assert distance(other.state["mean"], kept[0]) == 0
    assert all(torch.equal(a, b) for a, b in zip(other.powers["w"], kept[1]))


def test_cosine_and_step_schedules_are_torch_s() -> None:
    n = 40
    leaf = torch.zeros(1, requires_grad=True)
    schedulers: dict[str, Callable[[Any], Any]] = {
        "cosine": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, n),
        "step": lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [20, 30], 0.1),
    }
    for name, make in schedulers.items():
        theirs = torch.optim.SGD([leaf], lr=0.4)
        scheduler = make(theirs)
        ours = SGD(lr=0.4, schedule=name, milestones=(0.5, 0.75), gamma=0.1)
        for step in range(n):
            ours.set_progress(step / n)
            assert ours.lr == pytest.approx(theirs.param_groups[0]["lr"], rel=1e-12), (name, step)
            theirs.step()
            scheduler.step()
    assert ours.base_lr == 0.4
    constant = SGD(lr=0.4)
    constant.set_progress(0.9)
    assert constant.lr == 0.4


def test_the_step_uses_the_learning_rate_in_force() -> None:
    params = start()
    before, grads = tree.copy(params), gradient(params, 0)
    optimizer = SGD(lr=0.4, schedule="cosine")
    optimizer.set_progress(1 / 3)
    optimizer.update(params, grads)
    assert distance(params, tree.add(before, grads, -0.3)) < 1e-15  # (1 + cos 60°) / 2 = 3/4


def test_settings_say_what_edge_of_stability_measures_need() -> None:
    assert SGD(lr=0.1, momentum=0.9, nesterov=True).settings() == {
        "name": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": True,
    }  # fmt: skip
    assert AdamW(lr=0.1).settings() == {"name": "adamw", "lr": 0.1, "betas": [0.9, 0.999], "eps": 1e-8}


@pytest.mark.parametrize(
    ("cls", "options", "key"),
    [
        (SGD, {"lr": 0.0}, "optimizer.lr=0.0"),
        (SGD, {"lr": math.nan}, "optimizer.lr=nan"),
        (SGD, {"lr": math.inf}, "optimizer.lr=inf"),
        (SGD, {"lr": "fast"}, "optimizer.lr=fast"),
        (SGD, {"lr": 0.1, "weight_decay": -1e-4}, "optimizer.weight_decay=-0.0001"),
        (SGD, {"lr": 0.1, "momentum": 1.0}, "optimizer.momentum=1.0"),
        (SGD, {"lr": 0.1, "nesterov": True}, "optimizer.nesterov"),
        (SGD, {"lr": 0.1, "schedule": "linear"}, "optimizer.schedule=linear"),
        (SGD, {"lr": 0.1, "scope": "epoch"}, "optimizer.scope=epoch"),
        (Adam, {"lr": 0.1, "betas": (0.9, 1.0)}, "optimizer.betas"),
    ],
)
def test_values_out_of_range_are_refused_by_name(cls: type[Optimizer], options: dict[str, Any], key: str) -> None:
    with pytest.raises(ValueError) as error:
        cls(**options)
    assert str(error.value).startswith(key) and "\n" not in str(error.value)


def test_a_schedule_does_not_fall_below_its_floor() -> None:
    made = SGD(lr=0.1, schedule="task", gamma=0.5, floor=0.03)
    rates = []
    for task in range(4):
        made.set_progress(0.0, task)
        rates.append(made.lr)
    assert rates == pytest.approx([0.1, 0.05, 0.03, 0.03])
    with pytest.raises(ValueError, match=r"optimizer.floor=0.2: must be from 0 to optimizer.lr=0.1"):
        SGD(lr=0.1, floor=0.2)
