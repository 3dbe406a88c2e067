"""Pairs of classes: hundreds of binary problems in sequence, on one read-out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from harness import rng
from harness.types import Stream
from tasks.datasets import Dataset
from tasks.stream import block_masks, check, digest, drawn, grouped

VERSION = 2  # 1: epochs were counted by a mean over classes
SCENARIOS = ("task", "domain")
WHY = "classes return in other pairs, so none is new (see tasks=repeated)"


def class_pairs(
    *,
    dataset: Dataset,
    seeds: Sequence[int],
    scenario: str = "domain",
    classes: str = "seen",
    n_tasks: int,
    fixed: bool,
    redraw: bool = True,
    pin: int | None = None,
    device: torch.device | str = "cpu",
) -> Stream:
    """Continual binary classification of class pairs, as in Continual ImageNet (Dohare et al. 2024).

    The classes, in a random order for each seed, are paired in sequence. When all have been used, new pairs are drawn
    (`redraw`) or the same pairs repeat. No class returns before all have had a turn; with an odd number of classes, one
    is left out in each round. domain: two outputs, shared by all tasks; task: two per task. Published: ImageNet at
    32x32, 600 + 100 images a class, 2,000 tasks of 250 epochs, read-out set to zero before each (strategy=head_reset),
    the same 500 pairs repeated (redraw=false).

    Differs: new pairs are drawn by default, because ten classes have only five pairs per round.
    Needs: any data set of at least 2 classes.

    Raises ValueError for scenario=class, and for a data set with one class.
    """
    check("class_pairs", n_tasks, scenario, classes, SCENARIOS, WHY)
    if dataset.classes < 2:
        raise ValueError(f"tasks=class_pairs: {dataset.name} has {dataset.classes} class; a pair needs two")
    data, pairs = dataset.to(device), dataset.classes // 2
    key = rng.fold(rng.keys(drawn(seeds, fixed, pin), "stream", device), "class_pairs")
    rounds = -(-n_tasks // pairs)
    draws = [rng.permutation(rng.fold(key, r if redraw else 0), dataset.classes) for r in range(rounds)]
    pair = torch.cat([d[:, : 2 * pairs] for d in draws], 1)[:, : 2 * n_tasks]  # [S, 2 T]

    def targets(t: int) -> Tensor:
        return torch.arange(2, device=pair.device)[None] + (2 * t if scenario == "task" else 0)

    return grouped(
        data,
        seeds,
        scenario,
        pair.split(2, 1),
        targets,
        outputs=2 * n_tasks if scenario == "task" else 2,
        name=f"class_pairs_{dataset.name}",
        version=VERSION,
        hash=digest("class_pairs", VERSION, scenario, dataset.digest, pair),
        masks=block_masks([2] * n_tasks, pair.device) if scenario == "task" else None,
        classes=classes,
    )
