"""Corrupted images: every task is the whole data set with its own corruption."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from harness import rng
from harness.types import Stream
from tasks.datasets import Dataset
from tasks.stream import SCENARIOS as SCENARIOS
from tasks.stream import check, digest, drawn, whole
from tasks.transforms import KINDS, Corrupt

VERSION = 1
SEVERITIES = ("rising", "falling", "random")


def corrupted(
    *,
    dataset: Dataset,
    seeds: Sequence[int],
    scenario: str = "domain",
    classes: str = "seen",
    n_tasks: int,
    fixed: bool,
    kinds: Sequence[str],
    severity: str | int = "rising",
    pin: int | None = None,
    device: torch.device | str = "cpu",
) -> Stream:
    """Corruptions at five severities (Hendrycks & Dietterich 2019), one per task.

    The kind is drawn for each task and seed from `kinds`: gaussian_noise, gaussian_blur, contrast, occlusion.
    `severity`: rising from 0 (clean) in the first task to 5 in the last, falling, random (1 to 5 for each task and
    seed), or one number for all. Training, validation and test rows get the same corruption, and a row looks the same
    every time. Scenarios as in `permuted`.

    Differs: three of their fifteen kinds, with their constants for 32x32 images at any size; occlusion is not one of
    theirs (DeVries & Taylor 2017). They corrupt only test images.
    Needs: images.

    Raises ValueError for an unknown scenario, kind or severity, and for data that are not images.
    """
    check("corrupted", n_tasks, scenario, classes)
    unknown = [k for k in kinds if k not in KINDS]
    if unknown or not kinds:
        raise ValueError(f"tasks.kinds=[{','.join(map(str, kinds))}]: must list some of {', '.join(KINDS)}")
    if severity not in (*SEVERITIES, 0, 1, 2, 3, 4, 5):
        raise ValueError(f"tasks.severity={severity}: must be {', '.join(SEVERITIES)} or a number from 0 to 5")
    if len(dataset.shape) != 3:
        raise ValueError(f"tasks=corrupted: {dataset.name} has inputs of shape {list(dataset.shape)}; needs images")
    data, n = dataset.to(device), len(dataset.y)
    key = rng.fold(rng.keys(drawn(seeds, fixed, pin), "stream", device), "corrupted")
    table = torch.tensor([KINDS.index(k) for k in kinds], device=key.device)
    each = [rng.fold(key, t) for t in range(n_tasks)]
    kind = table[torch.cat([rng.integers(rng.fold(k, "kind"), len(kinds), 1) for k in each], 1)]  # [S, T]
    level = torch.cat([rng.integers(rng.fold(k, "level"), 5, 1) + 1 for k in each], 1)
    if severity != "random":
        rise = [round(5 * t / max(n_tasks - 1, 1)) for t in range(n_tasks)]
        plan = {"rising": rise, "falling": rise[::-1]}.get(str(severity), [severity] * n_tasks)
        level = torch.tensor(plan, device=key.device).expand_as(level)
    strength = level[..., None] * torch.nn.functional.one_hot(kind, len(KINDS))  # [S, T, 4]

    def ids(part: str, t: int) -> Tensor:
        index: Tensor = getattr(data, part)
        return index + t * n

    return whole(
        data,
        seeds,
        n_tasks,
        scenario,
        classes,
        name=f"corrupted_{dataset.name}",
        version=VERSION,
        hash=digest("corrupted", VERSION, scenario, dataset.digest, strength, key),
        transform=Corrupt(strength, n, key, data.x.amin((0, 2, 3)), data.x.amax((0, 2, 3)), data.shape[1:]),
        ids=ids,
    )
