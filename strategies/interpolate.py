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
    """Weight interpolation: after each task, move back towards the net of the last boundary (Wortsman et al. 2022).

        θ <- (1 - weight_new) θ_prev + weight_new θ,   θ_prev: the merged net of the last boundary

    WiSE-FT applied at every boundary, as CoMA does (Marouf et al. 2024); training continues from the merged
    net. It helps if the line from θ_prev to θ has no barrier. The first task's net is unchanged.

    Batch-norm statistics are not interpolated but re-estimated on the task's training rows.

    Read-out rows of outputs that compete for the first time are unchanged: they have no earlier value (as in CoMA's
    code).

    Differences from the paper:
    * WiSE-FT merges a zero-shot and a fine-tuned net once, and keeps both; here the nets of two boundaries are merged.
    * The optimizer keeps the state of the unmerged net; `optimizer.reset=true` clears it.
    """

    family = "optimization-based"
    order = {"end": EDIT}
    grid = {"weight_new": (0.1, 0.3, 0.5, 0.8)}  # WiSE-FT tries 0 to 1

    def __init__(self, *, weight_new: float) -> None:
        require.within("[0, 1]", weight_new=weight_new)
        self.weight_new = weight_new
        self.previous: Params | None = None
        self.trained: dict[str, Tensor] = {}  # read-out rows trained by an earlier task; empty: all

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
