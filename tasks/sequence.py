"""Data sets in sequence: digits, then clothing, then letters..., with a common shape and label space."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from harness import rng
from harness.rows import Rows
from harness.types import Stream, Task
from tasks.datasets import Dataset, load
from tasks.order import curriculum
from tasks.stream import PARTS, block_masks, check, digest, drawn, subset
from tasks.stream import SCENARIOS as SCENARIOS

VERSION = 1


def sequence(
    *,
    dataset: Dataset,
    seeds: Sequence[int],
    scenario: str = "domain",
    classes: str = "seen",
    then: Sequence[str | Dataset],
    fixed: bool,
    root: str | None = None,
    fit: str = "resize",
    rows: int | None = None,
    order: str | None = None,
    pin: int | None = None,
    device: torch.device | str = "cpu",
) -> Stream:
    """One data set after the other (Ebrahimi et al. 2020: five): `dataset`, then those in `then`.

    Shape: the largest height, width and number of channels of all. Images are resized to it with antialiased bilinear
    interpolation (fit=resize) or centred in it (fit=pad, with the darkest value of each channel around them); grey
    images are repeated in each channel; vectors are padded with zeros. Each data set is normalised by itself first.
    Labels: domain shares max(classes) outputs, and class k of every data set is output k; task and class give each data
    set its own block of outputs, with the task known or not. `rows` training rows per data set are drawn for each seed;
    tasks then have equal size and can be sorted by `order` random, easy_first or hard_first (tasks/order.py); null
    keeps them as listed.

    Differs: Ebrahimi et al. pad to 32x32 and train on all rows; their five data sets are not preset.
    Needs: each of the data sets; `then` looks in `root` (null: the usual cache) and downloads missing ones.

    Raises ValueError for shapes that have no common shape, and for an unknown scenario or option.
    """
    check("sequence", 1 + len(then), scenario, classes)
    if fit not in ("resize", "pad"):
        raise ValueError(f"tasks.fit={fit}: must be resize or pad")
    sets = [dataset, *(d if isinstance(d, Dataset) else load(d, root=root) for d in then)]
    shape = common([d.shape for d in sets])
    x = torch.cat([fitted(d.x[:], shape, fit) for d in sets]).to(device)
    counts, s = [d.classes for d in sets], len(seeds)
    key = rng.fold(rng.keys(drawn(seeds, fixed, pin), "stream", device), "sequence")
    sets = [d.to(device) for d in sets]

    def source(part: str, t: int) -> Rows:
        index = subset(sets[t], part, rows, rng.fold(key, t)).expand(s, -1)
        y = sets[t].y[index] + (0 if scenario == "domain" else sum(counts[:t]))
        one = torch.full((s, 1), t if scenario == "task" else 0, dtype=torch.int64, device=x.device)
        size = torch.full((s,), index.shape[1], dtype=torch.int64, device=x.device)
        return Rows(x, index + sum(len(d.y) for d in sets[:t]), y, one, size)

    tasks = []
    for t in range(len(sets)):
        train, val, test = (source(part, t) for part in PARTS)
        tasks.append(Task(t, train, val, test))
    picked = key if rows or order else 0
    stream = Stream(
        name="_".join(["sequence", *(d.name for d in sets)]),
        version=VERSION,
        scenario=scenario,
        tasks=tuple(tasks),
        shape=shape,
        outputs=max(counts) if scenario == "domain" else sum(counts),
        seeds=tuple(seeds),
        hash=digest("sequence", VERSION, scenario, fit, rows or "all", *(d.digest for d in sets), picked),
        masks=None if scenario == "domain" else block_masks(counts, x.device),
        classes=classes,
    )
    return curriculum(stream, order, rng.fold(key, "curriculum"))


def common(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The smallest shape that fits all. ValueError for images with vectors, or channels other than 1 and one number.

    >>> common([(1, 8, 8), (3, 6, 9)]), common([(4,), (7,)])
    ((3, 8, 9), (7,))
    """
    largest = tuple(max(sizes) for sizes in zip(*shapes))
    images = len(largest) == 3
    if len({len(shape) for shape in shapes}) > 1 or (images and {s[0] for s in shapes} - {1, largest[0]}):
        raise ValueError(f"tasks.then: inputs of shapes {', '.join(map(str, map(list, shapes)))} have no common shape")
    return largest


def fitted(x: Tensor, shape: tuple[int, ...], fit: str) -> Tensor:
    """Inputs x [N, *own] as [N, *shape]."""
    if len(shape) == 1:
        return F.pad(x, (0, shape[0] - x.shape[1]))
    h, w = shape[1] - x.shape[2], shape[2] - x.shape[3]
    if fit == "resize" and (h or w):
        x = F.interpolate(x, shape[1:], mode="bilinear", antialias=True)
    elif h or w:
        dark = x.amin((0, 2, 3))[:, None, None]
        x = F.pad(x - dark, (w // 2, w - w // 2, h // 2, h - h // 2)) + dark
    return x.expand(-1, shape[0], -1, -1)
