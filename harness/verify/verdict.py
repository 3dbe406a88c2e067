"""Whether a published mean and ours agree. Numpy only."""

from __future__ import annotations

import math
from dataclasses import dataclass

from harness.stats import Array, quantile

VERDICTS = ("reproduced", "differs", "undecided", "not run")


@dataclass(frozen=True)
class Comparison:
    """Ours minus published: the 95 % interval of Welch (1947), for two means with variances of their own."""

    mean: float  # ours
    sd: float
    n: int
    difference: float
    error: float  # standard error of the difference
    half: float  # half width of its 95 % interval

    @property
    def errors(self) -> float:
        """The difference in standard errors."""
        return self.difference / self.error if self.error else math.nan


def compare(ours: Array, mean: float, sd: float, n: int) -> Comparison:
    """Our seeds [n] against a published mean with the standard deviation of one of its n seeds.

        error² = s²/n + sd²/m,   df = error⁴ / ((s²/n)² / (n-1) + (sd²/m)² / (m-1)),   half = t(0.975, df) error

    A published sd of NaN counts as 0: the published mean is then taken as exact, which the table says.

    >>> import numpy as np
    >>> found = compare(np.array([1.0, 2.0, 3.0]), mean=3.0, sd=1.0, n=3)
    >>> round(found.difference, 3), round(found.error, 4), round(found.half, 3)  # df = 4
    (-1.0, 0.8165, 2.267)
    """
    count, ours_mean = len(ours), float(ours.mean())
    if count < 2:
        return Comparison(ours_mean, math.nan, count, ours_mean - mean, math.nan, math.nan)
    own = float(ours.std(ddof=1))
    parts = [(own**2 / count, count), ((0.0 if math.isnan(sd) else sd) ** 2 / n, n)]
    variance = sum(v for v, _ in parts)
    spread = sum(v**2 / (m - 1) for v, m in parts if v)
    half = quantile(variance**2 / spread) * math.sqrt(variance) if spread else math.nan
    return Comparison(ours_mean, own, count, ours_mean - mean, math.sqrt(variance), half)


def verdict(found: Comparison | None, margin: float) -> str:
    """`differs` if the interval of the difference excludes 0; else `reproduced` if it is narrow enough, or `undecided`.

    >>> import numpy as np
    >>> two = compare(np.array([1.0, 2.0, 3.0]), mean=3.0, sd=1.0, n=3), compare(np.array([1.0, 1.1]), 9.0, 0.1, 5)
    >>> [verdict(found, margin) for found in (*two, None) for margin in (1.0, 3.0)]
    ['undecided', 'reproduced', 'differs', 'differs', 'not run', 'not run']
    """
    if found is None:
        return "not run"
    if math.isnan(found.half):
        return "undecided"
    if abs(found.difference) > found.half:
        return "differs"
    return "reproduced" if found.half <= margin else "undecided"
