"""Repetition: classes return in later tasks, with new samples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from harness import rng
from harness.rows import Rows
from harness.types import Stream, Task, Tasks
from tasks.datasets import Dataset
from tasks.stream import Members, check, digest, drawn

VERSION = 2  # 1: epochs were counted by the mean over tasks
SCENARIOS = ("task", "class")
WHY = "a class that returns keeps its output (with classes=all the learner sees only the data)"


def repeated(
    *,
    dataset: Dataset,
    seeds: Sequence[int],
    scenario: str = "class",
    classes: str = "seen",
    n_tasks: int,
    fixed: bool,
    width: int,
    pin: int | None = None,
    device: torch.device | str = "cpu",
) -> Stream:
    """Class-incremental learning with repetition, in slots (Hemati et al. 2023).

    Each of `n_tasks` tasks has `width` slots, each with a different class. Every class fills the same number of slots
    over the stream, to within one. Its training samples, in a random order for each seed, are divided among its slots:
    each sample comes once. Validation and test rows of a task are all those of its classes. class: one output per
    class, those seen so far compete; task: those of the row's own task compete.

    Differs: classes are assigned greedily, those with most slots left first, ties at random, and the tasks are
    shuffled; the paper's generator fills the slots at random.
    Needs: any data set of at most `n_tasks` x `width` classes.

    Raises ValueError for scenario=domain, for a width out of range, and for too few slots.
    """
    check("repeated", n_tasks, scenario, classes, SCENARIOS, WHY)
    count, s = dataset.classes, len(seeds)
    if not 1 <= width <= count:
        raise ValueError(f"tasks.width={width}: must be from 1 to {count}, the classes of {dataset.name}")
    if n_tasks * width < count:
        raise ValueError(
            f"tasks.n_tasks={n_tasks}: {n_tasks} x {width} slots do not fit {count} classes; raise it or tasks.width"
        )
    data = dataset.to(device)
    key = rng.fold(rng.keys(drawn(seeds, fixed, pin), "stream", device), "repeated")
    group = _groups(key, n_tasks, width, count)  # [S, T, width]
    here = torch.nn.functional.one_hot(group, count).sum(2)  # [S, T, C] 0 or 1
    turn, turns = here.cumsum(1) - here, here.sum(1)
    mixed = data.train[rng.permutation(rng.fold(key, "samples"), len(data.train))]  # [S, n]
    train = Members(data.y, mixed, count)
    rest = [Members(data.y, index, count) for index in (data.val, data.test)]

    def rows(found: tuple[Tensor, Tensor, Tensor], t: int) -> Rows:
        index, slot, size = found
        one = torch.full((s, 1), t if scenario == "task" else 0, dtype=torch.int64, device=index.device)
        return Rows(data.x, index, group[:, t].gather(1, slot), one, size)

    def share(t: int) -> tuple[Tensor, Tensor]:
        """First sample of each class of task t, and the end of them: [S, width] each."""
        low, high = ((train.count * (turn[:, t] + k) // turns).gather(1, group[:, t]) for k in (0, 1))
        return low, high

    def task(t: int) -> Task:
        val, test = (rows(members.of(group[:, t]), t) for members in rest)
        return Task(t, rows(train.of(group[:, t], *share(t)), t), val, test)

    return Stream(
        name=f"repeated_{dataset.name}",
        version=VERSION,
        scenario=scenario,
        tasks=Tasks(task, n_tasks),
        shape=data.shape,
        outputs=count,
        seeds=tuple(seeds),
        hash=digest("repeated", VERSION, scenario, dataset.digest, group, mixed),
        masks=here.bool(),
        sizes=torch.stack([(high - low).sum(1) for low, high in map(share, range(n_tasks))], 1),
        classes=classes,
    )


def _groups(key: Tensor, n_tasks: int, width: int, classes: int) -> Tensor:
    """Classes of each task [S, T, width], all different within a task, each equally often to within one."""
    used, found = torch.zeros(len(key), classes, dtype=torch.float64, device=key.device), []
    for t in range(n_tasks):
        score = rng.uniform(rng.fold(key, t), classes, dtype=torch.float64) - used
        chosen = score.topk(width, 1).indices
        used.scatter_add_(1, chosen, torch.ones_like(chosen, dtype=used.dtype))
        found.append(chosen)
    order = rng.permutation(rng.fold(key, "order"), n_tasks)  # [S, T]
    return torch.stack(found, 1).gather(1, order[:, :, None].expand(-1, -1, width))
