"""Rotated images: every task is the whole data set rotated by its own angle."""

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
INTERPOLATIONS = ("linear", "nearest")
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
    interpolation: str = "linear",
    pin: int | None = None,
    device: torch.device | str = "cpu",
) -> Stream:
    """Rotated images (Lopez-Paz & Ranzato 2017), by one angle in [0, `spread`) per task.

    uniform: every angle is drawn from the whole spread (Buzzega et al. 2020); bands: that of task t from the t-th of
    n_tasks equal parts of it (Lopez-Paz & Ranzato); steps: t spread / n_tasks, the same for every seed (Mirzadeh et al.
    2021: 9 degrees a task). Images are rotated about their centre, with linear interpolation or to the nearest pixel
    (torchvision's default, hence that of both codes); new corners get the value of the data set's darkest pixel. Each
    batch is rotated when it is gathered: with one epoch per task, as in the published protocols, rotating all images in
    advance saves nothing. Scenarios as in `permuted`: domain shares the outputs over tasks; task and class give each
    its own.

    Differs: each seed draws its own angles, theirs are drawn once per run or data file.
    Needs: images.

    Raises ValueError for an unknown scenario or option, fewer than one task, and data that are not images.
    """
    check("rotated", n_tasks, scenario, classes)
    if angles not in ANGLES:
        raise ValueError(f"tasks.angles={angles}: must be one of {', '.join(ANGLES)}")
    if not 0 < spread <= 360:
        raise ValueError(f"tasks.spread={spread}: must be above 0 and at most 360 degrees")
    if interpolation not in INTERPOLATIONS:
        raise ValueError(f"tasks.interpolation={interpolation}: must be {' or '.join(INTERPOLATIONS)}")
    if len(dataset.shape) != 3:
        raise ValueError(f"tasks=rotated: {dataset.name} has inputs of shape {list(dataset.shape)}; needs images")
    data = dataset.to(device)
    key = rng.fold(rng.keys(drawn(seeds, fixed, pin), "stream", device), "rotated")
    number = torch.arange(n_tasks, device=key.device, dtype=torch.float64)
    draw = torch.cat([rng.uniform(rng.fold(key, t), 1, dtype=torch.float64) for t in range(n_tasks)], 1)
    place = {"uniform": draw, "bands": (number + draw) / n_tasks, "steps": (number / n_tasks).expand_as(draw)}
    angle = place[angles] * spread  # [S, T]
    other = [interpolation] if interpolation != "linear" else []  # linear was the only one in older runs
    return whole(
        data,
        seeds,
        n_tasks,
        scenario,
        classes,
        name=f"rotated_{dataset.name}",
        version=VERSION,
        hash=digest("rotated", VERSION, scenario, dataset.digest, angle, *other),
        transform=Rotate(angle, data.shape, data.x.amin((0, 2, 3)), interpolation),
        info={"angles": angle.tolist()},
    )
