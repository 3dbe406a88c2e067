"""Do the tasks pull in the same direction? Angles between their gradients at the net after a task.

A negative cosine means that a step down one loss is, to first order, a step up the other: interference (Lopez-Paz &
Ranzato 2017, who constrain it; Yu et al. 2020 for the cosine). A positive cosine means transfer (Riemer et al. 2019).
At an optimum of a task its gradient is small and its direction is noise: read it together with `gradient_norm_task`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from harness.boundary import Boundary
from harness.landscape.curvature import flatten, value_and_grad
from harness.metrics import Readings, blank, crossed, objective, spaced
from harness.types import Column, Reading

COLUMNS: dict[str, Column] = {
    "gradient_cosine": Column("", "cosine", "between the loss gradients of two measured tasks", "train"),
    "gradient_cosine_mean": Column("", "cosine", "mean over all pairs of measured tasks", "train"),
    "gradient_cosine_new": Column("", "cosine", "mean over the pairs of the new task and each old task", "train"),
    "gradient_conflict": Column("", "fraction", "share of pairs of measured tasks with a negative cosine", "train"),
    "gradient_norm_task": Column("", "nat/weight", "norm of each measured task's loss gradient", "train"),
}


def conflict(b: Boundary, *, size: int, tasks: int) -> Readings:
    """Cosines of the measured tasks' gradients at theta_t, each on `size` probe rows; empty at t = 0.

    The tasks are those of `metrics.spaced(t, tasks)`; losses are in evaluation mode under this boundary's mask. In
    [-1, 1]; NaN for a gradient of 0, which has no direction. Cost: 1 gradient per measured task.
    """
    if b.phase != "end" or b.t == 0:
        return {}
    measured = spaced(b.t, tasks)
    gradients = [flatten(value_and_grad(objective(b, b.probe(i, size)), b.trained.params)[1]) for i in measured]
    stacked = torch.stack(gradients, 1)  # [S, T, P]
    cosine = cosines(stacked)
    one, other = torch.triu_indices(len(measured), len(measured), 1, device=cosine.device)
    pairs = cosine[:, one, other]  # [S, T (T - 1) / 2]
    return blank(
        b,
        {
            "gradient_cosine": crossed(cosine, measured, "other_task", measured),
            "gradient_cosine_mean": pairs.mean(1),
            "gradient_cosine_new": cosine[:, -1, :-1].mean(1),
            "gradient_conflict": torch.where(pairs.isnan(), pairs, (pairs < 0).to(pairs)).mean(1),
            "gradient_norm_task": Reading(stacked.norm(dim=2), axis="task", coords=measured),
        },
    )


def cosines(vectors: Tensor) -> Tensor:
    """Cosine of every pair of rows: [S, T, P] -> [S, T, T], 1 on the diagonal; NaN with a row of zeros.

    >>> cosines(torch.tensor([[[2.0, 0.0], [1.0, 1.0], [-3.0, 0.0]]]))[0, 0]
    tensor([ 1.0000,  0.7071, -1.0000])
    """
    unit = vectors / vectors.norm(dim=2, keepdim=True)
    table: Tensor = unit @ unit.mT
    return table.clamp(-1, 1)
