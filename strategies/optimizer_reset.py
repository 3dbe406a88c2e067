"""Asadi, Fakoor & Sabach (2023), Resetting the optimizer in deep RL: an empirical study, NeurIPS."""

from harness.learner import Learner
from harness.strategy import RENEW, Strategy
from harness.types import Task


class OptimizerReset(Strategy):
    """Optimizer reset: the optimizer forgets its moments and step counts before each later task (Asadi 2023).

        m, v, n <- 0;  the net and the learning rate's schedule go on

    The same as `optimizer.reset=true`, as an item of a list of strategies. Under SGD without momentum there is
    nothing to forget and it equals naive.

    Differences from the paper: it resets whenever the target network of a reinforcement learner is updated.
    """

    family = "plasticity"
    order = {"begin": RENEW}

    def begin(self, learner: Learner, task: Task) -> Task:
        if task.index:
            learner.optimizer.reset()
        return task
