"""Zeng, Chen, Cui & Yu (2019), Continual learning of context-dependent processing in neural networks, Nature Machine
Intelligence 1.
"""

import math

import torch

from harness import rows, tree
from harness.learner import Learner
from harness.strategy import CONSTRAIN, ESTIMATE, Strategy
from harness.toolbox import require, solve
from harness.toolbox.projection import constrain, free, layer_inputs
from harness.types import BEFORE, Step, Task


class OWM(Strategy):
    """OWM: each layer's weights move orthogonally to the mean inputs of past batches (Zeng 2019).

        update of W <- update P,   P = (I + Σ_i r_i r_iᵀ / α_i)⁻¹
        r_i: the layer's input, averaged over the i-th batch of a past task; α_i = alpha decay^(i / n)

    This is the closed form of the paper's recursion, which starts from P = I, at the end of a task:

        k = P r_i / (α_i + r_iᵀ P r_i);   P <- P - k r_iᵀ P

    A direction of squared length s²/α in the sum keeps 1 / (1 + s²/α) of its update. A bias is the weight of a
    constant input 1. For a convolution every patch position is an r_i. With a head per task, its outputs move freely
    in that task only. It acts on the update, under any optimizer. Memory: twice fan in squared for each layer.

    Differences from the paper and its code:
    * One pass over each task's rows, in batches of batch_size, at its end, as in the paper's equations. The code
      updates P at every training step and projects that step with it.
    * One alpha for all layers; the code tunes one for each.
    * The update is projected, not the gradient. Norm gains and shifts are fixed after the first task; batch norm's
      running statistics keep moving.
    """

    family = "optimization-based"
    needs = frozenset({BEFORE})
    order = {"step": CONSTRAIN, "end": ESTIMATE}
    grid = {"decay": (1e-5, 1e-3, 1e-1, 1.0)}  # the authors' values over layers

    def __init__(self, *, alpha: float, decay: float, batch_size: int) -> None:
        require.above(0, alpha=alpha)
        require.within("(0, 1]", decay=decay)
        require.at_least(1, batch_size=batch_size)
        self.alpha, self.decay, self.batch_size = alpha, decay, batch_size

    def setup(self, learner: Learner) -> None:
        self.allowed = free(learner, self.name, bias=True)  # P
        self.inverse = {k: v.double() for k, v in self.allowed.items()}  # I + Σ r rᵀ / α

    def step(self, learner: Learner, step: Step) -> None:
        if learner.now:
            constrain(learner, step.before, self.allowed)

    @torch.no_grad()
    def end(self, learner: Learner, task: Task) -> None:
        n = math.ceil(task.rows / self.batch_size)
        position = rows.order(self.random.key(), task.train.size, 0, task.rows)
        for i, found in enumerate(layer_inputs(learner, task, position, self.batch_size, bias=True)):
            mean = {k: r.double().mean(1) for k, r in found.items()}  # [S, L, fan in]
            outer = {k: r.mT @ r for k, r in mean.items()}
            self.inverse = tree.add(self.inverse, outer, self.alpha**-1 * self.decay ** -(i / n))
        for k, v in self.inverse.items():
            self.allowed[k] = solve.solve(v, torch.eye(v.shape[1]).to(v).expand_as(v)).to(learner.dtype)
