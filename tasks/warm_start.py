"""Warm start: first part of the data, then all of it."""

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
WHY = "its tasks are one problem with more and more data"


def warm_start(
    *,
    dataset: Dataset,
    seeds: Sequence[int],
    scenario: str = "domain",
    classes: str = "seen",
    n_tasks: int,
    fixed: bool,
    fraction: float,
    pin: int | None = None,
    device: torch.device | str = "cpu",
) -> Stream:
    """Warm starting (Ash & Adams 2020): `fraction` of the training samples first, all of them last.

    The samples come in a random order for each seed. The first task has `fraction` of them, and the share rises in
    equal steps to 1 at the last of `n_tasks`; earlier samples stay. Every task has all validation and test rows of the
    data set. The gap in the last task's accuracy to strategy=reset, a fresh net on all of the data, is the cost of the
    warm start: a gap in generalisation at full training accuracy. Published: half, then all.

    Differs: they train to convergence. As in the paper, the first part is drawn without regard to class.
    Needs: any data set.

    Raises ValueError for scenarios other than domain, and for a fraction out of range.
    """
    check("warm_start", n_tasks, scenario, classes, SCENARIOS, WHY)
    if not 0 < fraction <= 1:
        raise ValueError(f"tasks.fraction={fraction}: must be above 0 and at most 1")
    data = dataset.to(device)
    key = rng.fold(rng.keys(drawn(seeds, fixed, pin), "stream", device), "warm_start")
    order = data.train[rng.permutation(key, len(data.train))]  # [S, n]
    share = [1 - (1 - fraction) * (n_tasks - 1 - t) / max(n_tasks - 1, 1) for t in range(n_tasks)]
    count = [max(1, round(f * order.shape[1])) for f in share]

    def parts(part: str, t: int) -> tuple[Tensor, Tensor]:
        index = order[:, : count[t]] if part == "train" else getattr(data, part)
        return index, data.y[index]

    return whole(
        data,
        seeds,
        n_tasks,
        scenario,
        classes,
        name=f"warm_start_{dataset.name}",
        version=VERSION,
        hash=digest("warm_start", VERSION, *count, dataset.digest, order),
        parts=parts,
    )
