"""Averaged gradient episodic memory.

Chaudhry, Ranzato, Rohrbach & Elhoseiny (2019), Efficient lifelong learning with A-GEM, ICLR.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from harness import rows, tree
from harness.learner import Learner
from harness.random import permutation
from harness.strategy import Strategy
from harness.types import Aux, Batch, GradFn, Params, Task


class AGEM(Strategy):
    """A-GEM: a gradient that would raise the mean loss on a memory of past tasks is projected (Chaudhry 2019).

        g~ = g - (g·r / r·r) r   where g·r < 0,   g otherwise;   r: gradient on rows of the memory

    g is the gradient of the whole objective, r that of the task loss on batch_size random rows of the memory,
    under the current task's mask. Each seed has its own r and its own decision. The memory holds per_task
    random rows of every past task. The batch is drawn from all rows of all tasks together, so that any number
    of tasks can share it; a memory smaller than the batch is read whole. Costs a second gradient.

    Differences from the paper:
    * The gradient is projected, as there; momentum and Adam may still move uphill on the memory.
    * Rows are drawn once a task is over, at random rather than class by class.
    """

    family = "optimization-based"
    order = {"grad": 40}

    def __init__(self, *, per_task: int, batch_size: int) -> None:
        for key, value in (("per_task", per_task), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"agem.{key}={value}: must be at least 1")
        self.per_task, self.batch_size = per_task, batch_size
        self.memory: dict[str, Tensor] = {}  # x, y, t: [S, rows, ...]

    def batch(self, learner: Learner, batch: Batch) -> Batch:
        if not self.memory:
            return batch
        chosen = permutation(self.random.key(), self.memory["t"].shape[1])[:, : self.batch_size]
        seeds = torch.arange(learner.S, device=learner.device)[:, None]
        held = learner.make_batch(**{k: v[seeds, chosen] for k, v in self.memory.items()})
        if learner.model.stochastic:
            held = replace(held, key=self.random.key())
        return replace(batch, extra={**batch.extra, "agem": held})

    def grad(self, learner: Learner, inner: GradFn) -> GradFn:
        def gradient(params: Params, batch: Batch) -> tuple[Params, Aux]:
            grads, aux = inner(params, batch)
            if "agem" in batch.extra:
                grads = project(grads, learner.task_grad(params, batch.extra["agem"]))
            return grads, aux

        return gradient

    def end(self, learner: Learner, task: Task) -> None:
        count = min(self.per_task, task.nominal)
        new = dict(zip("xyt", task.train.take(rows.order(self.random.key(), task.train.size, 0, count))))
        self.memory = {k: torch.cat([self.memory[k], v], 1) if self.memory else v for k, v in new.items()}


def project(g: Params, r: Params) -> Params:
    """The nearest vector to `g` that does not point against `r`, for each seed."""
    share = tree.dot(g, r).clamp(max=0) / tree.dot(r, r).clamp_min(torch.finfo(next(iter(r.values())).dtype).tiny)
    return tree.add(g, r, -share)
