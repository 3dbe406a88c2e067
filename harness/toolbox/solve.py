"""Linear systems of symmetric positive definite matrices, one for each seed."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def solve(a: Tensor, b: Tensor) -> Tensor:
    """x with a x = b: a [S, n, n], b [S, n, k] -> [S, n, k]; NaN for a seed whose a is not positive definite or finite.

    By Cholesky, for correctness: the batched LU in torch.linalg.solve and inv is wrong on two threads (torch 2.15 with
    MKL; from about 400 unknowns, residuals of 1e58 or an exception), Cholesky factors are right.

    >>> solve(torch.tensor([[[4.0, 0.0], [0.0, 2.0]], [[0.0, 1.0], [1.0, 0.0]]]), torch.ones(2, 2, 1))[..., 0]
    tensor([[0.2500, 0.5000],
            [   nan,    nan]])
    """
    factor, failed = torch.linalg.cholesky_ex(a)
    return torch.cholesky_solve(b, factor).masked_fill((failed != 0)[:, None, None], math.nan)
