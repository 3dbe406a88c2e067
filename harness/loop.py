"""The training loop. It knows phases, not methods."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch

from harness.learner import Learner
from harness.strategy import Strategy
from harness.types import Aux, Step, Task


class Observer(Protocol):
    """Watches a run without changing it."""

    def start(self, task: Task) -> None: ...
    def step(self, step: Step, aux: Aux) -> None: ...
    def end(self, task: Task) -> None: ...


def prepare(learner: Learner, strategy: Strategy) -> None:
    """Let the strategy allocate its state. A resumed run loads the saved state afterwards."""
    learner.needs = strategy.needs
    strategy.setup(learner)


def train(learner: Learner, strategy: Strategy, observer: Observer, *, start: int = 0) -> None:
    """Train a prepared learner on the tasks from `start`."""
    for _ in by_task(learner, strategy, observer, start=start):
        pass


def by_task(learner: Learner, strategy: Strategy, observer: Observer, *, start: int = 0) -> Iterator[None]:
    """`train`, pausing after each task. Only the observer sees hidden boundaries."""
    announced = learner.stream.announced
    gradient = strategy.grad(learner, learner.value_and_grad(strategy.loss))
    for task in learner.stream.tasks[start:]:
        learner.enter(task)
        data = strategy.begin(learner, task) if announced else task
        learner.plan(data)
        observer.start(task)
        for fresh in learner.batches(data):
            batch = strategy.batch(learner, fresh)
            grads, aux, before = learner.advance(gradient, batch)
            step = Step(fresh, batch, aux.out, grads, before)
            with torch.no_grad():
                strategy.step(learner, step)
            observer.step(step, aux)
        if announced:
            strategy.end(learner, task)
        observer.end(task)
        yield
