"""Rolnick, Ahuja, Schwarz, Lillicrap & Wayne (2019), Experience replay for continual learning, NeurIPS; Chaudhry et al.
(2019), On tiny episodic memories in continual learning, arXiv 1902.10486.
"""

from dataclasses import replace

import torch
from torch import Tensor

from harness import rows
from harness.learner import Learner
from harness.strategy import APPEND, Strategy
from harness.toolbox import require
from harness.toolbox.memory import POLICIES, Memory
from harness.types import Batch, Step, Task, cat

WEIGHTINGS = ("sum", "mean", "share")
FILLS = ("step", "end")


class Replay(Strategy):
    """Experience replay: add rows of a small memory to every batch (Rolnick 2019; Chaudhry 2019).

        L = a mean_fresh(nll) + b mean_memory(nll)

        weighting=sum     a = 1,            b = 1
        weighting=mean    a = B / (B + k),  b = k / (B + k)    one mean over B fresh and k replayed rows (Chaudhry)
        weighting=share   a = 1 / t,        b = 1 - 1 / t      t tasks so far (van de Ven, Tuytelaars & Tolias 2022)

    fill=step adds each fresh batch to the memory after its update, as in online replay: from the second
    step on, the first task replays its own rows. fill=end adds a task's rows at its end: only past tasks
    are replayed, as in van de Ven's protocols (with weighting=share and class_balanced).
    Replayed rows keep their task id and compete under the current task's mask.

    Memory: capacity rows per seed. Each step trains on up to batch_size additional rows.

    Differences from the papers:
    * While the memory has fewer rows than batch_size, all of them are replayed once (as in DER's code).
    * fill=end adds all rows of the task, once each, in random order.
    * With class_balanced, classes are outputs: tasks that share their outputs share one quota.
    * policy=ring has a queue for each class of each task, as in Chaudhry's ring (for regression, for each task);
      for their lengths see harness.toolbox.memory.
    """

    family = "replay"
    order = {"batch": APPEND}
    grid = {"weighting": ("sum", "mean", "share")}  # sources differ in it; capacity and batch_size are the budget

    def __init__(
        self, *, capacity: int, batch_size: int, policy: str, weighting: str, fill: str, replacement: bool
    ) -> None:
        require.at_least(1, capacity=capacity, batch_size=batch_size)
        require.one_of(POLICIES, policy=policy)
        require.one_of(WEIGHTINGS, weighting=weighting)
        require.one_of(FILLS, fill=fill)
        self.capacity, self.batch_size, self.policy = capacity, batch_size, policy
        self.weighting, self.fill, self.replacement = weighting, fill, replacement

    @property
    def needs_boundaries(self) -> bool:
        return self.fill == "end" or self.weighting == "share" or self.policy == "ring"

    def setup(self, learner: Learner) -> None:
        if self.policy == "class_balanced" and learner.stream.loss == "mse":
            raise ValueError("policy=class_balanced: regression has no classes; use policy=reservoir")
        self.memory = Memory(self.capacity, self.policy, self.random)

    def batch(self, learner: Learner, batch: Batch) -> Batch:
        if not len(self.memory):
            return batch
        held = learner.make_batch(**self.memory.sample(self.batch_size, replacement=self.replacement))
        a, b = self.weights(batch.w.shape[1], held.w.shape[1], learner.now + 1)
        if a != 1:
            batch = replace(batch, w=batch.w * a)
        return cat(batch, held if b == 1 else replace(held, w=held.w * b)).batch

    def weights(self, fresh: int, held: int, tasks: int) -> tuple[float, float]:
        """a and b."""
        if self.weighting == "sum":
            return 1.0, 1.0
        a = fresh / (fresh + held) if self.weighting == "mean" else 1 / tasks
        return a, 1 - a

    def step(self, learner: Learner, step: Step) -> None:
        if self.fill == "step":
            self.offer(learner, step.fresh.x, step.fresh.y, step.fresh.t)

    def end(self, learner: Learner, task: Task) -> None:
        if self.fill == "end":
            for position in rows.order(self.random.key(), task.train.size, 0, task.rows).split(1000, 1):
                self.offer(learner, *task.train.take(position))

    def offer(self, learner: Learner, x: Tensor, y: Tensor, t: Tensor) -> None:
        queue = {}
        if self.policy == "ring":
            queue["queue"] = learner.now * learner.stream.outputs + (y if y.dim() == 2 else torch.zeros_like(t))
        self.memory.add(x=x, y=y, t=t, **queue)
