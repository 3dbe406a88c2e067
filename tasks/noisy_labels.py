"""Noisy labels: the same problem in every task, with a changing share of wrong training labels."""

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
WHY = "its tasks are one problem with different label noise"
EXEMPT = {"labelled": "training labels are noisy"}  # of what streams promise (harness/contract/streams.py)
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
    """Label noise (Han et al. 2018) whose share goes from `first` to `last` in equal steps over the tasks.

    Wrong labels are, with symmetric, any other class with equal probability; with pair, the next class. The wrong
    samples and their labels are drawn once for each seed: as the share falls, labels are corrected and no other becomes
    wrong. The share is exact to within half a sample. Validation and test labels are true. Noisy first and clean later
    is the warm start from noise of Lee et al. (2024): memorised labels must be unlearnt.

    Differs: the number of wrong labels is exact; theirs are drawn with class-conditional probabilities.
    Needs: any data set of at least 2 classes.

    Raises ValueError for scenarios other than domain, for shares out of range, and for unknown kinds.
    """
    check("noisy_labels", n_tasks, scenario, classes, SCENARIOS, WHY)
    for name, share in (("first", first), ("last", last)):
        if not 0 <= share <= 1:
            raise ValueError(f"tasks.{name}={share}: must be from 0 to 1")
    if kind not in KINDS:
        raise ValueError(f"tasks.kind={kind}: must be {' or '.join(KINDS)}")
    data, c = dataset.to(device), dataset.classes
    if c < 2:
        raise ValueError(f"tasks=noisy_labels: {dataset.name} has {c} class; needs at least 2")
    key = rng.fold(rng.keys(drawn(seeds, fixed, pin), "stream", device), "noisy_labels")
    true, n = data.y[data.train], len(data.train)
    rank = rng.permutation(rng.fold(key, "rank"), n)  # [S, n] a sample is wrong if its rank is below the count
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
