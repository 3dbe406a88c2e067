"""The null control: every task is the whole data set unchanged."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from harness.types import Stream
from tasks.datasets import Dataset
from tasks.stream import check, digest, whole

VERSION = 1
SCENARIOS = ("task", "domain")
WHY = "the same input would have a different class in each task"


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

    There is nothing to forget and nothing new to learn. The value of a metric of forgetting, plasticity or the
    landscape is its bias here: a claim about change must exceed it. Tasks differ only in the order of their batches, as
    epochs do. Boundaries, optimizer resets and a strategy's `begin` and `end` happen as in other streams, and are all
    that can have an effect. Nothing is drawn: every seed has the same stream. domain shares the outputs and is the
    control proper; task gives each task a fresh read-out.

    Needs: any data set.

    Raises ValueError for scenario=class, in which the same input would have a different target in each task.
    """
    check("same", n_tasks, scenario, classes, SCENARIOS, WHY)
    name = f"same_{dataset.name}"
    hashed = digest("same", VERSION, scenario, n_tasks, dataset.digest)
    return whole(dataset.to(device), seeds, n_tasks, scenario, classes, name=name, version=VERSION, hash=hashed)
