"""Random labels: the same few inputs in every task, each time with meaningless labels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from harness import rng
from harness.types import Stream
from tasks.datasets import Dataset
from tasks.stream import check, digest, drawn, subset, whole

VERSION = 1
SCENARIOS = ("task", "domain")
WHY = "the same input would have a different class in each task"
EXEMPT = {  # of what streams promise (harness/contract/streams.py)
    "apart": "memorisation is measured on the training rows",
    "targets": "labels are shuffled",
    "labelled": "labels are shuffled",
}


def random_labels(
    *,
    dataset: Dataset,
    seeds: Sequence[int],
    scenario: str = "domain",
    classes: str = "seen",
    n_tasks: int,
    fixed: bool,
    rows: int | None = None,
    pin: int | None = None,
    device: torch.device | str = "cpu",
) -> Stream:
    """Random-label memorisation (Lyle et al. 2023; settings of Kumar, Marklund & Van Roy 2023).

    `rows` training samples (all by default) are drawn once for each seed. Every task shuffles their true labels anew:
    class frequencies stay the same and only memorisation helps. Validation and test rows are the training rows, because
    nothing generalises to others: accuracy measures memorisation, and the data set's test samples are not used.
    Published: 1,200 rows, 50 tasks of 30,000 steps in batches of 16. domain shares the outputs; task gives each task
    its own.

    Differs: nothing known.
    Needs: any data set.

    Raises ValueError for scenario=class, and for more rows than the data set has.
    """
    check("random_labels", n_tasks, scenario, classes, SCENARIOS, WHY)
    data = dataset.to(device)
    key = rng.fold(rng.keys(drawn(seeds, fixed, pin), "stream", device), "random_labels")
    index = subset(data, "train", rows, rng.fold(key, "rows")).expand(len(seeds), -1)  # [S, n]
    label, n = data.y[index], index.shape[1]

    def parts(part: str, t: int) -> tuple[Tensor, Tensor]:
        return index, label.gather(1, rng.permutation(rng.fold(key, t), n))

    return whole(
        data,
        seeds,
        n_tasks,
        scenario,
        classes,
        name=f"random_labels_{dataset.name}",
        version=VERSION,
        hash=digest("random_labels", VERSION, scenario, n_tasks, dataset.digest, index, key),
        parts=parts,
    )
