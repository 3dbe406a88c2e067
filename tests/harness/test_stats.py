"""Statistics of a few seeds against other implementations, closed forms and what they claim of themselves."""

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from harness import stats

# rliable 1.2.0 (numpy 2.4.6, pandas 2.3.3, arch 7.2.0) on SCORES below; intervals from 10,000 resamples
NAMES = {"naive": 0.45, "replay": 0.8, "ewc": 0.6, "modeconn": 0.72, "reset": 0.55}
DRAW = np.random.default_rng(0)
SCORES = {  # [6 tasks, 5 seeds]
    name: np.clip(DRAW.normal(mean, 0.06, (5, 6)) + DRAW.normal(0, 0.03, 6), 0, 1).T for name, mean in NAMES.items()
}
RLIABLE_IQM = {"ewc": (0.59431075, 0.56672843, 0.62250657), "replay": (0.82905196, 0.80674959, 0.85512821)}
RLIABLE_MEAN = {"ewc": (0.5976843, 0.57851773, 0.61727532), "replay": (0.82686117, 0.80655026, 0.84727569)}
RLIABLE_IMPROVEMENT = {("replay", "ewc"): 1.0, ("ewc", "reset"): 0.7266666666666667}
A, B = np.array([0.61, 0.58, 0.66, 0.7, 0.59]), np.array([0.6, 0.58, 0.6, 0.71, 0.5])


@pytest.mark.parametrize("name", RLIABLE_IQM)
def test_iqm_mean_and_their_stratified_bootstrap_are_those_of_rliable(name: str) -> None:
    for statistic, known in ((stats.iqm, RLIABLE_IQM), (lambda x: x.mean(-1), RLIABLE_MEAN)):
        value, low, high = known[name]
        assert statistic(SCORES[name].ravel()) == pytest.approx(value, abs=1e-7)
        found = stats.bootstrap(list(SCORES[name]), statistic, resamples=10_000)
        assert found == pytest.approx((low, high), abs=1.2e-3)  # four standard errors of either's resampling


def test_resampling_is_within_tasks() -> None:
    """Tasks far apart and no spread within them leave nothing to vary; drawn across tasks the mean would."""
    low, high = stats.bootstrap([np.full(5, 0.1), np.full(5, 0.9)], lambda x: x.mean(-1))
    assert low == high == pytest.approx(0.5)


def test_iqm_of_one_task_is_that_of_rliable() -> None:
    assert float(stats.iqm(A)) == pytest.approx(0.62)
    assert float(stats.iqm(B)) == pytest.approx(0.5933333333333333)
    assert float(stats.iqm(np.arange(7.0))) == 3.0
    assert np.isnan(stats.iqm(np.array([1.0, np.nan, 2.0, 3.0, 4.0])))  # not cut off as if it were the largest
    assert float(stats.iqm(np.arange(10.0) ** 2)) == pytest.approx(23.166666666666668)
    # rliable: [0.58333333, 0.68666667] and [0.52666667, 0.67333333]
    assert stats.bootstrap([A], stats.iqm, resamples=10_000) == pytest.approx((0.583333, 0.686667), abs=4e-3)
    assert stats.bootstrap([B], stats.iqm, resamples=10_000) == pytest.approx((0.526667, 0.673333), abs=4e-3)


def test_unpaired_improvement_is_that_of_rliable_and_of_mann_whitney() -> None:
    for (x, y), value in RLIABLE_IMPROVEMENT.items():
        assert stats.improvement_unpaired(SCORES[x], SCORES[y]).mean() == pytest.approx(value, abs=1e-12)
    assert float(stats.improvement_unpaired(A, B)) == pytest.approx(0.62)  # with a tie
    u = scipy_stats.mannwhitneyu(A, B, method="asymptotic").statistic
    assert float(stats.improvement_unpaired(A, B)) == pytest.approx(u / 25)


def test_paired_improvement_is_another_quantity() -> None:
    assert stats.improvement(A, B) == pytest.approx(0.7)  # three wins, a tie and a loss


def test_a_diverged_seed_loses_against_all_but_another_such() -> None:
    lost = np.array([-np.inf, 0.5])
    assert stats.improvement(lost, np.array([-9.0, 0.4])) == 0.5
    assert stats.improvement(lost, np.array([-np.inf, 0.4])) == 0.75
    assert stats.ranks(np.array([0.1, -np.inf, -5.0, -np.inf])).tolist() == [1, 3, 2, 3]


def test_student_interval_is_scipys_and_skips_nothing() -> None:
    mean, half = stats.student(A)
    known = scipy_stats.t.interval(0.95, 4, A.mean(), scipy_stats.sem(A))
    assert (mean - half, mean + half) == pytest.approx(known)
    assert np.isnan(stats.student(np.array([[1.0, np.nan, 2.0]]))).all()
    assert stats.student(np.array([0.5, -np.inf]))[0] == -np.inf
    assert stats.student(np.array([0.5]))[0] == 0.5 and np.isnan(stats.student(np.array([0.5]))[1])


