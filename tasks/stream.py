"""Shared by the streams: scenarios, tasks over one data set or over groups of its classes, masks, digests."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from harness import rng
from harness.rows import Rows
from harness.types import Stream, Task, Tasks
from tasks.datasets import Dataset

SCENARIOS = ("task", "domain", "class")
PARTS = ("train", "val", "test")


def check(
    name: str, n_tasks: int, scenario: str, classes: str, known: Sequence[str] = SCENARIOS, why: str = ""
) -> None:
    """Refuse settings that no stream supports, and scenarios not in `known`, for the reason `why` (ValueError)."""
    if n_tasks < 1:
        raise ValueError(f"tasks.n_tasks={n_tasks}: {name} needs at least 1 task")
    if scenario not in SCENARIOS:
        raise ValueError(f"scenario={scenario}: must be one of {', '.join(known)}")
    if scenario not in known:
        raise ValueError(f"scenario={scenario}: not supported by {name}, because {why}; use {' or '.join(known)}")
    if classes not in ("seen", "all"):
        raise ValueError(f"classes={classes}: must be seen or all")


def drawn(seeds: Sequence[int], fixed: bool, pin: int | None) -> list[int]:
    """The numbers from which a stream's random keys are made: the seeds, or one for all."""
    return [pin] * len(seeds) if pin is not None else [0] * len(seeds) if fixed else list(seeds)


def on_validation(stream: Stream) -> Stream:
    """The stream with its validation rows in place of its test rows, for tuning without test rows.

    Raises ValueError if a task has no validation rows.
    """

    def validated(t: int) -> Task:
        task = stream.tasks[t]
        if int(task.val.size.min()) == 0:
            raise ValueError(f"eval.split=val: {stream.name} has no validation rows; use dataset.val=0.1")
        return replace(task, test=task.val)

    validated(0)
    return replace(stream, tasks=Tasks(validated, len(stream.tasks)), split="val")


def whole(
    data: Dataset,
    seeds: Sequence[int],
    n_tasks: int,
    scenario: str,
    classes: str,
    *,
    version: int,
    parts: Callable[[str, int], tuple[Tensor, Tensor]] | None = None,
    ids: Callable[[str, int], Tensor] | None = None,
    ordered: bool = False,
    **fields: Any,
) -> Stream:
    """A stream whose tasks all have every class of the data set; rows of task t have the transform id t.

    Scenarios (van de Ven, Tuytelaars & Tolias 2022): domain shares the outputs over tasks; task gives each its own, and
    the task is known; class gives each its own, and the task is not known. `parts` of (part, task) returns samples and
    their classes, each [n] or [S, n] (default: those of the data set); `ids` returns the rows' transform ids, [1], [n]
    or [S, n]. `fields`: name and hash of the stream, transform and relabel of its rows.
    """
    s, c, rows = len(seeds), data.classes, {k: fields.pop(k) for k in ("transform", "relabel") if k in fields}
    device = data.x.device

    def source(part: str, t: int) -> Rows:
        index, y = parts(part, t) if parts else (getattr(data, part), data.y[getattr(data, part)])
        n = index.shape[-1]
        one = torch.full((s, 1), t if scenario == "task" else 0, dtype=torch.int64, device=device)
        number = ids(part, t) if ids else torch.tensor([t], device=device)
        return Rows(
            data=data.x,
            index=index.expand(s, n),
            y=(y + (0 if scenario == "domain" else t * c)).expand(s, n),
            t=one,
            size=torch.full((s,), n, dtype=torch.int64, device=device),
            transform_id=number.expand(s, -1),
            **rows,
        )

    def task(t: int) -> Task:
        train, val, test = (source(part, t) for part in PARTS)
        return Task(t, train, val, test, ordered=ordered)

    return Stream(
        version=version,
        scenario=scenario,
        tasks=Tasks(task, n_tasks),
        shape=data.shape,
        outputs=c if scenario == "domain" else c * n_tasks,
        seeds=tuple(seeds),
        masks=None if scenario == "domain" else block_masks([c] * n_tasks, device),
        classes=classes,
        **fields,
    )


