"""Can the net still be trained? A copy of it learns random labels, and so does a fresh net for comparison.

Lyle et al. (2023), Understanding plasticity in neural networks, ICML. Unlike the trainability gap it needs no test
data and no control run, and it does not depend on whether the stream has made its own labels easy.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from harness import rng, rows, tree
from harness.boundary import Boundary
from harness.learner import mask_logits
from harness.metrics import Readings, blank
from harness.toolbox.memory import pick_rows
from harness.types import Batch, Column, Net

COLUMNS: dict[str, Column] = {
    "random_label_loss": Column(
        "lower", "nat", "loss of a copy of the trained net on the random labels it learnt", "train"
    ),
    "random_label_accuracy": Column("higher", "accuracy", "accuracy of that copy on these labels", "train"),
    "random_label_loss_gap": Column("lower", "nat", "that loss minus that of the initialisation's copy", "train"),
    "random_label_accuracy_gap": Column(
        "lower", "accuracy", "accuracy of the initialisation's copy minus that of the trained net's", "train"
    ),
}


def random_labels(b: Boundary, *, size: int, steps: int, batch_size: int) -> Readings:
    """Train copies of the net and of its initialisation on `size` probe rows of task t whose labels are shuffled.

    Each takes `steps` steps of `batch_size` rows with the run's optimizer and a fresh optimizer state, without any
    strategy, and is scored on these rows in evaluation mode. The labels are the rows' own in random order, which keeps
    their proportions and the competing outputs of the task. Order and labels are the same for both copies. Targets of a
    regression are shuffled too, and have only a loss. Measured after a task; cost: 2 `steps` training steps. NaN for a
    diverged copy. No random stream advances: all keys are folded off the boundary's stream.
    """
    if b.phase != "end":
        return {}
    key = rng.fold(rng.fold(b.random.base, "random_labels"), b.t)
    batch = shuffled(b.probe(b.t, size), rng.fold(key, "labels"))
    order = rng.fold(key, "order")
    loss, accuracy = learnt(b, b.trained, batch, order, steps, batch_size)
    fresh_loss, fresh_accuracy = learnt(b, b.nets.initial, batch, order, steps, batch_size)
    found: Readings = {"random_label_loss": loss, "random_label_loss_gap": loss - fresh_loss}
    if b.stream.loss != "mse":
        found["random_label_accuracy"] = accuracy
        found["random_label_accuracy_gap"] = fresh_accuracy - accuracy
    return blank(b, found)


def shuffled(batch: Batch, key: Tensor) -> Batch:
    """The rows with equal weights and the targets of each seed in its own random order."""
    order = rng.permutation(key, batch.w.shape[1])
    return replace(batch, y=pick_rows(batch.y, order), w=torch.full_like(batch.w, 1 / batch.w.shape[1]))


def learnt(b: Boundary, net: Net, batch: Batch, key: Tensor, steps: int, batch_size: int) -> tuple[Tensor, Tensor]:
    """Loss and accuracy [S], [S] of a copy of `net` on the batch that it was trained on."""
    copy, width = b.learner.clone(), min(batch_size, batch.w.shape[1])
    copy.params, copy.buffers, copy.apply = tree.copy(net.params), net.buffers, net.apply
    copy.optimizer.reset()
    copy.now, copy.steps, copy.planned = b.t, 0, steps
    count = torch.full((copy.S,), batch.w.shape[1], device=copy.device)
    parts = (
        replace(
            copy.make_batch(*(pick_rows(v, position) for v in (batch.x, batch.y, batch.t))),
            key=rng.fold(rng.fold(key, "dropout"), i),
        )
        for i, position in enumerate(rows.order(key, count, 0, steps * width).split(width, 1))
    )
    for _ in copy.descend(parts):
        pass
    with torch.no_grad():
        batch = replace(batch, mask=b.stream.mask(batch.t, b.t))
        loss, out = copy.task_loss(copy.params, batch, train=False)
        right = (mask_logits(out.logits, batch.mask).argmax(-1) == batch.y) if b.stream.loss != "mse" else batch.w
        lost = ~tree.finite(copy.params)
        return loss.masked_fill(lost, math.nan), right.to(batch.w).mean(1).masked_fill(lost, math.nan)
