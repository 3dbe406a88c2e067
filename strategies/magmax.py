"""Marczak, Twardowski, Trzciński & Cygert (2024), MagMax: leveraging model merging for seamless continual learning,
ECCV.
"""

import torch

from harness import tree
from harness.landscape import paths
from harness.learner import Learner
from harness.merging.vectors import larger
from harness.strategy import ESTIMATE, RENEW, WEIGHTS, Strategy
from harness.toolbox import require
from harness.types import Net, Task

STARTS = ("last", "initial")


class MagMax(Strategy):
    """MagMax: deploy the initial net plus the largest change of each weight among all tasks (Marczak 2024).

        τ_t = θ_t - θ_0,   τ[j] = τ_t[j] of the task t with the largest |τ_t[j]|, the latest of equal ones
        deployed: θ_0 + scale τ;  after one task: its net as trained

    start=last: task t + 1 starts from θ_t, not from the merged net (sequential fine-tuning, the paper's method).
    start=initial: every task starts from θ_0 with a fresh optimizer; the nets that the run keeps are then independent
    experts from one initialisation. Read-out rows of other tasks have τ = 0 there, so separate heads do not compete.

    Batch-norm statistics are re-estimated on the task's training rows. Memory: four copies of the net.

    Differences from the paper:
    * θ_0 is a pretrained net there, and the run's initialisation here.
    * The paper chooses `scale` on validation rows, after the last task.
    """

    name = "magmax"
    family = "optimization-based"
    order = {"begin": RENEW, "end": ESTIMATE, "deploy": WEIGHTS}
    grid = {"scale": (0.125, 0.25, 0.5, 1.0)}  # their code tries 0.05, 0.1 ... 1

    def __init__(self, *, scale: float, start: str) -> None:
        require.above(0, scale=scale)
        require.one_of(STARTS, start=start)
        self.scale, self.start = scale, start
        self.count = 0  # tasks merged

    def setup(self, learner: Learner) -> None:
        self.initial, self.fresh = tree.copy(learner.params), tree.copy(learner.buffers)
        self.largest = tree.zeros(learner.params)
        self.merged, self.buffers = tree.copy(learner.params), tree.copy(learner.buffers)

    def begin(self, learner: Learner, task: Task) -> Task:
        if task.index and self.start == "initial":
            tree.assign(learner.params, self.initial)
            learner.buffers = tree.copy(self.fresh)
            learner.optimizer.reset()
        return task

    @torch.no_grad()
    def end(self, learner: Learner, task: Task) -> None:
        self.count += 1
        self.largest = larger(self.largest, tree.sub(learner.params, self.initial))
        self.merged = tree.add(self.initial, self.largest, self.scale)
        self.buffers = tree.copy(paths.remeasure(learner, self.merged, task, self.random))

    def deploy(self, learner: Learner, net: Net) -> Net:
        return Net(self.merged, self.buffers, net.apply) if self.count > 1 else net
