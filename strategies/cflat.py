"""Bian, Li, Yuan, Wang & Sun (2024), Make continual learning stronger via C-Flat, NeurIPS."""

from harness import tree
from harness.learner import Learner
from harness.strategy import PERTURB, Strategy
from harness.toolbox import require
from harness.types import Aux, Batch, GradFn, Params


class CFlat(Strategy):
    """C-Flat: minimise the loss and its gradient norm, each at the worst nearby point (Bian 2024).

        minimise  max_{|e| <= rho} L(θ + e)  +  strength rho max_{|e| <= rho} |g(θ + e)|

        g0 = g(θ)
        g1 = g(θ + rho g0/|g0|)                 SAM's gradient; (g1 - g0)/rho is about ∇|g|
        e  = rho (g1 - g0)/|g1 - g0|            uphill in |g|
        g2 = g(θ + e),   g3 = g(θ + e + rho g2/|g2|)
        the optimizer receives g1 + strength (g3 - g2)

    Differences of gradients approximate products with the Hessian (exact for a quadratic loss); e and the
    worst points are treated as constants. g is the gradient of the whole objective, including replayed rows and
    penalties; norms are over all parameters of a seed. Costs four gradients per step.

    Differences from the paper:
    * Batch norm uses batch statistics in all passes; only the pass at θ updates the running ones.
    * Without the code's rho schedules and its `adaptive` (which scales one of the three perturbations).
    """

    family = "optimization-based"
    order = {"grad": PERTURB}
    grid = {"rho": (0.025, 0.05, 0.1, 0.2)}  # factors of two up to the authors' 0.2; twice that is worse than none

    def __init__(self, *, rho: float, strength: float) -> None:
        require.at_least(0, rho=rho, strength=strength)
        self.rho, self.strength = rho, strength

    def grad(self, learner: Learner, inner: GradFn) -> GradFn:
        def uphill(params: Params, direction: Params) -> Params:
            return tree.add(params, direction, self.rho / (tree.norm(direction) + 1e-12))

        def gradient(params: Params, batch: Batch) -> tuple[Params, Aux]:
            g0, aux = inner(params, batch)
            g1 = inner(uphill(params, g0), batch)[0]
            steep = uphill(params, tree.sub(g1, g0))
            g2 = inner(steep, batch)[0]
            g3 = inner(uphill(steep, g2), batch)[0]
            return tree.add(g1, tree.sub(g3, g2), self.strength), aux

        return gradient
