"""Prabhu, Sinha, Kumaraguru, Torr, Sener & Dokania (2024), Random representations outperform online continually learned
representations (RanDumb), NeurIPS. Code: drimpossible/RanDumb, 14a51ee.
"""

import math

import torch
from torch import Tensor

from harness import rng
from harness.learner import Learner
from harness.strategy import HOLD, READOUT, Strategy
from harness.toolbox import class_means, fixed_features, require, solve
from harness.toolbox.fixed_features import FixedFeatures
from harness.toolbox.moments import SharedScatter
from harness.types import Model, Net, Stream, Task


class RanDumb(Strategy):
    """RanDumb: nearest class mean of decorrelated random Fourier features (Prabhu et al. 2024).

        h = √(2 / M) cos(z Ω + b),   Ω_ij ~ N(0, 2 gamma / D),   b_j ~ U(0, 2π), drawn once
        logit_c = w_c h - ½ w_c μ_c,   w_c = Λ μ_c,   Λ = [(1 - s) Σ + s (tr Σ / M) I]⁻¹

    h hᵀ approximates the kernel exp(-gamma / D |z - z'|²) (Rahimi & Recht 2007). μ_c is the mean of class c, Σ the
    covariance within classes, both exact over all rows seen, whatever the order of tasks. s is the shrinkage of Chen,
    Wiesel, Eldar & Hero (2010), computed from Σ and the number of rows: nothing is learned and nothing tuned. It tells
    what a trained representation adds to a random one.

    z: features that no longer change (harness.toolbox.fixed_features), by default the inputs: pixels, as in the paper,
    or the features of a pretrained network with `dataset.features`. gamma=1 is scikit-learn's gamma=scale for inputs of
    variance 1, as dataset.normalise=standard makes them.

    Stores the projection, C means and an M x M matrix in float64 (at 2000: 32 MB for each seed).

    Differences from the paper:
    * M = 2000 projected features by default; the paper has 25,000, which takes 156 times the memory.
    * No mirrored images.
    * The covariance is pooled before it is shrunk; the code shrinks each class's and averages them. It weights classes
      by their frequency; here all classes weigh the same.
    * A class without rows is predicted only if no other competes.
    """

    name = "randumb"
    family = "template-based"
    order = {"begin": HOLD, "deploy": READOUT}
    grid = {"gamma": (0.03, 0.1, 0.3, 1.0)}  # scikit-learn's scale, and wider kernels

    def __init__(self, *, features: str, projected: int, gamma: float) -> None:
        require.one_of(fixed_features.SOURCES, features=features)
        require.at_least(1, projected=projected)
        require.above(0, gamma=gamma)
        self.features, self.projected, self.gamma = features, projected, gamma

    def remarks(self, stream: Stream, model: Model) -> list[str]:
        return fixed_features.remarks(self.features, stream, model, self.name)

    def setup(self, learner: Learner) -> None:
        self.fixed = FixedFeatures(learner, self.features, self.name)
        D, M = self.fixed.width, self.projected
        self.frequency = rng.normal(self.random.key(), D, M, dtype=learner.dtype) * math.sqrt(2 * self.gamma / D)
        self.phase = 2 * math.pi * rng.uniform(self.random.key(), 1, M, dtype=learner.dtype)
        self.moments = SharedScatter(learner.S, learner.stream.outputs, M, learner.device)
        self.weight = self.moments.mean.new_zeros(learner.S, learner.stream.outputs, M)

    def begin(self, learner: Learner, task: Task) -> Task:
        return self.fixed.begin(task)

    def end(self, learner: Learner, task: Task) -> None:
        self.fixed.end(learner, task)
        for batch in learner.scan(task.train):
            h = self.fourier(self.fixed(batch.x, batch.t))
            self.moments.add(h, batch.y, (batch.w > 0).double())
        self.weight = solve.solve(shrunk(self.moments.covariance, self.moments.count.sum(1)), self.moments.mean.mT).mT

    def fourier(self, z: Tensor) -> Tensor:
        """Random Fourier features: [S, B, D] -> [S, B, M]."""
        angle = z @ self.frequency.to(z.dtype) + self.phase.to(z.dtype)
        return math.sqrt(2 / self.projected) * angle.cos()

    def deploy(self, learner: Learner, net: Net) -> Net:
        count = self.moments.count
        if not bool(count.sum()):
            return net
        bias = (-0.5 * (self.weight * self.moments.mean).sum(2)).masked_fill(count == 0, -class_means.FAR)
        weight, bias = self.weight.to(learner.dtype), bias.to(learner.dtype)
        return self.fixed.readout(
            learner, net, lambda z: self.fourier(z) @ weight.mT + bias[:, None], probabilistic=True
        )


def shrunk(covariance: Tensor, n: Tensor) -> Tensor:
    """Oracle-approximating shrinkage (Chen et al. 2010, eq. 23) of covariances [S, M, M] of n [S] rows.

    s = (a + m²) / [(n + 1) (a - m² / M)], at most 1;  a: mean of the squared entries, m: mean of the diagonal. As
    in scikit-learn's `oas`, which leaves out the terms of order 1 / M.
    """
    M = covariance.shape[1]
    eye = torch.eye(M, dtype=covariance.dtype, device=covariance.device)
    a, m = covariance.square().mean((1, 2)), covariance.diagonal(dim1=1, dim2=2).mean(1)
    below = (n + 1) * (a - m.square() / M)
    s = torch.where(below > 0, (a + m.square()) / below.clamp_min(torch.finfo(a.dtype).tiny), 1.0).clamp(max=1.0)
    return (1 - s)[:, None, None] * covariance + (s * m)[:, None, None] * eye
