"""The line from each old task's own net to the current net, theta_i -> theta_t, under task i's loss.

On these lines Mirzadeh et al. (2021) found that naive training leaves the valley of its first task, while joint
training stays in it. alpha = 0 is the net just after task i, alpha = 1 the current net. Everything is measured under
this boundary's mask, as in `ledger`, whose change of loss is the difference of the two ends. With batch norm, running
statistics are recomputed from the task's rows at every point, including the ends.
"""

from __future__ import annotations

import math

import torch

from harness.boundary import Boundary
from harness.landscape import paths
from harness.metrics import Readings, blank, crossed, spaced
from harness.metrics.connectivity import BARRIERS, losses_and_errors
from harness.types import Column, Reading

COLUMNS: dict[str, Column] = {
    "anchor_loss": Column("", "nat", "loss of the old task along the line from the net just after it", "train"),
    "anchor_accuracy": Column("", "accuracy", "accuracy on the old task along the line from that net", "train"),
    "anchor_barrier_entezari_loss": Column("lower", "nat", "largest loss above the chord", "train"),
    "anchor_barrier_entezari_error": Column("lower", "error", "largest error above the chord", "train"),
    "anchor_instability_frankle_loss": Column("lower", "nat", "largest loss above the mean of the ends", "train"),
    "anchor_instability_frankle_error": Column("lower", "error", "largest error above the mean of the ends", "train"),
    "anchor_excess_loss": Column("lower", "nat", "largest loss above the worse end", "train"),
    "anchor_excess_error": Column("lower", "error", "largest error above the worse end", "train"),
    "anchor_best_alpha_loss": Column("", "", "position on the line of the old task's lowest loss", "train"),
    "anchor_best_alpha_error": Column("", "", "position on the line of the old task's lowest error", "train"),
    "anchor_gain_loss": Column("", "nat", "loss of the better end minus the lowest on the line", "train"),
    "anchor_gain_error": Column("", "error", "error of the better end minus the lowest on the line", "train"),
}


def anchors(b: Boundary, *, size: int, tasks: int, points: int) -> Readings:
    """The line from every measured old task's net: [S, tasks] each, and its K points; empty at t = 0.

    The old tasks are those of `metrics.spaced(t, tasks)`; `harness.landscape.paths` has the definitions. Cost: `points`
    forward passes per task, three times as many with batch norm. NaN if the net after task i was not kept (keep=last).
    Regression has no errors.
    """
    if b.phase != "end" or b.t == 0:
        return {}
    old, alphas = spaced(b.t, tasks)[:-1], paths.grid(points)
    unknown = torch.full((b.learner.S, points, 2), math.nan, dtype=b.learner.dtype, device=b.learner.device)

    def line(i: int) -> torch.Tensor:  # [S, K, 2]
        if i not in b.nets:
            return unknown
        batch = b.probe(i, size)
        return paths.line(b.nets[i].params, b.trained.params, lambda p: losses_and_errors(b, p, [batch])[:, 0], alphas)

    lines = [line(i) for i in old]
    found: Readings = {}
    for at, kind in enumerate(("loss", "error") if b.stream.loss != "mse" else ("loss",)):
        each = [one[..., at] for one in lines]  # [S, K] of each task
        for name, of in BARRIERS.items():
            found[f"anchor_{name}_{kind}"] = Reading(torch.stack([of(p, alphas) for p in each], 1), None, "task", old)
        alpha, gain = (torch.stack(part, 1) for part in zip(*[paths.lowest(p, alphas) for p in each]))
        found[f"anchor_best_alpha_{kind}"] = Reading(alpha, None, "task", old)
        found[f"anchor_gain_{kind}"] = Reading(gain, None, "task", old)
        whole = torch.stack(each, 1)
        name, whole = ("loss", whole) if kind == "loss" else ("accuracy", 1 - whole)
        found[f"anchor_{name}"] = crossed(whole, old, "alpha", alphas)
    return blank(b, found)