def test_a_diverged_seed_is_never_left_out_of_a_mean() -> None:
    x, diverged = np.array([0.9, np.nan, 0.7]), np.array([False, True, False])
    mean, half = stats.student(stats.counted(x, diverged, 0.0))
    low, high = scipy_stats.ttest_1samp([0.9, 0.0, 0.7], 0.0).confidence_interval(0.95)
    assert (mean - half, mean + half) == pytest.approx((low, high))
    assert stats.counted(x, diverged, -np.inf).mean() == -np.inf
    assert np.isnan(stats.student(stats.counted(x, diverged, None))).all()
    assert np.isnan(stats.counted(x, ~diverged, 0.0)[1])  # undefined, and not diverged
    assert stats.counted(np.array([0.4]), np.array([True]), 0.0).tolist() == [0.4]  # it diverged later
    assert np.isnan(stats.student(np.array([]))).all() and np.isnan(stats.finite_mean(np.array([])))


def test_a_bootstrap_of_different_draws_is_that_of_all_draws() -> None:
    x = np.random.default_rng(0).normal(size=(3, 5))
    low, high = stats.bootstrap([x], stats.iqm)
    known = stats.limits(stats.iqm(x[:, stats.draws(5)]))
    assert np.array_equal((low, high), known)


def test_proportion_interval_is_the_exact_one() -> None:
    for k in range(8):
        known = scipy_stats.binomtest(k, 7).proportion_ci(0.95, "exact")
        assert stats.proportion_interval(k / 7, 7) == pytest.approx((known.low, known.high))


@pytest.mark.parametrize("n", [3, 5, 10, 30])
def test_a_detectable_difference_is_found_with_the_power_it_states(n: int) -> None:
    """Against the noncentral t distribution, which gives a paired t test's power exactly."""
    differences = np.random.default_rng(n).normal(0, 1, n)
    spread = differences.std(ddof=1)
    least = stats.detectable(differences)
    shift = least / spread * math.sqrt(n)
    critical = scipy_stats.t.ppf(0.975, n - 1)
    power = scipy_stats.nct.sf(critical, n - 1, shift) + scipy_stats.nct.cdf(-critical, n - 1, shift)
    assert power == pytest.approx(0.8, abs=1e-3)
    bloom = scipy_stats.t.ppf(0.975, n - 1) + scipy_stats.t.ppf(0.8, n - 1)
    assert shift == pytest.approx(bloom, rel=0.06 if n == 3 else 0.02)


def test_ranks_agree_with_scipys_and_share_the_better_place() -> None:
    x = np.random.default_rng(1).integers(0, 4, (50, 7)).astype(float)
    known = scipy_stats.rankdata(-x, method="min", axis=1)
    assert (stats.ranks(x) == known).all()


def test_ranks_of_a_resample_are_those_of_the_means_over_all_seeds_it_drew() -> None:
    x = np.random.default_rng(3).normal(size=(4, 5))
    drawn = stats.draws(5, 50)
    for one, ranks in zip(drawn.tolist(), stats.resampled_ranks(x, resamples=50)):
        means = [sum(row[i] for i in one) / 5 for row in x.tolist()]
        assert ranks.tolist() == [1 + sum(other > mine for other in means) for mine in means]


def test_ranks_are_drawn_for_all_entries_at_once() -> None:
    """Seeds differ far more than entries: unpaired, the ranks would be anybody's."""
    seeds = np.array([0.2, 0.4, 0.6, 0.8, 1.0])
    low, high = stats.rank_intervals(np.stack([seeds + 0.001, seeds]))
    assert low.tolist() == high.tolist() == [1, 2]


def test_the_rank_of_an_uncertain_entry_is_uncertain() -> None:
    steady, wild = np.full(5, 0.5), np.array([0.0, 1.0, 0.0, 1.0, 0.6])
    low, high = stats.rank_intervals(np.stack([steady, wild]))
    assert low.tolist() == [1, 1] and high.tolist() == [2, 2]
    assert np.isnan(stats.rank_intervals(np.ones((2, 1)))).all()


def test_the_front_is_what_a_search_over_all_pairs_finds() -> None:
    points = np.random.default_rng(2).integers(0, 5, (40, 3)).astype(float)
    points[7, 1] = np.nan
    front = stats.pareto(points)
    known = [
        not np.isnan(p).any() and not any((q >= p).all() and (q > p).any() for q in points if not np.isnan(q).any())
        for p in points
    ]
    assert front.tolist() == known
