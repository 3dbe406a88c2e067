"""How far an optimizer is from the edge of stability: its step against the curvature of the loss.

On a quadratic loss with largest eigenvalue lambda, the optimizer diverges exactly if the ratio is above 1. Full-batch
training settles near 1 (Cohen et al. 2021, 2022). With small batches 1 has no such meaning, and the ratio is only a
dimensionless sharpness. It refers to the loss alone, without weight decay and penalties.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor

from harness.landscape.curvature import Hessian, scaled, top_of
from harness.learner import Learner
from harness.optim import Adam, Optimizer
from harness.types import Loss, Params


def ratio(optimizer: Optimizer, lr: float, lam: Tensor) -> Tensor:
    """lr x lambda over the largest stable product: [S].

        gradient descent lr lambda / 2                      heavy ball lr lambda / (2 (1 + b))
        Nesterov         lr lambda (1 + 2b) / (2 (1 + b))   Adam       lr lambda (1 - b1) / (2 (1 + b1))

    (Cohen et al. 2021, equation 1 and appendix B; 2022 for Adam, where lambda is that of `preconditioned` curvature.)
    NaN for other optimizers.

    >>> from harness.optim import SGD
    >>> float(ratio(SGD(lr=0.1, momentum=0.9), 0.1, torch.tensor([38.0])))
    1.0
    """
    settings = optimizer.settings()
    if "betas" in settings:
        b = float(settings["betas"][0])
        factor = (1 - b) / (1 + b)
    elif "momentum" in settings:
        b = settings["momentum"]
        factor = (1 + 2 * b) / (1 + b) if settings["nesterov"] else 1 / (1 + b)
    else:
        factor = math.nan
    return lam * (lr * factor / 2)


def inverse_root(optimizer: Adam, params: Params) -> Params | None:
    """P^-1/2 of Adam's preconditioner in its current state; None before its first step.

    P = (1 - b1^n) (sqrt(v / (1 - b2^n)) + eps) for an entry n steps old (Cohen et al. 2022). An entry that
    was reset and has not moved since gets 0, which excludes it. For dead units P is close to eps and its inverse close
    to 1e8: so is Adam's step.
    """
    if "square" not in optimizer.state:
        return None
    (b1, b2), n = optimizer.betas, optimizer.count
    found = {}
    for name in params:
        p1, p2 = optimizer.powers.get(name, (b1**n, b2**n))
        p = (1 - p1) * ((optimizer.state["square"][name] / (1 - p2)).sqrt() + optimizer.eps)
        found[name] = p.rsqrt().nan_to_num(nan=0.0, posinf=0.0)
    return found


def edge_ratio(learner: Learner, lr: float, loss: Loss, params: Params, lam: Tensor, key: Tensor, steps: int) -> Tensor:
    """`ratio` at a point: [S]; lam is the largest eigenvalue of the plain Hessian there.

    With Adam, lam is replaced by that of P^-1/2 H P^-1/2, for `steps` Hessian products and a gradient more; NaN before
    Adam's first step and after a reset.
    """
    optimizer = learner.optimizer
    if isinstance(optimizer, Adam):
        root = inverse_root(optimizer, params)
        if root is None:
            return torch.full_like(lam, math.nan)
        lam = top_of(scaled(Hessian(loss, params), root), params, key, k=1, steps=steps).values[:, 0]
    return ratio(optimizer, lr, lam)


def rate(learner: Learner, step: int) -> float:
    """The learning rate of a step of the current task under the schedule; does not change the learner."""
    twin = copy.copy(learner)
    twin.optimizer, twin.steps = copy.copy(learner.optimizer), step
    twin.set_lr()
    return twin.optimizer.lr
