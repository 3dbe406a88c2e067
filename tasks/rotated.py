"""Rotated images: every task is the whole data set turned by its own angle."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from harness import rng
from harness.types import Stream
from tasks.datasets import Dataset
from tasks.stream import SCENARIOS as SCENARIOS
from tasks.stream import check, digest, drawn, whole
from tasks.transforms import Rotate

VERSION = 1
ANGLES = ("uniform", "bands", "steps")


def rotated(
    *,
    dataset: Dataset,
    seeds: Sequence[int],
    scenario: str = "domain",
    classes: str = "seen",
    n_tasks: int,
    fixed: bool,
    angles: str = "uniform",
    spread: float = 180.0,
    pin: int | None = None,
    device: torch.device | str = "cpu",
) -> Stream:
    """Rotated images (Lopez-Paz & Ranzato 2017), turned by one angle in [0, `spread`) for each task.

    uniform: every angle is drawn from the whole spread (Buzzega et al. 2020); bands: that of task t from
    the t-th of n_tasks equal parts of it (Lopez-Paz & Ranzato); steps: t spread / n_tasks, the same for
    every seed (Mirzadeh et al. 2021: 9 degrees a task). Images are turned about their centre with linear
    interpolation; corners that turn in are as dark as the data set's darkest pixel. They are turned as they
    are taken: with one epoch a task, as the protocols have it, turning all of them ahead saves nothing.
    Scenarios as in `permuted`: domain shares the outputs over tasks; task and class give each its own.

    Differs: angles are the seed's own, theirs are drawn once for each run or data file.
    Needs: images.

    Raises ValueError for an unknown scenario or option, fewer than one task, or data that are no images.
    """
    check("rotated", n_tasks, scenario, classes)
    if angles not in ANGLES:
        raise ValueError(f"tasks.angles={angles}: must be one of {', '.join(ANGLES)}")
    if not 0 < spread <= 360:
        raise ValueError(f"tasks.spread={spread}: must be above 0 and at most 360 degrees")
    if len(dataset.shape) != 3:
        raise ValueError(f"tasks=rotated: {dataset.name} has inputs of shape {list(dataset.shape)}; choose images")
    data = dataset.to(device)
    key = rng.fold(rng.keys(drawn(seeds, fixed, pin), "stream", device), "rotated")
    number = torch.arange(n_tasks, device=key.device, dtype=torch.float64)
    draw = torch.cat([rng.uniform(rng.fold(key, t), 1, dtype=torch.float64) for t in range(n_tasks)], 1)
    place = {"uniform": draw, "bands": (number + draw) / n_tasks, "steps": (number / n_tasks).expand_as(draw)}
    angle = place[angles] * spread  # [S, T]
    return whole(
        data,
        seeds,
        n_tasks,
        scenario,
        classes,
        name=f"rotated_{dataset.name}",
        version=VERSION,
        hash=digest("rotated", VERSION, scenario, dataset.digest, angle),
        transform=Rotate(angle, data.shape, data.x.amin((0, 2, 3))),
        info={"angles": angle.tolist()},
    )
