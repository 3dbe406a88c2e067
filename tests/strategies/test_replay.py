"""Replay: what is replayed, when, and with what weight."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.learner import Budget, Learner
from harness.loop import prepare, train
from harness.models.mlp import MLP
from harness.optim import SGD
from harness.rows import Rows
from harness.strategy import Chain, Strategy
from harness.types import Batch, Stream, Task
from strategies.replay import Replay
from tests.observer import Blind

DEFAULT: dict[str, Any] = {
    "capacity": 12,
    "batch_size": 4,
    "policy": "reservoir",
    "weighting": "sum",
    "fill": "step",
    "replacement": False,
}
B = 8


def replay(**changed: Any) -> Replay:
    return Replay(**{**DEFAULT, **changed})


def learner(tasks: int = 3, seeds: tuple[int, ...] = (0, 1), scenario: str = "task") -> Learner:
    """Task i: 24 rows whose one input is 100 i + row number; two outputs of its own."""
    S, n = len(seeds), 24
    made = []
    for i in range(tasks):
        x = torch.arange(n, dtype=torch.float64)[:, None] + 100 * i
        y = (torch.arange(n) % 2 + 2 * i).expand(S, n)
        rows = Rows(x, torch.arange(n).expand(S, n), y, torch.full((S, 1), i), torch.full((S,), n))
        made.append(Task(i, rows, rows, rows, n))
    masks = (torch.arange(2 * tasks) // 2 == torch.arange(tasks)[:, None])[None]
    stream = Stream("toy", 1, scenario, tuple(made), (1,), 2 * tasks, seeds, "", masks)
    return Learner(
        MLP((1,), 2 * tasks, (3,)), stream, SGD(lr=1e-6), Budget(epochs=1, batch_size=B), dtype=torch.float64
    )


class Watch(Strategy):
    """Keeps every batch as it was trained on."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, Batch]] = []

    def batch(self, learner: Learner, batch: Batch) -> Batch:
        self.batches.append((learner.now, batch))
        return batch


def run(part: Replay, made: Learner | None = None) -> list[tuple[int, Batch]]:
    made = made or learner()
    watch = Watch()
    chain = Chain([part, watch])
    prepare(made, chain)
    train(made, chain, Blind())
    return watch.batches


