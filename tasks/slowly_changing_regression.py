"""Slowly-changing regression: most input bits stay constant within a task; the target never changes. No data set.

Dohare et al. (2024), Loss of plasticity in deep continual learning, Nature 632: the bit-flipping problem.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from harness import rng
from harness.rows import Rows
from harness.types import Stream, Task
from tasks.datasets import Dataset
from tasks.stream import check, digest, drawn

VERSION = 1
SCENARIOS = ("domain",)
WHY = "it has one output, shared by all tasks, and no classes"
EXEMPT = {"apart": "the test rows are all inputs of the task"}  # of what streams promise (harness/contract/streams.py)
FREE = 10  # largest number of bits drawn for each row: all inputs of a task are listed


def slowly_changing_regression(
    *,
    dataset: Dataset | None = None,
    seeds: Sequence[int],
    scenario: str = "domain",
    classes: str = "seen",
    n_tasks: int,
    fixed: bool,
    rows: int = 10_000,
    bits: int = 20,
    held: int = 15,
    change: str = "all",
    units: int = 100,
    beta: float = 0.7,
    pin: int | None = None,
    device: torch.device | str = "cpu",
) -> Stream:
    """Slowly-changing regression (Dohare et al. 2024): only the inputs drift, the target network is fixed.

    An input has `bits` bits. The first `held` of them stay constant during a task; at the next they are redrawn
    (change=all, the authors' code) or one of them flips (change=one, their text). The other bits are drawn for each
    row. The target is a net of `units` linear threshold units over the bits x, with weights w, b, v, v0 of -1 or +1,
    the same for the whole stream:

        y = v0 + Σ_i v_i [w_i x + b_i > τ_i],   τ_i = β (bits + 1) - (bits - Σ_j w_ij + b_i) / 2

    A learner with fewer units cannot represent it and must track it. The loss is the squared error, the score its
    negative. Training rows are independent draws; the test rows are all 2^(bits - held) inputs of the task, once each,
    so they are not unseen. The paper reports the error before each update (online).

    Differs: the paper has no test rows; the net's initialisation is the model's.
    Needs: no data: `dataset` and `classes` are not used.

    Raises ValueError for scenarios other than domain, and for settings out of range.
    """
    check("slowly_changing_regression", n_tasks, scenario, classes, SCENARIOS, WHY)
    if not 1 <= bits - held <= FREE or held < 1:
        raise ValueError(
            f"tasks.held={held}: must be at least 1 and leave 1 to {FREE} of the {bits} bits to draw for each row"
        )
    if change not in ("all", "one"):
        raise ValueError(f"tasks.change={change}: must be all or one")
    if rows < 1 or units < 1:
        raise ValueError(f"tasks.rows={rows}, tasks.units={units}: each must be at least 1")
    s, free = len(seeds), 2 ** (bits - held)
    key = rng.fold(rng.keys(drawn(seeds, fixed, pin), "stream", device), "slowly_changing_regression")

    def sign(name: str, *shape: int) -> Tensor:
        return rng.rademacher(rng.fold(key, name), *shape)

    w, b, v, v0 = sign("w", units, bits), sign("b", units), sign("v", units, 1), sign("v0", 1, 1)
    threshold = beta * (bits + 1) - (bits - w.sum(2) + b) / 2

    still = _held(rng.fold(key, "held"), n_tasks, held, change)  # [S, T, held]
    each = torch.arange(free, device=still.device)[:, None] >> torch.arange(bits - held, device=still.device) & 1
    x = torch.cat(  # [S, T, free, bits]
        [still[:, :, None].expand(-1, -1, free, -1), each.float().expand(s, n_tasks, -1, -1)], 3
    )
    fires = torch.baddbmm((b - threshold)[:, None], x.flatten(1, 2), w.mT) > 0
    y = (torch.bmm(fires.float(), v) + v0).view(s, n_tasks, free, 1)
    data, zero = x.flatten(0, 2), torch.zeros(s, 1, dtype=torch.int64, device=still.device)
    first = torch.arange(s, device=still.device)[:, None] * n_tasks * free  # of each seed's rows in data

    def source(code: Tensor, t: int) -> Rows:
        target = y[:, t].gather(1, code[..., None])
        return Rows(data, first + t * free + code, target, zero, torch.full_like(zero[:, 0], code.shape[1]))

    def task(t: int) -> Task:
        train = source(rng.integers(rng.fold(rng.fold(key, "rows"), t), free, rows), t)
        whole = source(torch.arange(free, device=still.device).expand(s, -1), t)
        return Task(t, train, whole, whole)

    settings = f"{n_tasks} {rows} {bits} {held} {units} {beta}"
    return Stream(
        name="slowly_changing_regression",
        version=VERSION,
        scenario=scenario,
        tasks=tuple(task(t) for t in range(n_tasks)),
        shape=(bits,),
        outputs=1,
        seeds=tuple(seeds),
        hash=digest("slowly_changing_regression", VERSION, settings, still.long(), y.long()),
        classes=classes,
        loss="mse",
    )


def _held(key: Tensor, n_tasks: int, held: int, change: str) -> Tensor:
    """The constant bits of each task: [S, T, held]."""
    if change == "all":
        return torch.stack([rng.rademacher(rng.fold(key, t), held) for t in range(n_tasks)], 1).clamp_min(0)
    now = rng.rademacher(rng.fold(key, 0), held).clamp_min(0)
    found = [now]
    for t in range(1, n_tasks):
        flipped = rng.integers(rng.fold(key, t), held, 1)
        now = now.scatter(1, flipped, 1 - now.gather(1, flipped))
        found.append(now)
    return torch.stack(found, 1)
