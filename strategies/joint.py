"""Joint training on all tasks so far, from scratch."""

from dataclasses import replace
from typing import Any

from harness import tree
from harness.learner import Learner
from harness.record.costs import Bytes
from harness.rows import Rows, union
from harness.strategy import RENEW, Strategy
from harness.toolbox import require
from harness.types import Task

STEPS = ("proportional", "equal")


class Joint(Strategy):
    """Joint training: a fresh net for every task, on all tasks so far; the upper reference (van de Ven 2022).

        θ_t ≈ argmin_θ Σ_{i <= t} n_i L_i(θ) / Σ_{i <= t} n_i,   from a new initialisation

    The net after task t is what the field calls joint training on t + 1 tasks (van de Ven, Tuytelaars & Tolias
    2022). It breaks the rule of continual learning, that old data are gone; that is its use. Its `memory`
    is the rows of all tasks so far. `cumulative` is the same from the last net on.

    Budget, of T equal tasks of k steps:
        steps=proportional   (t + 1) k for task t, T (T + 1) k / 2 in all: each of its nets sees a row of the union as
                             often as naive sees a row of its task. The last net alone costs as much as naive.
        steps=equal          k for task t, T k in all: as many as naive; the last net sees each row T times less often.

    Differences from the paper:
    * It is trained anew for every boundary, not once for the last: its rows are a reference for every t.
    * The first task starts from the run's own initialisation, as naive does.
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
        return "Joint" if self.steps == "proportional" else f"Joint[{self.steps}]"

    def setup(self, learner: Learner) -> None:
        if not all(isinstance(t.train, Rows) for t in learner.stream.tasks):
            raise ValueError(f"{self.name}: {learner.stream.name} generates its rows, so tasks cannot be merged")

    def begin(self, learner: Learner, task: Task) -> Task:
        tasks = learner.stream.tasks[: task.index + 1]
        train = union([t.train for t in tasks if isinstance(t.train, Rows)])
        self.kept = train.nbytes
        if task.index == 0:
            return task
        params, buffers = learner.fresh(self.random.key())
        tree.assign(learner.params, params)
        tree.assign(learner.buffers, buffers)
        learner.optimizer.reset()
        nominal = sum(t.nominal for t in tasks) if self.steps == "proportional" else task.nominal
        return replace(task, train=train, nominal=nominal, ordered=False)