def tasks_of(x: Tensor) -> Tensor:
    return (x[..., 0] // 100).long()


def test_online_memory_replays_rows_that_were_seen_before() -> None:
    part = replay()
    batches = run(part)
    assert part.memory.seen == 3 * 24  # each row was offered once
    assert batches[0][1].x.shape[1] == B  # nothing was seen yet
    seen: set[float] = set()
    for _, b in batches:
        for s in range(2):
            assert {*b.x[s, B:, 0].tolist()} <= seen
        seen |= {*b.x[:, :B, 0].flatten().tolist()}
    assert batches[1][1].x.shape[1] == B + 4
    assert all(b.x.shape[1] == B + 4 for _, b in batches[1:])


def test_replayed_rows_keep_their_target_task_and_mask() -> None:
    for _, b in run(replay()):
        task = tasks_of(b.x)
        assert torch.equal(b.t, task) and torch.equal(b.y, (b.x[..., 0] % 100 % 2).long() + 2 * task)
        outputs = torch.arange(6) // 2
        assert b.mask is not None and torch.equal(b.mask.expand(*task.shape, 6), outputs == task[..., None])


def test_filling_at_the_end_replays_past_tasks_only() -> None:
    batches = run(replay(fill="end", capacity=200))
    for now, b in batches:
        old = tasks_of(b.x[:, B:])
        assert b.x.shape[1] == (B if now == 0 else B + 4) and (old < now).all()


def test_filling_at_the_end_offers_each_row_once() -> None:
    part = replay(fill="end", capacity=200)
    run(part)
    expected = sorted(100.0 * i + j for i in range(3) for j in range(24))
    for s in range(2):
        assert part.memory.rows()["x"][s, :, 0].tolist() != expected  # in random order
        assert sorted(part.memory.rows()["x"][s, :, 0].tolist()) == expected


def test_class_balanced_memory_has_equal_shares() -> None:
    part = replay(policy="class_balanced", fill="end")
    run(part)
    assert all(row.bincount().tolist() == [2] * 6 for row in part.memory.rows()["y"])


@pytest.mark.parametrize(
    ("weighting", "fresh", "held"),
    [
        ("sum", [1, 1, 1], [1, 1, 1]),
        ("mean", [2 / 3] * 3, [1 / 3] * 3),
        ("share", [1, 1 / 2, 1 / 3], [0, 1 / 2, 2 / 3]),
    ],
)
def test_weights(weighting: str, fresh: list[float], held: list[float]) -> None:
    batches = run(replay(weighting=weighting))
    for now, b in batches[1:]:
        torch.testing.assert_close(b.w[:, :B], torch.full((2, B), fresh[now] / B).double())
        torch.testing.assert_close(b.w[:, B:], torch.full((2, 4), held[now] / 4).double())


def test_every_step_replays_as_many_rows_whatever_the_capacity() -> None:
    """Avalanche's loader ends each pass over 10 rows with a batch of 2, whose weight in the mean then differs."""
    batches = run(replay(capacity=10, batch_size=4, weighting="mean"))
    sizes = [b.x.shape[1] - B for _, b in batches]
    assert sizes == [0] + [4] * (len(batches) - 1) and len(sizes) > 6


def test_a_small_memory_is_replayed_whole() -> None:
    made = learner()
    batches = run(replay(capacity=3, batch_size=10), made)
    for _, b in batches[1:]:
        assert b.x.shape[1] == B + 3
        assert b.x[0, B:, 0].unique().numel() == 3
        torch.testing.assert_close(b.w[:, B:], torch.full((2, 3), 1 / 3).double())


def test_sampling_with_replacement_repeats_rows() -> None:
    batches = run(replay(capacity=3, batch_size=10, replacement=True))
    assert all(b.x.shape[1] == B + 10 for _, b in batches[1:])


def test_a_ring_holds_the_newest_rows_of_each_class_of_each_task() -> None:
    # in a domain stream all tasks share their two outputs, and none of them may push out the others' rows
    made = learner(scenario="domain")
    sources = [replace(task.train, y=task.train.y % 2, t=task.train.t * 0) for task in made.stream.tasks]
    tasks = tuple(replace(task, train=source) for task, source in zip(made.stream.tasks, sources))
    object.__setattr__(made.stream, "tasks", tasks)
    part = replay(policy="ring")
    batches = run(part, made)
    for s in range(2):
        fresh = [(now, *row) for now, b in batches for row in zip(b.x[s, :B, 0].tolist(), b.y[s, :B].tolist())]
        newest = [[x for now, x, y in fresh if (now, y) == (i, c)][-2:] for i in range(3) for c in range(2)]
        assert sorted(part.memory.rows()["x"][s, :, 0].tolist()) == sorted(x for queue in newest for x in queue)
    assert list(part.memory.rows()) == ["x", "y", "t"]  # the number of the queue is not kept


def test_a_ring_has_a_queue_for_each_task_of_a_regression() -> None:
    made, part = learner(), replay(policy="ring")
    made.now = 1
    prepare(made, Chain([part]))
    part.offer(made, torch.zeros(2, 3, 1), torch.zeros(2, 3, 6), torch.zeros(2, 3).long())
    assert (part.memory._rank[:, :3].floor() == 6).all()


def test_class_balanced_refuses_regression() -> None:
    made = learner()
    object.__setattr__(made.stream, "loss", "mse")
    with pytest.raises(ValueError, match=r"policy=class_balanced"):
        prepare(made, Chain([replay(policy="class_balanced")]))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"capacity": -3}, "capacity=-3: must be at least 1"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"policy": "queue"}, "policy=queue"),
        ({"weighting": "half"}, "weighting=half"),
        ({"fill": "never"}, "fill=never"),
    ],
)
def test_bad_values_are_named(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        replay(**changed)
