"""Hard and easy tasks in turn: five new classes, one new class, five..."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from harness import rng
from harness.types import Stream
from tasks.datasets import Dataset
from tasks.stream import block_masks, check, digest, drawn, grouped

VERSION = 2  # 1: epochs were counted by a mean over classes
SCENARIOS = ("class",)
WHY = "with its own or shared outputs, a task of one class has nothing to distinguish"


def five_plus_one(
    *,
    dataset: Dataset,
    seeds: Sequence[int],
    scenario: str = "class",
    classes: str = "seen",
    n_tasks: int,
    fixed: bool,
    many: int = 5,
    few: int = 1,
    pin: int | None = None,
    device: torch.device | str = "cpu",
) -> Stream:
    """The 5+1 stream (Kumar, Marklund & Van Roy 2023): hard tasks of `many` classes, each before an easy one of `few`.

    Classes come in a random order for each seed, each at most once; leftover classes are not used. Evaluate the hard
    tasks, numbers 0, 2, 4...: the easy ones push the net towards predicting one class, from which it must recover.
    Published: CIFAR-100, 30 tasks of 780 steps each (train.steps=780); all 100 outputs compete (classes=all).

    Differs: nothing known except the order of rows.
    Needs: a data set with enough classes for all tasks: 90 for 30 tasks of 5 and 1.

    Raises ValueError for scenarios other than class, and for too few classes.
    """
    check("five_plus_one", n_tasks, scenario, classes, SCENARIOS, WHY)
    if many < 1 or few < 1:
        raise ValueError(f"tasks.many={many}, tasks.few={few}: each must be at least 1")
    sizes = [few if t % 2 else many for t in range(n_tasks)]
    if sum(sizes) > dataset.classes:
        raise ValueError(
            f"tasks.n_tasks={n_tasks}: needs {sum(sizes)} classes, but {dataset.name} has {dataset.classes}; "
            "lower it, tasks.many or tasks.few"
        )
    data = dataset.to(device)
    key = rng.fold(rng.keys(drawn(seeds, fixed, pin), "stream", device), "five_plus_one")
    place = rng.permutation(key, dataset.classes)[:, : sum(sizes)]  # [S, classes in use]
    each, first = torch.arange(sum(sizes), device=place.device), [sum(sizes[:t]) for t in range(n_tasks)]
    return grouped(
        data,
        seeds,
        scenario,
        place.split(sizes, 1),
        lambda t: each[None, first[t] : first[t] + sizes[t]],
        outputs=dataset.classes,
        name=f"five_plus_one_{dataset.name}",
        version=VERSION,
        hash=digest("five_plus_one", VERSION, *sizes, dataset.digest, place),
        masks=torch.nn.functional.pad(block_masks(sizes, place.device), (0, dataset.classes - sum(sizes))),
        classes=classes,
    )
