"""Noisy and random labels: how many are wrong, what they become, and what stays."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from harness.types import Stream
from tasks.datasets import load
from tasks.noisy_labels import noisy_labels
from tasks.random_labels import random_labels

DATA = load("digits")
TRUE = DATA.y[DATA.train]
N = len(TRUE)


def noisy(**options: Any) -> Stream:
    return noisy_labels(
        **{"dataset": DATA, "seeds": (0, 1), "n_tasks": 5, "fixed": False, "first": 0.4, "last": 0.0, **options}
    )


def labels(stream: Stream, t: int, part: str = "train") -> Tensor:
    return getattr(stream.tasks[t], part).labels()


def test_exactly_the_share_is_wrong_and_it_changes_in_equal_steps() -> None:
    stream = noisy()
    for t, share in enumerate([0.4, 0.3, 0.2, 0.1, 0.0]):
        assert (labels(stream, t) != TRUE).sum(1).tolist() == [round(share * N)] * 2
        for part in ("val", "test"):
            index = getattr(DATA, part)
            assert torch.equal(labels(stream, t, part), DATA.y[index].expand(2, -1))
    assert (labels(noisy(n_tasks=1, first=1.0, last=0.0), 0) != TRUE).all()


def test_as_the_share_falls_labels_get_corrected_and_none_gets_worse() -> None:
    stream = noisy()
    for t in range(4):
        now, then = labels(stream, t), labels(stream, t + 1)
        assert ((then == now) | (then == TRUE)).all()


def test_symmetric_noise_is_even_over_the_other_classes_and_pair_noise_is_the_next_class() -> None:
    wrong = labels(noisy(first=1.0, last=1.0, n_tasks=1, seeds=tuple(range(20))), 0)
    step = ((wrong - TRUE) % 10).flatten().bincount(minlength=10)
    assert int(step[0]) == 0
    expected = 20 * N / 9
    assert float(((step[1:] - expected).square() / expected).sum()) < 26.1  # chi-square, 8 degrees of freedom, p = .001
    pair = labels(noisy(first=1.0, last=1.0, n_tasks=1, kind="pair"), 0)
    assert torch.equal(pair, ((TRUE + 1) % 10).expand(2, -1))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"first": 1.1}, r"tasks\.first=1\.1: must be from 0 to 1"),
        ({"last": -0.1}, r"tasks\.last=-0\.1"),
        ({"kind": "x"}, r"tasks\.kind=x: must be symmetric or pair"),
    ],
)
def test_what_is_no_noise_is_refused_by_name(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        noisy(**wrong)


def test_random_labels_keep_inputs_and_class_frequencies_and_mean_nothing() -> None:
    stream = random_labels(dataset=DATA, seeds=(0, 1), n_tasks=3, fixed=False, rows=400)
    sources = [task.train for task in stream.tasks]
    x, first, _ = sources[0].take(torch.arange(400).expand(2, -1))
    for source in sources:
        again, y, _ = source.take(torch.arange(400).expand(2, -1))
        assert torch.equal(again, x)
        for s in range(2):
            assert torch.equal(y[s].bincount(minlength=10), first[s].bincount(minlength=10))
            index = source.index[s]  # type: ignore[attr-defined]
            agree = float((y[s] == DATA.y[index]).double().mean())
            assert agree == pytest.approx(0.1, abs=0.06)  # 4 standard errors of 400 coin tosses at 1/10
    assert not torch.equal(first, sources[1].labels())
    assert not torch.equal(sources[0].labels()[0], sources[0].labels()[1])


def test_random_labels_are_tested_on_the_rows_they_were_trained_on() -> None:
    for task in random_labels(dataset=DATA, seeds=(3,), n_tasks=2, fixed=False, rows=50).tasks:
        position = torch.arange(50)[None]
        for part in (task.val, task.test):
            assert all(torch.equal(a, b) for a, b in zip(task.train.take(position), part.take(position)))


def test_more_rows_than_there_are_are_refused() -> None:
    with pytest.raises(ValueError, match=r"tasks\.rows=9999: must be from 1 to 1294, the training rows of digits"):
        random_labels(dataset=DATA, seeds=(0,), n_tasks=2, fixed=False, rows=9999)
