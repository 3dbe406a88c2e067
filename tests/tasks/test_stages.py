"""Streams that grow, and those that pair and repeat classes: which classes and how many samples each task has."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from harness.rows import Rows
from harness.types import Source, Stream
from tasks.class_pairs import class_pairs
from tasks.datasets import load
from tasks.five_plus_one import five_plus_one
from tasks.growing import growing
from tasks.repeated import repeated
from tasks.split import split
from tasks.warm_start import warm_start

DATA = load("digits")
GIVEN: dict[str, Any] = {"dataset": DATA, "seeds": tuple(range(6)), "fixed": False}


def index(source: Source, s: int) -> torch.Tensor:
    assert isinstance(source, Rows)
    return source.index[s, : int(source.size[s])]


def classes(stream: Stream, s: int, part: str = "train") -> list[list[int]]:
    return [DATA.y[index(getattr(task, part), s)].unique().tolist() for task in stream.tasks]


def competing(stream: Stream, now: int) -> list[int]:
    mask = stream.mask(torch.zeros(len(stream.seeds), 1).long(), now)
    assert mask is not None
    return mask[0, 0].nonzero()[:, 0].tolist()


def test_an_uneven_split_loses_no_class_and_the_first_task_can_be_larger() -> None:
    def sizes(**options: Any) -> list[int]:
        return [len(c) for c in classes(split(**GIVEN, **options), 0)]

    assert sizes(n_tasks=3) == [4, 3, 3]
    assert sizes(n_tasks=10) == [1] * 10
    assert sizes(n_tasks=6, initial=5) == [5, 1, 1, 1, 1, 1]
    assert sizes(n_tasks=4, initial=2) == [2, 3, 3, 2]
    stream = split(**GIVEN, n_tasks=3)
    assert [competing(stream, t) for t in range(3)] == [list(range(4)), list(range(7)), list(range(10))]
    assert split(**GIVEN, n_tasks=3, scenario="domain").outputs == 4
    multi = split(**GIVEN, n_tasks=3, scenario="task")
    assert multi.masks is not None and multi.masks[0].sum(1).tolist() == [4, 3, 3]


def test_growing_keeps_all_classes_so_far_in_every_part_and_lets_them_compete() -> None:
    stream = growing(**GIVEN, n_tasks=4)  # 3, 3, 2, 2 classes
    for s in range(6):
        for part in ("train", "val", "test"):
            found = classes(stream, s, part)
            assert [len(c) for c in found] == [3, 6, 8, 10]
            assert all(set(a) < set(b) for a, b in itertools.pairwise(found))
        assert torch.equal(index(stream.tasks[3].train, s), DATA.train)
    assert [competing(stream, t) for t in range(4)] == [list(range(k)) for k in (3, 6, 8, 10)]
    first, last = stream.tasks[0].test, stream.tasks[3].test  # a class keeps its output
    for s in range(6):
        output = dict(zip(index(last, s).tolist(), last.labels()[s].tolist()))
        assert [output[i] for i in index(first, s).tolist()] == first.labels()[s, : int(first.size[s])].tolist()


def test_five_and_one_in_turns_without_a_class_twice() -> None:
    stream = five_plus_one(**GIVEN, n_tasks=3, many=3, few=1)
    for s in range(6):
        found = classes(stream, s)
        assert [len(c) for c in found] == [3, 1, 3]
        assert len({c for task in found for c in task}) == 7
    assert stream.outputs == 10 and competing(stream, 2) == list(range(7))
    with pytest.raises(ValueError, match=r"tasks\.n_tasks=3: needs 11 classes, but digits has 10; lower it"):
        five_plus_one(**GIVEN, n_tasks=3)
    with pytest.raises(ValueError, match=r"tasks\.many=0"):
        five_plus_one(**GIVEN, n_tasks=1, many=0)


def test_every_class_is_paired_once_a_round_and_new_pairs_are_drawn() -> None:
    stream = class_pairs(**GIVEN, n_tasks=15)
    again = class_pairs(**GIVEN, n_tasks=15, redraw=False)
    for s in range(6):
        found, same = classes(stream, s), classes(again, s)
        for r in range(3):
            assert sorted(c for pair in found[5 * r : 5 * r + 5] for c in pair) == list(range(10))
        assert found[:5] != found[5:10]
        assert same[:5] == same[5:10] == same[10:]
    _, y, _ = stream.tasks[3].train.take(torch.arange(100).expand(6, -1))
    assert y.unique().tolist() == [0, 1] and stream.outputs == 2 and stream.masks is None
    own = class_pairs(**GIVEN, n_tasks=15, scenario="task")
    assert own.outputs == 30 and own.tasks[3].train.labels().unique().tolist() == [-1, 6, 7]


def test_thousands_of_pairs_hold_a_few_tasks_at_a_time() -> None:
    stream = class_pairs(**GIVEN, n_tasks=3000)
    first = stream.tasks[0]
    assert stream.tasks[0] is first and len(stream.tasks) == 3000
    for t in (7, 500, 2999, 1, 2, 3, 4, 5):
        assert stream.tasks[t].index == t
    assert stream.tasks[0] is not first  # made anew, and equal
    position = torch.arange(50).expand(6, -1)
    assert all(torch.equal(a, b) for a, b in zip(stream.tasks[0].train.take(position), first.train.take(position)))


def test_repetition_deals_a_class_out_evenly_over_its_tasks() -> None:
    stream = repeated(**GIVEN, n_tasks=12, width=4)  # 48 slots: 8 classes have 5, 2 have 4
    for s in range(6):
        found = classes(stream, s)
        assert all(len(c) == 4 for c in found)
        times = torch.tensor([c for task in found for c in task]).bincount(minlength=10)
        assert times.sort().values.tolist() == [4, 4] + [5] * 8
        for c in range(10):
            parts = [int((DATA.y[index(task.train, s)] == c).sum()) for task in stream.tasks]
            parts = [p for p in parts if p]
            assert len(parts) == int(times[c]) and max(parts) - min(parts) <= 1
            assert sum(parts) == int((DATA.y[DATA.train] == c).sum())
        for task, c in zip(stream.tasks, found):
            every = DATA.test[torch.isin(DATA.y[DATA.test], torch.tensor(c))]
            assert torch.equal(index(task.test, s), every)
            assert task.train.labels()[s].unique().tolist()[-4:] == c  # a class is its own output
    assert len({str(classes(stream, s)) for s in range(6)}) == 6


def test_with_repetition_the_classes_of_the_seed_s_tasks_so_far_compete() -> None:
    stream = repeated(**GIVEN, n_tasks=6, width=2)
    for now in range(6):
        mask = stream.mask(torch.zeros(6, 1).long(), now)
        assert mask is not None
        for s in range(6):
            assert mask[s, 0].nonzero()[:, 0].tolist() == sorted(
                {c for task in classes(stream, s)[: now + 1] for c in task}
            )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"width": 0}, r"tasks\.width=0"),
        ({"width": 11}, r"tasks\.width=11: must be from 1 to 10"),
        ({"n_tasks": 3}, r"tasks\.n_tasks=3: 3 x 2 slots do not fit 10 classes"),
    ],
)
def test_repetition_without_room_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        repeated(**GIVEN, **{"n_tasks": 6, "width": 2, **wrong})


def test_a_warm_start_has_half_and_then_all_and_keeps_what_it_had() -> None:
    stream = warm_start(**GIVEN, n_tasks=2, fraction=0.5)
    assert [t.rows for t in stream.tasks] == [647, 1294]
    more = warm_start(**GIVEN, n_tasks=4, fraction=0.1)
    assert [t.rows for t in more.tasks] == [129, 518, 906, 1294]
    for s in range(6):
        parts = [set(index(task.train, s).tolist()) for task in more.tasks]
        assert parts[0] < parts[1] < parts[2] < parts[3] == set(DATA.train.tolist())
        assert torch.equal(index(more.tasks[0].test, s), DATA.test)
    assert set(index(stream.tasks[0].train, 0).tolist()) != set(index(stream.tasks[0].train, 1).tolist())
    with pytest.raises(ValueError, match=r"tasks\.fraction=0: must be above 0 and at most 1"):
        warm_start(**GIVEN, n_tasks=2, fraction=0)
