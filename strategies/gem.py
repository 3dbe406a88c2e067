"""Lopez-Paz & Ranzato (2017), Gradient episodic memory for continual learning, NeurIPS."""

from dataclasses import replace
from typing import Any

import torch

from harness import rows
from harness.learner import Learner
from harness.strategy import PROJECT, Strategy
from harness.toolbox import require
from harness.toolbox.projection import nonnegative_qp
from harness.types import Aux, Batch, GradFn, Params, Task


class GEM(Strategy):
    """GEM: the nearest gradient that does not raise the loss on any past task's memory (Lopez-Paz 2017).

        g~ = g + Gᵀ v   if some (G g)_k < 0,   g otherwise;   G: one row per past task, its memory's gradient
        v = argmin 1/2 vᵀ G Gᵀ v + (G g)ᵀ v   subject to v >= margin

    With margin = 0, g~ is the projection of g on {z: G z >= 0}. As in the authors' code the margin
    (memory_strength there) is a lower bound of every v: a violating step is pushed towards all past tasks.
    Each seed has its own G and its own decision; all are solved at once, on the device
    (harness.toolbox.projection). g is the gradient of the whole objective, G that of the task loss under the
    current task's mask.

    Memory: per_task rows of every past task. Costs a gradient on per_task rows for every past task.

    Differences from the paper:
    * As in the paper, the gradient is projected; momentum and Adam may still move uphill on a memory.
    * The memory stores random rows of a task, drawn at its end, not its last ones.
    * Rows of G are scaled to length 1 and 1e-6 is added to their products' diagonal, for dependent rows.
    """

    family = "optimization-based"
    order = {"grad": PROJECT}
    grid = {"margin": (0.0, 0.1, 0.5, 1.0)}  # from the plain projection to twice the authors' 0.5

    def __init__(self, *, per_task: int, margin: float) -> None:
        require.at_least(1, per_task=per_task)
        require.at_least(0, margin=margin)
        self.per_task, self.margin = per_task, margin
        self.memory: list[dict[str, Any]] = []  # of each past task: x, y, t

    def batch(self, learner: Learner, batch: Batch) -> Batch:
        held = [learner.make_batch(**m) for m in self.memory]
        if learner.model.stochastic:
            held = [replace(b, key=self.random.key()) for b in held]
        return batch.carry(gem=held)

    def grad(self, learner: Learner, inner: GradFn) -> GradFn:
        def gradient(params: Params, batch: Batch) -> tuple[Params, Aux]:
            grads, aux = inner(params, batch)
            held = batch.extra.get("gem")
            if held:
                grads = project(grads, [learner.task_grad(params, b) for b in held], self.margin)
            return grads, aux

        return gradient

    def end(self, learner: Learner, task: Task) -> None:
        position = rows.order(self.random.key(), task.train.size, 0, min(self.per_task, task.rows))
        self.memory.append(dict(zip("xyt", task.train.take(position))))


def project(g: Params, past: list[Params], margin: float) -> Params:
    """g + Gᵀ v of each seed if G g has a negative entry, else g."""
    G = torch.stack([torch.cat([v.flatten(1) for v in p.values()], 1) for p in past], 1)  # [S, tasks, parameters]
    flat = torch.cat([v.flatten(1) for v in g.values()], 1)
    gram, overlap = (G @ G.mT).double(), (G @ flat[..., None])[..., 0].double()
    v = margin + nonnegative_qp(gram, overlap + margin * gram.sum(2))
    v = torch.where((overlap < 0).any(1, keepdim=True), v, 0).to(flat.dtype)
    flat = flat + (v[:, None] @ G)[:, 0]
    parts = flat.split([p[0].numel() for p in g.values()], 1)
    return {k: part.view_as(p) for (k, p), part in zip(g.items(), parts)}
