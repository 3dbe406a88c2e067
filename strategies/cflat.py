"""Bian, Li, Yuan, Wang & Sun (2024), Make continual learning stronger via C-Flat, NeurIPS."""

from harness import tree
from harness.learner import Learner
from harness.strategy import PERTURB, Strategy
from harness.toolbox import require
from harness.types import Aux, Batch, GradFn, Params


class CFlat(Strategy):
    """C-Flat: flatness of the loss and of its gradient norm, each at the worst point nearby (Bian 2024).

        minimise  max_{|e| <= rho} L(θ + e)  +  strength rho max_{|e| <= rho} |g(θ + e)|

        g0 = g(θ)
        g1 = g(θ + rho g0/|g0|)                 SAM's gradient; (g1 - g0)/rho is about ∇|g|
        e  = rho (g1 - g0)/|g1 - g0|            uphill in |g|
        g2 = g(θ + e),   g3 = g(θ + e + rho g2/|g2|)
        the optimizer receives g1 + strength (g3 - g2)

    Differences of gradients stand for products with the Hessian (exact where the loss is quadratic), and
    e and the worst points are held constant. g is the gradient of the whole objective, replayed rows and
    penalties included; norms are over all parameters of a seed. Costs four gradients a step.

    Differences from the paper:
    * Batch norm normalises by the batch in all passes; running statistics move once, by the pass at θ.
    * The code's rho schedules and its `adaptive` (which scales one of the three perturbations) are left out.
    """

    family = "optimization-based"
    order = {"grad": PERTURB}
    grid = {"rho": (0.05, 0.1, 0.2, 0.4)}  # factors of two around the authors' 0.2

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
