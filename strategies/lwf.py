"""Li & Hoiem (2017), Learning without forgetting, TPAMI 40; weightings of van de Ven & Tolias (2018),
arXiv:1809.10635, and van de Ven, Tuytelaars & Tolias (2022), Three types of incremental learning, Nature Machine
Intelligence 4.
"""

from dataclasses import replace

import torch
from torch import Tensor

from harness import tree
from harness.learner import Learner
from harness.strategy import READ, Strategy
from harness.toolbox import require
from harness.types import Batch, Net, Out, Params, Task

WEIGHTINGS = ("tasks", "fixed", "share")


class LwF(Strategy):
    """Learning without forgetting: keep the old outputs on new inputs (Li & Hoiem 2017).

        L = a nll + b strength mean_x mean_heads KL(softmax(z*/T) | softmax(z/T))      z*: logits of the last task's net

        weighting=tasks    a = 1,      b = k - 1         k tasks, this one included: a sum over old heads (Li & Hoiem)
        weighting=fixed    a = 1,      b = 1
        weighting=share    a = 1 / k,  b = 1 - 1 / k     van de Ven & Tolias

    A head is the set of outputs in one softmax: for scenario=task the outputs of each old task, all on the new
    inputs; for class the classes of the old tasks; for domain all outputs. The teacher is frozen, in evaluation mode.
    Rows appended by earlier strategies in the list are distilled too. Memory: one copy of the net; one more forward
    pass per step.

    Differences from the papers:
    * KL instead of cross-entropy: the same gradient, and 0 at the teacher.
    * Heads of future tasks share the net from the start; no warm-up phase trains only the new head.
    """

    name = "lwf"
    family = "functional regularization"
    order = {"batch": READ}
    grid = {"strength": (0.3, 1.0, 3.0, 10.0)}  # half orders of magnitude around Li & Hoiem's 1

    def __init__(self, *, strength: float, temperature: float, t_squared: bool, weighting: str) -> None:
        require.at_least(0, strength=strength)
        require.above(0, temperature=temperature)
        require.one_of(WEIGHTINGS, weighting=weighting)
        self.strength, self.temperature, self.t_squared, self.weighting = strength, temperature, t_squared, weighting

    def setup(self, learner: Learner) -> None:
        if learner.stream.loss == "mse":
            raise ValueError(f"{self.name}: regression has no class probabilities to distil; use strategy=fdr")
        self.teacher = Net(tree.copy(learner.params), tree.copy(learner.buffers), learner.apply)

    def batch(self, learner: Learner, batch: Batch) -> Batch:
        if not learner.now:
            return batch
        with torch.no_grad():
            old = self.teacher(batch.x, batch.t).logits
        w = batch.w / (learner.now + 1) if self.weighting == "share" else batch.w
        return replace(batch, w=w).carry(lwf=old)

    def loss(self, learner: Learner, params: Params, batch: Batch, out: Out) -> Tensor | float:
        if "lwf" not in batch.extra:
            return 0.0
        T, k, old = self.temperature, learner.now + 1, batch.extra["lwf"]
        b = {"tasks": k - 1, "fixed": 1, "share": 1 - 1 / k}[self.weighting]
        kl = divergence(old / T, out.logits[:, : old.shape[1]] / T, heads(learner))
        return b * self.strength * (T**2 if self.t_squared else 1) * kl.mean((1, 2))

    def end(self, learner: Learner, task: Task) -> None:
        self.teacher = Net(tree.copy(learner.params), tree.copy(learner.buffers), learner.apply)


def heads(learner: Learner) -> Tensor:
    """Outputs of each old head: [S or 1, 1, heads, C]."""
    masks = learner.stream.masks
    if masks is None:
        return torch.ones(1, 1, 1, learner.stream.outputs, dtype=torch.bool, device=learner.device)
    old = masks[:, : learner.now]
    return (old if learner.stream.scenario == "task" else old.any(1, keepdim=True))[:, None]


def divergence(old: Tensor, new: Tensor, heads: Tensor) -> Tensor:
    """KL(softmax(old) | softmax(new)) of each row in each head: [S, B, heads]."""
    p, q = (z[:, :, None].masked_fill(~heads, -torch.inf).log_softmax(-1) for z in (old, new))
    return (p.exp() * (p - q).masked_fill(~heads, 0)).sum(-1)
