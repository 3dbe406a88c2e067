"""Frozen: what still moves after the first task."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from harness import tree
from harness.learner import Learner
from harness.loop import prepare, train
from harness.models.mlp import MLP
from harness.models.module import Module
from harness.optim import SGD, Adam, AdamW
from harness.strategy import Chain, Strategy
from harness.types import BEFORE, Aux, Params, Step, Task
from strategies.frozen import Frozen
from tests.observer import Blind
from tests.toy import OneStage, gaussian

OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda: SGD(lr=0.1),
    "momentum": lambda: SGD(lr=0.1, momentum=0.9, weight_decay=0.1),
    "adam": lambda: Adam(lr=0.01),
    "adamw": lambda: AdamW(lr=0.01, weight_decay=0.1),
}


def made(model: str, optimizer: str) -> Learner:
    if model == "mlp":
        return gaussian(lambda s: MLP(s.shape, 2, (6, 5)), OPTIMIZERS[optimizer](), tasks=3, steps=4)
    return gaussian(lambda s: OneStage(s.shape, 2), OPTIMIZERS[optimizer](), shape=(1, 8, 8), tasks=3, steps=4)


class Watch(Blind):
    """Parameters, statistics and steps at each task's end."""

    def __init__(self, learner: Learner) -> None:
        self.learner, self.ends, self.steps = learner, list[tuple[Params, Params]](), [0] * 3

    def step(self, step: Step, aux: Aux) -> None:
        self.steps[self.learner.now] += 1

    def end(self, task: Task) -> None:
        self.ends.append((tree.copy(self.learner.params), tree.copy(self.learner.buffers)))


def run(head: str | None, model: str, optimizer: str) -> Watch:
    learner = made(model, optimizer)
    chain, watch = Chain([Frozen(head=head)] if head else []), Watch(learner)
    prepare(learner, chain)
    train(learner, chain, watch)
    return watch


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("model", ["mlp", "residual"])
@pytest.mark.parametrize("head", ["trained", "frozen"])
def test_the_first_task_is_naive_and_the_body_stays_as_it_is_then(head: str, model: str, optimizer: str) -> None:
    watch, naive = run(head, model, optimizer), run(None, model, optimizer)
    assert all(torch.equal(v, naive.ends[0][0][k]) for k, v in watch.ends[0][0].items())
    assert watch.steps == ([4, 0, 0] if head == "frozen" else [4, 4, 4])
    for params, buffers in watch.ends[1:]:
        for k, v in params.items():
            fixed = head == "frozen" or not k.startswith("head")
            assert torch.equal(v, watch.ends[0][0][k]) == fixed, k
        assert all(torch.equal(v, watch.ends[0][1][k]) for k, v in buffers.items())


def test_the_head_alone_moves_as_its_own_gradient_says() -> None:
    learner = made("mlp", "sgd")
    chain = Chain([Frozen(head="trained")])
    seen: list[tuple[Params, Params]] = []

    class Keep(Blind):
        def step(self, step: Step, aux: Aux) -> None:
            if learner.now:
                seen.append((tree.copy(learner.params), tree.sub(step.before, tree.scale(step.grads, 0.1))))

    prepare(learner, chain)
    learner.needs = frozenset({BEFORE})
    train(learner, chain, Keep())
    assert len(seen) == 8
    for after, plain in seen:
        torch.testing.assert_close(after["head.weight"], plain["head.weight"], rtol=1e-12, atol=1e-14)


class Shake(Strategy):
    """Changes all weights and statistics wherever a strategy can."""

    def begin(self, learner: Learner, task: Task) -> Task:
        if learner.now:
            for v in (*learner.params.values(), *learner.buffers.values()):
                v.add_(1.0)
        return task

    def step(self, learner: Learner, step: Step) -> None:
        self.begin(learner, learner.stream.tasks[learner.now])

    def end(self, learner: Learner, task: Task) -> None:
        self.begin(learner, task)


@pytest.mark.parametrize("head", ["trained", "frozen"])
def test_the_body_stays_behind_strategies_that_change_it(head: str) -> None:
    learner, alone = made("residual", "sgd"), run(head, "residual", "sgd")
    chain, seen = Chain([Shake(), Frozen(head=head)]), list[tuple[Params, Params]]()

    class Look(Blind):
        def start(self, task: Task) -> None:
            if task.index:
                seen.append((tree.copy(learner.params), tree.copy(learner.buffers)))

        def step(self, step: Step, aux: Aux) -> None:
            self.start(learner.stream.tasks[learner.now])

        end = start

    prepare(learner, chain)
    train(learner, chain, Look())
    assert len(seen) == (4 if head == "frozen" else 12)
    for params, buffers in seen:
        for k, v in alone.ends[0][0].items():
            fixed = head == "frozen" or not k.startswith("head")
            assert torch.equal(params[k], v) == fixed, k
        assert all(torch.equal(v, alone.ends[0][1][k]) for k, v in buffers.items())


def test_a_model_without_a_head_is_refused() -> None:
    learner = gaussian(lambda s: Module(lambda: torch.nn.Linear(4, 2), 2), SGD(lr=0.1))
    with pytest.raises(ValueError, match=r"^strategy\.frozen\.head=trained: Module declares no head; use head=frozen$"):
        prepare(learner, Chain([Frozen(head="trained")]))
    prepare(learner, Chain([Frozen(head="frozen")]))


def test_bad_values_are_named() -> None:
    with pytest.raises(ValueError, match=r"^head=none: choose one of trained, frozen$"):
        Frozen(head="none")
