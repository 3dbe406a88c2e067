"""Permuted inputs: every task is the whole data set with its own fixed order of the input pixels."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from harness import random
from harness.types import Stream
from tasks.datasets import Dataset
from tasks.stream import Permute, check, digest, drawn, whole

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
    data = dataset.to(device)
    key = random.fold(random.keys(drawn(seeds, fixed, pin), "stream", device), "permuted")
    inputs = data.x[0].numel()
    permutation = torch.stack([random.permutation(random.fold(key, t), inputs) for t in range(n_tasks)], 1)
    if identity_first:
        permutation[:, 0] = torch.arange(inputs, device=permutation.device)
    return whole(
        data,
        seeds,
        n_tasks,
        scenario,
        classes,
        name=f"permuted_{dataset.name}",
        version=VERSION,
        hash=digest("permuted", VERSION, scenario, dataset.digest, permutation),
        transform=Permute(permutation),
    )
