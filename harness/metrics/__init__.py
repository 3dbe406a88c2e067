"""The metrics of a task boundary: one family per file, each a pure function Boundary -> {name: value}.

Every file declares its columns in `COLUMNS`. Metrics change no parameter, buffer, .grad, mode or random stream. Random
keys are folded off the boundary's stream without advancing it, so adding a metric does not change another's draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import reduce

import torch
from torch import Tensor

from harness import tree
from harness.boundary import Boundary
from harness.learner import mask_logits, row_loss
from harness.rng import fold
from harness.types import Batch, Column, Loss, Net, Reading, cat

Readings = dict[str, Tensor | Reading]
PROBES = {"first": "first task", "current": "task just trained", "joint": "mean over the tasks seen"}


def spaced(t: int, limit: int) -> tuple[int, ...]:
    """Which of the tasks 0 ... t are measured: at most `limit`, evenly spaced, including the first and the current one.

    Bounds the cost of a boundary on a long stream. ValueError if limit < 2.

    >>> spaced(3, 5), spaced(10, 5), spaced(0, 5)
    ((0, 1, 2, 3), (0, 2, 5, 7, 10), (0,))
    """
    if limit < 2:
        raise ValueError(f"tasks={limit}: must be at least 2, for the first and the current task")
    count = min(limit, t + 1)
    return tuple(i * t // max(count - 1, 1) for i in range(count))


def shares(tasks: Sequence[int], t: int) -> tuple[float, ...]:
    """Weights of the measured tasks in the mean over all seen: 1/(t+1) for the current; the old ones share the rest.

    >>> shares((0, 5, 9), 9)
    (0.45, 0.45, 0.1)
    """
    old = len(tasks) - 1
    return (*[t / (t + 1) / old for _ in range(old)], 1 / (t + 1))


def mixture(b: Boundary, tasks: Sequence[int], size: int) -> Batch:
    """One batch whose loss is the mean over all tasks seen, from `size` rows split evenly over `tasks`."""
    parts = [replace(b.probe(i, max(1, size // len(tasks))), mask=None) for i in tasks]
    weighted = [replace(p, w=p.w * c) for p, c in zip(parts, shares(tasks, b.t))]
    return reduce(lambda joined, part: cat(joined, part).batch, weighted)


def probed(
    b: Boundary,
    setting: str,
    probes: Sequence[str],
    size: int,
    tasks: int,
    measure: Callable[[Batch, Tensor], Readings],
) -> Readings:
    """`measure(rows, key)` on each probe; readings are named <name>_<probe>. After the first task all probes are equal.

    "first" and "current" are `size` rows of one task; "joint" is the mean loss over the tasks seen, from `size` rows
    split evenly over at most `tasks` of them (see `spaced`). Keys depend on the setting, the boundary and the probe.
    ValueError for an unknown probe.
    """
    measured: dict[str, Readings] = {}
    found: Readings = {}
    for probe in probes:
        if probe not in PROBES:
            raise ValueError(f"metrics.{setting}.probes={probe}: choose from {', '.join(PROBES)}")
        same = "current" if b.t == 0 else probe
        if same not in measured:
            measured[same] = measure(_rows(b, same, size, tasks), own_key(b, setting, same))
        found.update({f"{name}_{probe}": value for name, value in measured[same].items()})
    return found


def _rows(b: Boundary, probe: str, size: int, tasks: int) -> Batch:
    if probe == "joint":
        return mixture(b, spaced(b.t, tasks), size)
    return b.probe(0 if probe == "first" else b.t, size)


def own_key(b: Boundary, *purpose: str) -> Tensor:
    """A key [S] for the draws of a metric at this boundary; does not advance the boundary's stream."""
    return reduce(fold, purpose, fold(b.random.base, b.t))


def by_probe(columns: Mapping[str, Column]) -> dict[str, Column]:
    """The columns that `probed` derives from these."""
    return {
        f"{name}_{probe}": c._replace(text=f"{c.text}, {of}")
        for name, c in on_train(columns).items()
        for probe, of in PROBES.items()
    }


def on_train(columns: Mapping[str, Column]) -> dict[str, Column]:
    """The same columns, measured on training rows as all probes are."""
    return {name: c._replace(data="train") for name, c in columns.items()}


def of_deployed(columns: Mapping[str, Column]) -> dict[str, Column]:
    """The same columns, of the deployed net."""
    return {name: c._replace(net="deployed") for name, c in columns.items()}


def objective(b: Boundary, batch: Batch) -> Loss:
    """Loss of the trained net on a batch, in evaluation mode and under this boundary's mask."""
    return b.learner.objective([batch], b.stream, b.t, b.trained.buffers, b.trained.apply)


def crossed(value: Tensor, tasks: Sequence[int], axis: str, coords: Sequence[float | int]) -> Reading:
    """A value for each evaluated task and each coordinate of an axis, [S, tasks, K], as a reading [S, tasks K].

    >>> r = crossed(torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]), (0, 5), "alpha", (0.0, 1.0))
    >>> r.value, r.tasks, r.coords
    (tensor([[1., 2., 3., 4.]]), [0, 0, 5, 5], [0.0, 1.0, 0.0, 1.0])
    """
    pairs = [(task, c) for task in tasks for c in coords]
    return Reading(value.flatten(1), axis=axis, coords=[c for _, c in pairs], tasks=[task for task, _ in pairs])


@torch.no_grad()
def score(b: Boundary, net: Net, batch: Batch, now: int | None = None) -> Tensor:
    """Loss and error (1 - accuracy; 0 for regression) of a net on a batch, under this boundary's mask or task `now`'s.

    [S, 2]; in evaluation mode, with the net's own running statistics.
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
