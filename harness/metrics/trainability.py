"""Whether the weights can still be moved: a copy of the net learns random labels, beside a fresh net that does too.

Lyle et al. (2023), Understanding plasticity in neural networks, ICML. Unlike the trainability gap it needs no test
data and no control run, and asks for nothing that the stream's own labels may have made easy.
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
        "lower", "nat", "loss on random labels of a copy of the trained net that learnt them", "train"
    ),
    "random_label_accuracy": Column("higher", "accuracy", "accuracy of that copy on these labels", "train"),
    "random_label_loss_gap": Column("lower", "nat", "that loss minus the same of the seed's initialisation", "train"),
    "random_label_accuracy_gap": Column(
        "lower", "accuracy", "accuracy of the initialisation's copy minus that of the trained net's", "train"
    ),
}


def random_labels(b: Boundary, *, size: int, steps: int, batch_size: int) -> Readings:
    """Train copies of the net and of its initialisation on `size` probe rows of task t whose labels are shuffled.

    `steps` steps of `batch_size` rows with the run's own optimizer, its state afresh, without any strategy; then
    both are scored on these rows in evaluation mode. The labels are the rows' own in random order, so that their
    proportions and the outputs that compete are the task's. Order and labels are the same for both copies. Targets
    of a regression are shuffled alike, and have a loss only. After a task; cost: 2 `steps` training steps.
    NaN for a copy that diverged. No random stream moves: all draws come from keys folded off the boundary's own.
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
    """The rows with each seed's targets in a random order of its own, every row counting alike."""
    order = rng.permutation(key, batch.w.shape[1])
    return replace(batch, y=pick_rows(batch.y, order), w=torch.full_like(batch.w, 1 / batch.w.shape[1]))


def learnt(b: Boundary, net: Net, batch: Batch, key: Tensor, steps: int, batch_size: int) -> tuple[Tensor, Tensor]:
    """Loss and accuracy [S], [S] on the batch of a copy of `net` that was trained on it."""
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
