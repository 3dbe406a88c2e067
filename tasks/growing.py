"""Growing classes: every task adds some, and the data of all classes so far stays."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from harness import rng
from harness.types import Stream
from tasks.datasets import Dataset
from tasks.split import cut
from tasks.stream import check, digest, drawn, grouped

VERSION = 2  # 1: epochs were counted by a mean over classes
SCENARIOS = ("class",)
WHY = "its tasks are stages of one problem"


def growing(
    *,
    dataset: Dataset,
    seeds: Sequence[int],
    scenario: str = "class",
    classes: str = "seen",
    n_tasks: int,
    fixed: bool,
    initial: int | None = None,
    pin: int | None = None,
    device: torch.device | str = "cpu",
) -> Stream:
    """Class-incremental growth with all data kept, as on CIFAR-100 (Dohare et al. 2024).

    The classes, in a random order for each seed, are split into `n_tasks` groups as in split; task t has the training,
    validation and test samples of groups 0 to t. Nothing needs to be remembered, so a gap to a fresh net trained on the
    same classes (strategy=reset) is loss of plasticity. Published: 20 tasks of 5 classes, 200 epochs each.

    Differs: they keep the weights with the best validation accuracy in each stage, which here would be a strategy.
    Needs: any data set of at least `n_tasks` classes.

    Raises ValueError for scenarios other than class, and if a task would add no class.
    """
    check("growing", n_tasks, scenario, classes, SCENARIOS, WHY)
    sizes = cut(dataset, n_tasks, initial)
    data = dataset.to(device)
    key = rng.fold(rng.keys(drawn(seeds, fixed, pin), "stream", device), "growing")
    place = rng.permutation(key, dataset.classes)  # [S, C]
    known = [sum(sizes[: t + 1]) for t in range(n_tasks)]
    each = torch.arange(dataset.classes, device=place.device)
    return grouped(
        data,
        seeds,
        scenario,
        [place[:, :k] for k in known],
        lambda t: each[None, : known[t]],
        outputs=dataset.classes,
        name=f"growing_{dataset.name}",
        version=VERSION,
        hash=digest("growing", VERSION, *sizes, dataset.digest, place),
        masks=torch.stack([each < k for k in known])[None],
        classes=classes,
    )
