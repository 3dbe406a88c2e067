"""Neural collapse of the last features: how far each class has shrunk to a point, and how these points lie.

Papyan, Han & Donoho (2020), Prevalence of neural collapse during the terminal phase of deep learning training, PNAS.
Measured per task, on its training rows and classes. The features are the input of the trained net's head, even if the
deployed net replaces the head. Smaller is always more collapsed; neither direction is better.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from harness.boundary import Boundary
from harness.landscape.curvature import rowwise
from harness.metrics import Readings, blank, spaced
from harness.toolbox import class_means
from harness.toolbox.memory import pick_rows
from harness.types import Column, Reading

COLUMNS: dict[str, Column] = {
    "nc1_task": Column("", "", "tr(S_W pinv(S_B)) / C: spread within classes over spread between them", "train"),
    "cdnv_task": Column("", "", "class-distance normalised variance, mean over pairs (Galanti et al. 2021)", "train"),
    "nc2_equinorm_task": Column("", "", "std over mean of the norms of the centred class means", "train"),
    "nc2_equiangular_task": Column("", "", "std over pairs of the cosine of centred class means", "train"),
    "nc2_maxangle_task": Column("", "", "mean over pairs of |cosine + 1/(C-1)| of centred class means", "train"),
    "nc2_equinorm_head_task": Column("", "", "std over mean of the norms of the head's rows"),
    "nc2_equiangular_head_task": Column("", "", "std over pairs of the cosine of the head's rows"),
    "nc2_maxangle_head_task": Column("", "", "mean over pairs of |cosine + 1/(C-1)| of the head's rows"),
    "nc3_task": Column("", "", "|W/|W| - M/|M||^2, W the head's rows, M the centred class means", "train"),
}


def collapse(b: Boundary, *, size: int, tasks: int) -> Readings:
    """Collapse of the features of each measured task (`metrics.spaced`) on `size` of its training rows, after a task.

    Cost: one forward pass per task. Empty for regression, which has no classes, and for a model without a declared
    head. NaN for a task with a single class, and if all class means coincide.
    """
    layer = class_means.head(b.learner.model)
    if b.phase != "end" or b.stream.loss == "mse" or layer is None:
        return {}
    measured = spaced(b.t, tasks)
    weight, found = b.trained.params[layer.weight].double(), []
    for i in measured:
        batch = b.probe(i, size)
        z = class_means.features(b.trained, layer.input, batch.x, batch.t).double()
        found.append(geometry(classes(z, batch.y, batch.w.double(), weight.shape[1]), weight))
    each = {f"{name}_task": torch.stack([f[name] for f in found], 1) for name in found[0]}
    return blank(b, {name: Reading(v, axis="task", coords=measured) for name, v in each.items()})


class Classes(NamedTuple):
    """Features by class; a class without rows is all zeros."""

    mean: Tensor  # [S, C, D] class means minus their unweighted mean
    present: Tensor  # [S, C] classes with rows
    within: Tensor  # [S, B, D] rows minus the mean of their class
    variance: Tensor  # [S, C] mean |row - class mean|^2
    w: Tensor  # [S, B]


def classes(z: Tensor, y: Tensor, w: Tensor, outputs: int) -> Classes:
    """Class means and residuals of features z [S, B, D] with classes y [S, B] and weights w [S, B]."""
    total, count = class_means.class_sums(z, y, w, outputs)
    present = count > 0
    mean = total / count.where(present, 1)[..., None]
    within = z - pick_rows(mean, y)
    variance, _ = class_means.class_sums(within.square().sum(2, keepdim=True), y, w, outputs)
    centre = mean.sum(1) / present.sum(1)[:, None]
    centred = torch.where(present[..., None], mean - centre[:, None], 0)
    return Classes(centred, present, within, variance[..., 0] / count.where(present, 1), w)


def geometry(c: Classes, head: Tensor) -> dict[str, Tensor]:
    """Every metric of this file: head weights [S, C, D] -> name -> [S]."""
    rows = torch.where(c.present[..., None], head, 0)
    return {
        "nc1": nc1(c),
        "cdnv": cdnv(c),
        **dict(zip(("nc2_equinorm", "nc2_equiangular", "nc2_maxangle"), nc2(c.mean, c.present))),
        **dict(zip(("nc2_equinorm_head", "nc2_equiangular_head", "nc2_maxangle_head"), nc2(rows, c.present))),
        "nc3": nc3(rows, c.mean),
    }


def nc1(c: Classes) -> Tensor:
    """tr(S_W pinv(S_B)) / C: [S], at least 0; 0 if every class is one point.

    S_W is the mean over rows of (h - mu_c)(h - mu_c)', S_B the mean over classes of (mu_c - mu)(mu_c - mu)'. With
    s_k, v_k the singular values and vectors of the centred class means it is sum_k mean((h - mu_c).v_k)^2 / s_k^2.
    S_B has rank at most C - 1, plus rounding errors: only the s_k above 1e-5 of the first are kept, as features are
    float32. (A pseudo-inverse with its default tolerance inverts the rounding errors: values in the millions, of
    either sign.) NaN with fewer than two classes, and if all class means coincide.

    >>> y, w = torch.tensor([[0, 0, 1, 1]]), torch.full((1, 4), 0.25)
    >>> h = torch.tensor([[[1.0, 1.0], [1.0, -1.0], [-1.0, 3.0], [-1.0, -3.0]]])  # apart along x, spread along y
    >>> nc1(classes(h, y, w, 2)), nc1(classes(h.flip(2), y.flip(1), w, 2))
    (tensor([0.]), tensor([0.]))
    >>> nc1(classes(h + torch.tensor([[0.5], [-0.5], [0.5], [-0.5]]), y, w, 2))  # 0.5^2 within, 1^2 between, C = 2
    tensor([0.1250])
    """
    s, v = rowwise(lambda m: torch.linalg.svd(m, full_matrices=False)[1:], c.mean)
    energy = (c.w[..., None] * (c.within @ v.mT).square()).sum(1)  # [S, r]
    kept = s > 1e-5 * s[:, :1]
    value = torch.where(kept, energy / s.square(), 0).sum(1)
    return value.masked_fill(~kept.any(1), math.nan)


def cdnv(c: Classes) -> Tensor:
    """Mean over pairs of classes of (V_i + V_j) / (2 |mu_i - mu_j|^2): [S], V = mean |h - mu|^2; at least 0.

    Galanti, György & Hutter (2021), On the role of neural collapse in transfer learning. Unlike NC1 it weights
    all directions equally. Infinite if two classes share their mean; NaN with fewer than two classes.

    >>> y, w = torch.tensor([[0, 0, 1, 1]]), torch.full((1, 4), 0.25)
    >>> h = torch.tensor([[[1.0, 1.0], [1.0, -1.0], [-1.0, 3.0], [-1.0, -3.0]]])
    >>> cdnv(classes(h, y, w, 2))  # (1 + 9) / (2 * 4)
    tensor([1.2500])
    """
    distance = torch.cdist(c.mean, c.mean, compute_mode="donot_use_mm_for_euclid_dist").square()
    each = (c.variance[:, :, None] + c.variance[:, None]) / (2 * distance)
    return over_pairs(each, c.present)[0]


def nc2(points: Tensor, present: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Equinorm, equiangularity and maximal angle of the points [S, C, D] of the classes present: [S] each.

    std(|m_c|) / mean(|m_c|), std over pairs of cos(m_c, m_c'), and mean over pairs of |cos + 1/(C - 1)|; standard
    deviations are those of the population. All are 0 for a simplex equiangular tight frame, C points as far apart as
    possible. Two centred class means always form one. NaN with fewer than two classes, or if a point is 0.

    >>> corners = torch.eye(3)[None] - 1 / 3
    >>> [round(v.item(), 6) for v in nc2(corners, torch.ones(1, 3, dtype=torch.bool))]
    [0.0, 0.0, 0.0]
    """
    number = present.sum(1).to(points)
    norm: Tensor = torch.linalg.vector_norm(points, dim=2)
    mean = norm.sum(1) / number
    spread_ = (torch.where(present, norm - mean[:, None], 0).square().sum(1) / number).sqrt()
    unit = points / norm[..., None]
    cosine = unit @ unit.mT
    _, deviation = over_pairs(cosine, present)
    angle, _ = over_pairs((cosine + 1 / (number - 1)[:, None, None]).abs(), present)
    return (spread_ / mean).masked_fill(number < 2, math.nan), deviation, angle


def nc3(head: Tensor, mean: Tensor) -> Tensor:
    """|W / |W| - M / |M||^2, Frobenius norms: [S], in [0, 4]; 0 if the head's rows are the class means, up to scale.

    Both are [S, C, D], zero for absent classes; the head's rows are not centred, as published. NaN if either is 0.

    >>> m = torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]])
    >>> [round(nc3(w, m).item(), 5) for w in (3 * m, -m)]
    [0.0, 4.0]
    """
    w, m = (v / torch.linalg.vector_norm(v, dim=(1, 2), keepdim=True) for v in (head, mean))
    distance: Tensor = (w - m).square().sum((1, 2))
    return distance


def over_pairs(each: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and population standard deviation of [S, C, C] over pairs of different classes present: [S], [S]."""
    pair = (present[:, :, None] & present[:, None]).triu(1)
    number = pair.sum((1, 2))
    mean = torch.where(pair, each, 0).sum((1, 2)) / number
    deviation = torch.where(pair, each - mean[:, None, None], 0).square().sum((1, 2)) / number
    return mean, deviation.sqrt()
