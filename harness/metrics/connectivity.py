"""Valley or wall: the straight line from the last boundary's net to this one.

Along it, the loss of the old tasks, of the new task and of all tasks seen ("joint"), all under this boundary's mask. A
naive learner slides down the line without a hill; averaging could recover the gain at the best point.

The line to a jointly trained net is not a metric of a boundary, because a run's tables must not depend on whether such
a run is among the results. With both nets at hand, `along` computes it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from harness import tree
from harness.boundary import Boundary
from harness.landscape import paths
from harness.metrics import Readings, blank, crossed, score, shares, spaced
from harness.types import Batch, Column, Net, Params, Reading

BARRIERS: dict[str, Callable[[Tensor, Sequence[float]], Tensor]] = {
    "barrier_entezari": paths.entezari,
    "instability_frankle": paths.frankle,
    "excess": paths.excess,
}

COLUMNS: dict[str, Column] = {
    "path_loss_old": Column(
        "", "nat", "mean loss of the old tasks along the line, alpha = 0 the last boundary", "train"
    ),
    "path_loss_new": Column("", "nat", "loss of the new task along the line", "train"),
    "path_loss_joint": Column("", "nat", "mean loss of all tasks seen along the line", "train"),
    "path_accuracy_old": Column("", "accuracy", "mean probe accuracy on the old tasks along the line", "train"),
    "path_accuracy_new": Column("", "accuracy", "probe accuracy on the new task along the line", "train"),
    "path_accuracy_joint": Column("", "accuracy", "mean probe accuracy on all tasks seen along the line", "train"),
    "barrier_entezari_loss_old": Column("lower", "nat", "largest loss above the chord, old tasks", "train"),
    "barrier_entezari_loss_new": Column("lower", "nat", "largest loss above the chord, new task", "train"),
    "barrier_entezari_loss_joint": Column("lower", "nat", "largest loss above the chord, all tasks seen", "train"),
    "barrier_entezari_error_old": Column("lower", "error", "largest error above the chord, old tasks", "train"),
    "barrier_entezari_error_new": Column("lower", "error", "largest error above the chord, new task", "train"),
    "barrier_entezari_error_joint": Column("lower", "error", "largest error above the chord, all tasks seen", "train"),
    "instability_frankle_loss_old": Column(
        "lower", "nat", "largest loss above the mean of the ends, old tasks", "train"
    ),
    "instability_frankle_loss_new": Column(
        "lower", "nat", "largest loss above the mean of the ends, new task", "train"
    ),
    "instability_frankle_loss_joint": Column(
        "lower", "nat", "largest loss above the mean of the ends, all seen", "train"
    ),
    "instability_frankle_error_old": Column(
        "lower", "error", "largest error above the mean of the ends, old tasks", "train"
    ),
    "instability_frankle_error_new": Column(
        "lower", "error", "largest error above the mean of the ends, new task", "train"
    ),
    "instability_frankle_error_joint": Column(
        "lower", "error", "largest error above the mean of the ends, all seen", "train"
    ),
    "excess_loss_old": Column("lower", "nat", "largest loss above the worse end, old tasks", "train"),
    "excess_loss_new": Column("lower", "nat", "largest loss above the worse end, new task", "train"),
    "excess_loss_joint": Column("lower", "nat", "largest loss above the worse end, all tasks seen", "train"),
    "excess_error_old": Column("lower", "error", "largest error above the worse end, old tasks", "train"),
    "excess_error_new": Column("lower", "error", "largest error above the worse end, new task", "train"),
    "excess_error_joint": Column("lower", "error", "largest error above the worse end, all tasks seen", "train"),
    "area_loss_old": Column("", "nat", "integral over the line of the loss above the better end, old tasks", "train"),
    "area_loss_new": Column("", "nat", "integral over the line of the loss above the better end, new task", "train"),
    "area_loss_joint": Column(
        "", "nat", "integral over the line of the loss above the better end, all tasks seen", "train"
    ),
    "best_alpha_loss_joint": Column("", "", "position on the line of the lowest joint loss", "train"),
    "best_alpha_error_joint": Column("", "", "position on the line of the lowest joint error", "train"),
    "gain_loss_joint": Column("", "nat", "joint loss of the better end minus the lowest on the line", "train"),
    "gain_error_joint": Column("", "error", "joint error of the better end minus the lowest on the line", "train"),
    "path_loss_task": Column("", "nat", "loss of each measured task along the line", "train"),
    "path_accuracy_task": Column("", "accuracy", "probe accuracy on each measured task along the line", "train"),
    "path_length": Column("", "weight", "Euclidean distance between the two ends"),
}


def connectivity(b: Boundary, *, size: int, tasks: int, points: int, by_task: bool) -> Readings:
    """The line theta_{t-1} -> theta_t on `size` probe rows of each measured task; empty at t = 0.

    The tasks are those of `metrics.spaced(t, tasks)`; joint weights old and new by the number of tasks that they
    represent. `by_task` adds the path of each task. Cost: `points` forward passes over the rows of every measured task.
    With batch norm, running statistics are recomputed at every point, including the ends, from all measured rows (two
    more passes per point). Regression has no error columns.
    """
    if b.phase != "end" or b.t == 0:
        return {}
    start, end = b.nets[b.t - 1].params, b.trained.params
    return along(b, start, end, size=size, tasks=tasks, points=points, by_task=by_task)


def along(b: Boundary, start: Params, end: Params, *, size: int, tasks: int, points: int, by_task: bool) -> Readings:
    """The columns of this file for the line between any two points, under the losses and the mask of boundary t > 0."""
    measured, alphas = spaced(b.t, tasks), paths.grid(points)
    batches = [b.probe(i, size) for i in measured]
    values = paths.line(start, end, lambda p: losses_and_errors(b, p, batches), alphas)  # [S, K, measured tasks, 2]
    weight = torch.tensor(shares(measured, b.t), dtype=values.dtype, device=values.device)
    means = {
        "old": values[:, :, :-1].mean(2),
        "new": values[:, :, -1],
        "joint": (values * weight[:, None]).sum(2),
    }
    classes = b.stream.loss != "mse"
    found: Readings = {"path_length": tree.norm(tree.sub(end, start))}
    for name, mean in means.items():
        found[f"path_loss_{name}"] = Reading(mean[..., 0], axis="alpha", coords=alphas)
        found[f"area_loss_{name}"] = paths.area(mean[..., 0], alphas)
        found.update(barriers_of("loss", name, mean[..., 0], alphas))
        if classes:
            found[f"path_accuracy_{name}"] = Reading(1 - mean[..., 1], axis="alpha", coords=alphas)
            found.update(barriers_of("error", name, mean[..., 1], alphas))
    if by_task:
        loss, error = values.transpose(1, 2).unbind(3)  # [S, measured tasks, K]
        found["path_loss_task"] = crossed(loss, measured, "alpha", alphas)
        if classes:
            found["path_accuracy_task"] = crossed(1 - error, measured, "alpha", alphas)
    return blank(b, found)


def barriers_of(kind: str, name: str, path: Tensor, alphas: Sequence[float]) -> Readings:
    """The three barriers of one path [S, K], and the best point of the joint path."""
    found: Readings = {f"{barrier}_{kind}_{name}": of(path, alphas) for barrier, of in BARRIERS.items()}
    if name == "joint":
        found[f"best_alpha_{kind}_joint"], found[f"gain_{kind}_joint"] = paths.lowest(path, alphas)
    return found


def losses_and_errors(b: Boundary, params: Params, batches: Sequence[Batch]) -> Tensor:
    """Loss and error of the trained net with other parameters on each batch: [S, batches, 2]."""
    net = Net(params, b.trained.buffers, b.trained.apply)
    if net.buffers:
        net = paths.refresh(net, [(torch.cat([a.x for a in batches], 1), torch.cat([a.t for a in batches], 1), None)])
    return torch.stack([score(b, net, batch) for batch in batches], 1)
