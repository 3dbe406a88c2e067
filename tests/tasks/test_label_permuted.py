"""Label-permuted streams: the same inputs in every task, each task with its own names for the classes."""

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from harness.rng import integers, keys, normal
from harness.rows import union
from harness.types import Source, Stream
from tasks.datasets import Dataset
from tasks.label_permuted import label_permuted

CLASSES, SHAPE = 6, (2, 3)
PARTS = ("train", "val", "test")


@cache
def data() -> Dataset:
    n = 60
    x = normal(keys([0], "x"), n, *SHAPE)[0]
    y = torch.cat([torch.arange(CLASSES), integers(keys([0], "y"), CLASSES, n - CLASSES)[0]])
    parts = torch.arange(0, 40), torch.arange(40, 48), torch.arange(48, 60)
    return Dataset("toy", x, y, *parts, CLASSES, "digest")


def make(seeds: tuple[int, ...] = (0, 1, 2), n_tasks: int = 3, fixed: bool = False, **options: Any) -> Stream:
    return label_permuted(dataset=data(), seeds=seeds, n_tasks=n_tasks, fixed=fixed, **options)


def read(source: Source, s: int) -> tuple[Tensor, Tensor, Tensor]:
    """All rows of seed s."""
    n = int(source.size[s])
    x, y, t = source.take(torch.arange(n).expand(len(source.size), -1))
    return x[s], y[s], t[s]


def names(stream: Stream, s: int, task: int) -> list[int]:
    """What each class is called, read off the rows."""
    _, y, _ = read(stream.tasks[task].train, s)
    called = [y[data().y[data().train] == c].unique().tolist() for c in range(CLASSES)]
    assert all(len(c) == 1 for c in called)
    return [c[0] for c in called]


def orders(stream: Stream) -> list[list[list[int]]]:
    return [[names(stream, s, t) for t in range(len(stream.tasks))] for s in range(len(stream.seeds))]


options = st.fixed_dictionaries(
    {
        "seeds": st.lists(st.integers(0, 2**40), min_size=1, max_size=3).map(tuple),
        "n_tasks": st.integers(1, 4),
        "fixed": st.booleans(),
        "identity_first": st.booleans(),
    }
)


@settings(max_examples=40, deadline=None)
@given(options)
def test_inputs_stay_and_every_part_uses_the_task_s_one_to_one_names(o: dict[str, Any]) -> None:
    stream = make(**o)
    for i, task in enumerate(stream.tasks):
        for s in range(len(o["seeds"])):
            called = names(stream, s, i)
            assert sorted(called) == list(range(CLASSES))
            for part in PARTS:
                x, y, t = read(getattr(task, part), s)
                rows = getattr(data(), part)
                assert torch.equal(x, data().x[rows])
                assert y.tolist() == [called[c] for c in data().y[rows].tolist()]
                assert torch.equal(getattr(task, part).labels()[s], y)
                assert (t == 0).all()
            if o["identity_first"] and i == 0:
                assert called == list(range(CLASSES))
    assert stream.outputs == CLASSES and stream.masks is None


@settings(max_examples=25, deadline=None)
@given(options)
def test_a_seed_s_names_repeat_and_depend_neither_on_companions_nor_on_later_tasks(o: dict[str, Any]) -> None:
    together = make(**o)
    assert together.hash == make(**o).hash and orders(together) == orders(make(**o))
    for s, seed in enumerate(o["seeds"]):
        assert orders(make(**{**o, "seeds": (seed,)}))[0] == orders(together)[s]
        assert orders(make(**{**o, "seeds": (seed,), "n_tasks": 1}))[0] == orders(together)[s][:1]


def test_names_differ_between_tasks_and_seeds_unless_fixed_or_pinned() -> None:
    own = orders(make(seeds=(0, 1, 2, 3)))
    assert len({str(p) for seed in own for p in seed}) == 12
    for shared in (make(fixed=True), make(pin=3)):
        found = orders(shared)
        assert found[0] == found[1] == found[2] and len({str(p) for p in found[0]}) == 3
    assert orders(make(seeds=(8,), pin=3))[0] == own[3]


def test_names_are_pinned_so_that_versions_agree() -> None:
    """Change VERSION with them."""
    assert orders(make(seeds=(0, 1), n_tasks=1)) == [[[1, 0, 3, 5, 2, 4]], [[1, 3, 2, 0, 5, 4]]]


def test_rows_of_several_tasks_keep_their_own_names() -> None:
    tasks = make().tasks
    both = union([tasks[0].train, tasks[2].train])
    for s in range(3):
        expected = torch.cat([read(tasks[i].train, s)[1] for i in (0, 2)])
        assert torch.equal(read(both, s)[1], expected)
        assert torch.equal(both.labels()[s], expected)


def test_the_digest_tells_streams_apart() -> None:
    other = replace(data(), digest="other")
    streams = [
        make(), make(seeds=(0, 1, 3)), make(n_tasks=2), make(fixed=True), make(identity_first=True),
        label_permuted(dataset=other, seeds=(0, 1, 2), n_tasks=3, fixed=False),
    ]  # fmt: skip
    assert len({s.hash for s in streams}) == len(streams)


@pytest.mark.parametrize("scenario", ["task", "class"])
def test_outputs_of_their_own_are_refused_since_a_permutation_would_only_rename_them(scenario: str) -> None:
    with pytest.raises(ValueError, match=f"scenario={scenario}: .*only rename them; use domain") as caught:
        make(scenario=scenario)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("wrong", "message"), [({"n_tasks": 0}, r"tasks\.n_tasks=0"), ({"classes": "x"}, "classes=x")])
def test_what_cannot_be_permuted_is_refused_by_name(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**wrong)
