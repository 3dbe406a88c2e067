"""Elsayed & Mahmood (2024), Addressing loss of plasticity and catastrophic forgetting in continual learning, ICLR.
Code: mohmdelsayed/upgd, b75e90a.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from harness import tree
from harness.learner import Learner
from harness.rng import fold, normal
from harness.strategy import GATE, Strategy
from harness.toolbox import require
from harness.types import BEFORE, Params, Step

UTILITIES = ("global", "local")
MAXIMA = ("corrected", "raw")


class UPGD(Strategy):
    """UPGD: small updates of useful weights, perturbation of useless ones (Elsayed & Mahmood 2024).

        U <- decay U - (1 - decay) g θ                                     first-order utility of each weight
        U^ = U / (1 - decay^n)                                             at the n-th step
        s = sigmoid(U^ / max over all weights of U^)                       utility=global, maximum=corrected
        s = sigmoid(U^ / max over all weights of U)                        utility=global, maximum=raw
        s = sigmoid(U^ / |U^| over a unit's incoming weights)              utility=local
        θ <- θ (1 - lr weight_decay) + scale (1 - s) (Δ - lr sigma ξ),     ξ ~ N(0, 1)

    maximum=corrected is the paper's formula, in which the correction of U cancels. maximum=raw is the authors' code, in
    the README and in the experiments. There the argument of the sigmoid is larger by 1 / (1 - decay^n), a thousand at
    the first step with decay=0.999: for some 1 / (1 - decay) steps a weight of positive utility hardly moves, and
    every other moves by scale times its step. The default is the formula: nothing in the paper asks for that start.

    g is the gradient passed to the optimizer, Δ its update. With plain SGD Δ = -lr g, which is the paper's UPGD-W. With
    Adam Δ is Adam's, as in its AdaUPGD; with momentum the velocity is that of plain training, and the resulting step is
    gated. lr is the optimizer's current one. Leave optimizer.weight_decay at 0: it would be gated too.

    A weight without utility has s = ½: scale=2 moves it by exactly Δ. Stores one number per parameter. Draws one per
    parameter and step, which takes several times as long as the step for a small net; sigma=0 draws none.

    Differences from the paper:
    * scale=2 is the formula of the authors' README; the code of their experiments (core/optim) has 1.
    * If no weight has positive utility, the authors' code divides by max U <= 0, which reverses the order or gives
      NaN. Here such weights have s at most ½.
    * utility=local normalises over a convolution's whole filter; their code only over its last axis.
    """

    family = "plasticity"
    needs = frozenset({BEFORE})
    order = {"step": GATE}  # what others see of the update is what was really made
    grid = {"sigma": (1e-4, 1e-3, 1e-2, 1e-1)}  # the authors' best are 0 to 0.1

    def __init__(
        self, *, utility: str, maximum: str, decay: float, sigma: float, weight_decay: float, scale: float
    ) -> None:
        require.one_of(UTILITIES, utility=utility)
        require.one_of(MAXIMA, maximum=maximum)
        require.within("[0, 1)", decay=decay)
        require.at_least(0, sigma=sigma, weight_decay=weight_decay)
        require.above(0, scale=scale)
        self.utility, self.maximum, self.decay, self.sigma = utility, maximum, decay, sigma
        self.weight_decay, self.scale = weight_decay, scale

    def setup(self, learner: Learner) -> None:
        self.trace, self.taken = tree.zeros(learner.params), 0

    def step(self, learner: Learner, step: Step) -> None:
        lr, key = learner.optimizer.lr, self.random.key()
        for k, u in self.trace.items():
            u.mul_(self.decay).addcmul_(step.grads[k], step.before[k], value=self.decay - 1)
        self.taken += 1
        scaled = self.scaled(self.trace)
        for k in self.trace:
            old = step.before[k]
            move = learner.params[k] - old
            if self.sigma:
                move -= lr * self.sigma * normal(fold(key, k), *old.shape[1:], dtype=old.dtype)
            gate = self.scale * torch.sigmoid(-scaled[k])  # scale (1 - s)
            learner.params[k].copy_(old * (1 - lr * self.weight_decay) + gate * move)

    def scaled(self, u: Params) -> Params:
        """The argument of the sigmoid."""
        tiny = torch.finfo(next(iter(u.values())).dtype).tiny
        if self.utility == "local":
            return {k: F.normalize(v.flatten(min(2, v.dim() - 1)), dim=-1, eps=tiny).view_as(v) for k, v in u.items()}
        top: Tensor = torch.stack([v.flatten(1).amax(1) for v in u.values()]).amax(0)
        kept = 1 - self.decay**self.taken if self.maximum == "raw" else 1
        return tree.scale(u, 1 / (kept * top.clamp_min(tiny)))
