"""What is measured at a task boundary. One family a file; each a pure function Boundary -> {name: value}.

Every file declares its columns in `COLUMNS`. Nothing here changes a parameter, a buffer, a .grad, a mode or a
random stream: what is drawn comes from keys folded off the boundary's own stream, which stays where it was, so that
adding a metric moves no other's draws.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import reduce

import torch
from torch import Tensor

from harness import tree
from harness.learner import mask_logits, row_loss
from harness.types import Batch, Boundary, Loss, Net, Reading, cat

Readings = dict[str, Tensor | Reading]


def spread(t: int, limit: int) -> tuple[int, ...]:
    """Which of the tasks 0 ... t are measured: at most `limit`, evenly spaced, the first and the current among them.

    Bounds the cost of a boundary on a long stream. ValueError if limit < 2.

    >>> spread(3, 5), spread(10, 5), spread(0, 5)
    ((0, 1, 2, 3), (0, 2, 5, 7, 10), (0,))
    """
    if limit < 2:
        raise ValueError(f"tasks={limit}: the first and the current task are always measured, at least 2")
    count = min(limit, t + 1)
    return tuple(i * t // max(count - 1, 1) for i in range(count))


def shares(tasks: Sequence[int], t: int) -> tuple[float, ...]:
    """Weights of the measured tasks in the mean over all seen: 1/(t+1) for the current, the old share the rest.

    >>> shares((0, 5, 9), 9)
    (0.45, 0.45, 0.1)
    """
    old = len(tasks) - 1
    return (*[t / (t + 1) / old for _ in range(old)], 1 / (t + 1))


def mixture(b: Boundary, tasks: Sequence[int], size: int) -> Batch:
    """One batch whose loss is the mean over all seen tasks, from `size` rows split evenly over `tasks`."""
    parts = [replace(b.probe(i, max(1, size // len(tasks))), mask=None) for i in tasks]
    return reduce(cat, [replace(p, w=p.w * c) for p, c in zip(parts, shares(tasks, b.t))])


def objective(b: Boundary, batch: Batch) -> Loss:
    """Loss of the trained net on a batch, in evaluation mode and under this boundary's mask."""
    return b.learner.objective([batch], b.stream, b.t, b.trained.buffers, b.trained.apply)


@torch.no_grad()
def score(b: Boundary, net: Net, batch: Batch, now: int | None = None) -> Tensor:
    """Loss and error (1 - accuracy; 0 for regression) of a net on a batch, under this boundary's mask or task `now`'s.

    [S, 2]; in evaluation mode, with the statistics that the net holds.
    """
    batch = replace(batch, mask=b.stream.mask(batch.t, b.t if now is None else now))
    logits = net(batch.x, batch.t).logits
    loss = row_loss(b.stream.loss, logits, batch)
    wrong = torch.zeros_like(loss)
    if b.stream.loss != "mse":
        wrong = (mask_logits(logits, batch.mask).argmax(-1) != batch.y).to(loss)
    return (batch.w[..., None] * torch.stack([loss, wrong], 2)).sum(1)


def sound(b: Boundary) -> Tensor:
    """Seeds that have not diverged: [S]."""
    finite = tree.finite(b.trained.params)
    return finite if b.alive is None else finite & b.alive


def blank(b: Boundary, readings: Mapping[str, Tensor | Reading]) -> Readings:
    """The readings, NaN for every seed that has diverged."""
    lost = ~sound(b)

    def hide(value: Tensor) -> Tensor:
        return value.masked_fill(lost.to(value.device).view(-1, *[1] * (value.dim() - 1)), math.nan)

    def each(r: Tensor | Reading) -> Tensor | Reading:
        if isinstance(r, Tensor):
            return hide(r)
        return r._replace(value=hide(r.value), stderr=None if r.stderr is None else hide(r.stderr))

    return {name: each(r) for name, r in readings.items()}


def unmeasured(b: Boundary) -> Tensor:
    """NaN for every seed: [S]."""
    return torch.full_like(b.accuracy[:, 0, 0], math.nan)
