"""Drift without tasks: each row is rotated slightly more than the one before."""

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
WHY = "it has no tasks, only times of evaluation"


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
    """Continuous rotation (Kumar, Ma & Liang 2020): row i of N is rotated by i / N of `spread` degrees.

    N counts `n_tasks` passes over the training samples, each in a random order for each seed; rows come in order of
    time. A 'task' is one pass, after which the net is evaluated. Its validation and test rows have the angle at which
    it ends. With train.epochs=1 every row comes once, and with boundaries=hidden the strategy does not notice the
    evaluations. A second epoch would rotate back to the start of the pass.

    Differs: all samples come in every pass; the paper shows each once, without labels after the first part.
    Needs: images.

    Raises ValueError for scenarios other than domain, for a spread out of range, and for data that are not images.
    """
    check("drifting", n_tasks, scenario, classes, SCENARIOS, WHY)
    if not 0 < spread <= 360:
        raise ValueError(f"tasks.spread={spread}: must be above 0 and at most 360 degrees")
    if len(dataset.shape) != 3:
        raise ValueError(f"tasks=drifting: {dataset.name} has inputs of shape {list(dataset.shape)}; needs images")
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
