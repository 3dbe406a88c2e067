"""Fixed stratified subsets: validation splits, evaluation subsets, probes."""

from __future__ import annotations

import torch
from torch import Tensor

from harness.rng import fold, integers, permutation


def stratified(y: Tensor, n: int, key: Tensor) -> Tensor:
    """Sorted indices [S, n] of a random subset that holds each class in proportion, to within one sample.

    Systematic sampling (Madow & Madow 1944) over the samples sorted by class and shuffled within it: of N
    samples, N_c in class c, every one is drawn with probability n / N, and floor or ceil of n N_c / N are
    drawn from class c. `y` is [N], or [S, N] where each seed has labels of its own; a label below 0 marks
    padding behind them, which is never drawn. Row s depends on `key[s]` and `y[s]` alone.
    Raises ValueError if a row holds fewer than n samples.

    >>> y = torch.tensor([0, 1, 0, 0, 2, 0, 0, 1, 2, 0])
    >>> picked = stratified(y, 5, torch.tensor([7, 8]))
    >>> y[picked].sort(1).values.tolist()
    [[0, 0, 0, 1, 2], [0, 0, 0, 1, 2]]
    """
    y = y.expand(len(key), -1)  # [S, N]
    total = (y >= 0).sum(1, keepdim=True)  # [S, 1]
    if not 0 <= n <= int(total.min()):
        raise ValueError(f"a stratified subset of {n} of {int(total.min())} samples: ask for 0 up to all of them")
    order = permutation(key, y.shape[1])
    label = y.gather(1, order)
    label = label.masked_fill(label < 0, torch.iinfo(label.dtype).max)
    order = order.gather(1, label.argsort(dim=1, stable=True))  # class by class, padding last
    start = integers(fold(key, "start"), total, 1)  # [S, 1]
    step = torch.arange(n, device=y.device)
    return order.gather(1, (step * total + start) // max(n, 1)).sort(1).values
