"""What the features still encode: a linear probe fitted to each task, and how far its features have moved.

Forgetting has two parts. Deep: a linear probe refitted to the task is less accurate than it was at the task's own
boundary (Davari et al. 2022, Probing representation forgetting, CVPR). Shallow: the rest of the lost accuracy, because
the head no longer fits features that are still there. Both terms are those of Lanzillotta, Meier & Hofmann (2025),
Asymptotic analysis of shallow and deep forgetting in replay with neural collapse.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from harness.boundary import Boundary
from harness.landscape.curvature import rowwise
from harness.metrics import Readings, blank, spaced
from harness.toolbox import class_means, solve
from harness.types import Batch, Column, Net, Reading

COLUMNS: dict[str, Column] = {
    "linear_probe_task": Column("higher", "accuracy", "of a ridge probe fitted to the task's features", "test"),
    "readout_gap_task": Column("", "accuracy", "that minus the deployed net's accuracy on the task", "test", "both"),
    "forgetting_deep_task": Column("lower", "accuracy", "drop of the probe since the task's own boundary", "test"),
    "forgetting_shallow_task": Column("lower", "accuracy", "drop of the deployed net, minus deep", "test", "both"),
    "forgetting_deep": Column("lower", "accuracy", "mean of deep over the measured old tasks", "test"),
    "forgetting_shallow": Column("lower", "accuracy", "mean of shallow over the measured old tasks", "test", "both"),
    "cka_task": Column("", "", "debiased linear CKA with the features at the task's own boundary", "train"),
}  # fmt: skip


def representation(b: Boundary, *, size: int, test_size: int, tasks: int, ridge: float) -> Readings:
    """Linear probes and drift of each measured task (`metrics.spaced`), after a task.

    A probe (`probe_accuracy`) is fitted on `size` training rows of one task and scored on `test_size` of its test rows,
    among the task's own classes. If other classes compete (scenario=class), the gap to the deployed net includes the
    confusion with them. With a_i the deployed net's accuracy on task i from the accuracy matrix and p_i the probe's,
    now and at the boundary of i,

        deep_i = p_i(then) - p_i(now)      shallow_i = a_i(then) - a_i(now) - deep_i      readout_gap_i = p_i - a_i(now)

    Features are those of the trained net, then and now. If a strategy deploys different weights (such as an average),
    their effect counts as shallow. NaN if the accuracy was not measured, or the net at the boundary of i was not kept
    (keep=last). Cost: two forward passes for the current task and four for an old one, and one D x D linear system per
    probe. Regression has only CKA; a model without a declared head has nothing.
    """
    layer = class_means.head(b.learner.model)
    if b.phase != "end" or layer is None:
        return {}
    measured, regression = spaced(b.t, tasks), b.stream.loss == "mse"
    drift, now, then = [], [], []
    for i in measured:
        kept = i == b.t or i in b.nets
        known = 1.0 if kept else math.nan
        train, nets = b.probe(i, size), [b.trained, *([b.nets[i]] if i < b.t and kept else [])]
        seen = [features(net, layer.input, train) for net in nets]
        drift.append(known * linear_cka(seen[0], seen[-1]))
        if not regression:
            test = b.probe(i, test_size, "test")
            accuracy = [
                probe_accuracy(z, features(net, layer.input, test), train, test, b.stream.outputs, ridge)
                for z, net in zip(seen, nets)
            ]
            now.append(accuracy[0])
            then.append(known * accuracy[-1])
    found: Readings = {"cka_task": Reading(torch.stack(drift, 1), axis="task", coords=measured)}
    if not regression:
        found.update(falls(b.accuracy.to(now[0]), measured, torch.stack(now, 1), torch.stack(then, 1)))
    return blank(b, found)


def features(net: Net, layer: str, batch: Batch) -> Tensor:
    """The input of the head: [S, B, D] float64."""
    return class_means.features(net, layer, batch.x, batch.t).double()


def falls(r: Tensor, tasks: Sequence[int], now: Tensor, then: Tensor) -> Readings:
    """The probes' columns from the accuracy matrix R [S, T + 1, T] and their accuracies [S, tasks].

    >>> r = torch.tensor([[[0.5, 0.5], [0.9, 0.5], [0.3, 0.8]]])
    >>> found = falls(r, (0, 1), torch.tensor([[0.7, 0.8]]), torch.tensor([[0.95, 0.8]]))
    >>> found["forgetting_deep"], found["forgetting_shallow"]  # 0.25 + 0.35 = 0.9 - 0.3
    (tensor([0.2500]), tensor([0.3500]))
    """
    old, t = list(tasks[:-1]), tasks[-1]
    deep = (then - now)[:, :-1]
    shallow = torch.stack([r[:, i + 1, i] - r[:, t + 1, i] for i in old], 1) - deep if old else deep
    found: Readings = {
        "linear_probe_task": Reading(now, axis="task", coords=tasks),
        "readout_gap_task": Reading(now - r[:, t + 1, list(tasks)], axis="task", coords=tasks),
        "forgetting_deep": deep.mean(1),
        "forgetting_shallow": shallow.mean(1),
    }
    if old:
        found["forgetting_deep_task"] = Reading(deep, axis="task", coords=old)
        found["forgetting_shallow_task"] = Reading(shallow, axis="task", coords=old)
    return found


def probe_accuracy(z: Tensor, z_test: Tensor, train: Batch, test: Batch, outputs: int, ridge: float) -> Tensor:
    """Accuracy [S] on the test rows of a ridge regression onto one-hot classes, fitted to the training rows.

    W, b = argmin sum_n w_n |y_n - W z_n - b|^2 + lambda |W|^2 with weights w that sum to 1; predictions by argmax.
    lambda is `ridge` times the mean variance of a feature, which makes it invariant to rotations and the scale of the
    features. In scikit-learn's terms alpha = n lambda. A class without training rows is never predicted: the outputs of
    the others sum to 1, its own is 0. Constant features predict the most frequent class.

    >>> z, y = torch.tensor([[[-1.0], [-2.0], [1.0], [2.0]]]), torch.tensor([[0, 0, 1, 1]])
    >>> rows = Batch(z, y, 0 * y, torch.full((1, 4), 0.25))
    >>> probe_accuracy(z, z + 1.5, rows, rows, 2, 0.1)  # -2 + 1.5 is left of 0, -1 + 1.5 is not
    tensor([0.7500])
    """
    n, w = z.shape[1], train.w.to(z)
    target = one_hot(train.y, outputs).to(z)
    mean = (w[..., None] * z).sum(1, keepdim=True)
    offset = (w[..., None] * target).sum(1, keepdim=True)

    def answers(both: Tensor) -> tuple[Tensor]:
        x, root = both[:, :n], w.sqrt()[..., None]
        gram = x.mT @ x if n > x.shape[2] else x @ x.mT  # the smaller of the two systems has the same solution
        strength = ridge * x.square().sum((1, 2)) / x.shape[2]
        gram = gram + torch.diag_embed(strength.clamp(min=torch.finfo(x.dtype).tiny)[:, None].expand(-1, len(gram[0])))
        y = root * (target - offset)
        weight = solve.solve(gram, x.mT @ y) if n > x.shape[2] else x.mT @ solve.solve(gram, y)
        return (both[:, n:] @ weight,)

    scores = rowwise(answers, torch.cat([w.sqrt()[..., None] * (z - mean), z_test - mean], 1))[0] + offset
    right = (scores.argmax(2) == test.y).to(scores)
    return (test.w.to(scores) * right).sum(1).masked_fill(scores.isnan().flatten(1).any(1), torch.nan)


def linear_cka(x: Tensor, y: Tensor) -> Tensor:
    """Debiased linear centred kernel alignment of features of the same rows: [S, n, D], [S, n, E] -> [S], at most 1.

    HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) of the linear kernels K = X X', L = Y Y' (Kornblith et al. 2019) with the
    unbiased HSIC of Song et al. (2012), as in Nguyen, Raghu & Kornblith (2021). With the diagonals of K and L
    set to 0,

        n (n - 3) HSIC = tr(KL) + 1'K1 1'L1 / ((n - 1)(n - 2)) - 2 1'KL1 / (n - 2)

    1 for the same features up to rotation and scale, about 0 (of either sign) for unrelated ones; the plain estimate is
    then far above 0 once D is near n. NaN if all features are equal, and for fewer than 4 rows.

    >>> x = torch.tensor([[[0.0, 1.0], [2.0, 0.0], [1.0, 5.0], [3.0, 2.0], [0.0, 0.0]]])
    >>> round(linear_cka(x, -7 * x.flip(2)).item(), 6)
    1.0
    """
    n = x.shape[1]
    if n < 4:
        return torch.full_like(x[:, 0, 0], torch.nan)
    k = Kernel.of(x)
    m = k if y is x else Kernel.of(y)

    def hsic(a: Kernel, b: Kernel) -> Tensor:
        cross = (a.rows * b.rows).sum(1)
        whole = a.whole * b.whole / ((n - 1) * (n - 2))
        # times n (n - 3), which cancels in the ratio
        return (a.gram * b.gram).sum((1, 2)) + whole - 2 * cross / (n - 2)

    own = hsic(k, k)
    scale = own * (own if m is k else hsic(m, m))
    return (own if m is k else hsic(k, m)) / torch.where(scale > 0, scale, torch.nan).sqrt()


class Kernel(NamedTuple):
    """The linear kernel of features with a diagonal of 0."""

    gram: Tensor  # [S, n, n]
    rows: Tensor  # [S, n] sums of its rows
    whole: Tensor  # [S] sum of all

    @classmethod
    def of(cls, x: Tensor) -> Kernel:
        """Of features [S, n, D], centred only to reduce rounding errors."""
        x = x - x.mean(1, keepdim=True)
        gram = x @ x.mT
        gram.diagonal(dim1=1, dim2=2).zero_()
        return cls(gram, gram.sum(2), gram.sum((1, 2)))
