"""A penalty that is too stiff for the learning rate: named where it begins, by a bound at which steps do turn over."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from harness import tree
from harness.learner import Learner
from harness.loop import prepare, train
from harness.models.mlp import MLP
from harness.optim import SGD, Adam
from harness.record.evaluation import Evaluation
from harness.record.recorder import Recorder
from harness.record.sinks import InMemory
from harness.record.stability import unstable
from harness.rng import keys, normal
from harness.strategy import Chain
from strategies.ewc import EWC
from strategies.l2 import L2
from strategies.l2_init import L2Init
from strategies.lwf import LwF
from tests.toy import gaussian, once

QUADRATIC = ("ewc", "online_ewc", "kfac_ewc", "mas", "si", "l2", "l2_init")


def growth(learner: Learner, chain: Chain, optimizer: SGD) -> torch.Tensor:
    """Gradient after 60 steps on the penalty alone over that after 30, from a random start: [S]."""
    (part,), start = chain.parts, tree.copy(learner.params)
    shift = {k: normal(keys([7, 8, 9], k), *v.shape[1:], dtype=v.dtype) for k, v in start.items()}
    params, sizes = tree.add(start, shift), []
    for n in range(60):
        leaves = {k: v.detach().requires_grad_() for k, v in params.items()}
        value = torch.as_tensor(part.loss(learner, leaves, None, None)).sum()  # type: ignore[arg-type]
        grads = torch.autograd.grad(value, list(leaves.values()), allow_unused=True, materialize_grads=True)
        optimizer.update(params, dict(zip(leaves, grads)))
        if n in (29, 59):
            sizes.append(tree.norm(dict(zip(leaves, grads))))
    return sizes[1] / sizes[0]


@pytest.mark.parametrize(
    ("name", "settings"),
    [*((name, {}) for name in QUADRATIC), ("ewc", {"momentum": 0.8}), ("ewc", {"momentum": 0.8, "nesterov": True})],
)
def test_the_bound_is_where_steps_on_the_penalty_begin_to_grow(name: str, settings: dict[str, Any]) -> None:
    run = once(name, "class", "mlp", "sgd")
    learner, chain = run.learner, run.chain
    curvature = torch.as_tensor(chain.parts[0].curvature(learner)).expand(3)
    assert (curvature > 0).all()
    # the largest lr for one unit of curvature: 2, with momentum 2 (1 + b), with Nesterov's 2 (1 + b) / (1 + 2 b)
    b = settings.get("momentum", 0.0)
    most = 2 * (1 + b) / (1 + 2 * b if settings.get("nesterov") else 1) / float(curvature.max())
    worst = curvature == curvature.max()
    assert (growth(learner, chain, SGD(lr=1.05 * most, **settings))[worst] > 1.5).all()
    assert (growth(learner, chain, SGD(lr=0.95 * most, **settings)) <= 1).all()
    for lr, said in ((1.05 * most, 1), (0.95 * most, 0)):
        learner.optimizer = SGD(lr=lr, **settings)
        assert len(unstable(learner, chain)) == said


def learner_of(optimizer: Any, tasks: int = 3) -> Learner:
    return gaussian(lambda s: MLP(s.shape, 2, (5,)), optimizer, tasks=tasks, steps=4)


def warnings(learner: Learner, *parts: Any) -> list[str]:
    chain, said = Chain(list(parts)), []
    prepare(learner, chain)
    recorder = Recorder(learner, chain, {}, Evaluation(), InMemory(), warn=said.append)
    train(learner, chain, recorder)
    return [line for line in said if "grow" in line]


def test_it_is_said_before_the_first_task_where_it_is_true_and_once() -> None:
    assert warnings(learner_of(SGD(lr=0.1)), L2(strength=19.9)) == []
    (line,) = warnings(learner_of(SGD(lr=0.1)), L2(strength=40.0))
    assert line == (
        "task 1: l2: steps on its penalty alone grow, since lr 0.1 times its largest curvature 40 is above 2;"
        " lower strategy.l2.strength below 20 (it is 40), or optimizer.lr"
    )
    (line,) = warnings(learner_of(SGD(lr=0.1)), L2Init(strength=11.0))  # no factor of one half; from the start
    assert line.startswith("task 0: l2_init: ") and "below 10 (it is 11)" in line


def test_the_fisher_information_adds_up_until_it_is_too_stiff() -> None:
    settings: dict[str, Any] = {"mode": "separate", "gamma": 1.0, "fisher": "exact", "samples": None}
    learner, part = learner_of(SGD(lr=0.01), tasks=4), EWC(strength=1.0, **settings)
    prepare(learner, Chain([part]))
    stiff = []
    for task in learner.stream.tasks:
        learner.enter(task)
        part.end(learner, task)
        stiff.append(float(part.curvature(learner).max()))
    assert stiff == sorted(stiff) and stiff[0] < stiff[2]
    lr = 2 / ((stiff[1] + stiff[2]) / 2)
    learner.optimizer, learner.planned, part.strength = SGD(lr=lr), 1, 1.0
    assert unstable(learner, Chain([part])) != {}  # after the fourth task
    part.weight = tree.scale(part.weight, 0.99 * stiff[1] / stiff[3])
    assert unstable(learner, Chain([part])) == {}


def test_a_schedule_counts_as_of_the_coming_task() -> None:
    learner = learner_of(SGD(lr=0.1, schedule="task", gamma=0.1))
    assert warnings(learner, L2(strength=40.0)) == []  # from the second task on lr is 0.01


def test_silence_where_the_bound_says_nothing() -> None:
    assert warnings(learner_of(Adam(lr=0.1)), L2(strength=40.0)) == []
    lwf = LwF(strength=1e6, temperature=2.0, t_squared=False, weighting="heads", student="old")
    assert warnings(learner_of(SGD(lr=0.1)), lwf) == []
    learner = learner_of(SGD(lr=0.1))
    learner.alive = torch.tensor([False, False])
    assert unstable(learner, Chain([L2Init(strength=11.0)])) == {}
    learner = learner_of(SGD(lr=0.1, schedule="cosine"))
    learner.planned = 0  # a task without a step
    assert unstable(learner, Chain([L2Init(strength=11.0)])) == {}
