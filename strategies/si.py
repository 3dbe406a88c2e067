"""Zenke, Poole & Ganguli (2017), Continual learning through synaptic intelligence, ICML. For variants see the
authors' code, github.com/ganguli-lab/pathint.
"""

import torch
from torch import Tensor

from harness import tree
from harness.learner import Learner
from harness.strategy import CONSTRAIN, ESTIMATE, RECORD, Strategy
from harness.toolbox import require
from harness.toolbox.penalty import quadratic, stiffest
from harness.types import BEFORE, Aux, Batch, GradFn, Out, Params, Step, Task

GRADIENTS = ("task", "total")


class SI(Strategy):
    """Synaptic intelligence: a spring on each weight, stiff by its contribution to the loss decrease (Zenke 2017).

        penalty = strength Σ_i Ω_i (θ_i - θ*_i)²                  θ*: weights after the last task
        ω_i    <- ω_i - g_i (θ_i(after) - θ_i(before))            each step, with the actual update
        Ω_i    <- max(0, Ω_i + ω_i / ((θ_i - θ*_i)² + xi))        each boundary; then ω = 0

    For small steps Σ ω is the decrease of the loss. The update is the optimizer's, including momentum.

        gradient=task    g is that of the loss without this penalty (the authors' code)
        gradient=total   g includes it (van de Ven's code, Avalanche, Mammoth)

    Memory: four copies of the parameters, and one from before the step.

    Differences from the paper:
    * max(0, ...) is only in the authors' code: a penalty with negative stiffness has no minimum.
    * With cbp or redo, a replaced unit keeps its importance and its anchor.
    """

    family = "parameter regularization"
    needs = frozenset({BEFORE})
    order = {"grad": RECORD, "step": CONSTRAIN, "end": ESTIMATE}
    transient = ("seen",)
    grid = {"strength": (0.016, 0.05, 0.16, 0.5)}  # half orders of magnitude; permuted digits diverge at 1.6

    def __init__(self, *, strength: float, xi: float, gradient: str) -> None:
        require.at_least(0, strength=strength)
        require.above(0, xi=xi)  # unmoved weights are divided by it
        require.one_of(GRADIENTS, gradient=gradient)
        self.strength, self.xi, self.gradient = strength, xi, gradient

    def setup(self, learner: Learner) -> None:
        self.anchor = tree.copy(learner.params)
        self.importance, self.path = tree.zeros(learner.params), tree.zeros(learner.params)
        self.seen: Params = {}

    def loss(self, learner: Learner, params: Params, batch: Batch, out: Out) -> Tensor:
        return self.strength * quadratic(params, self.anchor, self.importance)

    def curvature(self, learner: Learner) -> Tensor:
        return 2 * self.strength * stiffest(self.importance)

    def grad(self, learner: Learner, inner: GradFn) -> GradFn:
        def gradient(params: Params, batch: Batch) -> tuple[Params, Aux]:
            grads, aux = inner(params, batch)
            self.seen = self.seen or grads  # keep the first: a sharpness-aware step calls again at other weights
            return grads, aux

        return gradient

    def step(self, learner: Learner, step: Step) -> None:
        for k, g in self.seen.items():
            before = step.before[k]
            if self.gradient == "task":
                g = g - 2 * self.strength * self.importance[k] * (before - self.anchor[k])
            self.path[k].addcmul_(g, learner.params[k] - before, value=-1)
        self.seen = {}

    @torch.no_grad()
    def end(self, learner: Learner, task: Task) -> None:
        for k, path in self.path.items():
            shift = learner.params[k] - self.anchor[k]
            self.importance[k].add_(path / (shift.square() + self.xi)).relu_()
            path.zero_()
        tree.assign(self.anchor, learner.params)
