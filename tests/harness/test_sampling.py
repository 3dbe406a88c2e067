"""Stratified subsets: proportions, uniformity, independence of the rows."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from harness.rng import keys
from harness.sampling import stratified


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_class_is_held_in_proportion_to_within_one_sample(data: st.DataObject) -> None:
    label = data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=40))
    n = data.draw(st.integers(0, len(label)))
    y = torch.tensor(label)

    picked = stratified(y, n, keys([data.draw(st.integers(0, 9))], "probe"))[0]

    assert picked.tolist() == sorted(set(picked.tolist()))
    assert len(picked) == n
    for c in range(5):
        ideal = n * label.count(c) / len(label)
        assert math.floor(ideal) <= int((y[picked] == c).sum()) <= math.ceil(ideal)


def test_every_subset_that_keeps_the_proportions_is_equally_likely() -> None:
    y = torch.tensor([0, 1, 0, 0, 1, 0])  # 4 and 2: a half of it holds 2 and 1, so C(4,2) * C(2,1) = 12 subsets
    draws = 6000

    seen = Counter(map(tuple, stratified(y, 3, keys(range(draws), "probe")).tolist()))

    allowed = [tuple(sorted((*a, b))) for a in itertools.combinations((0, 2, 3, 5), 2) for b in (1, 4)]
    assert set(seen) == set(allowed)
    chi2 = sum((seen[a] - draws / 12) ** 2 / (draws / 12) for a in allowed)
    assert chi2 < 35  # 11 degrees of freedom: p = 2e-4


def test_every_sample_is_equally_likely_where_classes_do_not_divide() -> None:
    y = torch.tensor([0, 0, 0, 1, 1, 2, 3])
    draws = 7000

    count = torch.bincount(stratified(y, 2, keys(range(draws), "probe")).flatten(), minlength=7)

    expected = draws * 2 / 7
    assert ((count - expected).abs() < 4 * math.sqrt(expected * 5 / 7)).all()


def test_a_row_depends_on_its_own_key_and_labels_alone() -> None:
    key = keys([3, 5], "probe")
    y: Tensor = torch.tensor([[0, 1, 2, 0, 1, 2, 0, -1, -1], [1, 1, 1, 1, 0, 0, 0, 0, 2]])

    both = stratified(y, 5, key)

    assert torch.equal(both[1:], stratified(y[1:], 5, key[1:]))
    assert torch.equal(both[:1], stratified(y[:1, :7], 5, key[:1])), "padding moved the draw"
    assert both[0].max() < 7


def test_more_than_there_is_gets_one_line() -> None:
    y = torch.tensor([[0, 1, 2], [0, 1, -1]])

    assert stratified(y, 2, keys([0, 1], "probe"))[1].tolist() == [0, 1]
    with pytest.raises(ValueError, match="3 of 2 samples"):
        stratified(y, 3, keys([0, 1], "probe"))
    with pytest.raises(ValueError, match="-1 of 2 samples"):
        stratified(y, -1, keys([0, 1], "probe"))
