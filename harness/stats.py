"""Statistics of a few seeds: intervals, ranks, comparisons. Numpy only; arrays of seeds in, numbers out.

The caller orients the scores: higher is always better here. If scores have no lower bound, a diverged seed is -inf,
so it loses against every other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Statistic = Callable[[Array], Array]  # reduces the last axis

RESAMPLES = 2000
LEVEL = 0.95


def counted(x: Array, diverged: NDArray[np.bool_], lowest: float | None) -> Array:
    """x [..., seeds] with `lowest` where a diverged seed has no value; None: it stays NaN, and so does every mean.

    The one rule for means over seeds, which cannot flatter a method that diverges: a diverged seed counts with the
    lowest possible value of a score, and a quantity without one has no mean. No mean is over the surviving seeds.

    >>> x, diverged = np.array([0.8, np.nan, np.nan]), np.array([False, True, False])
    >>> counted(x, diverged, 0.0), counted(x, diverged, None)
    (array([0.8, 0. , nan]), array([0.8, nan, nan]))
    """
    return x if lowest is None else np.where(np.isnan(x) & diverged, lowest, x)


def student(x: Array) -> tuple[Array, Array]:
    """Mean and half width of its 95 % Student interval over the last axis: t(0.975, n - 1) s / sqrt(n).

    Both are NaN if a value is NaN (see `counted`); half is NaN for n < 2.

    >>> x = np.array([[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, np.nan]])
    >>> [v.round(4) for v in student(x)]
    [array([2.5, nan]), array([2.0543,    nan])]
    """
    n = x.shape[-1]
    if n < 2:
        return (x.mean(-1) if n else np.full(x.shape[:-1], math.nan)), np.full(x.shape[:-1], math.nan)
    with np.errstate(invalid="ignore"):  # a mean of minus infinity has no interval
        return x.mean(-1), quantile(n - 1) * x.std(-1, ddof=1) / math.sqrt(n)


def quantile(df: float) -> float:
    """Student's t(0.975, df): half a 95 % interval in standard errors.

    >>> round(quantile(4), 4)
    2.7764
    """
    from scipy.special import stdtrit  # a tenth of the import of scipy.stats

    return float(stdtrit(df, (1 + LEVEL) / 2))


def finite_mean(x: Array) -> Array:
    """Mean of the finite values over the last axis; NaN if there are none.

    >>> finite_mean(np.array([[1.0, np.nan, 3.0], [np.nan, np.nan, np.nan]]))
    array([ 2., nan])
    """
    finite = np.isfinite(x)
    count = finite.sum(-1)
    total = np.where(finite, x, 0.0).sum(-1)
    return np.where(count > 0, total / np.maximum(count, 1), math.nan)


def iqm(x: Array) -> Array:
    """Interquartile mean over the last axis: the mean without the floor(n/4) lowest and highest values.

    Agarwal et al. (2021), "Deep reinforcement learning at the edge of the statistical precipice", and their
    library rliable; less affected by one bad seed than the mean, less noisy than the median. NaN stays NaN; infinite
    values that are cut off do no harm.

    >>> float(iqm(np.array([0.0, 1.0, 2.0, 3.0, 100.0])))  # one of five is cut at each end
    2.0
    """
    n = x.shape[-1]
    cut = n // 4
    kept = np.sort(x, -1)[..., cut : n - cut].mean(-1)
    return np.where(np.isnan(x).any(-1), math.nan, kept)


def bootstrap(
    tasks: Sequence[Array], statistic: Statistic, *, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[Array, Array]:
    """95 % percentile interval of a statistic of all scores of some tasks, each [..., n], by the stratified bootstrap.

    Each task resamples its own seeds with replacement (Agarwal et al. 2021, section 4.1). `statistic` reduces the last
    axis, along which the tasks are concatenated, and does not depend on the order of the scores; low and high [...].
    NaN if a task has fewer than two seeds. With five seeds such intervals are too narrow.
    """
    if any(x.shape[-1] < 2 for x in tasks):
        unknown = np.full(tasks[0].shape[:-1], math.nan)
        return unknown, unknown
    if len(tasks) == 1:  # five seeds can be drawn in 126 ways: each is computed once
        ways, which = _ways(tasks[0].shape[-1], resamples, seed)
        return limits(statistic(tasks[0][..., ways])[..., which])
    drawn = [x[..., draws(x.shape[-1], resamples, seed + i)] for i, x in enumerate(tasks)]
    return limits(statistic(np.concatenate(drawn, -1)))


@cache
def draws(n: int, resamples: int = RESAMPLES, seed: int = 0) -> NDArray[np.int64]:
    """Indices of resampled seeds, the same for the same arguments: [resamples, n]."""
    drawn = np.random.default_rng(seed).integers(0, n, (resamples, n))
    drawn.flags.writeable = False
    return drawn


@cache
def _ways(n: int, resamples: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The different draws of `draws` without their order, and which of them each resample is."""
    ways, which = np.unique(np.sort(draws(n, resamples, seed), 1), axis=0, return_inverse=True)
    return ways, which.ravel()


