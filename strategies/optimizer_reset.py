"""Asadi, Fakoor & Sabach (2023), Resetting the optimizer in deep RL: an empirical study, NeurIPS."""

from harness.learner import Learner
from harness.strategy import RENEW, Strategy
from harness.types import Task


class OptimizerReset(Strategy):
    """Optimizer reset: clear the optimizer's moments and step counts before each later task (Asadi 2023).

        m, v, n <- 0;  the net and the learning-rate schedule continue

    The same as `optimizer.reset=true`, as part of a list of strategies. With SGD without momentum there is no
    state and it equals naive.

    Differences from the paper: it resets at each update of a reinforcement learner's target network.
    """

    family = "plasticity"
    order = {"begin": RENEW}

    def begin(self, learner: Learner, task: Task) -> Task:
        if task.index:
            learner.optimizer.reset()
        return task
