"""Permuted inputs: every task is the whole data set with its own fixed permutation of the pixels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from harness import rng
from harness.types import Stream
from tasks.datasets import Dataset
from tasks.stream import SCENARIOS as SCENARIOS
from tasks.stream import check, digest, drawn, subset, whole
from tasks.transforms import Permute

VERSION = 1


def permuted(
    *,
    dataset: Dataset,
    seeds: Sequence[int],
    scenario: str = "domain",
    classes: str = "seen",
    n_tasks: int,
    fixed: bool,
    identity_first: bool = False,
    rows: int | None = None,
    pin: int | None = None,
    device: torch.device | str = "cpu",
) -> Stream:
    """Permuted data set (Goodfellow et al. 2014; Kirkpatrick et al. 2017).

    `n_tasks` permutations are drawn for each seed (one set for all with `fixed`), over all input values, channels
    included; `identity_first` leaves the first task unchanged. `rows` is the number of training rows per task, a new
    sample for each (Kumar, Marklund & Van Roy 2023: 10,000). Scenarios (van de Ven, Tuytelaars & Tolias 2022): domain
    shares the outputs over tasks; task gives each its own, and the task is known; class gives each its own, and the
    task is not known.

    For long streams (Dohare et al. 2024: 800 tasks, one pass in batches of 1) use train.epochs=1 train.batch_size=1
    eval.tasks=1; permutations are stored as 16-bit numbers, 1.6 kB per task and seed for 784 inputs.

    Differs: Dohare et al. permute the last task's image, which has the same distribution.
    Needs: any data set.

    Raises ValueError for an unknown scenario or fewer than one task.
    """
    check("permuted", n_tasks, scenario, classes)
    data = dataset.to(device)
    key = rng.fold(rng.keys(drawn(seeds, fixed, pin), "stream", device), "permuted")
    inputs = data.x[0].numel()
    small = torch.int16 if inputs < 2**15 else torch.int32
    made = [rng.permutation(rng.fold(key, t), inputs).to(small) for t in range(n_tasks)]
    if identity_first:
        made[0] = torch.arange(inputs, device=key.device, dtype=small).expand_as(made[0])
    permutation = torch.stack(made, 1)  # [S, T, D]
    order = rng.fold(key, "rows")

    def parts(part: str, t: int) -> tuple[Tensor, Tensor]:
        index = subset(data, part, rows, rng.fold(order, t))
        return index, data.y[index]

    return whole(
        data,
        seeds,
        n_tasks,
        scenario,
        classes,
        name=f"permuted_{dataset.name}",
        version=VERSION,
        hash=digest("permuted", VERSION, scenario, rows or "all", dataset.digest, *(p.long() for p in permutation)),
        transform=Permute(permutation),
        parts=parts,
    )
