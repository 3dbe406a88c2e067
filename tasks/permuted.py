"""Permuted inputs: every task is the whole data set with its own fixed order of the input pixels."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from harness import random
from harness.rows import Rows
from harness.types import Stream, Task
from tasks.datasets import Dataset
from tasks.stream import Permute, block_masks, check, digest

VERSION = 1


def permuted(
    *,
    dataset: Dataset,
    seeds: Sequence[int],
    scenario: str = "domain",
    classes: str = "seen",
    n_tasks: int,
    fixed: bool,
    identity_first: bool = False,
    pin: int | None = None,
    device: torch.device | str = "cpu",
) -> Stream:
    """Permuted data set (Goodfellow et al. 2014; Kirkpatrick et al. 2017).

    `n_tasks` permutations are drawn for each seed (one set for all with `fixed`), over all input
    values, channels included; `identity_first` leaves the first task as it is. Scenarios (van de Ven,
    Tuytelaars & Tolias 2022): domain shares the outputs over tasks; task gives each its own, and the
    task is known; class gives each its own, and it is not.

    Raises ValueError for an unknown scenario or fewer than one task.
    """
    check("permuted", n_tasks, scenario, classes)
    data, s, c = dataset.to(device), len(seeds), dataset.classes
    drawn = [pin] * s if pin is not None else [0] * s if fixed else list(seeds)
    key = random.fold(random.keys(drawn, "stream", device), "permuted")
    inputs = data.x[0].numel()
    permutation = torch.stack([random.permutation(random.fold(key, t), inputs) for t in range(n_tasks)], 1)
    if identity_first:
        permutation[:, 0] = torch.arange(inputs, device=permutation.device)
    transform, aware = Permute(permutation), scenario == "task"

    def rows(index: torch.Tensor, t: int) -> Rows:
        shift = 0 if scenario == "domain" else t * c
        one = torch.full((s, 1), t, dtype=torch.int64, device=index.device)
        return Rows(
            data=data.x,
            index=index.expand(s, -1),
            y=(data.y[index] + shift).expand(s, -1),
            t=one if aware else torch.zeros_like(one),
            size=torch.full((s,), len(index), dtype=torch.int64, device=index.device),
            transform=transform,
            transform_id=one,
        )

    tasks = tuple(
        Task(t, rows(data.train, t), rows(data.val, t), rows(data.test, t), nominal=len(data.train))
        for t in range(n_tasks)
    )
    return Stream(
        name=f"permuted_{dataset.name}",
        version=VERSION,
        scenario=scenario,
        tasks=tasks,
        shape=tuple(data.x.shape[1:]),
        outputs=c if scenario == "domain" else c * n_tasks,
        seeds=tuple(seeds),
        hash=digest("permuted", VERSION, scenario, dataset.digest, permutation),
        masks=None if scenario == "domain" else block_masks(n_tasks, c, data.x.device),
        classes=classes,
    )
