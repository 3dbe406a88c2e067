"""The pooled rank correlation against hand-worked numbers, closed forms and what it claims of its own errors."""

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from harness.geometry.association import associate, midranks, multiplicities, partial, rank_moments, rank_scores, thirds


def pooled(x, y, controls, stratum):
    columns = np.column_stack([x, y, *controls]).astype(float)
    stratum = np.array(stratum)
    return float(partial(rank_moments(rank_scores(columns, stratum), stratum, np.ones((1, len(columns)))))[0])


def associated(x, y, stratum, run, family, controls=None, **how):
    n = len(x)
    controls = np.empty((n, 0)) if controls is None else np.array(controls, float)
    arrays = (np.array(v, np.int64) for v in (stratum, run, family))
    return associate(np.array(x, float), np.array(y, float), controls, *arrays, **how)


def test_two_strata_by_hand():
    """Ranks less their mean over the rows: A x -1 0 1, y -1 1 0 over 3; B x -1/2 1/2, y 1/2 -1/2 over 2.

    S_xy = 1/9 - 1/8 = -1/72, S_xx = S_yy = 2/9 + 1/8 = 25/72.
    """
    x, y, stratum = [1.0, 2.0, 3.0, 10.0, 90.0], [-5.0, 70.0, 6.0, 2.0, 1.0], [0, 0, 0, 1, 1]
    assert pooled(x, y, [], stratum) == pytest.approx(-1 / 25)


def test_one_control_by_hand():
    """Spearman's 1 - 6 sum d^2 / 60 is 0.6, 0.4 and -0.4: (0.6 + 0.16) / sqrt(0.84 * 0.84)."""
    assert pooled([1, 2, 3, 4], [2, 1, 4, 3], [[2, 3, 1, 4]], [7] * 4) == pytest.approx(0.76 / 0.84)


def test_without_strata_and_controls_it_is_spearman_s_with_ties():
    draw = np.random.default_rng(0)
    x, y = draw.integers(0, 5, 40), draw.integers(0, 5, 40)
    assert pooled(x, y, [], [0] * 40) == pytest.approx(scipy_stats.spearmanr(x, y).statistic)


def test_ranks_are_those_of_scipy_in_each_group():
    draw = np.random.default_rng(1)
    x, group = draw.integers(0, 4, 60).astype(float), draw.integers(0, 5, 60)
    found = midranks(x, group)
    for g in range(5):
        assert found[group == g] == pytest.approx(scipy_stats.rankdata(x[group == g]))


def test_nothing_that_strata_differ_in_counts_and_no_monotone_change_does():
    draw = np.random.default_rng(2)
    x, y, stratum = draw.normal(size=30), draw.normal(size=30), np.arange(30) % 5
    known = pooled(x, y, [], stratum)
    assert pooled(np.exp(x + 10 * stratum), y**3 - 100 * stratum, [], stratum) == pytest.approx(known)
    assert pooled(-x, y, [], stratum) == pytest.approx(-known)


def test_thirds_are_even_and_within_groups():
    x, group = np.r_[np.arange(12.0), 100 + np.arange(12.0)], np.repeat([0, 1], 12)
    assert thirds(x, group).tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [0] * 4 + [1] * 4 + [2] * 4
    assert len(set(thirds(np.zeros(12), np.zeros(12, np.int64)))) == 1  # equal values together


def test_a_weight_is_a_repetition():
    draw = np.random.default_rng(3)
    v, stratum, weight = draw.normal(size=(9, 3)), np.array([2, 0, 1, 0, 1, 2, 2, 0, 1]), draw.integers(0, 4, 9)
    known = np.zeros((3, 3))
    for g in range(3):
        rows = np.repeat(v[stratum == g], weight[stratum == g], 0)
        known += (rows - rows.mean(0)).T @ (rows - rows.mean(0)) if len(rows) else 0
    assert rank_moments(v, stratum, weight[None].astype(float))[0] == pytest.approx(known)


def test_as_many_runs_of_each_family_are_drawn_as_there_are():
    run, family = np.array([0, 0, 1, 2, 2, 3, 4]), np.array([0, 0, 0, 1, 1, 1, 1])
    drawn = multiplicities(run, family, 500, 0)
    assert (drawn[:, :2].sum(1) == 2).all() and (drawn[:, 2:].sum(1) == 3).all()
    assert drawn.mean(0) == pytest.approx(np.ones(5), abs=0.2) and drawn.max() == 3


def test_a_stratum_in_which_nothing_varies_is_left_out():
    rows = {"x": [1, 2, 3, 4], "y": [1, 3, 2, 4], "stratum": [0] * 4, "run": [0, 1, 2, 3], "family": [0] * 4}
    more = {"x": [1, 2, 5, 5], "y": [6, 6, 7, 8], "stratum": [1, 1, 2, 2], "run": [0, 1, 2, 3], "family": [0] * 4}
    plain, both = associated(**rows), associated(**{k: rows[k] + more[k] for k in rows})
    assert both.rho == plain.rho == pytest.approx(0.8)
    assert (both.strata, both.of, both.rows, both.runs) == (1, 3, 4, 4)


