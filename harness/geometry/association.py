"""Association of two quantities within strata of runs: one rank correlation and its uncertainty.

Values are ranked within each stratum, so differences between strata cannot create an association. The controls are
partialled out of both ranks. All rows of a run are one draw, because its boundaries are not independent. Numpy only.

With v_i the ranks of row i (of x, y and the controls) less their mean in its stratum g, over the number of rows in g,

    M = sum over strata, over rows, of v v'        S = M_ab - M_ac pinv(M_cc) M_cb,  a, b of x, y; c the controls
    rho = S_xy / sqrt(S_xx S_yy)

is the partial Spearman correlation of covariances pooled over strata. With one stratum and no controls it is
Spearman's correlation; with small strata it is a mean over strata in which every row has the same weight. A stratum in
which x or y is constant carries no information and is left out (its other ranks would only make rho smaller).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.stats import LEVEL, RESAMPLES, Array, draws, noncentrality

Labels = NDArray[np.int64]

EDGE = 1 - 1e-9  # |rho| = 1 has no Fisher z


class Association(NamedTuple):
    """A pooled rank correlation. NaN if nothing varies or there are too few runs."""

    rho: float
    low: float  # of its 95 % interval
    high: float
    p: float  # two-sided, of rho = 0
    error: float  # standard error of Fisher's z = artanh rho
    df: int  # runs less families
    rows: int
    runs: int
    strata: int  # in which x and y vary
    of: int  # all strata

    def detectable(self, tests: int) -> float:
        """The |rho| detected with probability 0.8, at the 5 % level shared by this number of tests."""
        if not math.isfinite(self.error):
            return math.nan
        return math.tanh(noncentrality(self.df, alpha=(1 - LEVEL) / tests) * self.error)


def associate(
    x: Array,
    y: Array,
    controls: Array,
    stratum: Labels,
    run: Labels,
    family: Labels,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Association:
    """x, y [n] and controls [n, k] of n rows; each row has a stratum and a run, and each run one family.

    The bootstrap resamples runs, with all their rows, within their families (the cells in which the design crosses the
    runs). It keeps the ranks over all rows and recentres them. rho is tested as z / sd(z of the resamples) against
    Student's t with runs - families degrees of freedom. NaN for fewer than 3 degrees of freedom.
    """
    informative = _varies(x, stratum) & _varies(y, stratum)
    of, columns = len(np.unique(stratum)), np.column_stack([x, y, controls])[informative]
    stratum, run, family = (_numbered(v[informative]) for v in (stratum, run, family))
    runs, strata = (int(v.max(initial=-1)) + 1 for v in (run, stratum))
    df = runs - len(np.unique(family))
    counts = (df, len(run), runs, strata, of)
    if df < 3:
        return Association(math.nan, math.nan, math.nan, math.nan, math.nan, *counts)
    v = rank_scores(columns, stratum)
    rho = float(partial(rank_moments(v, stratum, np.ones((1, len(v)))))[0])
    weight = multiplicities(run, family, resamples, seed)[:, run]
    error = float(_z(partial(rank_moments(v, stratum, weight))).std(ddof=1))
    z, half = float(_z(np.array(rho))), _t(df) * error
    return Association(rho, math.tanh(z - half), math.tanh(z + half), _two_sided(z, error, df), error, *counts)


def rank_scores(columns: Array, stratum: Labels) -> Array:
    """Ranks of each column within strata, less their mean, divided by the rows of the stratum: [n, k].

    >>> rank_scores(np.array([[5.0], [7.0], [1.0], [1.0]]), np.array([0, 0, 1, 1]))[:, 0]
    array([-0.25,  0.25,  0.  ,  0.  ])
    """
    size = np.bincount(stratum)[stratum]
    ranked = np.column_stack([midranks(c, stratum) for c in columns.T])
    centred: Array = (ranked - (size[:, None] + 1) / 2) / size[:, None]
    return centred


def midranks(x: Array, group: Labels) -> Array:
    """Rank of each value within its group, 1 the lowest; ties get the mean of their ranks: [n].

    >>> midranks(np.array([3.0, 1.0, 3.0, 9.0]), np.array([0, 0, 0, 1]))
    array([2.5, 1. , 2.5, 1. ])
    """
    order = np.lexsort((x, group))
    g, value, place = group[order], x[order], np.arange(len(x))
    starts = np.r_[True, g[1:] != g[:-1]]
    new = starts | np.r_[True, value[1:] != value[:-1]]
    tie = np.cumsum(new) - 1
    mean = np.bincount(tie, place) / np.bincount(tie)
    found = np.empty(len(x))
    found[order] = mean[tie] - np.maximum.accumulate(np.where(starts, place, 0)) + 1
    return found


def thirds(x: Array, group: Labels) -> Labels:
    """0, 1 or 2: the third of its group's values that each value is in; ties stay together: [n].

    >>> thirds(np.array([0.3, 0.1, 0.2, 5.0]), np.array([0, 0, 0, 1]))
    array([2, 0, 1, 1])
    """
    size = np.bincount(group)[group]
    return np.floor(3 * (midranks(x, group) - 0.5) / size).astype(np.int64)


def rank_moments(v: Array, stratum: Labels, weight: Array) -> Array:
    """M of the opening comment for each of B weightings [B, n] of the rows, centred with those weights: [B, k, k]."""
    order = np.argsort(stratum, kind="stable")
    v, weight = v[order], weight[:, order]
    starts = np.flatnonzero(np.r_[True, np.diff(stratum[order]) != 0])
    weights = np.add.reduceat(weight, starts, 1)  # [B, strata]
    sums = np.stack([np.add.reduceat(weight * c, starts, 1) for c in v.T], 2)  # [B, strata, k]
    means = np.divide(sums, weights[..., None], out=np.zeros_like(sums), where=weights[..., None] > 0)
    products = (v[:, :, None] * v[:, None]).reshape(len(v), -1)
    whole: Array = (weight @ products).reshape(-1, v.shape[1], v.shape[1]) - np.einsum("bgk,bgl->bkl", sums, means)
    return whole


def partial(m: Array) -> Array:
    """Correlation of the first two variables of covariances m [..., k, k], given the others: [...].

    NaN if no variance is left. Three variables, each pair correlated by 1/2: (1/2 - 1/4) / (1 - 1/4).

    >>> float(partial(np.full((3, 3), 0.5) + np.eye(3) / 2).round(4))
    0.3333
    """
    s = m[..., :2, :2] - m[..., :2, 2:] @ np.linalg.pinv(m[..., 2:, 2:], hermitian=True) @ m[..., 2:, :2]
    left = [s[..., i, i] > 1e-9 * m[..., i, i] for i in (0, 1)]
    product = np.where(left[0] & left[1], s[..., 0, 0] * s[..., 1, 1], math.nan)
    return np.asarray(s[..., 0, 1] / np.sqrt(product))


def multiplicities(run: Labels, family: Labels, resamples: int, seed: int) -> Array:
    """How often each resample draws each run; a family keeps its number of runs: [B, runs]."""
    found = np.zeros((resamples, int(run.max()) + 1))
    for i, one in enumerate(np.unique(family)):
        members = np.unique(run[family == one])
        drawn = members[draws(len(members), resamples, seed + i)]
        np.add.at(found, (np.arange(resamples)[:, None], drawn), 1)
    return found


def _varies(x: Array, stratum: Labels) -> NDArray[np.bool_]:
    at = _numbered(stratum)
    low, high = np.full(at.max(initial=-1) + 1, math.inf), np.full(at.max(initial=-1) + 1, -math.inf)
    np.minimum.at(low, at, x)
    np.maximum.at(high, at, x)
    return np.asarray((high > low)[at])


def _numbered(labels: Labels) -> Labels:
    return np.unique(labels, return_inverse=True)[1].astype(np.int64)


def _z(rho: Array) -> Array:
    return np.arctanh(np.clip(rho, -EDGE, EDGE))


def _t(df: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(df, (1 + LEVEL) / 2))


def _two_sided(z: float, error: float, df: float) -> float:
    from scipy.special import stdtr

    if math.isnan(z) or math.isnan(error):
        return math.nan
    return float(2 * stdtr(df, -abs(z) / error)) if error else float(z == 0)
