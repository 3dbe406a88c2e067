"""Ritter, Botev & Barber (2018), Online structured Laplace approximations for overcoming catastrophic forgetting,
NeurIPS.
"""

import torch
from torch import Tensor

from harness import tree
from harness.landscape import kronecker
from harness.landscape.fisher import KINDS
from harness.learner import Learner
from harness.strategy import ESTIMATE, Strategy
from harness.toolbox import require
from harness.toolbox.penalty import quadratic, stiffest
from harness.types import Batch, Out, Params, Task


class KFACEWC(Strategy):
    """KFAC-EWC: EWC with interactions between the weights of a layer, by Kronecker factors (Ritter 2018).

        penalty = strength / 2 Σ_layers tr(G D A Dᵀ) + strength / 2 Σ_rest F_i (θ_i - θ*_i)²      D = [W, b] - [W*, b*]

    A ⊗ G is the layer's Fisher information, from inputs and output gradients (harness.landscape.kronecker; Martens &
    Grosse 2015), including the bias. θ* are the weights after the last task: the online Laplace approximation. Norm
    parameters have no such factors and use the diagonal F of EWC. Costs one product G D A per layer and step.
    Gradient descent on the penalty is stable while lr * strength * max λ(A) λ(G) < 2, λ the largest eigenvalue.
    Memory: two square matrices per layer, a copy of the parameters.

    Differences from the paper:
    * A sum of Kronecker products over tasks is not a Kronecker product. The nearest one in Frobenius norm is stored
      (Van Loan & Pitsianis 1993), in constant memory; after one task it is exact.
    * No prior precision: before the first boundary there is no penalty.
    """

    name = "kfac_ewc"
    family = "parameter regularization"
    order = {"end": ESTIMATE}
    grid = {"strength": (0.03, 0.1, 0.3, 1.0)}  # half orders of magnitude; permuted digits diverge at 3

    def __init__(self, *, strength: float, fisher: str, samples: int | None) -> None:
        require.at_least(0, strength=strength)
        require.one_of(KINDS, fisher=fisher)
        require.at_least(1, null="all training rows", samples=samples)
        self.strength, self.fisher, self.samples = strength, fisher, samples

    def setup(self, learner: Learner) -> None:
        self.anchor, self.pairs = tree.copy(learner.params), kronecker.zeros(learner)
        closed = {name for layer in learner.model.layers for name in (layer.weight, layer.bias)}
        self.diagonal = tree.zeros({k: v for k, v in learner.params.items() if k not in closed})

    def loss(self, learner: Learner, params: Params, batch: Batch, out: Out) -> Tensor | float:
        if not learner.now:
            return 0.0
        total = quadratic(params, {k: self.anchor[k] for k in self.diagonal}, self.diagonal) if self.diagonal else 0.0
        for layer in learner.model.layers:
            shift = kronecker.matrix(params, layer) - kronecker.matrix(self.anchor, layer)
            total = total + kronecker.quadratic_form(shift, self.pairs[layer.weight])
        return self.strength / 2 * total

    @torch.no_grad()
    def curvature(self, learner: Learner) -> Tensor:
        each = [stiffest(self.diagonal)] if self.diagonal else []
        for pair in self.pairs.values():  # a diverged seed has no eigenvalues
            a, g = (torch.linalg.eigvalsh(v.nan_to_num())[:, -1] for v in pair)
            each.append(a * g)
        return self.strength * torch.stack(each).amax(0)

    @torch.no_grad()
    def end(self, learner: Learner, task: Task) -> None:
        pairs, diagonal = kronecker.factors(learner, task.train, self.fisher, self.random, samples=self.samples)
        self.pairs = {k: kronecker.add(old, pairs[k]) for k, old in self.pairs.items()}
        self.diagonal = tree.add(self.diagonal, diagonal)
        tree.assign(self.anchor, learner.params)
