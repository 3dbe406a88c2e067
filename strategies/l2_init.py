"""Kumar, Marklund & Van Roy (2023), Maintaining plasticity in continual learning via regenerative regularization."""

from torch import Tensor

from harness import tree
from harness.learner import Learner
from harness.strategy import Strategy
from harness.toolbox import require
from harness.toolbox.penalty import distance
from harness.types import Batch, Out, Params


class L2Init(Strategy):
    """L2-Init, or regenerative regularisation: decay towards the initialisation, not towards zero (Kumar 2023).

        penalty = strength |θ - θ_0|²        (no factor ½: the gradient is 2 strength (θ - θ_0))

    The authors' code (skumar9876/L2_Init, 3f86d26) has a factor ½ that their paper does not have: the strengths that
    they report are its, and twice those here. Gradient descent on the penalty is stable while lr * strength < 1.
    Norm gains and shifts are not penalised, as in their code. The penalty is part of the loss, and an adaptive
    optimizer rescales it, as published.

    Differences from the paper:
    * θ_0 includes parameters added by strategies earlier in the list.
    * With cbp or redo, a replaced unit is pulled to its first initialisation, not to its new one.
    """

    family = "plasticity"
    grid = {"strength": (5e-6, 5e-5, 5e-4, 5e-3)}  # half of 1e-5 to 1e-2, where the paper's best lie on its streams

    def __init__(self, *, strength: float) -> None:
        require.at_least(0, strength=strength)
        self.strength = strength

    def setup(self, learner: Learner) -> None:
        norms = {s.name for unit in learner.model.units for s in unit.norm}
        self.origin = tree.copy({k: v for k, v in learner.params.items() if k not in norms})

    def loss(self, learner: Learner, params: Params, batch: Batch, out: Out) -> Tensor | float:
        return self.strength * distance(params, self.origin)

    def curvature(self, learner: Learner) -> float:
        return 2 * self.strength
