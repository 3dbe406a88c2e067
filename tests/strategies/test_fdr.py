"""FDR: what is remembered, from when its outputs are, and the distance by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from harness import tree
from harness.learner import Budget, Learner, mask_logits
from harness.loop import prepare, train
from harness.optim import SGD
from harness.strategy import Chain
from harness.types import Batch, Net
from strategies.fdr import FDR
from tests.observer import Blind
from tests.strategies.test_ewc import learner as regression
from tests.toy import MODELS, stream

DEFAULT: dict[str, Any] = {"strength": 2.0, "capacity": 10, "batch_size": 4, "squared": False}


def fdr(**changed: Any) -> FDR:
    return FDR(**{**DEFAULT, **changed})


def learner(scenario: str = "class", model: str = "mlp") -> Learner:
    source = stream(scenario, (0, 1))
    return Learner(MODELS[model](source), source, SGD(lr=0.1), Budget(steps=3, batch_size=8), dtype=torch.float64)


class Watch(Blind):
    """Nets after each task, and what FDR holds then."""

    def __init__(self, made: Learner, part: FDR) -> None:
        self.made, self.part = made, part
        self.nets: list[Net] = []
        self.held: list[tuple[Tensor, Tensor, Tensor]] = []
        self.batches: list[tuple[int, Batch]] = []
        self.aux: list[Any] = []

    def step(self, step: Any, aux: Any) -> None:
        self.batches.append((self.made.now, step.batch))
        self.aux.append(aux)

    def end(self, task: Any) -> None:
        self.nets.append(Net(tree.copy(self.made.params), tree.copy(self.made.buffers), self.made.apply))
        n = self.part.share * (task.index + 1)
        self.held.append((self.part.x[:, :n].clone(), self.part.t[:, :n].clone(), self.part.p[:, :n].clone()))


def go(made: Learner, part: FDR) -> Watch:
    prepare(made, chain := Chain([part]))
    train(made, chain, watch := Watch(made, part))
    return watch


def inside(x: Tensor, source: Any) -> bool:
    """Whether every row of x [n, ...] is one of the first seed's rows of the source."""
    rows = source.take(torch.arange(int(source.size[0])).expand(len(source.size), -1))[0][0]
    return all(bool((rows == row).flatten(1).all(1).any()) for row in x)


@pytest.mark.parametrize("scenario", ["task", "class"])
def test_every_past_task_has_an_equal_share(scenario: str) -> None:
    """Mammoth divides by one task too few at each boundary, so that later tasks push out earlier ones."""
    made, part = learner(scenario), fdr()
    watch = go(made, part)
    for task, (x, t, _) in enumerate(watch.held):
        share = (10, 5, 3)[task]
        assert x.shape[1] == share * (task + 1)
        for i, rows in enumerate(x[0].split(share)):
            assert inside(rows, made.stream.tasks[i].train)
            assert len(rows.flatten(1).unique(dim=0)) == share  # without replacement
        if scenario == "task":
            assert torch.equal(t[0], torch.arange(task + 1).repeat_interleave(share))


@pytest.mark.parametrize("model", ["mlp", "residual"])
def test_the_outputs_are_those_at_the_end_of_the_row_s_own_task_in_evaluation_mode(model: str) -> None:
    made, part = learner("class", model), fdr()
    watch = go(made, part)
    x, t, p = watch.held[2]
    for i, net in enumerate(watch.nets):
        rows = slice(3 * i, 3 * i + 3)
        logits = net(x[:, rows], t[:, rows]).logits
        expected = mask_logits(logits, made.stream.mask(t[:, rows], i)).softmax(-1)
        torch.testing.assert_close(p[:, rows], expected, rtol=1e-10, atol=1e-14)
        torch.testing.assert_close(p[:, rows].sum(-1), torch.ones(2, 3).double())


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("scenario", ["task", "domain", "class"])
def test_the_penalty_by_hand_and_the_task_loss_is_the_fresh_rows(scenario: str, squared: bool) -> None:
    made, part = learner(scenario), fdr(squared=squared, capacity=12, batch_size=5)
    watch = go(made, part)
    for (now, batch), aux in zip(watch.batches, watch.aux):
        fresh = aux.loss - aux.penalty
        rows = made.row_loss(
            aux.out.logits[:, :8], Batch(*(v[:, :8] for v in (batch.x, batch.y, batch.t, batch.w)), cut(batch, 0, 8))
        )
        torch.testing.assert_close(fresh, rows.mean(1), rtol=1e-10, atol=1e-14)
        assert batch.w.shape[1] == (13 if now else 8) and not batch.w[:, 8:].any()
        if now:
            z = mask_logits(aux.out.logits[:, 8:], cut(batch, 8, 13))
            square = (z.softmax(-1) - batch.extra["fdr"][1]).square().sum(-1)
            expected = 2.0 * (square if squared else square.sqrt()).mean(1)
            torch.testing.assert_close(aux.penalty, expected, rtol=1e-10, atol=0)


def cut(batch: Batch, start: int, stop: int) -> Tensor | None:
    if batch.mask is None or batch.mask.shape[1] == 1:
        return batch.mask
    return batch.mask[:, start:stop]


@pytest.mark.parametrize("squared", [False, True])
def test_at_the_remembered_function_value_and_gradient_are_zero(squared: bool) -> None:
    """A distance is not differentiable there: the square root of a sum would give NaN."""
    made, part = learner("domain"), fdr(squared=squared)
    prepare(made, Chain([part]))
    part.end(made, made.stream.tasks[0])
    made.enter(made.stream.tasks[1])
    made.plan(made.stream.tasks[1])
    batch = part.batch(made, next(iter(made.batches(made.stream.tasks[1]))))
    leaves = {k: v.detach().requires_grad_() for k, v in made.params.items()}
    value = torch.as_tensor(part.loss(made, leaves, batch, made.apply(leaves, {}, batch.x, batch.t)))
    grads = torch.autograd.grad(value.sum(), list(leaves.values()))
    assert value.abs().max() < 1e-14 and all(g.isfinite().all() for g in grads)
    if squared:
        assert all(g.abs().max() < 1e-14 for g in grads)


def test_remembered_rows_are_drawn_anew_each_step_and_without_replacement() -> None:
    made, part = learner(), fdr()
    later = [b.x[:, 8:] for now, b in go(made, part).batches if now == 2]
    assert not torch.equal(later[0], later[1])
    assert all(len(x[0].flatten(1).unique(dim=0)) == 4 for x in later)


def test_a_regression_remembers_its_outputs() -> None:
    made, part = regression(loss="mse"), fdr(capacity=9)
    prepare(made, chain := Chain([part]))
    train(made, chain, watch := Watch(made, part))
    x, t, p = watch.held[2]
    for i, net in enumerate(watch.nets):
        rows = slice(3 * i, 3 * i + 3)
        torch.testing.assert_close(p[:, rows], net(x[:, rows], t[:, rows]).logits, rtol=1e-12, atol=1e-14)
    assert (watch.aux[-1].penalty > 0).all()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"strength": -1.0}, "strength=-1.0"),
        ({"capacity": 0}, "capacity=0"),
        ({"batch_size": 0}, "batch_size=0"),
    ],
)
def test_bad_values_are_named(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        fdr(**changed)


def test_a_memory_of_fewer_rows_than_tasks_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^strategy\.fdr\.capacity=2: must be at least 3, one row for each task"):
        prepare(learner(), Chain([fdr(capacity=2)]))
