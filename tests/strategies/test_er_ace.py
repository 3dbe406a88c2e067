"""ER-ACE: which classes compete for whom, in float64 by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from harness.learner import Learner
from harness.loop import prepare
from harness.strategy import Chain, Strategy
from harness.types import Batch
from strategies.er_ace import ERACE
from tests.strategies.by_hand import LR, learner_of, module, run, same_weights

B, K = 8, 5


def er_ace(**changed: Any) -> ERACE:
    return ERACE(**{"capacity": 30, "batch_size": K, **changed})


def ready(**changed: Any) -> tuple[Learner, ERACE, Batch]:
    """In task 1, with a memory of task 0's rows; the fresh batch shows one of the task's two classes only."""
    learner, part = learner_of("class", **changed), er_ace()
    prepare(learner, Chain([part]))
    first = next(learner.batches(learner.stream.tasks[0]))
    part.batch(learner, first)
    part.memory.add(x=first.x, y=first.y, t=first.t)
    learner.now = 1
    fresh = next(learner.batches(learner.stream.tasks[1]))
    return learner, part, replace(fresh, y=fresh.y[:, :1].expand(-1, B).contiguous())


@pytest.mark.parametrize("classes", ["seen", "all"])
def test_the_loss_is_that_of_the_paper_by_hand(classes: str) -> None:
    learner, part, fresh = ready(classes=classes)
    batch = part.batch(learner, fresh)
    found = learner.task_loss(learner.params, batch)[0]
    masks = learner.stream.masks
    assert masks is not None
    for s in range(2):
        tasks = [{*m.nonzero().flatten().tolist()} for m in masks[0]]
        shown = {*part.memory.rows()["y"][s].tolist()}
        present = {int(fresh.y[s, 0])}
        competing = tasks[0] | tasks[1] if classes == "seen" else {*range(10)}
        # the other class of this task was shown by no batch yet: it competes, though absent
        fine = present | (competing - shown)
        assert fine >= tasks[1] and not fine & shown
        logits = module(learner.params, s)(batch.x[s].double()).tolist()
        y = batch.y[s].tolist()
        nll = [
            math.log(sum(math.exp(z[c]) for c in (fine if i < B else competing))) - z[y[i]]
            for i, z in enumerate(logits)
        ]
        assert len(nll) == B + K
        expected = sum(nll[:B]) / B + sum(nll[B:]) / K  # the sum of two means, not their mean
        assert float(found[s]) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("classes", ["seen", "all"])
def test_it_steps_as_the_authors_loop_does(classes: str) -> None:
    """AML's loop in plain torch, from the rows that were replayed.

    mask = 0; mask[fresh classes] = 1; mask[classes not seen yet] = 1; logits of the fresh rows are filled with -1e9
    where mask is 0; nothing is masked or replayed in the first task; the two means are added.
    """
    learner = learner_of("class", classes=classes)
    steps = run(er_ace(), learner)
    masks = learner.stream.masks
    assert masks is not None
    for s in range(2):
        net, seen = module(steps[0].params, s), set[int]()
        optimizer = torch.optim.SGD(net.parameters(), lr=LR)
        for step in steps:
            x, y = step.batch.x[s].double(), step.batch.y[s]
            present = {*step.fresh.y[s].tolist()}
            seen |= present
            competing = masks[s if len(masks) > 1 else 0, : step.now + 1].any(0) | (classes == "all")
            logits = net(x).masked_fill(~competing, -1e9)
            mask = torch.tensor([c in present or c not in seen or step.now == 0 for c in range(10)])
            loss = cross_entropy(logits[:B].masked_fill(~mask, -1e9), y[:B])
            if step.now:
                assert len(x) == B + K
                loss = loss + cross_entropy(logits[B:], y[B:])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        same_weights(learner.params, s, net)


def test_fresh_rows_do_not_push_old_classes() -> None:
    learner, part, fresh = ready()
    batch = part.batch(learner, fresh)
    old = part.seen & ~torch.zeros_like(part.seen).scatter_(1, fresh.y, True)
    assert (old.sum(1) == 2).all()
    alone = replace(batch, w=batch.w * (torch.arange(B + K) < B))
    grad = learner.task_grad(learner.params, alone)["head.bias"]
    assert (grad[old] == 0).all() and (grad[~old & learner.stream.masks[:, :2].any(1)] != 0).all()  # type: ignore[index]
    assert (learner.task_grad(learner.params, batch)["head.bias"][old] != 0).all()  # replayed rows do


def test_classes_that_no_batch_has_shown_compete() -> None:
    # mammoth: "unmask unseen classes"; Avalanche masks them as well
    learner, part, fresh = ready(classes="all")
    batch = part.batch(learner, fresh)
    assert batch.mask is not None and batch.mask.shape == (2, B + K, 10)
    assert (batch.mask[:, :B].sum(2) == 10 - 2).all()  # all but the two old classes
    assert batch.mask[:, B:].all()
    part.seen[:] = True
    batch = part.batch(learner, fresh)
    assert batch.mask is not None and (batch.mask[:, :B].sum(2) == 1).all()


def test_the_first_task_is_naive() -> None:
    learner, naive = learner_of(tasks=1), learner_of(tasks=1)
    part = er_ace()
    run(part, learner)
    run(Strategy(), naive)
    assert all(torch.equal(v, naive.params[k]) for k, v in learner.params.items())
    assert part.memory.seen == 4 * B


def test_the_memory_holds_only_rows_that_were_trained_on() -> None:
    # Avalanche's buffer is filled with the whole task before it is trained on, so that the future is replayed
    part = er_ace()
    shown: set[tuple[float, ...]] = set()
    for seen in run(part, learner_of(steps=1)):
        replayed = {tuple(x.tolist()) for x in seen.batch.x[:, B:].flatten(0, 1).flatten(1)}
        assert replayed <= shown
        shown |= {tuple(x.tolist()) for x in seen.fresh.x.flatten(0, 1).flatten(1)}


def test_no_nan_where_a_gap_between_logits_underflows() -> None:
    # Avalanche's cross-entropy is -(t * softmax.log()): NaN at logits [200, 0, 0]
    learner, part, fresh = ready()
    learner = learner_to(learner, torch.float32)
    part.memory._data = {k: v.float() if v.is_floating_point() else v for k, v in part.memory._data.items()}
    fresh = replace(fresh, w=fresh.w.float())
    batch = part.batch(learner, fresh)
    for name in ("head.weight", "fc1.weight"):
        learner.params[name].zero_()
    for c in range(10):
        learner.params["head.bias"].zero_()[:, c] = 200
        loss = learner.task_loss(learner.params, batch)[0]
        grads = learner.task_grad(learner.params, batch)
        assert loss.isfinite().all() and all(g.isfinite().all() for g in grads.values())


def learner_to(learner: Learner, dtype: torch.dtype) -> Learner:
    learner.params = {k: v.to(dtype) for k, v in learner.params.items()}
    learner.dtype, learner._share, learner._one = dtype, {}, learner._one.to(dtype)
    return learner


def test_each_seed_has_seen_its_own_classes() -> None:
    part, learner = er_ace(), learner_of()
    prepare(learner, Chain([part]))
    fresh = next(learner.batches(learner.stream.tasks[0]))
    part.batch(learner, replace(fresh, y=torch.tensor([[3] * B, [1, 4] * (B // 2)])))
    assert [row.nonzero().flatten().tolist() for row in part.seen] == [[3], [1, 4]]
    learner.now = 1
    part.memory.add(x=fresh.x, y=fresh.y, t=fresh.t)
    batch = part.batch(learner, replace(fresh, y=torch.full((2, B), 5), mask=None))
    assert batch.mask is not None
    lost = [(~row[0]).nonzero().flatten().tolist() for row in batch.mask]
    assert lost == [[3], [1, 4]]


def test_it_is_defined_where_classes_accumulate() -> None:
    assert ERACE.scenarios == ("class",)


@pytest.mark.parametrize("key", ["capacity", "batch_size"])
def test_bad_values_are_named(key: str) -> None:
    with pytest.raises(ValueError, match=f"^{key}=0"):
        er_ace(**{key: 0})
