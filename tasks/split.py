"""Split classes: each task has some of the data set's classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from harness import rng
from harness.types import Stream
from tasks.datasets import Dataset
from tasks.order import blurred, curriculum
from tasks.stream import SCENARIOS as SCENARIOS
from tasks.stream import block_masks, check, digest, drawn, grouped

VERSION = 2  # 1: epochs were counted by a mean over classes


def split(
    *,
    dataset: Dataset,
    seeds: Sequence[int],
    scenario: str = "class",
    classes: str = "seen",
    n_tasks: int,
    fixed: bool,
    shuffle: bool = True,
    initial: int | None = None,
    order: str | None = None,
    blur: float = 0.0,
    pin: int | None = None,
    device: torch.device | str = "cpu",
) -> Stream:
    """Split data set (Zenke et al. 2017; the scenarios of van de Ven, Tuytelaars & Tolias 2022).

    The classes, in a random order for each seed (0, 1, 2... without `shuffle`, one order for all seeds with `fixed`),
    are split into `n_tasks` groups of equal size, the first ones one class larger if needed: 10 classes in 3 tasks give
    4, 3 and 3. With `initial`, the first task has that many classes and the others are split (Hou et al. 2019: half of
    them). task: one output per class, those of the row's own task compete; domain: as many outputs as the largest task
    has classes, shared; class: one output per class, those seen so far compete (or all with `classes=all`).

    `order` random, easy_first or hard_first sorts each seed's tasks (curricula: tasks/order.py). `blur` mixes that
    fraction of each task's training rows across its boundaries (same file).

    Differs: Zenke et al. use the classes in order 0, 1, 2... (shuffle=false).
    Needs: any data set of at least `n_tasks` classes.

    Raises ValueError for an unknown scenario or option, fewer than one task, or more tasks than classes.
    """
    check("split", n_tasks, scenario, classes)
    sizes = cut(dataset, n_tasks, initial)
    data = dataset.to(device)
    key = rng.fold(rng.keys(drawn(seeds, fixed, pin), "stream", device), "split")
    place = rng.permutation(key, dataset.classes)  # [S, C]: the class at each place
    if not shuffle:
        place = torch.arange(dataset.classes, device=place.device).expand_as(place)
    first = [0 if scenario == "domain" else sum(sizes[:t]) for t in range(n_tasks)]

    def targets(t: int) -> Tensor:
        return torch.arange(sizes[t], device=place.device)[None] + first[t]

    stream = grouped(
        data,
        seeds,
        scenario,
        place.split(sizes, 1),
        targets,
        outputs=max(sizes) if scenario == "domain" else dataset.classes,
        name=f"split_{dataset.name}",
        version=VERSION,
        hash=digest("split", VERSION, scenario, *sizes, dataset.digest, place),
        masks=None if scenario == "domain" else block_masks(sizes, place.device),
        classes=classes,
    )
    stream = curriculum(stream, order, rng.fold(key, "curriculum"))
    return blurred(stream, blur, rng.fold(key, "blur"))


def cut(dataset: Dataset, n_tasks: int, initial: int | None) -> list[int]:
    """Number of classes of each task. ValueError if a task would have none."""
    count = dataset.classes
    if n_tasks > count:
        raise ValueError(f"tasks.n_tasks={n_tasks}: {dataset.name} has only {count} classes; lower it")
    if initial is None:
        return [count // n_tasks + (t < count % n_tasks) for t in range(n_tasks)]
    rest = n_tasks - 1
    if not 1 <= initial <= count - rest or (rest == 0 and initial != count):
        raise ValueError(
            f"tasks.initial={initial}: must leave a class for each of {rest} other tasks; {dataset.name} has {count}"
        )
    return [initial, *((count - initial) // rest + (t < (count - initial) % rest) for t in range(rest))]
