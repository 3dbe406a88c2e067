"""Split classes: each task holds a few of the data set's classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from harness import random
from harness.rows import Rows
from harness.types import Stream, Task
from tasks.datasets import Dataset
from tasks.stream import block_masks, check, digest

VERSION = 1


def split(
    *,
    dataset: Dataset,
    seeds: Sequence[int],
    scenario: str = "class",
    classes: str = "seen",
    n_tasks: int,
    fixed: bool,
    shuffle: bool = True,
    pin: int | None = None,
    device: torch.device | str = "cpu",
) -> Stream:
    """Split data set (Zenke et al. 2017; the scenarios of van de Ven, Tuytelaars & Tolias 2022).

    The classes, in an order drawn for each seed (their own order without `shuffle`, one order for all
    seeds with `fixed`), are cut into `n_tasks` equal groups. task: one output per class, those of the
    row's own task compete; domain: as many outputs as a task has classes, shared; class: one output
    per class, those seen so far compete (or `classes=all`).

    Raises ValueError for an unknown scenario, fewer than one task, or a number of tasks that does not
    divide the classes (then a class would get lost or tasks would differ in size).
    """
    check("split", n_tasks, scenario, classes)
    if n_tasks > dataset.classes:
        raise ValueError(f"tasks.n_tasks={n_tasks}: {dataset.name} has only {dataset.classes} classes")
    if dataset.classes % n_tasks:
        fits = [n for n in range(1, dataset.classes + 1) if dataset.classes % n == 0]
        raise ValueError(f"tasks.n_tasks={n_tasks}: must divide the {dataset.classes} classes: one of {fits}")
    data, s, width = dataset.to(device), len(seeds), dataset.classes // n_tasks
    drawn = [pin] * s if pin is not None else [0] * s if fixed else list(seeds)
    key = random.fold(random.keys(drawn, "stream", device), "split")
    order = random.permutation(key, dataset.classes)  # [S, C]: the class at each place
    if not shuffle:
        order = torch.arange(dataset.classes, device=order.device).expand_as(order)
    place = order.argsort(1)  # [S, C]: the place of each class

    def rows(index: Tensor, t: int) -> Rows:
        where = place[:, data.y[index]]  # [S, n] place of each sample's class
        mine = where // width == t
        size = mine.sum(1)
        front = (~mine).to(torch.uint8).argsort(dim=1, stable=True)[:, : int(size.max())]  # own rows first
        y = where.gather(1, front)
        one = torch.full((s, 1), t if scenario == "task" else 0, dtype=torch.int64, device=index.device)
        return Rows(data.x, index[front], y % width if scenario == "domain" else y, one, size)

    tasks = tuple(
        Task(t, rows(data.train, t), rows(data.val, t), rows(data.test, t), nominal=len(data.train) // n_tasks)
        for t in range(n_tasks)
    )
    return Stream(
        name=f"split_{dataset.name}",
        version=VERSION,
        scenario=scenario,
        tasks=tasks,
        shape=tuple(data.x.shape[1:]),
        outputs=width if scenario == "domain" else dataset.classes,
        seeds=tuple(seeds),
        hash=digest("split", VERSION, scenario, n_tasks, dataset.digest, order),
        masks=None if scenario == "domain" else block_masks(n_tasks, width, data.x.device),
        classes=classes,
    )
