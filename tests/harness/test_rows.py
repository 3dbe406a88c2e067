"""Rows and the order that they are visited in, against loops over single rows; stratified subsets of them."""

import itertools
import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from harness import rng
from harness.rng import keys
from harness.rows import Rows, order, stratified, union
from tasks.transforms import Permute

sizes = st.lists(st.integers(1, 9), min_size=1, max_size=4)


@settings(max_examples=40, deadline=None)
@given(sizes, st.integers(0, 2**32))
def test_every_pass_visits_each_of_the_seed_s_rows_once(size: list[int], seed: int) -> None:
    key = rng.keys(range(seed, seed + len(size)), "order")
    found = order(key, torch.tensor(size), 0, 45)
    for row, n in zip(found.tolist(), size):
        for start in range(0, 45 - n, n):
            assert sorted(row[start : start + n]) == list(range(n))


@settings(max_examples=40, deadline=None)
@given(sizes, st.integers(0, 2**32))
def test_an_order_depends_neither_on_companions_nor_on_their_sizes(size: list[int], seed: int) -> None:
    key = rng.keys(range(seed, seed + len(size)), "order")
    together = order(key, torch.tensor(size), 0, 30)
    for s, n in enumerate(size):
        assert torch.equal(together[s], order(key[s : s + 1], torch.tensor([n]), 0, 30)[0])


@settings(max_examples=40, deadline=None)
@given(sizes, st.integers(0, 60), st.integers(1, 30))
def test_a_window_of_the_order_is_a_slice_of_the_whole(size: list[int], start: int, length: int) -> None:
    key, n = rng.keys(range(len(size)), "order"), torch.tensor(size)
    assert torch.equal(order(key, n, start, start + length), order(key, n, 0, 90)[:, start : start + length])


def test_passes_are_reshuffled() -> None:
    passes = order(rng.keys([0], "order"), torch.tensor([20]), 0, 100).view(5, 20)
    assert len(passes.unique(dim=0)) == 5


def test_an_order_is_pinned_so_that_versions_agree() -> None:
    found = order(rng.keys([0, 1], "order"), torch.tensor([4, 6]), 2, 12)
    assert found.tolist() == [[1, 2, 3, 1, 2, 0, 3, 1, 0, 2], [1, 5, 2, 4, 1, 4, 5, 2, 3, 0]]


def ragged() -> Rows:
    """Two seeds with 4 and 2 rows of their own over 6 samples; the second is padded with sample 5."""
    return Rows(
        data=torch.arange(12.0).view(6, 2),
        index=torch.tensor([[3, 1, 0, 4], [2, 0, 5, 5]]),
        y=torch.tensor([[7, 8, 7, 9], [8, 8, 6, 6]]),
        t=torch.tensor([[1, 1, 2, 2], [3, 3, 0, 0]]),
        size=torch.tensor([4, 2]),
    )


def test_take_gathers_each_seed_s_own_rows() -> None:
    source, position = ragged(), torch.tensor([[2, 0, 0], [1, 1, 0]])
    x, y, t = source.take(position)
    assert x.shape == (2, 3, 2) and y.shape == t.shape == (2, 3)
    for s in range(2):
        for b, p in enumerate(position[s].tolist()):
            assert torch.equal(x[s, b], source.data[source.index[s, p]])
            assert y[s, b] == source.y[s, p] and t[s, b] == source.t[s, p]


def test_take_broadcasts_one_task_id_and_takes_target_vectors() -> None:
    source = ragged()
    vectors = torch.arange(24.0).view(2, 4, 3)
    regression = Rows(source.data, source.index, vectors, torch.tensor([[5], [6]]), source.size)
    _x, y, t = regression.take(torch.tensor([[3, 1], [0, 0]]))
    assert torch.equal(y, torch.stack([vectors[0, [3, 1]], vectors[1, [0, 0]]]))
    assert t.tolist() == [[5, 5], [6, 6]]
    assert regression.labels().tolist() == [[0, 0, 0, 0], [0, 0, -1, -1]]


def test_bytes_are_those_of_the_rows_that_are_taken_without_padding() -> None:
    source = ragged()
    x, y, t = source.take(torch.zeros(2, 1, dtype=torch.int64))
    one = (x.nbytes + y.nbytes + t.nbytes) // 2
    assert source.nbytes == (4 + 2) * one and union([source, source]).nbytes == 2 * source.nbytes


