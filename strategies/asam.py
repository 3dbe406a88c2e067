"""Kwon, Kim, Park & Choi (2021), ASAM: Adaptive sharpness-aware minimization for scale-invariant learning of deep
neural networks, ICML.
"""

from harness import tree
from harness.learner import Learner
from harness.strategy import PERTURB, Strategy
from harness.toolbox import require
from harness.types import Aux, Batch, GradFn, Params


class ASAM(Strategy):
    """ASAM: SAM with a neighbourhood that scales with each weight, invariant to rescaling (Kwon 2021).

        e = rho T² g / |T g|,   T = |w| + eta for weights and norm gains, 1 for biases and norm shifts
        the optimizer receives g(θ + e)

    g is the gradient of the whole objective, including replayed rows and penalties of other strategies. The norm is
    over all parameters of a seed. Both passes see the same rows and dropout masks. Costs two gradients per step.

    Differences from the paper:
    * Batch norm uses batch statistics in both passes; only the pass at θ updates the running ones.
    * T is that of the authors' code. `adaptive` in other SAM code uses T = |w| for biases too: a different method.
    """

    family = "optimization-based"
    order = {"grad": PERTURB}
    grid = {"rho": (0.05, 0.16, 0.5, 1.6)}  # half orders of magnitude around Kwon et al.'s 0.5

    def __init__(self, *, rho: float, eta: float) -> None:
        require.at_least(0, rho=rho, eta=eta)
        self.rho, self.eta = rho, eta

    def grad(self, learner: Learner, inner: GradFn) -> GradFn:
        def gradient(params: Params, batch: Batch) -> tuple[Params, Aux]:
            grads, aux = inner(params, batch)
            scale = {k: v.abs() + self.eta for k, v in params.items() if "weight" in k or k.endswith("gain")}
            scaled = {k: g * scale[k] if k in scale else g for k, g in grads.items()}  # T g
            ascent = {k: g * scale[k] if k in scale else g for k, g in scaled.items()}  # T² g
            uphill = tree.add(params, ascent, self.rho / (tree.norm(scaled) + 1e-12))
            return inner(uphill, batch)[0], aux

        return gradient
