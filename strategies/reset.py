"""Reset: a fresh network for every task, the control for plasticity."""

from harness import tree
from harness.learner import Learner
from harness.strategy import RENEW, Strategy
from harness.types import Task


class Reset(Strategy):
    """Reset: a fresh network for every task, the control for loss of plasticity (the "retrained" net of Dohare 2024).

        θ, batch-norm statistics <- a new initialisation;  the optimizer's state is cleared

    before every task but the first, which starts from the run's initialisation and equals naive.
    Nothing is carried from one task to the next: forgetting is total.

    Differences from the paper: it retrains on all data so far; here each network sees only its task.
    """

    family = "control"
    order = {"begin": RENEW}

    def begin(self, learner: Learner, task: Task) -> Task:
        if task.index:
            params, buffers = learner.fresh(self.random.key())
            tree.assign(learner.params, params)
            tree.assign(learner.buffers, buffers)
            learner.optimizer.reset()
        return task
