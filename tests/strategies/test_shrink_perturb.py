"""Shrink and perturb: both algorithms of that name, in closed form."""

from typing import Any

import pytest
import torch

from harness import tree
from harness.learner import Learner
from harness.loop import prepare, train
from harness.models.mlp import MLP
from harness.optim import SGD
from harness.strategy import Chain
from harness.types import Params, Task
from strategies.shrink_perturb import ShrinkPerturb
from tests.observer import Blind
from tests.toy import gaussian

DEFAULTS: dict[str, Any] = {"mode": "boundary", "shrink": 0.6, "sigma": 0.01, "noise": "gaussian"}


def learner_of() -> Learner:
    return gaussian(lambda s: MLP(s.shape, 2, (50, 50)), SGD(lr=0.1), shape=(40,), tasks=3, steps=3)


def noise_of(options: dict[str, Any], learner: Learner) -> list[Params]:
    """What two calls add, divided by sigma."""
    part, found = ShrinkPerturb(**{**DEFAULTS, **options}), []
    prepare(learner, Chain([part]))
    for _ in range(2):
        before = tree.copy(learner.params)
        part.perturb(learner)
        found.append(
            {k: (learner.params[k] - part.shrink * v) / part.sigma for k, v in before.items()},
        )
    return found


def test_gaussian_noise_is_standard_normal_and_never_the_same() -> None:
    first, second = noise_of({}, learner_of())
    for k, v in first.items():
        if v[0].numel() < 1000:
            continue
        assert v.mean() == pytest.approx(0, abs=4 / v.numel() ** 0.5)
        assert v.std() == pytest.approx(1, abs=4 / (2 * v.numel()) ** 0.5)
        assert abs((v[0] * v[1]).mean()) < 0.1  # between seeds
        assert abs((v * second[k]).mean()) < 0.1  # between calls
    assert not torch.isclose(first["fc1.bias"], first["fc2.bias"]).any()  # between parameters of one shape
    assert all(v.abs().sum() > 0 for v in first.values())  # biases too


def test_fresh_init_noise_is_the_models_initialisation() -> None:
    for noise in noise_of({"noise": "fresh_init", "sigma": 0.5}, learner_of()):
        assert 0.95 < noise["fc1.weight"].abs().max() * 40**0.5 <= 1 + 1e-9  # U(-1/sqrt(40), 1/sqrt(40))


def test_initial_noise_is_where_training_began() -> None:
    learner = learner_of()
    start = tree.copy(learner.params)
    for noise in noise_of({"noise": "initial"}, learner):
        assert all(torch.allclose(noise[k], start[k]) for k in start)


def trajectory(*parts: ShrinkPerturb) -> list[Params]:
    """Parameters just before the first step of each task, and at the end."""

    class Watch(Blind):
        def start(self, task: Task) -> None:
            found.append(tree.copy(learner.params))

    found: list[Params] = []
    learner = learner_of()
    prepare(learner, chain := Chain(parts))
    train(learner, chain, Watch())
    return [*found, tree.copy(learner.params)]


def test_boundary_mode_moves_nothing_before_the_first_task_and_everything_after() -> None:
    naive, moved = trajectory(), trajectory(ShrinkPerturb(**{**DEFAULTS, "sigma": 0.0}))
    assert all(torch.equal(naive[0][k], moved[0][k]) for k in naive[0])
    assert all(torch.allclose(0.6 * naive[1][k], moved[1][k], rtol=1e-12) for k in naive[1])


def test_step_mode_decays_at_every_step() -> None:
    # gradients are switched off: what is left is shrink^steps
    learner, part = learner_of(), ShrinkPerturb(**{**DEFAULTS, "mode": "step", "shrink": 0.99, "sigma": 0.0})
    start = tree.copy(learner.params)
    learner.optimizer.base_lr = learner.optimizer.lr = 0.0
    prepare(learner, chain := Chain([part]))
    train(learner, chain, Blind())
    assert all(torch.allclose(learner.params[k], 0.99**9 * start[k], rtol=1e-12) for k in start)


@pytest.mark.parametrize("mode", ["boundary", "step"])
def test_without_shrinking_and_noise_the_run_is_naive_bit_for_bit(mode: str) -> None:
    part = ShrinkPerturb(**{**DEFAULTS, "mode": mode, "shrink": 1.0, "sigma": 0.0})
    assert all(torch.equal(a[k], b[k]) for a, b in zip(trajectory(), trajectory(part), strict=True) for k in a)


def test_its_name_says_which_of_the_two_algorithms_it_is() -> None:
    assert ShrinkPerturb(**DEFAULTS).purpose == "ShrinkPerturb[boundary]"
    assert ShrinkPerturb(**{**DEFAULTS, "mode": "step", "shrink": 1.0}).purpose == "ShrinkPerturb[step]"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "often"}, r"mode=often: choose one of boundary, step"),
        ({"shrink": 1.2}, r"shrink=1.2: must be in \[0, 1\]"),
        ({"mode": "step"}, r"shrink=0.6: mode=step applies it at every step; try 0.9999"),
        ({"sigma": -1}, r"sigma=-1: must be at least 0"),
        ({"noise": "pink"}, r"noise=pink: choose one of gaussian, fresh_init, initial"),
    ],
)
def test_a_value_out_of_range_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"^{message}$"):
        ShrinkPerturb(**{**DEFAULTS, **options})
