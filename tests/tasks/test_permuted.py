"""Permuted streams: the same samples in every task, each task with its own order of the inputs."""

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.rng import integers, keys, normal
from harness.types import Source, Stream
from tasks.datasets import Dataset
from tasks.permuted import permuted

CLASSES, SHAPE = 4, (2, 3, 2)


@cache
def data() -> Dataset:
    n = 40
    x = normal(keys([0], "x"), n, *SHAPE)[0]
    y = integers(keys([0], "y"), CLASSES, n)[0]
    parts = torch.arange(0, 25), torch.arange(25, 32), torch.arange(32, 40)
    return Dataset("toy", x, y, *parts, CLASSES, "digest")


def make(seeds: tuple[int, ...] = (0, 1, 2), n_tasks: int = 3, fixed: bool = False, **options: Any) -> Stream:
    return permuted(dataset=data(), seeds=seeds, n_tasks=n_tasks, fixed=fixed, **options)


def read(source: Source, s: int) -> tuple[Tensor, Tensor, Tensor]:
    """All rows of seed s."""
    n = int(source.size[s])
    x, y, t = source.take(torch.arange(n).expand(len(source.size), -1))
    return x[s], y[s], t[s]


def permutation(stream: Stream, s: int, task: int) -> list[int]:
    """The order of the inputs, found out by matching values (they are all different)."""
    moved, _, _ = read(stream.tasks[task].train, s)
    plain = data().x[data().train][0].flatten()
    return [int((plain == v).nonzero()) for v in moved[0].flatten()]


def permutations(stream: Stream) -> list[list[list[int]]]:
    return [[permutation(stream, s, t) for t in range(len(stream.tasks))] for s in range(len(stream.seeds))]


@pytest.mark.parametrize("scenario", ["task", "domain", "class"])
def test_a_task_is_the_whole_data_set_under_one_permutation(scenario: str) -> None:
    stream = make(scenario=scenario)
    for i, task in enumerate(stream.tasks):
        for s in range(3):
            order = permutation(stream, s, i)
            assert sorted(order) == list(range(12))
            for part in ("train", "val", "test"):
                x, y, t = read(getattr(task, part), s)
                rows = getattr(data(), part)
                assert torch.equal(x, data().x[rows].flatten(1)[:, order].view(-1, *SHAPE))
                assert torch.equal(y, data().y[rows] + (0 if scenario == "domain" else CLASSES * i))
                assert (t == (i if scenario == "task" else 0)).all()
        assert task.rows == 25
    assert stream.outputs == (CLASSES if scenario == "domain" else 3 * CLASSES)


def test_permutations_differ_between_tasks_and_seeds_unless_fixed_or_pinned() -> None:
    own = permutations(make(seeds=(0, 1, 2, 3)))
    assert len({str(p) for seed in own for p in seed}) == 12
    for shared in (make(fixed=True), make(pin=3)):
        found = permutations(shared)
        assert found[0] == found[1] == found[2]
        assert len({str(p) for p in found[0]}) == 3
    assert permutations(make(seeds=(8,), pin=3))[0] == own[3]


def test_a_seed_s_permutations_depend_neither_on_companions_nor_on_how_many_tasks_follow() -> None:
    together = permutations(make(seeds=(5, 7, 2)))
    assert permutations(make(seeds=(7,)))[0] == together[1]
    assert permutations(make(seeds=(7,), n_tasks=2))[0] == together[1][:2]


def test_the_first_task_can_be_left_as_it_is() -> None:
    first, drawn = permutations(make(identity_first=True)), permutations(make())
    for a, b in zip(first, drawn):
        assert a[0] == list(range(12)) and a[1:] == b[1:]
        assert b[0] != list(range(12))


def competing(stream: Stream, task: int, now: int) -> list[int]:
    _, _, t = stream.tasks[task].test.take(torch.zeros(3, 1, dtype=torch.int64))
    mask = stream.mask(t, now)
    if mask is None:
        return list(range(stream.outputs))
    dense = mask.expand(3, 1, stream.outputs)[:, 0]
    assert (dense == dense[0]).all()
    return dense[0].nonzero()[:, 0].tolist()


def test_scenarios_say_which_outputs_compete() -> None:
    for task in range(3):
        for now in range(3):
            assert competing(make(scenario="domain"), task, now) == list(range(4))
            assert competing(make(scenario="task"), task, now) == list(range(4 * task, 4 * task + 4))
            assert competing(make(scenario="class"), task, now) == list(range(4 * now + 4))
            assert competing(make(scenario="class", classes="all"), task, now) == list(range(12))


def test_the_digest_tells_streams_apart() -> None:
    other = replace(data(), digest="other")
    streams = [
        make(), make(seeds=(0, 1, 3)), make(n_tasks=2), make(fixed=True), make(identity_first=True),
        make(scenario="task"), permuted(dataset=other, seeds=(0, 1, 2), n_tasks=3, fixed=False),
    ]  # fmt: skip
    assert len({s.hash for s in streams}) == len(streams)
    assert make().hash == streams[0].hash


@pytest.mark.parametrize(
    ("options", "message"),
    [({"n_tasks": 0}, r"tasks\.n_tasks=0"), ({"scenario": "x"}, "scenario=x"), ({"classes": "x"}, "classes=x")],
)
def test_what_cannot_be_permuted_is_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_rows_give_each_task_a_sample_of_its_own_under_the_same_permutations() -> None:
    stream, plain = make(rows=10), make()
    drawn = []
    for a, b in zip(stream.tasks, plain.tasks):
        assert a.rows == 10 and a.train.size.tolist() == [10] * 3
        for s in range(3):
            x, y, _ = read(a.train, s)
            every, labels, _ = read(b.train, s)
            place = [int((every == row).flatten(1).all(1).nonzero()) for row in x]
            assert len(set(place)) == 10 and torch.equal(labels[place], y)
            drawn.append(tuple(sorted(place)))
            assert torch.equal(read(a.test, s)[0], read(b.test, s)[0])
    assert len(set(drawn)) == 9
    with pytest.raises(ValueError, match=r"tasks\.rows=26: must be from 1 to 25, the training rows of toy"):
        make(rows=26).tasks[0]


def test_eight_hundred_permutations_take_two_bytes_a_pixel() -> None:
    stream = make(n_tasks=800)
    rows: Any = stream.tasks[799].train
    assert rows.transform.permutation.dtype == torch.int16 and len(stream.tasks) == 800
    assert sorted(permutation(stream, 2, 799)) == list(range(12))
