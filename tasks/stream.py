"""What the streams share: scenarios, output masks, tasks over one data set, transforms, digests."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from harness.rows import Rows
from harness.types import Stream, Task
from tasks.datasets import Dataset

SCENARIOS = ("task", "domain", "class")


def check(name: str, n_tasks: int, scenario: str, classes: str) -> None:
    """Refuse what no stream can do; ValueError names key, value and remedy."""
    if n_tasks < 1:
        raise ValueError(f"tasks.n_tasks={n_tasks}: {name} needs at least 1 task")
    if scenario not in SCENARIOS:
        raise ValueError(f"scenario={scenario}: {name} knows {', '.join(SCENARIOS)}")
    if classes not in ("seen", "all"):
        raise ValueError(f"classes={classes}: must be seen or all")


def drawn(seeds: Sequence[int], fixed: bool, pin: int | None) -> list[int]:
    """The numbers that a stream's keys are made of: the seeds, or one for all."""
    return [pin] * len(seeds) if pin is not None else [0] * len(seeds) if fixed else list(seeds)


def whole(
    data: Dataset, seeds: Sequence[int], n_tasks: int, scenario: str, classes: str, *, version: int, **fields: Any
) -> Stream:
    """A stream whose tasks are all the whole data set, task t under transform id t.

    Scenarios (van de Ven, Tuytelaars & Tolias 2022): domain shares the outputs over tasks; task gives each
    its own, and the task is known; class gives each its own, and it is not. `fields`: name and hash of the
    stream, transform and relabel of its rows.
    """
    s, c, rows = len(seeds), data.classes, {k: fields.pop(k) for k in ("transform", "relabel") if k in fields}

    def source(index: Tensor, t: int) -> Rows:
        one = torch.full((s, 1), t, dtype=torch.int64, device=index.device)
        return Rows(
            data=data.x,
            index=index.expand(s, -1),
            y=(data.y[index] + (0 if scenario == "domain" else t * c)).expand(s, -1),
            t=one if scenario == "task" else torch.zeros_like(one),
            size=torch.full((s,), len(index), dtype=torch.int64, device=index.device),
            transform_id=one,
            **rows,
        )

    tasks = tuple(
        Task(t, source(data.train, t), source(data.val, t), source(data.test, t), nominal=len(data.train))
        for t in range(n_tasks)
    )
    return Stream(
        version=version,
        scenario=scenario,
        tasks=tasks,
        shape=data.shape,
        outputs=c if scenario == "domain" else c * n_tasks,
        seeds=tuple(seeds),
        masks=None if scenario == "domain" else block_masks(n_tasks, c, data.x.device),
        classes=classes,
        **fields,
    )


class Permute:
    """Reorders the inputs of each row by its task's permutation: x'[i] = x[permutation[i]]."""

    def __init__(self, permutation: Tensor) -> None:
        self.permutation = permutation  # [S, T, D]

    def __call__(self, x: Tensor, task: Tensor) -> Tensor:
        """x [S, B, *shape], task [S, B or 1] -> [S, B, *shape]."""
        seed = torch.arange(len(task), device=task.device)[:, None]
        flat = x.flatten(2)
        return flat.gather(2, self.permutation[seed, task].expand_as(flat)).view_as(x)


class Rotate:
    """Turns the images of each row by its task's angle, in degrees anticlockwise, about their centre.

    Pixels are interpolated linearly between the four around them; what turns in from outside is `blank`.
    """

    def __init__(self, angle: Tensor, shape: Sequence[int], blank: Tensor) -> None:
        h, w = shape[1:]
        self.blank = blank  # [C]
        turn = torch.deg2rad(angle.double())[:, :, None, None]  # [S, T, 1, 1]
        y = torch.arange(h, device=angle.device, dtype=torch.float64)[:, None] - (h - 1) / 2
        x = torch.arange(w, device=angle.device, dtype=torch.float64) - (w - 1) / 2
        # where each pixel comes from, from the centre, then in grid_sample's units: edges of the image at -1 and 1
        source_x, source_y = turn.cos() * x - turn.sin() * y, turn.sin() * x + turn.cos() * y
        self.grid = torch.stack([source_x / (w / 2), source_y / (h / 2)], -1).float()  # [S, T, h, w, 2]

    def __call__(self, x: Tensor, task: Tensor) -> Tensor:
        """x [S, B, C, h, w], task [S, B or 1] -> [S, B, C, h, w]."""
        seed = torch.arange(len(task), device=task.device)[:, None]
        grid = self.grid[seed, task]  # [S, B or 1, h, w, 2]
        blank = self.blank[:, None, None]
        # one angle for all rows of a seed: they become the channels of one image, which shares the weights
        images = (x - blank).flatten(1, 2) if task.shape[1] == 1 else (x - blank).flatten(0, 1)
        grid = grid[:, 0] if task.shape[1] == 1 else grid.flatten(0, 1)
        return torch.nn.functional.grid_sample(images, grid, align_corners=False).view_as(x) + blank


def block_masks(n_tasks: int, width: int, device: torch.device) -> Tensor:
    """[1, T, T * width]: task t uses the outputs t * width ... (t + 1) * width - 1."""
    return torch.eye(n_tasks, dtype=torch.bool, device=device).repeat_interleave(width, 1)[None]


def digest(*parts: str | int | Tensor) -> str:
    """Sixteen hex digits over names, numbers and tensors."""
    h = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            h.update(part.cpu().contiguous().numpy().tobytes())
        else:
            h.update(repr(part).encode())
    return h.hexdigest()[:16]
