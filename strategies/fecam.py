"""Goswami, Liu, Twardowski & van de Weijer (2023), FeCAM: exploiting the heterogeneity of class distributions in
exemplar-free continual learning, NeurIPS. Code: dipamgoswami/FeCAM, d2479b7.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.learner import Learner
from harness.strategy import HOLD, READOUT, Strategy
from harness.toolbox import class_means, fixed_features, require
from harness.toolbox.fixed_features import FixedFeatures
from harness.toolbox.moments import ClassScatter, Means
from harness.types import Model, Net, Stream, Task


class FeCAM(Strategy):
    """FeCAM: nearest class mean in each class's own Mahalanobis distance (Goswami et al. 2023).

        u = T(z),  T(z) = sign(z) |z|^power (Tukey's transform),   Σ_c = covariance of u over the rows of class c
        Σ'_c = Σ_c + shrinkage [V₁ I + V₂ (1 - I)],   V₁, V₂: mean of the diagonal, of the other entries of Σ_c
        R_c = Σ'_c / (σ σᵀ), σ² the diagonal of Σ'_c   (a correlation matrix: distances of classes compare)
        logit_c = -dᵀ R_c⁻¹ d,   d = u / |u| - m_c / |m_c|,   m_c = T(mean of z over the rows of class c)

    z: features that no longer change (harness.toolbox.fixed_features), by default the inputs, which are the features of
    a pretrained network with `dataset.features`; features=frozen trains the run's net on the first task, as in the
    paper's experiments without a pretrained net. The statistics are exact over all rows, whatever the order of tasks.

    The features of a net that ends with a ReLU are not negative, and the transform makes them less skewed;
    `dataset.normalise=none` keeps them so. The paper uses power 0.5 and shrinkage 1, and 100 with few rows a class.

    Stores two means and a D x D matrix in float64 for every class, and factorises each at an evaluation.

    Differences from the paper:
    * Vectors are scaled to length 1 and the mean is transformed, as in its code.
    * One shrinkage for V₁ and V₂, which are equal in all its experiments. The code shrinks every matrix twice, and
      leaves entries of exactly 0 out of V₂.
    * Negative features keep their sign; the paper leaves the transform out where features can be negative.
    * The inverse is exact; the code's is a pseudo-inverse.
    * A class with one row has the identity. A class without rows is predicted only if no other competes.
    """

    name = "fecam"
    family = "template-based"
    order = {"begin": HOLD, "deploy": READOUT}
    grid = {"shrinkage": (0.1, 1.0, 10.0, 100.0)}  # the paper's 1 and 100, and between them

    def __init__(self, *, features: str, power: float, shrinkage: float) -> None:
        require.one_of(fixed_features.SOURCES, features=features)
        require.within("(0, 1]", power=power)
        require.above(0, shrinkage=shrinkage)
        self.features, self.power, self.shrinkage = features, power, shrinkage

    def remarks(self, stream: Stream, model: Model) -> list[str]:
        return fixed_features.remarks(self.features, stream, model, self.name)

    def setup(self, learner: Learner) -> None:
        self.fixed = FixedFeatures(learner, self.features, self.name)
        size = (learner.S, learner.stream.outputs, self.fixed.width, learner.device)
        self.plain, self.moments = Means(*size), ClassScatter(*size)  # of z, and of T(z)

    def begin(self, learner: Learner, task: Task) -> Task:
        return self.fixed.begin(task)

    def end(self, learner: Learner, task: Task) -> None:
        self.fixed.end(learner, task)
        for batch in learner.scan(task.train):
            z, w = self.fixed(batch.x, batch.t), (batch.w > 0).double()
            self.plain.add(z, batch.y, w)
            self.moments.add(self.tukey(z), batch.y, w)

    def tukey(self, z: Tensor) -> Tensor:
        """sign(z) |z|^power."""
        return z.sign() * z.abs() ** self.power

    @torch.no_grad()
    def deploy(self, learner: Learner, net: Net) -> Net:
        count = self.plain.count
        if not bool(count.sum()):
            return net
        seen = [c for c in range(count.shape[1]) if bool(count[:, c].any())]
        factor = {c: self.factor(c).to(learner.dtype) for c in seen}
        centre = F.normalize(self.tukey(self.plain.mean), dim=-1).to(learner.dtype)

        def logits(z: Tensor) -> Tensor:
            u = F.normalize(self.tukey(z), dim=-1)
            out = u.new_full((*u.shape[:2], count.shape[1]), -class_means.FAR)
            for c in seen:
                d = u - centre[:, c, None]
                out[:, :, c] = -torch.linalg.solve_triangular(factor[c], d.mT, upper=False).square().sum(1)
            return out.masked_fill((count == 0)[:, None], -class_means.FAR)

        return self.fixed.readout(learner, net, logits, probabilistic=False)

    def factor(self, c: int) -> Tensor:
        """L with L Lᵀ = R_c of a class: [S, D, D]; NaN for a seed whose R_c is not positive definite or finite."""
        factor, failed = torch.linalg.cholesky_ex(correlation(self.moments.covariance(c), self.shrinkage))
        made: Tensor = factor.masked_fill((failed != 0)[:, None, None], math.nan)
        return made


def correlation(covariance: Tensor, shrinkage: float) -> Tensor:
    """The correlation matrix of a shrunk covariance [S, D, D]; the identity where there is no variance."""
    D = covariance.shape[1]
    eye = torch.eye(D, dtype=covariance.dtype, device=covariance.device)
    diagonal = covariance.diagonal(dim1=1, dim2=2).sum(1)
    others = covariance.sum((1, 2)) - diagonal
    v1, v2 = diagonal / D, others / max(D * (D - 1), 1)
    made = covariance + shrinkage * (v1[:, None, None] * eye + v2[:, None, None] * (1 - eye))
    sd = made.diagonal(dim1=1, dim2=2).sqrt()
    flat = sd == 0
    sd = sd.masked_fill(flat, 1)
    return made / (sd[:, :, None] * sd[:, None]) + torch.diag_embed(flat.to(made.dtype))
