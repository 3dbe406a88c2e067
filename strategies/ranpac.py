"""McDonnell, Gong, Parvaneh, Abbasnejad & van den Hengel (2023), RanPAC: random projections and pre-trained models for
continual learning, NeurIPS. Code: RanPAC/RanPAC, 012927f.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from harness import rng, rows
from harness.learner import Learner
from harness.strategy import HOLD, READOUT, Strategy
from harness.toolbox import class_means, fixed_features, require, solve
from harness.toolbox.fixed_features import FixedFeatures
from harness.types import Model, Net, Stream, Task

RIDGES = tuple(10.0**k for k in range(-8, 9))  # those of the paper


class RanPAC(Strategy):
    """RanPAC: ridge regression of the classes on a random projection of fixed features (McDonnell et al. 2023).

        h = relu(z W),  W_ij ~ N(0, 1) drawn once,   G = Σ h hᵀ,   C = Σ h yᵀ,   logits = h (G + ridge I)⁻¹ C

    y is one-hot. G and C are sums over all rows seen: with a given ridge the result is the regression on all rows at
    once, whatever the order of tasks. With ridge=null each task's rows are divided at random, and the ridge
    of 10⁻⁸, 10⁻⁷, ..., 10⁸ is chosen whose regression on the kept rows has the smallest squared error on the held-out
    ones; then all rows are used. The squared error needs only G and C of the held-out rows.

    z: features that no longer change (harness.toolbox.fixed_features), by default the inputs, which are the features of
    a pretrained network with `dataset.features`; features=frozen trains the run's net on the first task, as the paper's
    first phase does with adapters.

    Stores the projection and, for kept and held-out rows each, a projected x projected matrix in float64 (at 2000:
    64 MB for each seed). A boundary solves one such system for each ridge.

    Differences from the paper:
    * 2000 projected features by default; the paper has 10,000, which takes 25 times the memory and 125 times the time.
    * The error is that of the held-out rows of all tasks; the paper's that of the newest task's, with a regression on
      that task's rows alone.
    * A class without rows is predicted only if no other competes.
    * The first phase trains the run's whole net on the first task, instead of adapters in a ViT.
    """

    name = "ranpac"
    family = "template-based"
    order = {"begin": HOLD, "deploy": READOUT}

    def __init__(self, *, features: str, projected: int, ridge: float | None, held_out: float) -> None:
        require.one_of(fixed_features.SOURCES, features=features)
        require.at_least(1, projected=projected)
        require.within("(0, 1)", held_out=held_out)
        if ridge is not None:
            require.above(0, ridge=ridge)
        self.features, self.projected, self.ridge, self.held_out = features, projected, ridge, held_out

    def remarks(self, stream: Stream, model: Model) -> list[str]:
        return fixed_features.remarks(self.features, stream, model, self.name)

    def setup(self, learner: Learner) -> None:
        self.fixed = FixedFeatures(learner, self.features, self.name)
        S, M, C = learner.S, self.projected, learner.stream.outputs
        self.projection = rng.normal(self.random.key(), self.fixed.width, M, dtype=learner.dtype)
        parts = 1 if self.ridge is not None else 2  # kept and held-out rows
        self.gram = torch.zeros(S, parts, M, M, dtype=torch.float64, device=learner.device)
        self.cross = self.gram.new_zeros(S, parts, M, C)
        self.weight = self.gram.new_zeros(S, M, C)
        self.chosen = self.gram.new_zeros(S)  # the ridge in use

    def begin(self, learner: Learner, task: Task) -> Task:
        return self.fixed.begin(task)

    def end(self, learner: Learner, task: Task) -> None:
        self.fixed.end(learner, task)
        n, S = task.rows, learner.S
        held = round(self.held_out * n) if self.ridge is None else 0
        order = rows.order(self.random.key(), task.train.size, 0, n)
        for part, positions in ((1, order[:, :held]), (0, order[:, held:])):
            for position in positions.split(1000, 1):
                x, y, t = task.train.take(position)
                h = self.project(self.fixed(x, t))
                target = F.one_hot(y, self.cross.shape[3]).to(h.dtype)
                if position.shape[1]:
                    self.gram[:, part] += h.mT @ h
                    self.cross[:, part] += h.mT @ target
        self.chosen = self.choose() if self.ridge is None else self.chosen.new_full((S,), self.ridge)
        self.weight = self.regress(self.gram.sum(1), self.cross.sum(1), self.chosen)

    def project(self, z: Tensor) -> Tensor:
        """relu(z W): [S, B, D] -> [S, B, M]."""
        return (z @ self.projection.to(z.dtype)).relu()

    @staticmethod
    def regress(gram: Tensor, cross: Tensor, ridge: Tensor) -> Tensor:
        """(G + ridge I)⁻¹ C: [S, M, M], [S, M, C], [S] -> [S, M, C]."""
        eye = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
        return solve.solve(gram + ridge[:, None, None] * eye, cross)

    def choose(self) -> Tensor:
        """The ridge of each seed with the smallest squared error on held-out rows, the smaller one of equals: [S]."""
        ridges = torch.tensor(RIDGES, dtype=self.gram.dtype, device=self.gram.device)
        errors = []
        for ridge in ridges:
            w = self.regress(self.gram[:, 0], self.cross[:, 0], ridge.expand(len(self.gram)))
            # Σ |h w - y|² without the constant Σ |y|²
            error = ((self.gram[:, 1] @ w) * w).sum((1, 2)) - 2 * (self.cross[:, 1] * w).sum((1, 2))
            errors.append(error.nan_to_num(math.inf))  # rounding made the matrix indefinite
        return ridges[torch.stack(errors).argmin(0)]

    def deploy(self, learner: Learner, net: Net) -> Net:
        seen = self.cross.sum((1, 2)) > 0  # h is not negative
        if not bool(seen.any()):
            return net
        weight = self.weight.to(learner.dtype)

        def logits(z: Tensor) -> Tensor:
            return (self.project(z) @ weight).masked_fill(~seen[:, None], -class_means.FAR)

        return self.fixed.readout(learner, net, logits, probabilistic=False)
