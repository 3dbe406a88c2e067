"""Split streams: van de Ven, Tuytelaars & Tolias's (2022) scenarios, and that no sample is lost or leaks."""

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from harness.types import Source, Stream
from tasks.datasets import Dataset
from tasks.split import split

CLASSES = 6


@cache
def data() -> Dataset:
    """Sample i is the number i; class c has 3 + 2 c training, 1 + c validation and 2 + c test samples."""
    counts = [[3 + 2 * c for c in range(CLASSES)], [1 + c for c in range(CLASSES)], [2 + c for c in range(CLASSES)]]
    labels = [torch.arange(CLASSES).repeat_interleave(torch.tensor(n)) for n in counts]
    labels = [y[torch.randperm(len(y), generator=torch.Generator().manual_seed(i))] for i, y in enumerate(labels)]
    y = torch.cat(labels)
    ends = torch.tensor([len(part) for part in labels]).cumsum(0).tolist()
    train, val, test = (torch.arange(a, b) for a, b in zip([0, *ends], ends))
    return Dataset("toy", torch.arange(float(len(y)))[:, None], y, train, val, test, CLASSES, "digest")


def make(seeds: tuple[int, ...] = (0, 1, 2), n_tasks: int = 3, fixed: bool = False, **options: Any) -> Stream:
    return split(dataset=data(), seeds=seeds, n_tasks=n_tasks, fixed=fixed, **options)


def read(source: Source, s: int) -> tuple[Tensor, Tensor, Tensor]:
    """The rows of seed s: sample numbers, targets, task ids."""
    n = int(source.size[s])
    x, y, t = source.take(torch.arange(n).expand(len(source.size), -1).minimum(source.size[:, None] - 1))
    return x[s, :, 0].long(), y[s], t[s]


options = st.fixed_dictionaries(
    {
        "seeds": st.lists(st.integers(0, 2**40), min_size=1, max_size=3).map(tuple),
        "n_tasks": st.sampled_from([1, 2, 3, 6]),
        "fixed": st.booleans(),
        "scenario": st.sampled_from(["task", "domain", "class"]),
        "shuffle": st.booleans(),
    }
)
streams = options.map(lambda o: make(**dict[str, Any](o)))


@settings(max_examples=60, deadline=None)
@given(streams)
def test_every_sample_is_in_exactly_one_task_and_stays_in_its_part(stream: Stream) -> None:
    for part in ("train", "val", "test"):
        for s in range(len(stream.seeds)):
            found = torch.cat([read(getattr(task, part), s)[0] for task in stream.tasks])
            assert torch.equal(found.sort().values, getattr(data(), part))


@settings(max_examples=60, deadline=None)
@given(streams)
def test_each_task_holds_as_many_whole_classes_and_labels_are_one_to_one(stream: Stream) -> None:
    n_tasks = len(stream.tasks)
    width = CLASSES // n_tasks
    for s in range(len(stream.seeds)):
        seen: dict[int, int] = {}
        for i, task in enumerate(stream.tasks):
            label: dict[int, int] = {}  # class of the data set -> target, the same in all parts
            for part in (task.train, task.val, task.test):
                sample, y, t = read(part, s)
                for c, target in zip(data().y[sample].tolist(), y.tolist()):
                    assert label.setdefault(c, target) == target
                assert (t == (i if stream.scenario == "task" else 0)).all()
            assert len(label) == len(set(label.values())) == width
            low = 0 if stream.scenario == "domain" else i * width
            assert sorted(label.values()) == list(range(low, low + width))
            assert not seen.keys() & label.keys()
            seen |= label
        assert len(seen) == CLASSES


@settings(max_examples=40, deadline=None)
@given(options)
def test_a_seed_s_rows_do_not_depend_on_its_companions(options: dict[str, Any]) -> None:
    together = make(**options)
    for s, seed in enumerate(options["seeds"]):
        alone = make(**{**options, "seeds": (seed,)})
        for a, b in zip(together.tasks, alone.tasks):
            for part in ("train", "val", "test"):
                mine, own = read(getattr(a, part), s), read(getattr(b, part), 0)
                assert all(torch.equal(x, y) for x, y in zip(mine, own))


def classes_of(stream: Stream, s: int, task: int) -> list[int]:
    found: list[int] = data().y[read(stream.tasks[task].train, s)[0]].unique().tolist()
    return found


def orders(stream: Stream) -> list[list[list[int]]]:
    """Classes of every task of every seed."""
    return [[classes_of(stream, s, i) for i in range(len(stream.tasks))] for s in range(len(stream.seeds))]


def test_class_orders_are_the_seed_s_own_unless_fixed_or_pinned() -> None:
    own = orders(make(seeds=tuple(range(20))))
    assert len({str(o) for o in own}) > 10
    for shared in (make(seeds=tuple(range(5)), fixed=True), make(seeds=tuple(range(5)), pin=3)):
        assert all(o == orders(shared)[0] for o in orders(shared))
    assert orders(make(seeds=(9,), pin=3)) == [own[3]]
    assert orders(make(shuffle=False))[2] == [[0, 1], [2, 3], [4, 5]]