def test_labels_mark_padding() -> None:
    assert ragged().labels().tolist() == [[7, 8, 7, 9], [8, 8, -1, -1]]


def test_permute_moves_each_row_by_its_own_task_s_permutation() -> None:
    key = rng.keys([0, 1], "p")
    table = torch.stack([rng.permutation(rng.fold(key, t), 12) for t in range(3)], 1)  # [S, T, D]
    x, t = rng.normal(key, 5, 3, 2, 2), torch.tensor([[0, 2, 1, 1, 2], [2, 2, 0, 1, 0]])
    moved = Permute(table)(x, t)
    assert moved.shape == x.shape
    for s in range(2):
        for b in range(5):
            for i in range(12):
                assert moved[s, b].flatten()[i] == x[s, b].flatten()[table[s, t[s, b], i]]
    assert torch.equal(Permute(table)(x, t[:, :1]), Permute(table)(x, t[:, :1].expand(2, 5)))


def test_a_union_holds_every_row_of_its_parts_and_no_padding() -> None:
    a = ragged()
    b = Rows(
        a.data, torch.tensor([[5, 5, 0], [1, 3, 4]]), torch.tensor([[1, 0, 0], [2, 3, 4]]),
        torch.tensor([[9], [8]]), torch.tensor([1, 3]),
    )  # fmt: skip
    whole = union([a, b])
    assert whole.size.tolist() == [5, 5]
    for s in range(2):
        x, y, t = whole.take(torch.arange(5).expand(2, -1))
        expected = []
        for part in (a, b):
            n = int(part.size[s])
            px, py, pt = part.take(torch.arange(n).expand(2, -1))
            expected += [(tuple(px[s, i].tolist()), int(py[s, i]), int(pt[s, i])) for i in range(n)]
        assert [(tuple(x[s, i].tolist()), int(y[s, i]), int(t[s, i])) for i in range(5)] == expected
    assert whole.labels().tolist() == [[7, 8, 7, 9, 1, -1, -1], [8, 8, 2, 3, 4, -1, -1]]


def test_a_union_keeps_each_row_s_transform() -> None:
    data = torch.arange(8.0).view(2, 4)
    table = torch.tensor([[[0, 1, 2, 3], [3, 2, 1, 0]]])
    move = Permute(table)
    parts = [
        Rows(data, torch.tensor([[0, 1]]), torch.zeros(1, 2, dtype=torch.int64), torch.zeros(1, 1, dtype=torch.int64),
             torch.tensor([2]), move, torch.tensor([[t]]))
        for t in range(2)
    ]  # fmt: skip
    x, _, _ = union(parts).take(torch.arange(4)[None])
    assert x[0].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [3, 2, 1, 0], [7, 6, 5, 4]]


def test_a_row_s_class_is_renamed_by_its_transform_id_and_padding_stays() -> None:
    names = torch.tensor([[[0, 1, 2], [2, 0, 1]], [[1, 2, 0], [0, 2, 1]]])  # [S, T, C]
    y = torch.tensor([[0, 1, 2], [2, 1, 0]])
    per_row = torch.tensor([[0, 1, 1], [1, 0, 0]])
    base = Rows(torch.zeros(3, 1), y.clone(), y, torch.zeros(2, 1).long(), torch.tensor([3, 2]))
    rows = replace(base, transform_id=per_row, relabel=names)
    expected = [[int(names[s, per_row[s, i], y[s, i]]) for i in range(3)] for s in range(2)]
    back = torch.tensor([[2, 1, 0], [1, 0, 1]])
    assert rows.take(back)[1].tolist() == [[expected[s][i] for i in back[s].tolist()] for s in range(2)]
    assert rows.labels().tolist() == [expected[0], [*expected[1][:2], -1]]
    one = replace(rows, transform_id=per_row[:, :1])
    assert one.take(back)[1].tolist() == [
        [int(names[s, per_row[s, 0], y[s, i]]) for i in back[s].tolist()] for s in range(2)
    ]


def test_a_union_over_other_data_is_refused() -> None:
    a = ragged()
    b = Rows(a.data.clone(), a.index, a.y, a.t, a.size)
    with pytest.raises(ValueError, match="same data"):
        union([a, b])


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
    with pytest.raises(ValueError, match="n=3: a stratified subset must have 0 to 2 samples"):
        stratified(y, 3, keys([0, 1], "probe"))
    with pytest.raises(ValueError, match="n=-1: a stratified subset must have 0 to 2 samples"):
        stratified(y, -1, keys([0, 1], "probe"))