def limits(x: Array) -> tuple[Array, Array]:
    """Limits of the middle 95 % of x [..., resamples]: two of its values, without interpolation.

    >>> low, high = limits(np.arange(1, 1001) / 1000)
    >>> float(low), float(high)
    (0.025, 0.975)
    """
    n = x.shape[-1]
    at = [math.ceil(round(n * q, 6)) - 1 for q in ((1 - LEVEL) / 2, (1 + LEVEL) / 2)]
    low, high = np.moveaxis(np.partition(x, at, -1)[..., at], -1, 0)
    return low, high


def ranks(x: Array) -> NDArray[np.int64]:
    """Rank of each entry over the last axis, 1 the highest; equal scores share the better rank.

    >>> ranks(np.array([0.5, 0.9, 0.9, -np.inf]))
    array([3, 1, 1, 4])
    """
    order = np.argsort(-x, -1)
    high = np.take_along_axis(x, order, -1)
    place = np.broadcast_to(np.arange(1, x.shape[-1] + 1), x.shape).copy()
    place[..., 1:][high[..., 1:] == high[..., :-1]] = 0  # a tie takes the better rank
    found = np.empty_like(place)
    np.put_along_axis(found, order, np.maximum.accumulate(place, -1), -1)
    return found


def rank_intervals(x: Array, *, resamples: int = RESAMPLES, seed: int = 0) -> tuple[Array, Array]:
    """95 % interval of each entry's rank by mean score, x [entries, seeds]: seeds are resampled jointly.

    Paired: under a seed all entries saw the same stream and initialisation, so a seed that is harder for all of them
    changes no rank. NaN for fewer than two seeds.

    >>> a = np.array([0.5, 0.6, 0.7])
    >>> rank_intervals(np.stack([a + 0.01, a, a - [0.3, -0.2, 0.0]]))  # the first beats the second on every seed
    (array([1., 2., 1.]), array([2., 3., 3.]))
    """
    if x.shape[1] < 2:
        return np.full(len(x), math.nan), np.full(len(x), math.nan)
    return limits(resampled_ranks(x, resamples=resamples, seed=seed).T.astype(np.float64))


def resampled_ranks(x: Array, *, resamples: int = RESAMPLES, seed: int = 0) -> NDArray[np.int64]:
    """Ranks by mean score of x [entries, seeds] in each resample, which draws the same seeds for all entries."""
    return ranks(x.T[draws(x.shape[1], resamples, seed)].mean(1))  # [resamples, seeds, entries] -> [resamples, entries]


def improvement(x: Array, y: Array) -> float:
    """Share of seeds on which x beats y, x and y [n] paired by seed; an equal pair counts half.

    >>> improvement(np.array([0.6, 0.7, 0.8]), np.array([0.5, 0.7, 0.9]))
    0.5
    """
    return float(np.mean((x > y) + 0.5 * (x == y)))


def improvement_unpaired(x: Array, y: Array) -> Array:
    """P(X > Y) + P(X = Y) / 2 over all pairs of a seed of x [..., n] and one of y [..., m]: [...].

    The probability of improvement of Agarwal et al. (2021) on one task, Mann and Whitney's U / (n m), as in rliable,
    which then averages over tasks. `improvement` pairs by seed, which is a different quantity.

    >>> float(improvement_unpaired(np.array([0.6, 0.7]), np.array([0.5, 0.6])))
    0.875
    """
    a, b = x[..., :, None], y[..., None, :]
    return np.asarray(((a > b) + 0.5 * (a == b)).mean((-2, -1)))


