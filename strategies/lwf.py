"""Li & Hoiem (2017), Learning without forgetting, TPAMI 40; weightings of van de Ven & Tolias (2018),
arXiv:1809.10635, and van de Ven, Tuytelaars & Tolias (2022), Three types of incremental learning, Nature Machine
Intelligence 4, with their code (GMvandeVen/continual-learning, e6d795a).
"""

from dataclasses import replace

import torch
from torch import Tensor

from harness import tree
from harness.learner import Learner
from harness.strategy import READ, Strategy
from harness.toolbox import require
from harness.types import Batch, Net, Out, Params, Task

WEIGHTINGS = ("heads", "tasks", "share")
STUDENTS = ("old", "competing")


class LwF(Strategy):
    """Learning without forgetting: keep the old outputs on new inputs (Li & Hoiem 2017).

        L = a nll + b strength mean_x mean_heads KL(softmax(z*/T) | softmax(z/T))      z*: logits of the last task's net

        weighting=heads    a = 1,      b = number of old heads    a sum over them (Li & Hoiem)
        weighting=tasks    a = 1,      b = k - 1                  k tasks, this one included
        weighting=share    a = 1 / k,  b = 1 - 1 / k              van de Ven & Tolias

    A head is the set of outputs in one softmax: for scenario=task the outputs of each old task, all on the new
    inputs; for domain all outputs; for class it depends on `student`:

        student=old          teacher and student: the classes of the old tasks
        student=competing    teacher: the classes that competed in the last task; student: those that compete now.
                             A new class has target 0. With classes=all both are all outputs.

    The teacher is frozen, in evaluation mode. Rows appended by earlier strategies in the list are distilled too.
    t_squared multiplies the KL by T². The sources, each with T = 2:

        source                     weighting                        student      t_squared   strength
        Li & Hoiem 2017            heads                            old          false       1
        van de Ven & Tolias 2018   share                            competing    true        1
        van de Ven et al. 2022     tasks (task, domain), heads      competing    false       1
        mammoth (e75a491)          heads                            old          false       0.5

    Memory: one copy of the net; one more forward pass per step.

    Differences from the papers:
    * KL instead of cross-entropy: the same gradient, and 0 at the teacher if both softmaxes have the same outputs.
    * Heads of future tasks share the net from the start; no warm-up phase trains only the new head.
    * Mammoth has one softmax over all old classes in scenario=task too.
    """

    name = "lwf"
    family = "functional regularization"
    order = {"batch": READ}
    grid = {"strength": (0.3, 1.0, 3.0, 10.0)}  # half orders of magnitude around Li & Hoiem's 1

    def __init__(self, *, strength: float, temperature: float, t_squared: bool, weighting: str, student: str) -> None:
        require.at_least(0, strength=strength)
        require.above(0, temperature=temperature)
        require.one_of(WEIGHTINGS, weighting=weighting)
        require.one_of(STUDENTS, student=student)
        self.strength, self.temperature, self.t_squared = strength, temperature, t_squared
        self.weighting, self.student = weighting, student

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
        teacher, student = heads(learner, self.student)
        b = {"heads": teacher.shape[2], "tasks": k - 1, "share": 1 - 1 / k}[self.weighting]
        kl = divergence(old / T, out.logits[:, : old.shape[1]] / T, teacher, student)
        return b * self.strength * (T**2 if self.t_squared else 1) * kl.mean((1, 2))

    def end(self, learner: Learner, task: Task) -> None:
        self.teacher = Net(tree.copy(learner.params), tree.copy(learner.buffers), learner.apply)


def heads(learner: Learner, student: str) -> tuple[Tensor, Tensor]:
    """Outputs in the teacher's and in the student's softmax of each old head: [S or 1, 1, heads, C] each."""
    stream, now = learner.stream, learner.now
    if stream.masks is None:
        everything = torch.ones(1, 1, 1, stream.outputs, dtype=torch.bool, device=learner.device)
        return everything, everything
    if stream.scenario == "task":
        old = stream.masks[:, None, :now]
        return old, old
    old, seen = (stream.masks[:, None, :n].any(2, keepdim=True) for n in (now, now + 1))
    if student == "old":
        return old, old
    if stream.classes == "all":
        return torch.ones_like(old), torch.ones_like(old)
    return old, seen


def divergence(old: Tensor, new: Tensor, teacher: Tensor, student: Tensor) -> Tensor:
    """KL(softmax(old) | softmax(new)) of each row in each head, over the outputs that each has there: [S, B, heads].

    The student's outputs include the teacher's.
    """
    p, q = (z[:, :, None].masked_fill(~in_, -torch.inf).log_softmax(-1) for z, in_ in ((old, teacher), (new, student)))
    return (p.exp() * (p - q).masked_fill(~teacher, 0)).sum(-1)
