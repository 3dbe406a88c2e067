"""Noisy labels: the same problem in every task, with a share of wrong training labels that changes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from harness import rng
from harness.types import Stream
from tasks.datasets import Dataset
from tasks.stream import check, digest, drawn, whole

VERSION = 1
SCENARIOS = ("domain",)
WHY = "its tasks are one problem, with fewer or more wrong labels"
KINDS = ("symmetric", "pair")


def noisy_labels(
    *,
    dataset: Dataset,
    seeds: Sequence[int],
    scenario: str = "domain",
    classes: str = "seen",
    n_tasks: int,
    fixed: bool,
    first: float,
    last: float,
    kind: str = "symmetric",
    pin: int | None = None,
    device: torch.device | str = "cpu",
) -> Stream:
    """Label noise (Han et al. 2018) whose share goes from `first` to `last` in equal steps, by task.

    Wrong labels are, symmetric: any other class, all equally likely; pair: the next class. Which samples are wrong
    and what they are called is drawn once for each seed: as the share falls, labels get corrected and none gets worse.
    Exactly the share, to within half a sample, is wrong. Validation and test labels are true. Noisy first and clean
    later is the warm start from noise of Lee et al. (2024): what has been memorised has to go.

    Differs: noise that is drawn by class-conditional chance there is exact in number here.
    Needs: any data set of at least 2 classes.

    Raises ValueError for scenarios other than domain, and for shares or kinds that there are not.
    """
    check("noisy_labels", n_tasks, scenario, classes, SCENARIOS, WHY)
    for name, share in (("first", first), ("last", last)):
        if not 0 <= share <= 1:
            raise ValueError(f"tasks.{name}={share}: a share of wrong labels is from 0 to 1")
    if kind not in KINDS:
        raise ValueError(f"tasks.kind={kind}: must be {' or '.join(KINDS)}")
    data, c = dataset.to(device), dataset.classes
    if c < 2:
        raise ValueError(f"tasks=noisy_labels: {dataset.name} has {c} class, so that no label can be wrong")
    key = rng.fold(rng.keys(drawn(seeds, fixed, pin), "stream", device), "noisy_labels")
    true, n = data.y[data.train], len(data.train)
    rank = rng.permutation(rng.fold(key, "rank"), n)  # [S, n] a sample is wrong while its rank is below the count
    step = rng.integers(rng.fold(key, "label"), c - 1, n) + 1 if kind == "symmetric" else torch.ones_like(rank)
    wrong = (true + step) % c
    count = [round(n * (first + (last - first) * t / max(n_tasks - 1, 1))) for t in range(n_tasks)]

    def parts(part: str, t: int) -> tuple[Tensor, Tensor]:
        index = getattr(data, part)
        return index, torch.where(rank < count[t], wrong, true) if part == "train" else data.y[index]

    return whole(
        data,
        seeds,
        n_tasks,
        scenario,
        classes,
        name=f"noisy_labels_{dataset.name}",
        version=VERSION,
        hash=digest("noisy_labels", VERSION, *count, dataset.digest, rank, wrong),
        parts=parts,
    )
