"""Joint training on all tasks so far."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

from harness import tree
from harness.learner import Learner
from harness.rows import Rows, union
from harness.strategy import Strategy
from harness.types import Task

STEPS = ("proportional", "equal")


class Joint(Strategy):
    """Joint training: task t trains on the union of the rows of tasks 0 ... t (the upper reference).

        θ_t ≈ argmin_θ Σ_{i <= t} n_i L_i(θ) / Σ_{i <= t} n_i

    It breaks the rule of continual learning, that old data are gone; that is its use.

    * restart=true: a fresh network and optimizer at each boundary, so that the net after task t is what the
      field calls joint training on t + 1 tasks (van de Ven, Tuytelaars & Tolias 2022).
    * restart=false: goes on from the net of the last boundary, often called cumulative training. Starting
      warm may generalise worse (Ash & Adams 2020), and the last net has seen task 0 T times as often.

    Budget: with steps=proportional an epoch is a pass over the union, so that task t takes t + 1 times the
    steps of one task, and a stream of T equal tasks (T + 1) / 2 times those of naive; with steps=equal as
    many as naive, an equal share for each task.

    Differences from the paper:
    * It is trained anew for every boundary, not once for the last: its rows are a bound for every t.
    * The first task starts from the run's own initialisation, as naive does.
    """

    family = "control"
    order = {"begin": 0}

    def __init__(self, *, restart: bool, steps: str) -> None:
        if steps not in STEPS:
            raise ValueError(f"joint.steps={steps}: choose one of {', '.join(STEPS)}")
        self.restart, self.steps = restart, steps

    def begin(self, learner: Learner, task: Task) -> Task:
        past = learner.stream.tasks[: task.index]
        if not past:
            return task
        if self.restart:
            params, buffers = learner.fresh(self.random.key())
            tree.assign(learner.params, params)
            learner.buffers = buffers
            learner.optimizer.reset()
        train = union([cast(Rows, t.train) for t in (*past, task)])
        nominal = task.nominal + sum(t.nominal for t in past) if self.steps == "proportional" else task.nominal
        return replace(task, train=train, nominal=nominal)
