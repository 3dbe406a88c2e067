"""How measurements become rows of the tables: pure functions that return columns. results/SCHEMA.md has the columns."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from harness.record.clock import peak_memory
from harness.record.sinks import Columns
from harness.types import Column, Reading

CURVE_BINS = 50  # points of a task's learning curve


def reading_rows(
    seeds: Sequence[int],
    alive: Tensor,
    *,
    boundary: int,
    phase: str,
    metric: str,
    value: Tensor | Reading,
    column: Column | None,
) -> Columns:
    """Rows of table `metrics`: one for each seed and coordinate. A seed that is not alive [S] has NaN."""
    reading = value if isinstance(value, Reading) else Reading(value)
    table = reading.value.detach().cpu().double()
    table = table.view(len(table), -1).masked_fill(~alive.cpu()[:, None], math.nan)
    errors = torch.full_like(table, math.nan)
    if reading.stderr is not None:
        errors = reading.stderr.detach().cpu().double().view_as(table)
    coords = list(reading.coords) or list(range(table.shape[1]))
    n = table.numel()
    per_task = reading.axis == "task"
    tasks = [int(c) for c in coords] if per_task else list(reading.tasks) or [-1] * len(coords)
    return {
        "seed": [s for s in seeds for _ in coords],
        "boundary": [boundary] * n,
        "phase": [phase] * n,
        "net": [column.net if column else "trained"] * n,
        "task": [task for _ in seeds for task in tasks],
        "metric": [metric] * n,
        "axis": ["" if per_task else reading.axis] * n,
        "coord": ["" if per_task or not reading.axis else str(c) for _ in seeds for c in coords],
        "value": table.flatten().tolist(),
        "stderr": errors.flatten().tolist(),
        "diverged": [not living for living in alive.tolist() for _ in coords],
        "better": [column.better if column else ""] * n,
    }


def accuracy_rows(
    seeds: Sequence[int], *, boundary: int, task: int, split: str, score: Tensor, loss: Tensor, n: Sequence[int]
) -> Columns:
    """Rows of table `accuracy`: score and loss [S] on a task, over n rows of each seed."""
    S = len(seeds)
    return {
        "seed": list(seeds),
        "boundary": [boundary] * S,
        "task": [task] * S,
        "split": [split] * S,
        "accuracy": score.tolist(),
        "loss": loss.tolist(),
        "n": list(n),
    }


def curve_rows(seed: int, *, boundary: int, score: Tensor, loss: Tensor) -> Columns:
    """Rows of table `curves`: a seed's online score and loss [steps], averaged in at most CURVE_BINS spans of steps."""
    bins = min(CURVE_BINS, len(score))
    edges = [round(i * len(score) / bins) for i in range(bins + 1)]
    spans = list(itertools.pairwise(edges))
    return {
        "seed": [seed] * bins,
        "boundary": [boundary] * bins,
        "step": [b for _, b in spans],
        "online_accuracy": [float(score[a:b].mean()) for a, b in spans],
        "loss": [float(loss[a:b].mean()) for a, b in spans],
    }


def timing_rows(boundary: int, spent: Mapping[str, float]) -> Columns:
    """Rows of table `timing`: seconds by part."""
    return {
        "boundary": [boundary] * len(spent),
        "part": list(spent),
        "seconds": list(spent.values()),
        "peak_memory": [peak_memory()] * len(spent),
    }
