"""Permuted labels: the same inputs in every task, with the classes renamed."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from harness import rng
from harness.types import Stream
from tasks.datasets import Dataset
from tasks.stream import check, digest, drawn, whole

VERSION = 1
SCENARIOS = ("domain",)
WHY = "with separate outputs per task, a permutation would only rename them"


def label_permuted(
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
    """Label-permuted data set (Elsayed & Mahmood 2024): in task t, class c is called permutation_t[c].

    The permutations are drawn for each seed (one set for all with `fixed`); `identity_first` leaves the first task
    unchanged. Features of the inputs remain useful, but the read-out becomes wrong. No net can satisfy old and new
    names at once, so the stream measures plasticity, on the new task or online. Accuracy on past tasks falls below
    chance once the last one is learnt.

    Published: EMNIST and CIFAR-10, a new permutation every 2,500 single rows (train.steps=2500 train.batch_size=1).

    Differs: rows are drawn without replacement within a task.
    Needs: any data set.

    Raises ValueError for scenarios other than domain and for fewer than one task.
    """
    check("label_permuted", n_tasks, scenario, classes, SCENARIOS, WHY)
    data, c = dataset.to(device), dataset.classes
    key = rng.fold(rng.keys(drawn(seeds, fixed, pin), "stream", device), "label_permuted")
    permutation = torch.stack([rng.permutation(rng.fold(key, t), c) for t in range(n_tasks)], 1)  # [S, T, C]
    if identity_first:
        permutation[:, 0] = torch.arange(c, device=permutation.device)
    return whole(
        data,
        seeds,
        n_tasks,
        scenario,
        classes,
        name=f"label_permuted_{dataset.name}",
        version=VERSION,
        hash=digest("label_permuted", VERSION, scenario, dataset.digest, permutation),
        relabel=permutation,
    )
