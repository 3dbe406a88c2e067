"""The interval of a difference, against scipy's Welch test; what a table gives as spread, against its definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from harness.verify.protocol import deviation
from harness.verify.verdict import compare, verdict


@given(
    st.lists(st.floats(0, 100), min_size=3, max_size=8, unique=True),
    st.lists(st.floats(0, 100), min_size=3, max_size=8, unique=True),
)
def test_the_interval_is_that_of_welchs_test(ours: list[float], theirs: list[float]) -> None:
    published = np.array(theirs)
    if min(np.std(ours), np.std(theirs)) < 1e-3:
        return
    found = compare(np.array(ours), float(published.mean()), float(published.std(ddof=1)), len(theirs))
    low, high = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval(0.95)
    assert found.difference - found.half == pytest.approx(low, rel=1e-6, abs=1e-6)
    assert found.difference + found.half == pytest.approx(high, rel=1e-6, abs=1e-6)


def test_one_in_twenty_agreeing_rows_differs() -> None:
    draw = np.random.default_rng(0)
    pairs = draw.normal(90, 2, (4000, 5)), draw.normal(90, 1, (4000, 20))
    kinds = [verdict(compare(a, float(b.mean()), float(b.std(ddof=1)), 20), 10.0) for a, b in zip(*pairs)]
    assert 0.035 < kinds.count("differs") / len(kinds) < 0.065


@pytest.mark.parametrize("kind", ["sd", "sem", "ci95"])
def test_the_deviation_of_a_seed_is_recovered(kind: str) -> None:
    seeds = np.random.default_rng(1).normal(0, 3, 12)
    sem = float(seeds.std(ddof=1)) / math.sqrt(12)
    printed = {
        "sd": sem * math.sqrt(12),
        "sem": sem,
        "ci95": float(stats.t.interval(0.95, 11, loc=0, scale=sem)[1]),
    }
    assert deviation(printed[kind], kind, 12) == pytest.approx(float(seeds.std(ddof=1)))


def test_without_a_published_spread_the_published_mean_is_exact() -> None:
    ours = np.array([1.0, 2.0, 4.0])
    low, high = stats.ttest_1samp(ours, 2.0).confidence_interval(0.95)
    found = compare(ours, 2.0, math.nan, 20)
    assert (found.difference - found.half, found.difference + found.half) == pytest.approx((low - 2, high - 2))


def test_one_seed_or_no_spread_at_all_is_undecided() -> None:
    assert verdict(compare(np.array([90.0]), 50.0, 1.0, 5), 99.0) == "undecided"
    assert verdict(compare(np.array([90.0, 90.0]), 50.0, math.nan, 5), 99.0) == "undecided"
