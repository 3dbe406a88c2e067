"""Whether a penalty alone makes the optimizer's steps grow."""

from __future__ import annotations

import math

import torch

from harness.landscape.edge_of_stability import ratio
from harness.learner import Learner
from harness.optim import SGD
from harness.strategy import Chain, Strategy


def unstable(learner: Learner, chain: Chain) -> dict[str, str]:
    """For each strategy whose penalty is too stiff for the coming steps, by its name: what to say.

    Steps of gradient descent on a quadratic grow without end if lr times its largest curvature is above 2 (more with
    momentum: harness.landscape.edge_of_stability). Of Adam nothing is said: it divides by the gradients that such a
    penalty makes, so that no step is much longer than lr.
    """
    if not isinstance(learner.optimizer, SGD) or not learner.planned:
        return {}
    learner.set_lr()  # no schedule raises it within a task
    return {p.name: said for p in chain.parts if (said := of(learner, p))}


def of(learner: Learner, part: Strategy) -> str:
    """What to say of one strategy; empty if it is stable."""
    lr, optimizer = learner.optimizer.lr, learner.optimizer
    curvature = torch.as_tensor(part.curvature(learner), dtype=torch.float64).expand(learner.S)[learner.alive.cpu()]
    if not len(curvature) or not math.isfinite(stiffest := float(curvature.max())):
        return ""
    over = float(ratio(optimizer, lr, torch.tensor(stiffest, dtype=torch.float64)))
    if over <= 1:
        return ""
    key, strength = f"strategy.{part.name}.strength", getattr(part, "strength", None)
    remedy = f"{key} below {strength / over:.3g} (it is {strength:g})" if strength else part.name
    return (
        f"task {learner.now}: {part.name}: steps on its penalty alone grow, since lr {lr:g} times its largest curvature"
        f" {stiffest:.3g} is above {lr * stiffest / over:.3g}; lower {remedy}, or optimizer.lr"
    )
