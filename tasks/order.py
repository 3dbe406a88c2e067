"""The order of a stream: curricula of its tasks, and blurred boundaries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from harness import rng
from harness.rows import Rows, stratified, union
from harness.toolbox import solve
from harness.types import Source, Stream, Task
from tasks.stream import digest

ORDERS = ("random", "easy_first", "hard_first")
SAMPLE = 512  # rows from which a task's difficulty is estimated
RIDGE = 0.1  # of the rows' mean squared norm


def curriculum(stream: Stream, order: str | None, key: Tensor) -> Stream:
    """The same tasks in another order (curricula: Bengio et al. 2009; of tasks: Bell & Lawrence 2022).

    None keeps their order; random shuffles those of each seed; easy_first sorts by rising `difficulty`, hard_first by
    falling, ties in the old order. Outputs move with their task. `key` [S] is the source of randomness.
    Raises ValueError for an unknown order.
    """
    if order is None:
        return stream
    if order not in ORDERS:
        raise ValueError(f"tasks.order={order}: must be null or one of {', '.join(ORDERS)}")
    tasks = stream.tasks
    if order == "random":
        hard = rng.permutation(key, len(tasks)).double()
    else:
        hard = torch.stack([difficulty(task.train, rng.fold(key, task.index)) for task in tasks], 1)  # [S, T]
    place = hard.argsort(dim=1, stable=True, descending=order == "hard_first")  # the task at each place
    parts = {
        part: _sorted([getattr(t, part) for t in tasks], place, stream.scenario) for part in ("train", "val", "test")
    }
    masks = stream.masks
    if masks is not None:
        masks = masks.expand(len(place), -1, -1).gather(1, place[:, :, None].expand(-1, -1, masks.shape[2]))
    return replace(
        stream,
        tasks=tuple(
            replace(task, train=parts["train"][t], val=parts["val"][t], test=parts["test"][t])
            for t, task in enumerate(tasks)
        ),
        masks=masks,
        sizes=torch.stack([rows.size for rows in parts["train"]], 1),
        hash=digest(stream.hash, order, place),
    )


def difficulty(source: Source, key: Tensor) -> Tensor:
    """Leave-one-out error of a ridge classifier on a task's raw inputs: [S], between 0 and 1.

    Of at most 512 class-stratified training rows X [n, D] (a constant appended), with targets Y [n, classes] of 0
    and 1: H = X Xᵀ (X Xᵀ + λ I)⁻¹, λ a tenth of the mean squared norm of a row. A row that is left out is
    predicted as y - (y - H y) / (1 - H_ii) (Allen 1974), and counts as wrong if its largest entry is not that of its
    class. Every seed uses its own rows, all at once; nothing is trained.

    >>> x = torch.tensor([[0.0], [0.1], [5.0], [5.1]])
    >>> rows = Rows(x, torch.arange(4)[None], torch.tensor([[0, 0, 1, 1]]), torch.zeros(1, 1).long(), torch.tensor([4]))
    >>> difficulty(rows, rng.keys([0], "x"))
    tensor([0.], dtype=torch.float64)
    """
    label = source.labels()
    n = min(SAMPLE, int(source.size.min()))
    x, y, _ = source.take(stratified(label, n, key))
    x = torch.nn.functional.pad(x.flatten(2).double(), (0, 1), value=1.0)  # [S, n, D + 1]
    target = torch.nn.functional.one_hot(y).double()  # [S, n, C]
    gram = x @ x.mT
    ridge = RIDGE * gram.diagonal(dim1=1, dim2=2).mean(1)
    hat = solve.solve(gram + ridge[:, None, None] * torch.eye(n, dtype=x.dtype, device=x.device), gram)
    left = 1 - hat.diagonal(dim1=1, dim2=2)
    guess = target - (target - hat @ target) / left[..., None]
    wrong: Tensor = guess.argmax(2) != y
    return wrong.double().mean(1)


def _sorted(sources: Sequence[Source], place: Tensor, scenario: str) -> list[Rows]:
    """The t-th source has seed s of sources[place[s, t]]; with scenario=task its rows have task id t."""
    rows = [s for s in sources if isinstance(s, Rows)]
    width = max(r.index.shape[1] for r in rows)
    seed = torch.arange(len(place), device=place.device)

    def column(name: str) -> Tensor:
        """[T, S, width or 1]"""
        wide = [getattr(r, name) for r in rows]
        return torch.stack([c if c.shape[1] == 1 < width else _padded(c, width) for c in wide])

    index, y, size = column("index"), column("y"), torch.stack([r.size for r in rows])
    ids = None if rows[0].transform_id is None else column("transform_id")
    made = []
    for t in range(len(rows)):
        at = place[:, t], seed
        made.append(
            replace(
                rows[0],
                index=index[at],
                y=y[at],
                size=size[at],
                t=torch.full_like(rows[0].t[:, :1], t if scenario == "task" else 0),
                transform_id=None if ids is None else ids[at],
            )
        )
    return made


def _padded(column: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(column, (0, width - column.shape[1]))


def blurred(stream: Stream, fraction: float, key: Tensor) -> Stream:
    """The same training rows, each once, in an order in which tasks blend into each other.

    Each row of task t gets the time t + p + b u, with p in [0, 1) its place in a random order of the task, u
    uniform on [0, 1) and b the fraction; rows are sorted by time and cut by the tasks' sizes. Across a boundary the
    share of the next task's rows rises linearly from 0 to 1 over b of a task, and b / 2 of each task's rows on either
    side are mixed: b = 0 is a sharp boundary, b = 1 leaves no part of a task unmixed (a task-free drift), a large b
    mixes everything. Linear mixing as in Zeno et al. (2018), 'task agnostic'. The rows of a task come in this order in
    every pass; validation and test rows stay those of the tasks. `key` [S].

    With scenario=class, the outputs that compete are those of the classes in the rows so far.
    Raises ValueError for a negative fraction, and for scenario=task, in which a mixed row would reveal its task.
    """
    if fraction < 0:
        raise ValueError(f"tasks.blur={fraction}: must be at least 0; 0 is a sharp boundary")
    if fraction == 0:
        return stream
    if stream.scenario == "task":
        raise ValueError(
            "scenario=task: blurred boundaries do not reveal the task; use scenario=class or domain, or tasks.blur=0"
        )
    tasks = stream.tasks
    sizes = torch.stack([task.train.size for task in tasks])  # [T, S]
    every = union([task.train for task in tasks if isinstance(task.train, Rows)])
    time = _times(sizes, every.index.shape[1], fraction, key)
    order = time.argsort(dim=1, stable=True)
    start = sizes.cumsum(0) - sizes
    made = []
    for t, task in enumerate(tasks):
        position = torch.arange(int(sizes[t].max()), device=order.device) + start[t][:, None]
        at = order.gather(1, position.clamp(max=order.shape[1] - 1))
        ids = every.transform_id
        rows = replace(
            every,
            index=every.index.gather(1, at),
            y=every.y.gather(1, at),
            t=every.t[:, :1],
            size=sizes[t],
            transform_id=ids if ids is None or ids.shape[1] == 1 else ids.gather(1, at),
        )
        made.append(replace(task, train=rows, ordered=True))
    return replace(
        stream, tasks=tuple(made), masks=_present(stream, made), hash=digest(stream.hash, repr(fraction), order)
    )


def _times(sizes: Tensor, width: int, fraction: float, key: Tensor) -> Tensor:
    """Time of every row of the union [S, width], in tasks; infinity on padding. sizes [T, S]."""
    end = sizes.cumsum(0).T.contiguous()  # [S, T]
    position = torch.arange(width, device=sizes.device).expand(len(end), -1).contiguous()
    task = torch.searchsorted(end, position, right=True).clamp(max=len(sizes) - 1)
    size, start = sizes.T.gather(1, task), (end - sizes.T).gather(1, task)
    rank = torch.stack(  # place of each row in a random order of its task
        [rng.permutation(rng.fold(key, t), width, sizes[t]) for t in range(len(sizes))], 1
    )  # [S, T, width]
    own = rank.flatten(1).gather(1, task * width + position - start)
    u = rng.uniform(rng.fold(key, "time"), width, dtype=torch.float64)
    time = task + own.double() / size.clamp_min(1) + fraction * u
    return time.masked_fill(position >= end[:, -1:], torch.inf)


def _present(stream: Stream, tasks: Sequence[Task]) -> Tensor | None:
    """Outputs of the classes in each task's rows, and those of the task itself: [S, T, C]."""
    if stream.masks is None:
        return None
    masks = stream.masks.expand(len(stream.seeds), -1, -1).clone()
    for t, task in enumerate(tasks):
        label = task.train.labels()
        there = torch.nn.functional.one_hot(label.clamp_min(0), stream.outputs).bool() & (label >= 0)[..., None]
        masks[:, t] |= there.any(1)
    return masks
