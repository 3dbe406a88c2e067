"""Marouf, Roy, Tartaglione & Lathuilière (2024), Weighted ensemble models are strong continual learners, ECCV."""

import torch

from harness import tree
from harness.landscape import paths
from harness.landscape.fisher import KINDS, diagonal
from harness.learner import Learner
from harness.strategy import EDIT, Strategy
from harness.toolbox import require
from harness.types import Task


class CoFiMA(Strategy):
    """CoFiMA: after each task, a Fisher-weighted average with the last boundary's weights (Marouf 2024).

        θ <- [(1 - a) F_prev θ_prev + a F θ] / [(1 - a) F_prev + a F],   a = weight_new

    θ_prev is the merged net of the last boundary, F the diagonal Fisher information of the net trained on this task,
    F_prev that of the last one. Training continues from the merged net; the first task's net is unchanged. With F = 1
    it is CoMA, here `interpolate`. Batch-norm statistics are re-estimated on the task's rows. Memory: two copies.

    Differences from the paper:
    * If both F are 0 the new weight is kept; the authors' code divides 0 by 0. The read-out of a new class has F = 0
      in the old net, so the new one is kept; their code makes it F θ.
    * F is per sample (harness.landscape.fisher), theirs uses means over batches in training mode. They clip it at 1e-4
      on that scale; `clip` is on this one.
    * They start from a pretrained net and calibrate the classifier after each merge; here neither is done.
    """

    name = "cofima"
    family = "optimization-based"
    order = {"end": EDIT}
    grid = {"weight_new": (0.2, 0.4, 0.5, 0.8)}  # 0.4 and 0.5 are the paper's

    def __init__(self, *, weight_new: float, fisher: str, samples: int | None, clip: float | None) -> None:
        require.within("[0, 1]", weight_new=weight_new)
        require.one_of(KINDS, fisher=fisher)
        require.at_least(1, null="all training rows", samples=samples)
        require.above(0, null="none", clip=clip)
        self.weight_new, self.fisher, self.samples, self.clip = weight_new, fisher, samples, clip

    def setup(self, learner: Learner) -> None:
        self.previous, self.weight = tree.copy(learner.params), tree.zeros(learner.params)

    @torch.no_grad()
    def end(self, learner: Learner, task: Task) -> None:
        new = diagonal(learner, task.train, self.fisher, self.random, samples=self.samples)
        if self.clip is not None:
            new = {k: f.clamp(max=self.clip) for k, f in new.items()}
        for k, f in new.items():
            ratio = paths.share(self.weight_new * f, (1 - self.weight_new) * self.weight[k])
            learner.params[k].copy_(self.previous[k].lerp(learner.params[k], ratio))
        if task.index:
            learner.buffers = paths.remeasure(learner, learner.params, task, self.random)
        self.previous, self.weight = tree.copy(learner.params), new
