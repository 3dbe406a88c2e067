"""Joint training on all tasks so far, from scratch."""

from harness import tree
from harness.learner import Learner
from harness.toolbox.union import Union
from harness.types import Task


class Joint(Union):
    """Joint training: a fresh net for every task, on all tasks so far; the upper reference (van de Ven 2022).

        θ_t ≈ argmin_θ Σ_{i <= t} n_i L_i(θ) / Σ_{i <= t} n_i,   from a new initialisation

    The net after task t is what the field calls joint training on t + 1 tasks (van de Ven, Tuytelaars & Tolias
    2022). It deliberately breaks the rule of continual learning that old data are gone. Its `memory` counts the
    rows of all tasks so far. `cumulative` is the same but continues from the last net.

    Budget, of T equal tasks of k steps:
        steps=proportional   (t + 1) k for task t, T (T + 1) k / 2 in all: each of its nets sees a row of the union as
                             often as naive sees a row of its task. The last net alone costs as much as naive.
        steps=equal          k for task t, T k in all: as many as naive; the last net sees each row T times less often.

    Differences from the paper:
    * It is retrained for every boundary, not once for the last: a reference for every t.
    * The first task starts from the run's initialisation, as naive does.
    """

    family = "control"

    def begin(self, learner: Learner, task: Task) -> Task:
        if task.index:
            params, buffers = learner.fresh(self.random.key())
            tree.assign(learner.params, params)
            tree.assign(learner.buffers, buffers)
            learner.optimizer.reset()
        return super().begin(learner, task)
