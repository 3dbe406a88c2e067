"""GDumb: what it collects, what it trains on, and for how long."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from harness import tree
from harness.learner import Learner
from harness.loop import prepare
from harness.optim import SGD
from harness.strategy import Chain
from harness.types import Params
from strategies.gdumb import GDumb
from tests.strategies.by_hand import LR, allowed, learner_of, module, run, same_weights


def gdumb(**changed: Any) -> GDumb:
    return GDumb(**{"capacity": 12, "epochs": 3, "batch_size": 4, **changed})


def counting(learner: Learner, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Task of every optimizer step."""
    taken: list[int] = []
    advance = learner.advance
    monkeypatch.setattr(learner, "advance", lambda g, b: (taken.append(learner.now), advance(g, b))[1])
    return taken


def test_classes_have_equal_shares() -> None:
    part, counts = gdumb(capacity=13), []
    learner = learner_of()
    prepare(learner, Chain([part]))
    for task in learner.stream.tasks:
        learner.enter(task)
        part.end(learner, task)
        counts.append([sorted(row.bincount(minlength=6).tolist()) for row in part.memory.rows()["y"]])
    assert counts == [[[0, 0, 0, 0, 6, 7]] * 2, [[0, 0, 3, 3, 3, 4]] * 2, [[2, 2, 2, 2, 2, 3]] * 2]
    assert part.memory.seen == sum(task.rows for task in learner.stream.tasks)


def test_no_step_is_taken_on_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    learner, part = learner_of(), gdumb()
    taken = counting(learner, monkeypatch)
    assert run(part, learner) == []
    assert taken == [0] * 9 + [1] * 9 + [2] * 9  # epochs * ceil(12 / 4) at each boundary


def test_the_budget_is_passes_over_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    learner, part = learner_of(tasks=1), gdumb(epochs=5, capacity=10, batch_size=5)
    prepare(learner, Chain([part]))
    offered: list[torch.Tensor] = []
    make_batch = learner.make_batch
    monkeypatch.setattr(learner, "make_batch", lambda **rows: (offered.append(rows["x"]), make_batch(**rows))[1])
    part.end(learner, learner.stream.tasks[0])
    assert [x.shape[1] for x in offered] == [5] * 10
    for s in range(2):
        for i in range(5):  # each pass sees every row once
            once = torch.cat([offered[2 * i][s], offered[2 * i + 1][s]]).flatten(1)
            held = part.memory.rows()["x"][s].flatten(1)
            assert torch.equal(once.unique(dim=0), held.unique(dim=0))


def test_a_step_is_gradient_descent_from_a_fresh_net(monkeypatch: pytest.MonkeyPatch) -> None:
    learner, part = learner_of(), gdumb(epochs=2, batch_size=100)
    made: list[Params] = []
    fresh = learner.fresh
    monkeypatch.setattr(learner, "fresh", lambda key: (made.append(tree.copy(fresh(key)[0])), fresh(key))[1])
    run(part, learner)
    rows = learner.make_batch(**part.memory.rows())
    for s in range(2):
        net = module(made[-1], s)
        optimizer = torch.optim.SGD(net.parameters(), lr=LR)
        for _ in range(2):
            optimizer.zero_grad()
            cross_entropy(allowed(net(rows.x[s].double()), rows.mask, s), rows.y[s]).backward()
            optimizer.step()
        same_weights(learner.params, s, net)
    for a, b in itertools.pairwise(made):
        assert not torch.equal(a["fc1.weight"], b["fc1.weight"])


def test_nothing_but_the_memory_is_carried_over() -> None:
    # Adam's moments and an earlier net would be
    results = []
    for spoil in (0.0, 7.0):
        learner, part = learner_of(optimizer=SGD(lr=0.05, momentum=0.9)), gdumb()
        prepare(learner, Chain([part]))
        for task in learner.stream.tasks[:2]:
            learner.enter(task)
            learner.plan(part.begin(learner, task))
            if task.index:
                for v in (*learner.params.values(), *learner.optimizer.state["momentum"].values()):
                    v += spoil
            part.end(learner, task)
        results.append(tree.copy(learner.params))
    assert all(torch.equal(v, results[1][k]) for k, v in results[0].items())


@pytest.mark.parametrize("scope", ["task", "stream"])
def test_a_schedule_spans_the_training_at_the_boundary(scope: str, monkeypatch: pytest.MonkeyPatch) -> None:
    learner, part = learner_of(tasks=2, optimizer=SGD(lr=1.0, schedule="cosine", scope=scope)), gdumb()
    lrs: list[float] = []
    move = learner.optimizer.move
    monkeypatch.setattr(learner.optimizer, "move", lambda *how: (lrs.append(learner.optimizer.lr), move(*how))[1])
    run(part, learner)
    assert len(lrs) == 18 and lrs[0] == 1 and lrs[8] < lrs[0]
    assert (lrs[9] == 1) == (scope == "task")


def test_it_is_refused_for_regression() -> None:
    learner = learner_of()
    object.__setattr__(learner.stream, "loss", "mse")
    with pytest.raises(ValueError, match="gdumb: regression has no classes"):
        prepare(learner, Chain([gdumb()]))


@pytest.mark.parametrize("key", ["capacity", "epochs", "batch_size"])
def test_bad_values_are_named(key: str) -> None:
    with pytest.raises(ValueError, match=f"^{key}=0"):
        gdumb(**{key: 0})
