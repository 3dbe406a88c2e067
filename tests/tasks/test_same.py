"""The null control: nothing changes from task to task but the order of the batches."""

from functools import cache
from typing import Any

import pytest
import torch

from harness.learner import Budget, Learner
from harness.models.mlp import MLP
from harness.optim import SGD
from harness.run import run
from harness.types import Stream
from strategies.naive import Naive
from tasks.datasets import Dataset, load
from tasks.same import same


@cache
def data() -> Dataset:
    return load("digits")


def make(**options: Any) -> Stream:
    return same(**{"dataset": data(), "seeds": (0, 1), "n_tasks": 3, **options})


@pytest.mark.parametrize("scenario", ["task", "domain"])
def test_every_task_has_the_rows_and_the_classes_of_the_data_set(scenario: str) -> None:
    stream = make(scenario=scenario)
    for i, task in enumerate(stream.tasks):
        for part in ("train", "val", "test"):
            rows = getattr(data(), part)
            x, y, t = getattr(task, part).take(torch.arange(len(rows)).expand(2, -1))
            first = 10 * i if scenario == "task" else 0
            assert torch.equal(x, data().x[rows].expand_as(x)) and torch.equal(y, (data().y[rows] + first).expand_as(y))
            assert (t == (i if scenario == "task" else 0)).all()


def test_a_long_stream_is_longer_training_and_the_boundaries_change_nothing_for_naive() -> None:
    """One pass of three tasks: each task's batches are a new pass over the same rows, whatever the boundaries."""
    stream = make()
    model = MLP(stream.shape, stream.outputs, widths=(8,))
    done = run(
        stream, [Naive()], model=model, optimizer=SGD(lr=0.1), budget=Budget(epochs=1, batch_size=100), gap=False
    )
    by_hand = Learner(model, stream, SGD(lr=0.1), Budget(epochs=1, batch_size=100))
    gradient = by_hand.value_and_grad(Naive().loss)
    orders = []
    for task in stream.tasks:
        by_hand.plan(task)
        for batch in by_hand.batches(task):
            orders.append(batch.y)
            by_hand.advance(gradient, batch)
    assert not torch.equal(orders[0], orders[13])  # 13 batches a pass: the next task has another order
    assert all(torch.equal(v, done.learner.params[k]) for k, v in by_hand.params.items())
    last = done.accuracy[:, -1]
    assert torch.equal(last, last[:, :1].expand_as(last))  # one net, the same test rows: one accuracy


def test_nothing_is_drawn() -> None:
    assert make().hash == make(seeds=(7,), pin=3).hash
    assert len({make().hash, make(n_tasks=2).hash, make(scenario="task").hash}) == 3


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"scenario": "class"}, "scenario=class: .*use task or domain"), ({"n_tasks": 0}, r"tasks\.n_tasks=0")],
)
def test_what_has_no_meaning_is_refused_by_name(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**wrong)
