"""Curricula and blurred boundaries: against a classifier fitted n times, and against the ramp that is promised."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from harness import rng
from harness.rng import keys
from harness.rows import Rows
from harness.types import Stream
from tasks.datasets import Dataset, load
from tasks.order import blurred, difficulty
from tasks.permuted import permuted
from tasks.sequence import sequence
from tasks.split import split
from tasks.stream import PARTS
from tests.even import even


def rows(x: Tensor, y: Tensor) -> Rows:
    n = len(x)
    return Rows(x, torch.arange(n)[None], y[None], torch.zeros(1, 1).long(), torch.tensor([n]))


def test_difficulty_is_the_error_of_a_ridge_classifier_fitted_anew_without_each_row() -> None:
    n = 40
    x = rng.normal(keys([1], "x"), n, 3)[0]
    y = (x[:, 0] + 0.8 * rng.normal(keys([2], "x"), n)[0] > 0).long() * 3  # classes 0 and 3: 1 and 2 do not occur
    z = torch.cat([x, torch.ones(n, 1)], 1).double()
    target = torch.nn.functional.one_hot(y, 4).double()
    ridge = 0.1 * z.square().sum(1).mean()
    wrong = 0
    for i in range(n):
        kept = torch.arange(n) != i
        a, b = z[kept], target[kept]
        w = torch.linalg.solve(a.T @ a + ridge * torch.eye(4, dtype=a.dtype), a.T @ b)
        guess = (z[i] @ w)[[0, 3]].argmax() * 3
        wrong += int(guess != y[i])
    assert 0 < wrong < n / 2
    assert float(difficulty(rows(x, y), keys([0], "any"))) == pytest.approx(wrong / n)


def noisy(noise: list[float]) -> Dataset:
    """Class pairs (0, 1), (2, 3)... whose inputs are told apart less and less well as noise grows."""
    parts, labels = [], []
    for i, sigma in enumerate(noise):
        for c in (0, 1):
            centre = torch.zeros(4)
            centre[0] = 2.0 * c - 1
            parts.append(centre + sigma * rng.normal(keys([10 * i + c], "x"), 60, 4)[0])
            labels += [2 * i + c] * 60
    x, y = torch.cat(parts), torch.tensor(labels)
    index = torch.arange(len(y))
    return Dataset(
        "noisy", x, y, index[index % 3 == 0], index[index % 3 == 1], index[index % 3 == 2], 2 * len(noise), "d"
    )


def classes(stream: Stream, data: Dataset, s: int) -> list[list[int]]:
    return [data.y[t.train.index[s, : int(t.train.size[s])]].unique().tolist() for t in stream.tasks]  # type: ignore[attr-defined]


@pytest.mark.parametrize("scenario", ["task", "domain", "class"])
def test_tasks_come_from_easy_to_hard_and_their_outputs_with_them(scenario: str) -> None:
    data = noisy([1.5, 0.2, 0.7])  # difficulties of the tasks in the classes' own order: hard, easy, middle
    given: dict[str, Any] = {"dataset": data, "seeds": (0, 1), "n_tasks": 3, "fixed": False, "shuffle": False}
    rising = split(**given, scenario=scenario, order="easy_first")
    falling = split(**given, scenario=scenario, order="hard_first")
    plain = split(**given, scenario=scenario)
    for s in range(2):
        assert classes(rising, data, s) == [[2, 3], [4, 5], [0, 1]]
        assert classes(falling, data, s) == [[0, 1], [4, 5], [2, 3]]
    assert len({rising.hash, falling.hash, plain.hash}) == 3
    for t, old in enumerate([1, 2, 0]):
        for part in PARTS:
            moved, was = getattr(rising.tasks[t], part), getattr(plain.tasks[old], part)
            position = torch.arange(int(was.size[0])).expand(2, -1)
            (x, y, task), (x0, y0, _) = moved.take(position), was.take(position)
            assert torch.equal(moved.size, was.size) and torch.equal(x, x0) and torch.equal(y, y0)
            assert (task == (t if scenario == "task" else 0)).all()
            mask = rising.mask(task, t)
            assert mask is None or mask.expand(2, y.shape[1], -1).gather(2, y[..., None]).all()
            if scenario == "task":
                assert mask is not None and mask[:, 0].nonzero()[:, 1].tolist() == [2 * old, 2 * old + 1] * 2


def test_a_random_order_is_the_seed_s_own_and_keeps_every_task() -> None:
    data = noisy([0.5] * 5)
    given: dict[str, Any] = {"dataset": data, "n_tasks": 5, "shuffle": False, "order": "random"}
    stream = split(**given, seeds=tuple(range(30)), fixed=False)
    found = [classes(stream, data, s) for s in range(30)]
    assert all(sorted(order) == [[2 * i, 2 * i + 1] for i in range(5)] for order in found)
    assert len({str(order) for order in found}) > 20
    assert classes(split(**given, seeds=(7,), fixed=False), data, 0) == found[7]
    same = split(**given, seeds=(1, 2), fixed=True)
    assert classes(same, data, 0) == classes(same, data, 1)


def test_data_sets_are_sorted_whatever_their_sizes() -> None:
    easy, hard = replace(noisy([0.2]), name="easy"), replace(noisy([2.0]), name="hard")
    stream = sequence(dataset=hard, seeds=(0,), then=[easy], fixed=False, rows=30, order="easy_first")
    x, _, _ = stream.tasks[0].train.take(torch.arange(30)[None])
    assert torch.isin(x[0, :, 1], easy.x[:, 1]).all()
    larger = sequence(dataset=hard, seeds=(0, 1), then=[noisy([0.1, 0.1])], fixed=False, order="easy_first")
    sizes = [task.train.size.tolist() for task in larger.tasks]
    assert sizes[0] != sizes[1] and larger.sizes is not None and larger.sizes.T.tolist() == sizes


def test_the_share_of_the_next_task_rises_linearly_over_the_blurred_stretch() -> None:
    data = load("digits")
    blur, seeds = 0.5, tuple(range(40))
    stream = permuted(dataset=data, seeds=seeds, n_tasks=2, fixed=False)
    mixed = blurred(stream, blur, keys(seeds, "blur"))
    n = len(data.train)
    later = torch.cat([task.train.transform_id for task in mixed.tasks], 1).double()  # type: ignore[attr-defined]
    time = (torch.arange(2 * n) + 0.5) / n - 1  # from the boundary, in tasks
    expected = ((time + blur / 2) / blur).clamp(0, 1)
    share = later.mean(0)
    assert (later[:, time < -blur / 2 - 0.02] == 0).all() and (later[:, time > blur / 2 + 0.02] == 1).all()
    bins = (time * 20).floor().long() + 20  # of 65 rows each, 40 seeds: standard error at most .01
    for b in range(40):
        assert float(share[bins == b].mean()) == pytest.approx(float(expected[bins == b].mean()), abs=0.04)


def test_the_larger_the_blur_the_more_is_mixed_and_zero_changes_nothing() -> None:
    data = load("digits")
    stream = split(dataset=data, seeds=(0, 1), n_tasks=5, fixed=False, scenario="domain")
    assert blurred(stream, 0.0, keys((0, 1), "blur")) is stream
    strange = []
    for blur in (0.2, 1.0, 100.0):
        mixed = blurred(stream, blur, keys((0, 1), "blur"))
        assert all(task.ordered for task in mixed.tasks)
        own = [data.y[t.train.index[0]].unique() for t in stream.tasks]  # type: ignore[attr-defined]
        rest = [~torch.isin(data.y[t.train.index[0]], c) for t, c in zip(mixed.tasks, own)]  # type: ignore[attr-defined]
        strange.append(float(torch.cat(rest).double().mean()))
    # a ramp over b of a task puts b / 8 of a task on the wrong side of each of 4 boundaries, twice: 8 b / 8 of 5 tasks
    assert strange[0] == pytest.approx(0.2 / 5, abs=0.015) and strange[1] == pytest.approx(1.0 / 5, abs=0.04)
    assert strange[2] == pytest.approx(0.8, abs=0.05)  # one task in five is the own


def test_rows_come_in_their_order_in_every_pass() -> None:
    from harness.learner import Budget, Learner
    from harness.models.mlp import MLP
    from harness.optim import SGD

    stream = split(dataset=even(load("digits")), seeds=(0, 1), n_tasks=5, fixed=False, blur=1.0)
    learner = Learner(MLP(stream.shape, 10, (4,)), stream, SGD(lr=0.1), Budget(epochs=2, batch_size=50))
    task = stream.tasks[1]
    learner.plan(task)
    seen = torch.cat([batch.y for batch in learner.batches(task)], 1)
    assert isinstance(task.train, Rows)
    for s in range(2):
        n = int(task.train.size[s])
        assert torch.equal(seen[s, :n], task.train.y[s, :n])
        assert torch.equal(seen[s, n : n + 100], task.train.y[s, :100])


def test_with_scenario_class_what_a_mixed_task_holds_competes_and_no_more() -> None:
    stream = split(dataset=load("digits"), seeds=(0, 1, 2), n_tasks=5, fixed=False, blur=0.3)
    assert stream.masks is not None
    for t, task in enumerate(stream.tasks):
        assert isinstance(task.train, Rows)
        for s in range(3):
            own = {2 * t, 2 * t + 1}
            held = set(task.train.y[s, : int(task.train.size[s])].tolist())
            assert set(stream.masks[s, t].nonzero()[:, 0].tolist()) == own | held
    assert int(stream.masks[:, 0].sum(1).max()) == 4  # the next task's two classes leak in, no others
