"""Ash & Adams (2020), On warm-starting neural network training, NeurIPS, on what a warm start costs."""

from dataclasses import replace
from typing import Any

from harness.learner import Learner
from harness.record.costs import Bytes
from harness.rows import Rows, union
from harness.strategy import RENEW, Strategy
from harness.toolbox import require
from harness.types import Task

STEPS = ("proportional", "equal")


class Cumulative(Strategy):
    """Cumulative training: one net goes on, task t trains on the union of all tasks so far (Ash & Adams 2020).

        θ <- θ - lr ∇ Σ_{i <= t} n_i L_i(θ) / Σ_{i <= t} n_i

    Replay with a memory of everything, and `memory` counts it. It breaks the rule that old data are gone. The net and
    the optimizer's state are those of the last boundary; a warm start may generalise worse than `joint`, which starts
    afresh.

    Budget, of T equal tasks of k steps:
        steps=proportional   (t + 1) k for task t, T (T + 1) k / 2 in all: each epoch is a pass over the union, and
                             the last net has seen task 0 T times as often as the last task.
        steps=equal          k for task t, T k in all: as many as naive.

    Differences from the paper: there half of one data set comes first and then all of it, each to convergence.
    """

    family = "control"
    order = {"begin": RENEW}

    def __init__(self, *, steps: str) -> None:
        require.one_of(STEPS, steps=steps)
        self.steps = steps
        self.kept = 0  # bytes of the rows of the tasks so far

    def holds(self) -> Any:
        return Bytes(self.kept)

    @property
    def purpose(self) -> str:
        return "Cumulative" if self.steps == "proportional" else f"Cumulative[{self.steps}]"

    def setup(self, learner: Learner) -> None:
        if not all(isinstance(t.train, Rows) for t in learner.stream.tasks):
            raise ValueError(f"{self.name}: {learner.stream.name} generates its rows, so tasks cannot be merged")

    def begin(self, learner: Learner, task: Task) -> Task:
        tasks = learner.stream.tasks[: task.index + 1]
        train = union([t.train for t in tasks if isinstance(t.train, Rows)])
        self.kept = train.nbytes
        nominal = sum(t.nominal for t in tasks) if self.steps == "proportional" else task.nominal
        return replace(task, train=train, nominal=nominal, ordered=False) if task.index else task
