"""Wortsman et al. (2022), Robust fine-tuning of zero-shot models, CVPR; at every boundary: Marouf et al. (2024),
Weighted ensemble models are strong continual learners, ECCV.
"""

import torch
from torch import Tensor

from harness import tree
from harness.landscape import paths
from harness.learner import Learner
from harness.strategy import EDIT, Strategy
from harness.toolbox import require
from harness.types import Params, Task


class Interpolate(Strategy):
    """Weight interpolation: after each task the net moves back towards the last boundary's (Wortsman et al. 2022).

        θ <- (1 - weight_new) θ_prev + weight_new θ,   θ_prev: the merged net of the last boundary

    WiSE-FT applied at every boundary, as CoMA does (Marouf et al. 2024); training goes on from the merged
    net. It helps where the line from θ_prev to θ is free of a barrier. The first task's net is kept as it is.

    Batch-norm statistics do not interpolate: they are measured anew on the task's training rows.

    Read-out rows of outputs that compete for the first time are kept: they have no earlier value (as in CoMA's code).

    Differences from the paper:
    * WiSE-FT merges once, a zero-shot with a fine-tuned net, and keeps both; here they are the nets of two boundaries.
    * The optimizer's state is that of the unmerged net; `optimizer.reset=true` drops it.
    """

    family = "optimization-based"
    order = {"end": EDIT}
    grid = {"weight_new": (0.1, 0.3, 0.5, 0.8)}  # WiSE-FT looks at 0 to 1

    def __init__(self, *, weight_new: float) -> None:
        require.within("[0, 1]", weight_new=weight_new)
        self.weight_new = weight_new
        self.previous: Params | None = None
        self.trained: dict[str, Tensor] = {}  # read-out rows that some earlier task trained; empty: all

    @torch.no_grad()
    def end(self, learner: Learner, task: Task) -> None:
        if self.previous is not None and self.weight_new < 1:
            merged = tree.lerp(self.previous, learner.params, self.weight_new)
            for k, known in self.trained.items():
                merged[k] = torch.where(known, merged[k], learner.params[k])
            tree.assign(learner.params, merged)
            learner.buffers = paths.remeasure(learner, learner.params, task, self.random)
        self.previous = tree.copy(learner.params)
        now = paths.competing(learner)
        self.trained = {k: v | self.trained[k] if k in self.trained else v for k, v in now.items()}
