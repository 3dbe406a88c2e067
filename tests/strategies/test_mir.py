"""MIR: which rows are retrieved, against a dense reference in plain torch."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from harness import tree
from harness.learner import Budget, Learner
from harness.loop import prepare, train
from harness.models.mlp import MLP
from harness.optim import SGD, Adam
from harness.strategy import Chain
from harness.toolbox.memory import Memory
from harness.types import Aux, Batch, Step
from strategies.mir import MIR
from tests.observer import Blind
from tests.strategies.by_hand import LR, allowed, learner_of, module, run, same_weights
from tests.toy import MODELS, stream

B = 8


def mir(**changed: Any) -> MIR:
    return MIR(**{"capacity": 40, "batch_size": 5, "candidates": 17, **changed})


def ready(learner: Learner, part: MIR) -> Batch:
    """A filled memory, and the first batch of task 1."""
    prepare(learner, Chain([part]))
    for fresh in [*learner.batches(learner.stream.tasks[0])] * 5:
        part.memory.add(x=fresh.x, y=fresh.y, t=fresh.t)
    learner.now = 1
    return next(learner.batches(learner.stream.tasks[1]))


def by_hand(learner: Learner, fresh: Batch, rows: Batch, s: int, lr: float) -> Tensor:
    """nll after a virtual step of plain SGD, less nll before it."""
    net = module(learner.params, s)

    def nll(b: Batch) -> Tensor:
        return cross_entropy(allowed(net(b.x[s].double()), b.mask, s), b.y[s], reduction="none")

    before = nll(rows).detach()
    net.zero_grad()
    nll(fresh).mean().backward()
    torch.optim.SGD(net.parameters(), lr=lr).step()
    return nll(rows).detach() - before


@pytest.mark.parametrize("scenario", ["domain", "class"])
def test_the_rows_are_exactly_those_of_a_dense_reference(scenario: str) -> None:
    learner, part = learner_of(scenario), mir()
    fresh = ready(learner, part)
    twin = Memory(40, "reservoir", type(part.random)(part.random.base, part.random.count))
    twin.load_state_dict(part.memory.state_dict())
    before = tree.copy(learner.params)
    batch = part.batch(learner, fresh)
    assert all(torch.equal(v, before[k]) for k, v in learner.params.items())  # the step was virtual
    rows = learner.make_batch(**twin.sample(17))
    for s in range(2):
        harm = by_hand(learner, fresh, rows, s, LR)
        expected = rows.x[s, harm.sort(descending=True).indices[:5]]
        assert torch.equal(batch.x[s, B:], expected)
        for k in ("y", "t"):
            assert torch.equal(getattr(batch, k)[s, B:], getattr(rows, k)[s, harm.topk(5).indices])
    torch.testing.assert_close(batch.w, torch.tensor([1 / B] * B + [1 / 5] * 5).double().expand(2, -1))


@pytest.mark.parametrize("scenario", ["task", "domain", "class"])
def test_it_steps_as_a_plain_loop_does(scenario: str) -> None:
    """Every step of two tasks in plain torch, from the candidates that were drawn: choose, replay, descend."""
    learner, part, drawn = learner_of(scenario, tasks=2, steps=12), mir(), list[dict[str, Tensor]]()
    prepare(learner, Chain([part]))
    sample = part.memory.sample

    def watched(n: int) -> dict[str, Tensor]:
        drawn.append({k: v.clone() for k, v in sample(n).items()})
        return dict(drawn[-1])

    part.memory.sample = watched  # type: ignore[method-assign]
    steps: list[tuple[int, Batch]] = []

    class Look(Blind):
        def step(self, step: Step, aux: Aux) -> None:
            steps.append((learner.now, step.fresh))

    start = tree.copy(learner.params)
    train(learner, Chain([part]), Look())
    for s in range(2):
        net = module(start, s)
        optimizer = torch.optim.SGD(net.parameters(), lr=LR)

        def nll(b: Batch, own: Any = net, s: int = s) -> Tensor:
            return cross_entropy(allowed(own(b.x[s].double()), b.mask, s), b.y[s], reduction="none")

        chosen = 0
        for (now, fresh), rows in zip(steps, [None, *drawn], strict=True):
            learner.now = now
            optimizer.zero_grad()
            loss = nll(fresh).mean()
            if rows is not None:
                held = learner.make_batch(**rows)
                if held.w.shape[1] > 5:
                    ahead = copy.deepcopy(net)
                    ahead.zero_grad()
                    nll(fresh, ahead).mean().backward()
                    torch.optim.SGD(ahead.parameters(), lr=LR).step()
                    worst = (nll(held, ahead) - nll(held)).argsort(descending=True)[:5]
                    chosen += 1
                    loss = loss + nll(held)[worst].mean()
                else:
                    loss = loss + nll(held).mean()
            loss.backward()
            optimizer.step()
        assert chosen > 15
        same_weights(learner.params, s, net)


@pytest.mark.parametrize("optimizer", [SGD(lr=0.4, momentum=0.9), Adam(lr=0.2), SGD(lr=0.4, schedule="cosine")])
def test_the_virtual_step_has_the_learning_rate_of_the_coming_step(optimizer: Any) -> None:
    # under a schedule not that of the last step, which at a task's start would be 0
    learner, part = learner_of("domain", optimizer=optimizer), mir()
    fresh = ready(learner, part)
    rows = learner.make_batch(**part.memory.rows())
    optimizer.lr, learner.steps, learner.planned = 0.0 if optimizer.schedule == "cosine" else optimizer.lr, 1, 3
    lr = optimizer.base_lr * (0.75 if optimizer.schedule == "cosine" else 1)  # (1 + cos(pi / 3)) / 2
    found = part.interference(learner, fresh, rows)
    for s in range(2):
        torch.testing.assert_close(found[s], by_hand(learner, fresh, rows, s, lr))


def test_a_virtual_step_helps_the_rows_it_is_taken_on() -> None:
    learner, part = learner_of("domain"), mir()
    fresh = ready(learner, part)
    assert (part.interference(learner, fresh, fresh).mean(1) < 0).all()


def test_losses_are_compared_in_evaluation_mode() -> None:
    # Avalanche's version compares them under dropout and lets batch norm's statistics drift
    made = stream("domain", (0, 1))
    for model in (MLP(made.shape, made.outputs, (6,), dropout=0.5), MODELS["residual"](made)):
        learner = Learner(model, made, SGD(lr=0.0001), Budget(steps=4, batch_size=8), dtype=torch.float64)
        part = mir()
        fresh = ready(learner, part)
        buffers = tree.copy(learner.buffers)
        rows = learner.make_batch(**part.memory.rows())
        harm = part.interference(learner, fresh, rows)
        assert torch.equal(harm, part.interference(learner, fresh, rows))
        assert harm.abs().max() < 0.05  # of a tiny step: with dropout's noise it would be near 1
        assert all(torch.equal(v, buffers[k]) for k, v in learner.buffers.items())


def test_a_memory_no_larger_than_the_batch_is_replayed_whole() -> None:
    for seen in run(mir(capacity=5), learner_of())[1:]:
        assert seen.batch.x.shape[1] == B + 5
    steps = run(mir(candidates=5), learner_of())
    assert steps[-1].batch.x.shape[1] == B + 5  # nothing to choose: plain replay


def test_every_fresh_row_is_offered_after_its_step() -> None:
    part = mir()
    steps = run(part, learner_of(steps=1))
    assert part.memory.seen == 3 * B and steps[0].batch.x.shape[1] == B


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"capacity": 0}, "capacity=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"candidates": 4}, "candidates=4: must be at least batch_size=5"),
    ],
)
def test_bad_values_are_named(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        mir(**changed)
