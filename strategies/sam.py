"""Foret, Kleiner, Mobahi & Neyshabur (2021), Sharpness-aware minimization for efficiently improving generalization,
ICLR. In continual learning: Mehta, Patil, Chandar & Strubell (2023), An empirical investigation of the role of
pre-training in lifelong learning, JMLR 24.
"""

from harness import tree
from harness.learner import Learner
from harness.strategy import PERTURB, Strategy
from harness.toolbox import require
from harness.types import Aux, Batch, GradFn, Params


class SAM(Strategy):
    """SAM: step with the gradient from slightly uphill, which favours flat minima (Foret 2021).

        e = rho g(θ) / |g(θ)|,   the optimizer receives g(θ + e)

    g is the gradient of the whole objective, including replayed rows and penalties of other strategies. The norm is
    over all parameters of a seed. Both passes see the same rows and dropout masks. Costs two gradients per step.

    Differences from the paper:
    * Batch norm uses batch statistics in both passes; only the pass at θ updates the running ones.
    * One e for all rows of a batch (the paper's m-sharpness with m = batch).
    """

    family = "optimization-based"
    order = {"grad": PERTURB}
    grid = {"rho": (0.005, 0.016, 0.05, 0.16)}  # half orders of magnitude around Foret et al.'s 0.05

    def __init__(self, *, rho: float) -> None:
        require.at_least(0, rho=rho)
        self.rho = rho

    def grad(self, learner: Learner, inner: GradFn) -> GradFn:
        def gradient(params: Params, batch: Batch) -> tuple[Params, Aux]:
            grads, aux = inner(params, batch)
            uphill = tree.add(params, grads, self.rho / (tree.norm(grads) + 1e-12))
            return inner(uphill, batch)[0], aux

        return gradient
