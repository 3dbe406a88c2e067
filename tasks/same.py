"""The null control: every task is the whole data set as it is, so that nothing changes from task to task."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from harness.types import Stream
from tasks.datasets import Dataset
from tasks.stream import check, digest, whole

VERSION = 1
SCENARIOS = ("task", "domain")
WHY = "equal inputs would be of another class in each task"


def same(
    *,
    dataset: Dataset,
    seeds: Sequence[int],
    scenario: str = "domain",
    classes: str = "seen",
    n_tasks: int,
    pin: int | None = None,
    device: torch.device | str = "cpu",
) -> Stream:
    """The null control: `n_tasks` tasks that are all the same data set, with the same rows and targets.

    There is nothing to forget and nothing new to learn. What a measure of forgetting, of plasticity or of the
    landscape says here is its bias: a claim about change has to exceed it. Tasks differ in the order of their
    batches alone, as epochs do; boundaries, optimizer resets and a strategy's `begin` and `end` fire as
    elsewhere, and are what is left to act. Nothing is drawn, so that every seed has the same stream. domain
    shares the outputs, and is the control proper; with task each task has a fresh read-out of its own.

    Needs: any data set.

    Raises ValueError for scenario=class, where equal inputs would have targets that nothing tells apart.
    """
    check("same", n_tasks, scenario, classes, SCENARIOS, WHY)
    name = f"same_{dataset.name}"
    hashed = digest("same", VERSION, scenario, n_tasks, dataset.digest)
    return whole(dataset.to(device), seeds, n_tasks, scenario, classes, name=name, version=VERSION, hash=hashed)
