"""Chaudhry, Ranzato, Rohrbach & Elhoseiny (2019), Efficient lifelong learning with A-GEM, ICLR."""

from dataclasses import replace

import torch
from torch import Tensor

from harness import rows, tree
from harness.learner import Learner
from harness.rng import permutation
from harness.strategy import PROJECT, Strategy
from harness.toolbox import require
from harness.toolbox.memory import pick
from harness.types import Aux, Batch, GradFn, Params, Task


class AGEM(Strategy):
    """A-GEM: project gradients that would raise the mean loss on a memory of past tasks (Chaudhry 2019).

        g~ = g - (g·r / r·r) r   if g·r < 0,   g otherwise;   r: gradient on rows of the memory

    g is the gradient of the whole objective; r is that of the task loss, under the current task's mask, on batch_size
    memory rows drawn from all tasks together. The memory stores per_task random rows of every past task.

    Differences from the paper:
    * Rows are drawn at random, at the end of a task. Momentum and Adam may still move uphill on the memory.
    """

    family = "optimization-based"
    order = {"grad": PROJECT}

    def __init__(self, *, per_task: int, batch_size: int) -> None:
        require.at_least(1, per_task=per_task, batch_size=batch_size)
        self.per_task, self.batch_size = per_task, batch_size
        self.memory: dict[str, Tensor] = {}  # x, y, t: [S, rows, ...]

    def batch(self, learner: Learner, batch: Batch) -> Batch:
        if not self.memory:
            return batch
        chosen = permutation(self.random.key(), self.memory["t"].shape[1])[:, : self.batch_size]
        held = learner.make_batch(**pick(self.memory, chosen))
        return batch.carry(agem=replace(held, key=self.random.key()))  # for dropout

    def grad(self, learner: Learner, inner: GradFn) -> GradFn:
        def gradient(params: Params, batch: Batch) -> tuple[Params, Aux]:
            grads, aux = inner(params, batch)
            if "agem" in batch.extra:
                grads = project(grads, learner.task_grad(params, batch.extra["agem"]))
            return grads, aux

        return gradient

    def end(self, learner: Learner, task: Task) -> None:
        position = rows.order(self.random.key(), task.train.size, 0, min(self.per_task, task.rows))
        new = dict(zip("xyt", task.train.take(position)))
        self.memory = {k: torch.cat([self.memory[k], v], 1) if self.memory else v for k, v in new.items()}


def project(g: Params, r: Params) -> Params:
    """For each seed, the nearest vector to `g` that does not point against `r`."""
    return tree.add(g, r, -tree.dot(g, r).clamp(max=0) / tree.dot(r, r).clamp_min(1e-30))
