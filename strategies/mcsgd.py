"""Mirzadeh, Farajtabar, Gorur, Pascanu & Ghasemzadeh (2021), Linear mode connectivity in multitask and continual
learning, ICLR.
"""

from dataclasses import replace

import torch
from torch import Tensor

from harness import rows, tree
from harness.landscape import paths
from harness.learner import Learner
from harness.rows import stratified
from harness.strategy import EDIT, WEIGHTS, Strategy
from harness.toolbox import require
from harness.toolbox.memory import Memory
from harness.types import Batch, Buffers, Net, Params, Task

LINE_GRADS = ("exact", "paper_code")
CONTINUATIONS = ("sequential", "merged")


class MCSGD(Strategy):
    """Mode connectivity SGD: at a boundary, find a point connected to both minima by low-loss lines (Mirzadeh 2021).

        w̄_t = argmin_w mean_a [ L_memory(w̄_{t-1} + a (w - w̄_{t-1})) + L_t(ŵ_t + a (w - ŵ_t)) ],  a = 0, 1/n ... 1

    ŵ_t is the net trained on task t, L_memory the loss on `per_task` rows of each earlier task, L_t that
    on `current` rows of this one. From w̄_{t-1} + init (ŵ_t - w̄_{t-1}), SGD with momentum takes `steps` steps,
    each on batch_size rows of both kinds. The first task's net is unchanged.

    * line_grad=exact: the gradient, in which the point at a has weight a. With n = 1 only the point w counts.
    * line_grad=paper_code: the direction of the authors' code. It does not clear the gradient between points and
      omits the factor a: Σ_s (n + 1 - s) g(point s), largest at the old end, divided by the batch size once more.
    * continue_from=sequential: w̄ is deployed, and task t + 1 starts from ŵ_t (the authors' code).
    * continue_from=merged: task t + 1 starts from w̄_t (CL-Gym's version).

    Memory: per_task rows of every task, three copies of the parameters. Time: 2 (n + 1) gradients per merging step.

    Differences from the paper:
    * The mean over the points, not their sum: lr does not depend on n.
    * `steps` joint steps. The authors' code makes one pass over two lists of batches, and the longer list
      continues alone; L_memory is over earlier tasks, as in the paper, while the code's list includes this task.
    * Memory rows are stratified by class.
    * Along the line, nets without batch norm are in evaluation mode (no dropout). Nets with batch norm use batch
      statistics, as the authors' nets do (which have no running ones); w̄'s running ones are estimated afterwards.
    * ŵ is trained with the run's optimizer; in the paper with Stable SGD, with dropout and a decay per task.
    """

    family = "optimization-based"
    order = {"end": EDIT, "deploy": WEIGHTS}
    grid = {"lr": (0.005, 0.015, 0.05, 0.15)}  # factors of three around the default

    def __init__(
        self,
        *,
        per_task: int,
        current: int,
        batch_size: int,
        steps: int,
        lr: float,
        momentum: float,
        points: int,
        init: float,
        line_grad: str,
        continue_from: str,
    ) -> None:
        require.at_least(1, per_task=per_task, current=current, batch_size=batch_size, steps=steps, points=points)
        require.above(0, lr=lr)
        require.within("[0, 1]", momentum=momentum, init=init)
        require.one_of(LINE_GRADS, line_grad=line_grad)
        require.one_of(CONTINUATIONS, continue_from=continue_from)
        self.per_task, self.current, self.batch_size, self.steps = per_task, current, batch_size, steps
        self.lr, self.momentum, self.points, self.init = lr, momentum, points, init
        self.line_grad, self.continue_from = line_grad, continue_from

    def setup(self, learner: Learner) -> None:
        self.memory = Memory(self.per_task * len(learner.stream.tasks), "reservoir", self.random)  # never overflows
        self.merged: Params | None = None
        self.buffers: Buffers = {}

    def end(self, learner: Learner, task: Task) -> None:
        if self.merged is None:
            self.merged, self.buffers = tree.copy(learner.params), tree.copy(learner.buffers)
        else:
            self.merged = self.merge(learner, self.merged, tree.copy(learner.params), task)
            self.buffers = paths.remeasure(learner, self.merged, task, self.random)
        self.memory.add(**self.pick(learner, task, self.per_task))
        if self.continue_from == "merged":
            tree.assign(learner.params, self.merged)
            learner.buffers = tree.copy(self.buffers)

    def deploy(self, learner: Learner, net: Net) -> Net:
        if self.merged is None or self.continue_from == "merged":
            return net
        return Net(self.merged, self.buffers, net.apply)

    def merge(self, learner: Learner, old: Params, new: Params, task: Task) -> Params:
        """w̄ from the last boundary's w̄ and this task's ŵ."""
        here = Memory(self.current, "reservoir", self.random)
        here.add(**self.pick(learner, task, self.current))
        w, velocity = tree.lerp(old, new, self.init), tree.zeros(old)
        for _ in range(self.steps):
            past, now = (self.draw(learner, m) for m in (self.memory, here))
            g = tree.add(self.line(learner, old, w, past), self.line(learner, new, w, now))
            velocity = tree.add(g, velocity, self.momentum)
            w = tree.add(w, velocity, -self.lr)
        return w

    def draw(self, learner: Learner, memory: Memory) -> Batch:
        batch = learner.make_batch(**memory.sample(self.batch_size))
        return replace(batch, key=self.random.key()) if learner.model.stochastic else batch

    def line(self, learner: Learner, start: Params, w: Params, batch: Batch) -> Params:
        """Gradient in w of the mean loss at points + 1 points from `start` to w."""
        n, total = self.points, tree.zeros(w)
        for s in range(n + 1):
            factor = s / n / (n + 1) if self.line_grad == "exact" else (n + 1 - s) / batch.w.shape[1]
            if factor:
                total = tree.add(total, self.gradient(learner, tree.lerp(start, w, s / n), batch), factor)
        return total

    def gradient(self, learner: Learner, point: Params, batch: Batch) -> Params:
        with torch.enable_grad():
            leaves = {k: v.requires_grad_() for k, v in point.items()}
            # batch norm: the running statistics of ŵ would be wrong along the line
            loss, _ = learner.task_loss(leaves, batch, train=bool(learner.buffers))
            return dict(zip(leaves, torch.autograd.grad(loss.sum(), list(leaves.values()))))

    def pick(self, learner: Learner, task: Task, count: int) -> dict[str, Tensor]:
        """Rows of the task, its classes in proportion: fields [S, count, ...]."""
        count = min(count, task.rows)
        candidates = rows.order(self.random.key(), task.train.size, 0, min(task.rows, 50 * count))
        y = task.train.take(candidates)[1]
        label = y if y.dim() == 2 else torch.zeros_like(candidates)  # regression has no classes
        x, y, t = task.train.take(candidates.gather(1, stratified(label, count, self.random.key())))
        return {"x": x, "y": y, "t": t}
