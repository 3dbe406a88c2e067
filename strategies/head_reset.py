"""A control of Dohare et al. (2024), Loss of plasticity in deep continual learning, Nature 632; Nikishin et al.
(2022), The primacy bias in deep reinforcement learning, ICML, reset last layers likewise.
"""

import torch

from harness import tree
from harness.learner import Learner
from harness.strategy import RENEW, Strategy
from harness.toolbox import require
from harness.types import Task

INITS = ("fresh", "zero")


class HeadReset(Strategy):
    """Head reset: reinitialise the read-out before every task but the first, keep the body (Dohare 2024).

        head <- a new initialisation (init=fresh) or 0 (init=zero)

    The whole head is reset, including the outputs of old tasks. With separate heads (scenario=task) a new
    task has an untrained head anyway, and the method does not apply.

    Differences from the paper:
    * Its optimizer state is reset too (optimizer=true); the paper's Continual ImageNet keeps the momentum.
    * After init=zero the body's gradient is zero for one step, and CBP's utilities of the last hidden
      layer collapse together for about 1 / (1 - decay) steps.
    """

    family = "plasticity"
    scenarios = ("domain", "class")
    order = {"begin": RENEW}

    def __init__(self, *, init: str, optimizer: bool) -> None:
        require.one_of(INITS, init=init)
        self.init, self.optimizer = init, optimizer

    def begin(self, learner: Learner, task: Task) -> Task:
        if task.index == 0:
            return task
        head = {k: learner.params[k] for k in learner.model.head}
        fresh = learner.fresh(self.random.key())[0] if self.init == "fresh" else tree.zeros(head)
        tree.assign(head, {k: fresh[k] for k in head})
        if self.optimizer:
            for k, v in head.items():
                learner.optimizer.reset(k, torch.ones((), dtype=torch.bool, device=v.device))
        return task
