"""Interpolation of the weights at each boundary."""

from __future__ import annotations

import math

import torch

from harness import random as draws
from harness import tree
from harness.learner import Learner
from harness.random import RandomStream
from harness.strategy import Strategy
from harness.types import Buffers, Params, Task


class Interpolate(Strategy):
    """Weight interpolation: after each task the net moves back towards the last boundary's (Wortsman et al. 2022).

        θ <- (1 - weight_new) θ_prev + weight_new θ,   θ_prev: the merged net of the last boundary

    WiSE-FT applied at every boundary, as CoMA does (Marouf et al. 2024); training goes on from the merged
    net. It helps where the line from θ_prev to θ is free of a barrier. The first task's net is kept as it is.

    Batch-norm statistics do not interpolate: they are measured anew on the task's training rows.

    Differences from the paper:
    * WiSE-FT merges once, a zero-shot with a fine-tuned net, and keeps both; here they are the nets of two boundaries.
    * The optimizer's state is that of the unmerged net; `optimizer.reset=true` drops it.
    """

    family = "optimization-based"
    order = {"end": 0}

    def __init__(self, *, weight_new: float) -> None:
        if not 0 <= weight_new <= 1:
            raise ValueError(f"interpolate.weight_new={weight_new}: must be in [0, 1]")
        self.weight_new = weight_new
        self.previous: Params | None = None

    @torch.no_grad()
    def end(self, learner: Learner, task: Task) -> None:
        if self.previous is not None and self.weight_new < 1:
            tree.assign(learner.params, tree.lerp(self.previous, learner.params, self.weight_new))
            learner.buffers = statistics(learner, learner.params, learner.buffers, task, self.random)
        self.previous = tree.copy(learner.params)


@torch.no_grad()
def statistics(
    learner: Learner, params: Params, buffers: Buffers, task: Task, random: RandomStream, *, size: int = 256
) -> Buffers:
    """Running statistics of `params` on the task's training rows: their plain average over random batches.

    As much data as the task has, 64 batches at most. Needs running averages b <- (1 - m) b + m · statistic:
    the update is affine in b, so that its values at b = 0 and b = 1 give the statistic whatever m is. A
    buffer of another kind (a constant, a counter) keeps its value. Without buffers it does nothing.
    """
    if not buffers:
        return buffers
    total = {k: torch.zeros_like(v) for k, v in buffers.items()}
    steps = min(64, math.ceil(task.nominal / size))
    for _ in range(steps):
        position = draws.integers(random.key(), task.train.size[:, None], size)
        x, _, t = task.train.take(position)
        key = random.key() if learner.model.stochastic else None
        at = [
            learner.apply(params, start, x, t, train=True, key=key).buffers
            for start in ({k: torch.full_like(v, b) for k, v in buffers.items()} for b in (0.0, 1.0))
        ]
        for k in total:
            total[k] += at[0][k] / (1 - (at[1][k] - at[0][k]))
    return {k: torch.where(v.isfinite(), v / steps, buffers[k]) for k, v in total.items()}