def subset(data: Dataset, part: str, rows: int | None, key: Tensor) -> Tensor:
    """Indices of a part: those of the data set [n], or for training `rows` drawn without replacement [S, rows]."""
    index: Tensor = getattr(data, part)
    if rows is None or part != "train":
        return index
    if not 1 <= rows <= len(index):
        raise ValueError(f"tasks.rows={rows}: must be from 1 to {len(index)}, the training rows of {data.name}")
    return index[rng.permutation(key, len(index))[:, :rows]]


class Members:
    """The samples of each class, sorted once, to find those of a few classes fast."""

    def __init__(self, y: Tensor, index: Tensor, classes: int) -> None:
        """y [N] classes, index [n] or [S, n] into it; the order of `index` is kept within a class."""
        label = y[index].expand(len(index) if index.dim() == 2 else 1, -1)
        self.index = index.expand(len(label), -1).gather(1, label.argsort(dim=1, stable=True))
        self.count = label[0].bincount(minlength=classes)  # [C]
        self.start = self.count.cumsum(0) - self.count

    def of(self, group: Tensor, low: Tensor | int = 0, high: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Samples of the classes group [S, k]: index [S, n] in rising order, place in `group` [S, n], size [S].

        Of the i-th class those from low to high - 1 (each [S, k]), by default all. Entries after `size` are padding.
        """
        count = (self.count[group] if high is None else high) - low
        end = count.cumsum(1)
        size = end[:, -1]
        position = torch.arange(int(size.max()), device=group.device).expand(len(group), -1)
        slot = torch.searchsorted(end, position.contiguous(), right=True).clamp(max=group.shape[1] - 1)
        at = (self.start[group] + low - (end - count)).gather(1, slot) + position
        index = self.index.expand(len(group), -1).gather(1, at.clamp(max=self.index.shape[1] - 1))
        padding = position >= size[:, None]
        order = index.masked_fill(padding, torch.iinfo(torch.int64).max).argsort(1)
        return index.gather(1, order), slot.gather(1, order), size


def grouped(
    data: Dataset,
    seeds: Sequence[int],
    scenario: str,
    groups: Sequence[Tensor],
    targets: Callable[[int], Tensor],
    outputs: int,
    **fields: Any,
) -> Stream:
    """A stream whose task t has the classes groups[t] [S, k], with the targets targets(t) [S or 1, k].

    `fields`: other fields of the stream.
    """
    members = {part: Members(data.y, getattr(data, part), data.classes) for part in PARTS}

    def source(part: str, t: int) -> Rows:
        index, slot, size = members[part].of(groups[t])
        one = torch.full((len(seeds), 1), t if scenario == "task" else 0, dtype=torch.int64, device=index.device)
        return Rows(data.x, index, targets(t).expand(len(seeds), -1).gather(1, slot), one, size)

    def task(t: int) -> Task:
        train, val, test = (source(part, t) for part in PARTS)
        return Task(t, train, val, test)

    return Stream(
        scenario=scenario,
        tasks=Tasks(task, len(groups)),
        shape=data.shape,
        outputs=outputs,
        seeds=tuple(seeds),
        sizes=torch.stack([members["train"].count[g].sum(1).expand(len(seeds)) for g in groups], 1),
        **fields,
    )


def block_masks(sizes: Sequence[int], device: torch.device) -> Tensor:
    """[1, T, sum of sizes]: each task has its own block of outputs.

    >>> block_masks([2, 1], torch.device("cpu")).int().tolist()
    [[[1, 1, 0], [0, 0, 1]]]
    """
    own = torch.eye(len(sizes), dtype=torch.bool, device=device)
    return own.repeat_interleave(torch.tensor(sizes, device=device), 1)[None]


def digest(*parts: str | int | Tensor) -> str:
    """Hash of names, numbers and tensors: sixteen hex digits."""
    h = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            h.update(part.cpu().contiguous().numpy().tobytes())
        else:
            h.update(repr(part).encode())
    return h.hexdigest()[:16]
