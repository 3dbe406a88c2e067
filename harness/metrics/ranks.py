"""How many directions the features use: five numbers from the spectrum of a feature matrix, each with its own name.

"Stable rank" and "rank" mean different things in different papers; every function here states its formula. All are 0
for the zero matrix, and NaN if the features are not finite.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from harness.landscape.curvature import rowwise
from harness.types import Column

COLUMNS: dict[str, Column] = {
    "effective_rank": Column("", "dimensions", "exp of the entropy of the last features' singular values", "train"),
    "srank_99": Column("", "dimensions", "fewest singular values with 99 % of their sum (Kumar et al. 2021)", "train"),
    "approx_rank_99": Column("", "dimensions", "fewest squared singular values with 99 % of their sum", "train"),
    "stable_rank_true": Column("", "dimensions", "sum of squared singular values over the largest squared", "train"),
    "participation_ratio": Column("", "dimensions", "(tr C)^2 / tr C^2, C the covariance of the features", "train"),
}


def feature_ranks(act: Tensor) -> dict[str, Tensor]:
    """Every metric of this file for activations [S, rows, units, ...]: name -> [S]."""
    sigma = singular_values(act)
    return {
        "effective_rank": effective_rank(sigma),
        "srank_99": srank(sigma, 0.99),
        "approx_rank_99": srank(sigma.square(), 0.99),
        "stable_rank_true": stable_rank(sigma),
        "participation_ratio": participation_ratio(flat(act)),
    }


def flat(act: Tensor) -> Tensor:
    """Features [S, rows, units] in float64, averaged over space."""
    return act.double().flatten(3).mean(3) if act.dim() > 3 else act.double()


def singular_values(act: Tensor) -> Tensor:
    """Singular values, descending, of the features [rows, units], uncentred, averaged over space: [S, r] float64."""
    return rowwise(lambda x: (torch.linalg.svdvals(x),), flat(act))[0]


def effective_rank(sigma: Tensor) -> Tensor:
    """exp(-sum p log p), p = sigma / sum sigma: [S, r] -> [S], in [1, r]; 0 for the zero matrix.

    Roy & Vetterli (2007).

    >>> effective_rank(torch.tensor([[2.0, 2.0, 0.0], [5.0, 0.0, 0.0], [0.0, 0.0, 0.0]]))
    tensor([2., 1., 0.])
    """
    total = sigma.sum(1)
    p = sigma / total[:, None]
    return torch.where(total == 0, 0, torch.special.entr(p).sum(1).exp())


def srank(sigma: Tensor, share: float) -> Tensor:
    """Fewest leading values whose sum is at least `share` of all: [S, r] -> [S]; 0 for the zero matrix.

    For singular values and share = 0.99 it is srank_0.01 of Kumar et al. (2021), which Dohare et al. (2024) call the
    stable rank; for their squares (the features' energy) it is the approximate rank that they also report.

    >>> sigma = torch.tensor([[98.0, 1.5, 0.5], [50.0, 49.0, 1.0], [0.0, 0.0, 0.0]])
    >>> srank(sigma, 0.99), srank(sigma.square(), 0.99)
    (tensor([2., 2., 0.]), tensor([1., 2., 0.]))
    """
    total = sigma.sum(1)
    count = (sigma.cumsum(1) < share * total[:, None]).sum(1).to(sigma) + 1
    return torch.where(total == 0, 0, count).masked_fill(total.isnan(), math.nan)


def stable_rank(sigma: Tensor) -> Tensor:
    """sum sigma^2 / max sigma^2: [S, r] -> [S], in [1, r]; 0 for the zero matrix.

    >>> stable_rank(torch.tensor([[2.0, 1.0], [0.0, 0.0]]))
    tensor([1.2500, 0.0000])
    """
    energy = sigma.square()
    return torch.where(energy[:, 0] == 0, 0, energy.sum(1) / energy[:, 0])


def participation_ratio(features: Tensor) -> Tensor:
    """(sum lambda)^2 / sum lambda^2 over the eigenvalues of the features' covariance: [S, n, d] -> [S], in [1, d].

    Centred, unlike the others: constant features do not count. 0 if all features are constant.
    Gao et al. (2017), A theory of multineuronal dimensionality.

    >>> square = torch.tensor([[[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]]])  # equal variances
    >>> participation_ratio(torch.cat([square, square * torch.tensor([1.0, 0.0]) + 5, 0 * square]))
    tensor([2., 1., 0.])
    """
    x = features - features.mean(1, keepdim=True)
    gram = x @ x.mT if x.shape[1] < x.shape[2] else x.mT @ x  # the same eigenvalues except zeros
    total = gram.diagonal(dim1=1, dim2=2).sum(1)
    return torch.where(total == 0, 0, total.square() / gram.square().sum((1, 2)))