def test_class_orders_are_pinned_so_that_versions_agree() -> None:
    """Change VERSION with them."""
    assert orders(make(seeds=(0, 1))) == [[[0, 1], [4, 5], [2, 3]], [[1, 5], [0, 3], [2, 4]]]


def test_every_class_comes_first_equally_often() -> None:
    first = torch.tensor([o[0][0] for o in orders(make(seeds=tuple(range(300)), n_tasks=6))])
    counts = first.bincount(minlength=CLASSES)
    assert ((counts - 50).square() / 50).sum() < 20.5  # chi-square with 5 degrees of freedom, p = 0.001


def test_the_same_call_gives_the_same_stream_and_the_digest_says_so() -> None:
    a, b = make(), make()
    assert a.hash == b.hash and orders(a) == orders(b)
    others = [
        make(seeds=(0, 1, 3)), make(n_tasks=2), make(fixed=True), make(scenario="task"), make(shuffle=False),
        split(dataset=replace(data(), digest="other"), seeds=(0, 1, 2), n_tasks=3, fixed=False),
    ]  # fmt: skip
    assert len({s.hash for s in (a, *others)}) == 7


def competing(stream: Stream, task: int, now: int) -> list[list[int]]:
    """Outputs that compete for a test row of `task` while `now` is current, for each seed."""
    _, _, t = stream.tasks[task].test.take(torch.zeros(len(stream.seeds), 1, dtype=torch.int64))
    mask = stream.mask(t, now)
    if mask is None:
        return [list(range(stream.outputs))] * len(stream.seeds)
    dense = mask.expand(len(stream.seeds), 1, stream.outputs)[:, 0]
    return [row.nonzero()[:, 0].tolist() for row in dense]


def test_task_incremental_rows_compete_in_their_own_head_only() -> None:
    stream = make(scenario="task")
    assert stream.outputs == CLASSES
    for task in range(3):
        for now in range(3):  # a replayed row of an old or later task keeps its own head
            assert competing(stream, task, now) == [[2 * task, 2 * task + 1]] * 3


def test_domain_incremental_tasks_share_all_outputs() -> None:
    stream = make(scenario="domain")
    assert stream.outputs == 2
    assert competing(stream, 0, 2) == [[0, 1]] * 3


def test_class_incremental_rows_compete_with_the_classes_seen_so_far_or_all() -> None:
    seen, whole = make(scenario="class"), make(scenario="class", classes="all")
    assert seen.outputs == whole.outputs == CLASSES
    for task in range(3):
        for now in range(3):
            assert competing(seen, task, now) == [list(range(2 * now + 2))] * 3
            assert competing(whole, task, now) == [list(range(CLASSES))] * 3


@pytest.mark.parametrize("scenario", ["task", "class"])
def test_a_task_s_own_targets_always_compete(scenario: str) -> None:
    stream = make(scenario=scenario)
    for task in stream.tasks:
        for s in range(3):
            assert set(read(task.train, s)[1].tolist()) <= set(competing(stream, task.index, task.index)[s])


def test_the_stream_says_how_many_training_rows_each_seed_has() -> None:
    stream = make(seeds=tuple(range(8)))
    sizes = torch.stack([t.train.size for t in stream.tasks], 1)
    assert stream.sizes is not None and torch.equal(stream.sizes, sizes)
    assert (sizes.sum(1) == len(data().train)).all()
    assert len(sizes[:, 0].unique()) > 1  # seeds drew classes of different sizes
    with pytest.raises(ValueError, match=r"task 0: has \d+ training rows for one seed and \d+ for another"):
        _ = stream.tasks[0].rows


def test_no_validation_samples_is_no_error() -> None:
    empty = replace(data(), val=torch.empty(0, dtype=torch.int64))
    stream = split(dataset=empty, seeds=(0, 1), n_tasks=3, fixed=False)
    assert all(t.val.size.tolist() == [0, 0] for t in stream.tasks)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"initial": 5}, r"tasks\.initial=5: must leave a class for each of 2 other tasks; toy has 6"),
        ({"initial": 0}, r"tasks\.initial=0"),
        ({"initial": 5, "n_tasks": 1}, r"tasks\.initial=5"),
        ({"order": "x"}, r"tasks\.order=x: must be null or one of random, easy_first, hard_first"),
        ({"blur": -0.5}, r"tasks\.blur=-0\.5"),
        ({"blur": 0.5, "scenario": "task"}, r"scenario=task: blurred boundaries do not reveal the task"),
        ({"n_tasks": 0}, r"tasks\.n_tasks=0"),
        ({"n_tasks": 7}, r"tasks\.n_tasks=7: toy has only 6 classes"),
        ({"scenario": "instance"}, r"scenario=instance.*task, domain, class"),
        ({"classes": "some"}, r"classes=some"),
    ],
)
def test_what_cannot_be_split_is_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)
