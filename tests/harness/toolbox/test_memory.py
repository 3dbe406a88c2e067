"""Memories against sequential re-enactments and the probabilities they promise."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest
import torch
from scipy.stats import chi2
from torch import Tensor

from harness.rng import RandomStream, keys
from harness.toolbox.memory import POLICIES, ROWS, Memory


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.toolbox.memory._Draws.BLOCK", 64)  # thousands of seeds, and refills in the middle


def memory(capacity: int, policy: str = "reservoir", seeds: Any = (0, 1)) -> Memory:
    return Memory(capacity, policy, RandomStream(keys(seeds, "memory")))


def numbered(S: int, n: int, start: int = 0) -> Tensor:
    return torch.arange(start, start + n).expand(S, n)


def fill(m: Memory, S: int, sizes: list[int], y: Tensor | None = None) -> None:
    """Offer rows 0, 1, 2 ... in batches of these sizes; x carries the row's number three times over."""
    start = 0
    for b in sizes:
        row = numbered(S, b, start)
        labels = row % 3 if y is None else y[:, start : start + b]
        m.add(x=row[..., None].double().expand(S, b, 3), y=labels, row=row)
        start += b


@pytest.mark.parametrize("policy", POLICIES)
def test_rejected_rows_that_are_sorted_out_leave_the_same_memory(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    copied, sorted_out = (memory(9, policy, range(4)) for _ in range(2))
    sizes = [5, 1, 7, 30, 2, 40, 1, 1]
    fill(sorted_out, 4, sizes)
    monkeypatch.setattr("harness.toolbox.memory._sorts_out", lambda slot: False)  # as on a GPU
    fill(copied, 4, sizes)
    for k, v in copied.rows().items():
        assert torch.equal(v, sorted_out.rows()[k])
    assert torch.equal(copied._rank[:, :9], sorted_out._rank[:, :9])


def algorithm_r(capacity: int, u: Tensor) -> list[int]:
    """Vitter's algorithm, one row after the other, on the same uniform numbers."""
    held: list[int] = []
    for i, x in enumerate(u.tolist()):
        if i < capacity:
            held.append(i)
        elif int(x * (i + 1)) < capacity:
            held[int(x * (i + 1))] = i
    return held


@pytest.mark.parametrize("sizes", [[1] * 40, [40], [3, 5, 32], [4, 36], [25, 15]])
def test_reservoir_is_algorithm_r_whatever_the_batches(sizes: list[int]) -> None:
    m = memory(4)  # 36 rows for 4 slots: many rows of one batch hit the same slot
    fill(m, 2, sizes)
    u = m._draws.block[:, :40]
    for s in range(2):
        assert m.rows()["row"][s].tolist() == algorithm_r(4, u[s])


def test_rows_that_hit_one_slot_all_write_the_last_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    # a scatter with repeated indices writes them in no defined order on a GPU
    m = memory(3)
    fill(m, 2, [3])
    u = torch.tensor([[0.1, 0.3, 0.6, 0.05, 0.1, 0.99], [0.9, 0.1, 0.9, 0.3, 0.05, 0.1]]).double()
    slot = m._reservoir(u)
    assert slot.tolist() == [[0, 1, 3, 0, 0, 3], [3, 0, 3, 2, 0, 0]]
    written = []
    monkeypatch.setattr("harness.toolbox.memory._sorts_out", lambda slot: False)
    monkeypatch.setattr(Tensor, "index_copy_", lambda own, dim, target, rows: written.append(rows.view(2, 6).tolist()))
    m._write({"row": numbered(2, 6, 0)}, u, slot, 0)
    assert written == [[[4, 1, 5, 4, 4, 5], [2, 5, 2, 3, 5, 5]]]


def test_reservoir_holds_each_row_and_pair_with_equal_chance() -> None:
    S, n, k = 2000, 20, 5
    m = memory(k, seeds=range(S))
    fill(m, S, [3, 7, 10])
    held = torch.zeros(S, n).scatter_(1, m.rows()["row"], 1)
    expected = S * k / n
    stat = ((held.sum(0) - expected) ** 2 / (expected * (1 - k / n))).sum() * (n - 1) / n
    assert stat < chi2.ppf(0.999, n - 1)
    together = held.T @ held
    pairs = together[torch.triu(torch.ones(n, n), 1).bool()]
    p = k * (k - 1) / (n * (n - 1))
    assert ((pairs - S * p).abs() < 5 * (S * p * (1 - p)) ** 0.5).all()


@pytest.mark.parametrize("policy", POLICIES)
def test_fields_of_a_row_stay_together(policy: str) -> None:
    m = memory(6, policy)
    fill(m, 2, [4, 9, 9])
    held = m.rows()
    assert torch.equal(held["x"], held["row"][..., None].double().expand(2, 6, 3))
    assert torch.equal(held["y"], held["row"] % 3)


@pytest.mark.parametrize(
    ("counts", "capacity", "held"),
    [
        ([50, 50, 50], 9, [[3, 3, 3]]),
        ([2, 50, 50], 10, [[2, 4, 4]]),  # what a rare class cannot fill goes to the others
        ([1, 1, 50], 12, [[1, 1, 10]]),
        ([50, 50, 50], 10, [[4, 3, 3], [3, 4, 3], [3, 3, 4]]),
        ([3, 2], 9, [[3, 2]]),
    ],
)
def test_classes_have_equal_shares(counts: list[int], capacity: int, held: list[list[int]]) -> None:
    y = torch.cat([torch.full((c,), i) for i, c in enumerate(counts)])
    for order in (torch.arange(len(y)), torch.randperm(len(y), generator=torch.Generator().manual_seed(0))):
        m = memory(capacity, "class_balanced", range(5))
        fill(m, 5, [7] * (len(y) // 7) + [len(y) % 7], y[order].expand(5, -1))
        for s in range(5):
            assert m.rows()["y"][s].bincount(minlength=len(counts)).tolist() in held
            assert m.rows()["row"][s].unique().numel() == len(m)


def test_balanced_memory_depends_on_rows_not_on_batches() -> None:
    y = torch.randint(0, 4, (3, 60), generator=torch.Generator().manual_seed(1)) ** 2
    kept = []
    for sizes in ([1] * 60, [60], [10, 1, 25, 24]):
        m = memory(7, "class_balanced", range(3))
        fill(m, 3, sizes, y)
        kept.append(m.rows()["row"].sort(1).values)
    assert torch.equal(kept[0], kept[1]) and torch.equal(kept[0], kept[2])


def test_inside_a_class_each_row_is_held_with_equal_chance() -> None:
    S = 2000
    y = torch.tensor([0] * 12 + [1] * 3 + [0] * 8 + [1] * 17)  # class 1 comes late
    m = memory(8, "class_balanced", range(S))
    fill(m, S, [9, 9, 22], y.expand(S, -1))
    held = torch.zeros(S, 40).scatter_(1, m.rows()["row"], 1).sum(0)
    for c in (0, 1):
        count = held[y == c]
        p = 4 / 20
        stat = ((count - S * p) ** 2 / (S * p * (1 - p))).sum() * 19 / 20
        assert stat < chi2.ppf(0.999, 19)


def rings(capacity: int, y: list[int]) -> list[int]:
    """Row numbers in queues of `capacity` / classes each, one row after the other (Chaudhry et al. 2019)."""
    queues: dict[int, deque[int]] = {c: deque(maxlen=capacity // len({*y})) for c in {*y}}
    for i, c in enumerate(y):
        queues[c].append(i)
    return sorted(i for q in queues.values() for i in q)


@pytest.mark.parametrize("sizes", [[1] * 60, [60], [10, 1, 25, 24], [59, 1]])
def test_a_full_ring_holds_what_queues_of_fixed_length_hold(sizes: list[int]) -> None:
    g = torch.Generator().manual_seed(2)
    for y in (torch.randint(0, 4, (3, 60), generator=g) * 7, torch.arange(60).expand(3, -1) // 15):
        m = memory(12, "ring", range(3))  # in order of class, the early ones are cut as late ones come
        fill(m, 3, sizes, y)
        for s in range(3):
            assert m.rows()["row"][s].sort().values.tolist() == rings(12, y[s].tolist())


def test_a_ring_leaves_no_room_idle_before_all_classes_were_seen() -> None:
    m = memory(12, "ring")
    fill(m, 2, [10, 10, 4], torch.tensor([0] * 20 + [1] * 4).expand(2, -1))
    assert m.rows()["row"].sort(1).values.tolist() == [[12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23]] * 2
    more = {k: v[:, :5] for k, v in m.rows().items()}
    m.add(**more | {"y": torch.ones(2, 5).long()})
    assert m.rows()["y"].sum(1).tolist() == [6, 6]  # six of each, the oldest of class 0 left


def test_the_odd_row_of_a_ring_is_taken_from_the_oldest_class() -> None:
    m = memory(7, "ring")
    fill(m, 2, [7] * 6, torch.arange(42).expand(2, -1) // 14)
    assert [row.bincount().tolist() for row in m.rows()["y"]] == [[2, 2, 3]] * 2


def test_the_queue_of_a_row_may_be_given_and_is_not_kept() -> None:
    m = memory(4, "ring")
    for queue in (0, 1):
        m.add(y=torch.zeros(2, 9).long(), row=numbered(2, 9, 9 * queue), queue=torch.full((2, 9), queue))
    assert m.rows()["row"].sort(1).values.tolist() == [[7, 8, 16, 17]] * 2 and list(m.rows()) == ["y", "row"]


def test_a_ring_draws_no_random_numbers_to_fill() -> None:
    m = memory(4, "ring")
    fill(m, 2, [3, 9])
    assert m.random.count == 0


def test_ages_and_queues_fit_into_one_number() -> None:
    # a thousand tasks of ten classes: neighbouring ages must differ beside the largest number of a queue
    last = 2**15 - 1
    age = torch.tensor([1.0, 2.0], dtype=torch.float64)
    assert (last + (1 - age / ROWS)).diff().item() == -1 / ROWS


def test_sampling_without_replacement_is_uniform_and_repeats_no_row() -> None:
    S = 2000
    m = memory(10, seeds=range(S))
    fill(m, S, [10])
    picked = m.sample(4)["row"]
    assert picked.shape == (S, 4)
    assert (picked.sort(1).values.diff(dim=1) > 0).all()
    count = picked.flatten().bincount(minlength=10)
    assert ((count - S * 0.4).abs() < 5 * (S * 0.4 * 0.6) ** 0.5).all()
    first = picked[:, 0].bincount(minlength=10)  # order is random too
    assert ((first - S * 0.1).abs() < 5 * (S * 0.1 * 0.9) ** 0.5).all()


def test_sampling_with_replacement_is_uniform_over_what_is_held() -> None:
    S = 2000
    m = memory(50, seeds=range(S))
    fill(m, S, [5])  # the memory is not full: 45 slots are empty
    picked = m.sample(8, replacement=True)["row"]
    count = picked.flatten().bincount(minlength=5)
    assert len(count) == 5 and ((count - S * 8 / 5).abs() < 5 * (S * 8 * 0.2 * 0.8) ** 0.5).all()
    assert (picked.sort(1).values.diff(dim=1) == 0).any()


def test_successive_samples_differ() -> None:
    m = memory(100)
    fill(m, 2, [100])
    assert not torch.equal(m.sample(10)["row"], m.sample(10)["row"])


def test_a_sample_is_never_more_than_is_held() -> None:
    m = memory(10)
    fill(m, 2, [3])
    assert m.sample(5)["row"].sort(1).values.tolist() == [[0, 1, 2], [0, 1, 2]]
    assert m.sample(3)["row"].shape == (2, 3) and m.sample(2)["row"].shape == (2, 2)
    with pytest.raises(ValueError, match="empty"):
        memory(3).sample(1)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_seed_is_independent_of_its_companions(policy: str) -> None:
    many, one = memory(6, policy, (4, 7, 9)), memory(6, policy, (7,))
    for m, S in ((many, 3), (one, 1)):
        fill(m, S, [5, 8, 30])
    assert torch.equal(many.rows()["row"][1], one.rows()["row"][0])
    assert torch.equal(many.sample(3)["row"][1], one.sample(3)["row"][0])


@pytest.mark.parametrize("policy", POLICIES)
def test_a_restored_memory_goes_on_as_the_original(policy: str) -> None:
    a = memory(6, policy)
    fill(a, 2, [5, 8])
    a.sample(3)
    b = Memory(6, policy, RandomStream(a.random.base, a.random.count))
    b.load_state_dict(a.state_dict())
    for m in (a, b):
        for start in (100, 110, 120, 130, 140, 150):
            m.add(x=torch.ones(2, 10, 3, dtype=torch.float64), y=numbered(2, 10) % 5, row=numbered(2, 10, start))
    assert all(torch.equal(v, b.rows()[k]) for k, v in a.rows().items())
    assert torch.equal(a.sample(3)["row"], b.sample(3)["row"]) and len(b) == 6


def test_nbytes_counts_rows_of_all_seeds() -> None:
    m = memory(6)
    assert m.nbytes == 0
    fill(m, 2, [1])
    assert m.nbytes == 2 * 6 * (3 * 8 + 8 + 8)


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="capacity=0"):
        memory(0)
    with pytest.raises(ValueError, match="policy=fifo"):
        memory(1, "fifo")
    with pytest.raises(ValueError, match="class_balanced"):
        memory(1, "class_balanced").add(y=torch.zeros(2, 3))
    with pytest.raises(ValueError, match="policy=ring: needs classes"):
        memory(1, "ring").add(y=torch.zeros(2, 3))