@cache
def proportion_interval(share: float, n: int) -> tuple[float, float]:
    """Clopper and Pearson's (1934) exact 95 % interval of a probability, given the `share` observed in n trials.

    Five wins in five do not show that an improvement is more likely than not:

    >>> [round(v, 3) for v in proportion_interval(1.0, 5)], [round(v, 3) for v in proportion_interval(1.0, 6)]
    ([0.478, 1.0], [0.541, 1.0])
    """
    if n == 0:
        return math.nan, math.nan
    from scipy.special import betaincinv

    k, tail = share * n, (1 - LEVEL) / 2
    low = float(betaincinv(k, n - k + 1, tail)) if k > 0 else 0.0
    high = float(betaincinv(k + 1, n - k, 1 - tail)) if k < n else 1.0
    return low, high


def detectable(differences: Array, *, power: float = 0.8) -> float:
    """The smallest mean difference that n paired seeds would have shown, with probability `power`, at the 5 % level.

    The minimum detectable effect (Bloom 1995, Evaluation Review 19(5)) of a two-sided paired t test, d s / sqrt(n)
    with d the noncentrality at which t with n - 1 degrees of freedom exceeds t(0.975, n - 1) with that probability.
    Bloom's multiplier, t(0.975, n - 1) + t(power, n - 1), is its approximation, 1 % below at n = 5. Not finding a
    difference says nothing about smaller ones. NaN for n < 2 or a value that is not finite.

    >>> round(detectable(np.array([0.0, 0.01, 0.02, 0.03, 0.04])), 4)  # s = 0.0158, d = 3.761
    0.0266
    """
    n = len(differences)
    if n < 2 or not np.isfinite(differences).all():
        return math.nan
    return float(noncentrality(n - 1, power=power) * differences.std(ddof=1) / math.sqrt(n))


@cache
def noncentrality(df: float, *, alpha: float = 1 - LEVEL, power: float = 0.8) -> float:
    """Size of an effect, in standard errors, that a two-sided t test at level `alpha` detects with this power.

    >>> round(noncentrality(4), 3), round(noncentrality(1e9), 3)  # the latter: z(0.975) + z(0.8)
    (3.761, 2.802)
    """
    from scipy.special import nctdtrinc, stdtrit

    return float(nctdtrinc(df, 1 - power, stdtrit(df, 1 - alpha / 2)))


def holm(p: Array) -> Array:
    """p values of m tests, corrected for all m (Holm 1979, Scandinavian Journal of Statistics 6).

    The i-th smallest becomes the largest of (m - j + 1) p_j over j <= i, at most 1. Rejecting
    below 0.05 is then wrong in at most 1 of 20 such families, for any dependence of the tests. NaN counts among the m
    and stays NaN.

    >>> holm(np.array([0.01, 0.04, 0.03, np.nan]))
    array([0.04, 0.09, 0.09,  nan])
    """
    order = np.argsort(p)  # NaN last
    worst = np.maximum.accumulate(np.minimum(p[order] * np.arange(len(p), 0, -1), 1))
    found = np.empty_like(worst)
    found[order] = worst
    return found


def pareto(points: Array) -> NDArray[np.bool_]:
    """The Pareto front of points [entries, objectives]: no other is at least as high everywhere and higher once.

    A point with a NaN is not on the front and does not dominate others. Equal points are on it together.

    >>> pareto(np.array([[0.9, -3.0], [0.8, -1.0], [0.8, -2.0], [0.7, np.nan]]))  # accuracy, minus the cost
    array([ True,  True, False, False])
    """
    known = ~np.isnan(points).any(1)
    a, b = points[:, None], points[None]  # is b better than a?
    beaten = np.all(b >= a, 2) & np.any(b > a, 2)  # a comparison with NaN is False
    return np.asarray(known & ~np.any(beaten, 1))
