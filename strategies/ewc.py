"""Kirkpatrick et al. (2017), Overcoming catastrophic forgetting in neural networks, PNAS 114; online: Schwarz et al.
(2018), Progress & compress: a scalable framework for continual learning, ICML.
"""

import torch
from torch import Tensor

from harness import tree
from harness.landscape.fisher import KINDS, diagonal
from harness.learner import Learner
from harness.strategy import ESTIMATE, Strategy
from harness.toolbox import require
from harness.toolbox.penalty import quadratic, stiffest
from harness.types import Batch, Out, Params, Task

MODES = ("separate", "online")


class EWC(Strategy):
    """Elastic weight consolidation: a spring on each weight, stiff by its Fisher information (Kirkpatrick 2017).

        mode=separate   penalty = strength / 2 Σ_k Σ_i F_k,i (θ_i - θ*_k,i)²             one term per past task
        mode=online     penalty = strength / 2 Σ_i γ F~_i (θ_i - θ*_i)²,  F~ <- γ F~ + F  (Schwarz et al. 2018)

    θ* are the weights after a task, F the diagonal Fisher information there (harness.landscape.fisher: per sample,
    never of batch means). The separate terms need no growing memory: with A = Σ F_k and the weighted mean
    m = Σ F_k θ*_k / A they equal A (θ - m)² plus a constant, and adding F at θ* gives

        A' = A + F,   m' = m + (F / A') (θ* - m),   constant += Σ_i A F / A' (θ* - m)²

    Gradient descent on the penalty is stable while lr * strength * max F < 2. Memory: two copies of the parameters.

    Differences from the papers:
    * Kirkpatrick et al. do not say how they estimated F; the default is its definition, the expectation over
      all labels, at each training row of the task, under the mask of its boundary.
    * Batch-norm statistics are not consolidated: they have no gradient.
    * With cbp or redo, a replaced unit keeps its importance and its anchor.
    """

    family = "parameter regularization"
    order = {"end": ESTIMATE}
    grid = {"strength": (0.2, 0.63, 2.0, 6.3)}  # half orders of magnitude; permuted digits diverge at 20

    def __init__(self, *, strength: float, mode: str, gamma: float, fisher: str, samples: int | None) -> None:
        require.at_least(0, strength=strength)
        require.one_of(MODES, mode=mode)
        require.within("[0, 1]", gamma=gamma)
        require.one_of(KINDS, fisher=fisher)
        require.at_least(1, null="all training rows", samples=samples)
        self.strength, self.mode, self.gamma = strength, mode, gamma
        self.fisher, self.samples = fisher, samples

    def setup(self, learner: Learner) -> None:
        self.anchor, self.weight = tree.copy(learner.params), tree.zeros(learner.params)
        self.constant = torch.zeros(learner.S, dtype=learner.dtype, device=learner.device)

    def loss(self, learner: Learner, params: Params, batch: Batch, out: Out) -> Tensor:
        return self.strength / 2 * (quadratic(params, self.anchor, self.weight) + self.constant)

    def curvature(self, learner: Learner) -> Tensor:
        return self.strength * stiffest(self.weight)

    @torch.no_grad()
    def end(self, learner: Learner, task: Task) -> None:
        new = diagonal(learner, task.train, self.fisher, self.random, samples=self.samples)
        if self.mode == "online":
            tree.assign(self.anchor, learner.params)
            for k, f in new.items():
                self.weight[k].add_(f).mul_(self.gamma)
            return
        for k, f in new.items():
            old, anchor = self.weight[k], self.anchor[k]
            share = torch.where(f > 0, f / (old + f), 0)
            shift = learner.params[k] - anchor
            self.constant += tree.dot({k: old * share}, {k: shift.square()})
            anchor += share * shift
            old += f


class OnlineEWC(EWC):
    """Online EWC: one spring on each weight for all past tasks, anchored at the last task's weights (Schwarz 2018).

        penalty = strength / 2 Σ_i γ F~_i (θ_i - θ*_i)²,   F~ <- γ F~ + F

    EWC with mode=online as a separate strategy. Memory: two copies of the parameters.

    Differences from the paper: those of EWC.
    """

    family = "parameter regularization"

    def __init__(self, *, strength: float, gamma: float, fisher: str, samples: int | None) -> None:
        super().__init__(strength=strength, mode="online", gamma=gamma, fisher=fisher, samples=samples)
