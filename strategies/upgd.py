"""Elsayed & Mahmood (2024), Addressing loss of plasticity and catastrophic forgetting in continual learning, ICLR."""

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


class UPGD(Strategy):
    """UPGD: small updates of useful weights, perturbation of useless ones (Elsayed & Mahmood 2024).

        U <- decay U - (1 - decay) g θ                                     first-order utility of each weight
        s = sigmoid(U / max over all weights of U)                         utility=global
        s = sigmoid(U / |U| over a unit's incoming weights)                utility=local
        θ <- θ (1 - lr weight_decay) + scale (1 - s) (Δ - lr sigma ξ),     ξ ~ N(0, 1)

    g is the gradient passed to the optimizer, Δ its update. With plain SGD Δ = -lr g, which is the paper's UPGD-W (its
    correction of U by 1 / (1 - decay^n) cancels in s). With Adam Δ is Adam's, as in its AdaUPGD; with momentum the
    velocity is that of plain training, and the resulting step is gated. lr is the optimizer's current one. Leave
    optimizer.weight_decay at 0: it would be gated too.

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

    def __init__(self, *, utility: str, decay: float, sigma: float, weight_decay: float, scale: float) -> None:
        require.one_of(UTILITIES, utility=utility)
        require.within("[0, 1)", decay=decay)
        require.at_least(0, sigma=sigma, weight_decay=weight_decay)
        require.above(0, scale=scale)
        self.utility, self.decay, self.sigma = utility, decay, sigma
        self.weight_decay, self.scale = weight_decay, scale

    def setup(self, learner: Learner) -> None:
        self.trace = tree.zeros(learner.params)

    def step(self, learner: Learner, step: Step) -> None:
        lr, key = learner.optimizer.lr, self.random.key()
        for k, u in self.trace.items():
            u.mul_(self.decay).addcmul_(step.grads[k], step.before[k], value=self.decay - 1)
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
        return tree.scale(u, 1 / top.clamp_min(tiny))
