"""Training on all tasks so far: the base of joint and cumulative."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from harness.rows import Rows, union
from harness.strategy import RENEW, Strategy
from harness.toolbox import require
from harness.types import Bytes

if TYPE_CHECKING:
    from harness.learner import Learner
    from harness.types import Task

STEPS = ("proportional", "equal")


class Union(Strategy):
    """Each task trains on the union of all tasks so far, which its `memory` counts.

    steps=proportional takes steps in proportion to the rows of the union, steps=equal as many as naive.
    """

    order = {"begin": RENEW}

    def __init__(self, *, steps: str) -> None:
        require.one_of(STEPS, steps=steps)
        self.steps = steps
        self.kept = 0  # bytes of the rows of the tasks so far

    @property
    def purpose(self) -> str:
        return super().purpose if self.steps == "proportional" else f"{super().purpose}[{self.steps}]"

    def holds(self) -> Any:
        return Bytes(self.kept)

    def setup(self, learner: Learner) -> None:
        if not all(isinstance(t.train, Rows) for t in learner.stream.tasks):
            raise ValueError(f"{self.name}: {learner.stream.name} generates its rows, so tasks cannot be merged")

    def begin(self, learner: Learner, task: Task) -> Task:
        tasks = learner.stream.tasks[: task.index + 1]
        train = union([t.train for t in tasks if isinstance(t.train, Rows)])
        self.kept = train.nbytes
        epoch = None if self.steps == "proportional" else task.rows
        return replace(task, train=train, epoch=epoch, ordered=False) if task.index else task
