"""Saha, Garg & Roy (2021), Gradient projection memory for continual learning, ICLR."""

import torch

from harness import rows, tree
from harness.learner import Learner
from harness.strategy import CONSTRAIN, ESTIMATE, Strategy
from harness.toolbox import require
from harness.toolbox.projection import constrain, free, layer_inputs
from harness.types import BEFORE, Step, Task


class GPM(Strategy):
    """GPM: each layer's weights move only orthogonally to (most of) its past inputs (Saha 2021).

        update of W <- update (I - M Mᵀ),   M: orthonormal, [fan in, directions kept]

    After a task, with C = Σ r rᵀ over the layer's inputs r at `samples` training rows (patches of a convolution), the
    leading eigenvectors of C^ = (I - M Mᵀ) C (I - M Mᵀ) join M, as few as needed for M to cover the share (threshold +
    growth per task) of tr C. Then W r is constant for r in the span of M. By induction over layers, so is the net's
    output at rows whose inputs all lie in it; other outputs change by the remainder. Parameters other than layer
    weights stay fixed after the first task. With a head per task, its outputs move freely in that task only.
    Memory: fan in squared for each layer.

    Differences from the paper:
    * The update is projected, not the gradient: the same for SGD, which the paper uses, and correct for others. The
      code stops one direction short of the threshold after the first task. Batch-norm statistics keep moving.
    """

    family = "optimization-based"
    needs = frozenset({BEFORE})
    order = {"step": CONSTRAIN, "end": ESTIMATE}
    grid = {"threshold": (0.9, 0.95, 0.97, 0.99)}  # the authors' are .95 to .99

    def __init__(self, *, threshold: float, growth: float, samples: int) -> None:
        require.within("[0, 1]", threshold=threshold)
        require.at_least(0, growth=growth)
        require.at_least(1, samples=samples)
        self.threshold, self.growth, self.samples = threshold, growth, samples

    def setup(self, learner: Learner) -> None:
        self.allowed = free(learner, self.name, bias=False)  # I - M Mᵀ

    def step(self, learner: Learner, step: Step) -> None:
        if learner.now:
            constrain(learner, step.before, self.allowed)

    @torch.no_grad()
    def end(self, learner: Learner, task: Task) -> None:
        C = {k: torch.zeros_like(v, dtype=torch.float64) for k, v in self.allowed.items()}
        position = rows.order(self.random.key(), task.train.size, 0, min(self.samples, task.rows))
        for found in layer_inputs(learner, task, position, 64, bias=False):
            C = tree.add(C, {k: r.flatten(1, 2).double().mT @ r.flatten(1, 2).double() for k, r in found.items()})
        share = self.threshold + self.growth * task.index
        for k, c in C.items():
            c = c.nan_to_num(0, 0, 0)  # a diverged seed must not break the decomposition of the others
            total, Q = c.diagonal(dim1=1, dim2=2).sum(1, keepdim=True), self.allowed[k].double()
            values, M = torch.linalg.eigh(Q @ c @ Q)
            values, M = values.flip(1).clamp_min(0), M.flip(2)
            held = total - values.sum(1, keepdim=True) + values.cumsum(1) - values  # before each direction
            keep = (held < (share - 1e-12) * total) & (values > 1e-12 * total)
            self.allowed[k] = (Q - (M * keep[:, None]) @ M.mT).to(learner.dtype)
