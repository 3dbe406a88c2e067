"""Drift without tasks: images turn a little further with every single row."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from harness import rng
from harness.types import Stream
from tasks.datasets import Dataset
from tasks.stream import check, digest, drawn, whole
from tasks.transforms import Rotate

VERSION = 1
SCENARIOS = ("domain",)
WHY = "it has no tasks that could be told, only times at which it is measured"


def drifting(
    *,
    dataset: Dataset,
    seeds: Sequence[int],
    scenario: str = "domain",
    classes: str = "seen",
    n_tasks: int,
    fixed: bool,
    spread: float = 180.0,
    pin: int | None = None,
    device: torch.device | str = "cpu",
) -> Stream:
    """Continuous rotation (Kumar, Ma & Liang 2020): row i of N is turned by i / N of `spread` degrees.

    N counts `n_tasks` passes over the training samples, each in an order drawn for each seed; rows come as time has
    them. A 'task' is a pass, after which the net is measured: its validation and test rows stand at the angle where it
    ends. With train.epochs=1 every row comes once, and with boundaries=hidden nothing tells the strategy of the
    measurements. A second epoch would turn back to where the pass began.

    Differs: all samples come in every pass; the paper's drift has each once, and no labels after the first stretch.
    Needs: images.

    Raises ValueError for scenarios other than domain, for a spread out of range, or data that are no images.
    """
    check("drifting", n_tasks, scenario, classes, SCENARIOS, WHY)
    if not 0 < spread <= 360:
        raise ValueError(f"tasks.spread={spread}: must be above 0 and at most 360 degrees")
    if len(dataset.shape) != 3:
        raise ValueError(f"tasks=drifting: {dataset.name} has inputs of shape {list(dataset.shape)}; choose images")
    data, n = dataset.to(device), len(dataset.train)
    key = rng.fold(rng.keys(drawn(seeds, fixed, pin), "stream", device), "drifting")
    angle = torch.arange(n_tasks * n + 1, dtype=torch.float64, device=key.device) * (spread / (n_tasks * n))

    def parts(part: str, t: int) -> tuple[Tensor, Tensor]:
        index: Tensor = getattr(data, part)
        if part == "train":
            index = index[rng.permutation(rng.fold(key, t), n)]  # [S, n]
        return index, data.y[index]

    def ids(part: str, t: int) -> Tensor:
        end = torch.tensor([(t + 1) * n], device=key.device)
        return torch.arange(t * n, (t + 1) * n, device=key.device) if part == "train" else end

    return whole(
        data,
        seeds,
        n_tasks,
        scenario,
        classes,
        name=f"drifting_{dataset.name}",
        version=VERSION,
        hash=digest("drifting", VERSION, n_tasks, repr(spread), dataset.digest, key),
        transform=Rotate(angle.expand(len(seeds), -1), data.shape, data.x.amin((0, 2, 3))),
        parts=parts,
        ids=ids,
        ordered=True,
        info={"spread": spread},
    )