def test_too_few_runs_say_nothing():
    found = associated([1, 2, 3], [1, 2, 3], [0] * 3, [0, 1, 2], [0] * 3)  # 2 degrees of freedom
    assert math.isnan(found.rho) and math.isnan(found.p) and math.isnan(found.detectable(1))
    assert found.runs == 3
    constant = associated([1] * 9, range(9), [0] * 9, range(9), [0] * 9)
    assert math.isnan(constant.p) and (constant.strata, constant.of, constant.runs) == (0, 1, 0)


def test_rows_of_one_run_are_one_draw():
    """Every row four times over, at other boundaries: no more is known, and the error stays."""
    draw = np.random.default_rng(4)
    x, y, run = draw.normal(size=24), draw.normal(size=24), np.arange(24)
    once = associated(x, y, run // 12, run, run // 12)
    four = associated(
        np.tile(x, 4), np.tile(y, 4), np.repeat(range(4), 24) * 2 + np.tile(run // 12, 4), np.tile(run, 4),
        np.tile(run // 12, 4),
    )  # fmt: skip
    assert (four.rho, four.error, four.p) == pytest.approx((once.rho, once.error, once.p))
    assert four.df == once.df == 22


def test_the_same_error_as_by_the_asymptotic_formula():
    """One stratum of many independent runs: sd of z is 1 / sqrt(n - 3) without association (Fieller et al. 1957)."""
    draw = np.random.default_rng(5)
    errors = [associated(*draw.normal(size=(2, 200)), [0] * 200, range(200), [0] * 200, seed=i).error for i in range(8)]
    assert np.mean(errors) == pytest.approx(1.03 / math.sqrt(197), rel=0.06)


FAMILIES, RUNS, TIMES = 6, 12, 4  # runs of a family; a stratum is a family's third at one time


def planted(draw, r):
    """Rows of a small grid whose x and y have a Pearson correlation r within strata of four, drawn by run."""
    of_run = draw.multivariate_normal(np.zeros(2), [[1, r], [r, 1]], (FAMILIES, RUNS))  # as a run differs from others
    by_time = draw.multivariate_normal(np.zeros(2), [[1, r], [r, 1]], (FAMILIES, RUNS, TIMES))
    x, y = np.moveaxis(of_run[:, :, None] + 0.7 * by_time, -1, 0)
    family, run, time = np.indices((FAMILIES, RUNS, TIMES))
    stratum = (family * TIMES + time) * 3 + run % 3
    return x.ravel(), y.ravel(), stratum.ravel(), (family * RUNS + run).ravel(), family.ravel()


def test_what_it_estimates_is_moran_s_mean_of_spearman_s_in_small_samples():
    """E r_s = 6 (asin r + (n - 2) asin(r / 2)) / (pi (n + 1)) for normal pairs (Moran 1948), here n = 4."""
    draw = np.random.default_rng(6)
    found = np.mean([associated(*planted(draw, 0.6), resamples=2).rho for _ in range(200)])
    assert found == pytest.approx(6 * (math.asin(0.6) + 2 * math.asin(0.3)) / (math.pi * 5), abs=0.015)


@pytest.mark.parametrize("n", [30, pytest.param(300, marks=pytest.mark.nightly)])
def test_it_errs_as_often_as_it_says_and_sees_what_it_says_with_the_power_it_says(n):
    """Where nothing is, 5 % are found; where an effect is, as many as the noncentral t foretells at its size."""
    draw, alpha = np.random.default_rng(7), 0.05 / 11
    null = [associated(*planted(draw, 0.0), resamples=300, seed=i) for i in range(n)]
    wrong = sum(a.p < 0.05 for a in null)
    assert scipy_stats.binom.ppf(0.001, n, 0.05) <= wrong <= scipy_stats.binom.ppf(0.999, n, 0.05)
    found = [associated(*planted(draw, 0.4), resamples=300, seed=i) for i in range(n)]
    # the effect in errors of the estimate; their detectable effect is that of power 0.8
    size = np.mean([math.atanh(a.rho) for a in found]) / np.mean([a.error for a in found])
    bar = scipy_stats.t.ppf(1 - alpha / 2, found[0].df)
    power = scipy_stats.nct.sf(bar, found[0].df, size)
    assert 0.5 < power < 0.99, "an effect neither hopeless nor sure"
    seen = sum(a.p < alpha for a in found)
    low, high = scipy_stats.binom.ppf([0.0005, 0.9995], n, power)
    assert low <= seen <= high, (seen, power * n)
    edge = np.mean([math.atanh(a.detectable(11)) for a in found]) / np.mean([a.error for a in found])
    assert scipy_stats.nct.sf(bar, found[0].df, edge) == pytest.approx(0.8, abs=0.002)
    covered = sum(a.low < np.mean([b.rho for b in found]) < a.high for a in found)
    assert covered >= scipy_stats.binom.ppf(0.001, n, 0.95)
