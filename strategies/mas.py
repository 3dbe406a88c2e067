"""Aljundi, Babiloni, Elhoseiny, Rohrbach & Tuytelaars (2018), Memory aware synapses: learning what (not) to forget,
ECCV.
"""

import torch
from torch import Tensor

from harness import tree
from harness.landscape.fisher import sensitivity
from harness.learner import Learner
from harness.strategy import ESTIMATE, Strategy
from harness.toolbox import require
from harness.toolbox.penalty import quadratic, stiffest
from harness.types import Batch, Out, Params, Task


class MAS(Strategy):
    """Memory aware synapses: a spring on each weight, stiff by the outputs' sensitivity to it (Aljundi 2018).

        penalty = strength Σ_i Ω_i (θ_i - θ*_i)²        θ*: weights after the last task
        F_i     = mean_x |∂ ‖z(x)‖² / ∂θ_i|             z: the logits that compete for the row; labels are not used
        Ω       <- Ω + F                                alpha=null, as in the authors' code
        Ω       <- alpha Ω + (1 - alpha) F              otherwise, with Ω = F after the first task (as Avalanche)

    Gradient descent on the penalty is stable while lr * strength * max Ω < 1. Memory: two copies of the parameters.

    Differences from the paper:
    * The mean is over rows, in evaluation mode. The authors' code and Avalanche use the absolute value of a
      batch's summed gradient, which shrinks as rows cancel; they agree with this at batch size 1.
    * Outputs that do not compete (other tasks' heads, classes not yet seen) do not count.
    * With cbp or redo, a replaced unit keeps its importance and its anchor.
    """

    family = "parameter regularization"
    order = {"end": ESTIMATE}
    grid = {"strength": (0.001, 0.003, 0.01, 0.03)}  # half orders of magnitude; permuted digits diverge at 0.1

    def __init__(self, *, strength: float, alpha: float | None, samples: int | None) -> None:
        require.at_least(0, strength=strength)
        require.within("[0, 1]", null="a sum", alpha=alpha)
        require.at_least(1, null="all training rows", samples=samples)
        self.strength, self.alpha, self.samples = strength, alpha, samples

    def setup(self, learner: Learner) -> None:
        self.anchor, self.importance = tree.copy(learner.params), tree.zeros(learner.params)

    def loss(self, learner: Learner, params: Params, batch: Batch, out: Out) -> Tensor:
        return self.strength * quadratic(params, self.anchor, self.importance)

    def curvature(self, learner: Learner) -> Tensor:
        return 2 * self.strength * stiffest(self.importance)

    @torch.no_grad()
    def end(self, learner: Learner, task: Task) -> None:
        old, new = (1.0, 1.0) if self.alpha is None or task.index == 0 else (self.alpha, 1 - self.alpha)
        for k, f in sensitivity(learner, task.train, self.random, samples=self.samples).items():
            self.importance[k].mul_(old).add_(f, alpha=new)
        tree.assign(self.anchor, learner.params)
