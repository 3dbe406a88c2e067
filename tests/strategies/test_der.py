"""DER: what is stored, when, and what is compared; the authors' loop by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy, mse_loss

from harness.loop import prepare, train
from harness.strategy import Chain, Strategy
from strategies.der import DER
from strategies.replay import Replay
from tests.observer import Blind
from tests.strategies.by_hand import LR, allowed, learner_of, module, run, same_weights

B = 8


def der(**changed: Any) -> DER:
    return DER(**{"capacity": 20, "batch_size": 5, "alpha": 0.7, **changed})


@pytest.mark.parametrize("scenario", ["task", "domain", "class"])
def test_it_steps_as_the_authors_loop_does(scenario: str) -> None:
    # mammoth: loss = ce(net(x), y); loss += alpha * mse_loss(net(buf_x), buf_logits); add the outputs to the buffer
    learner, part = learner_of(scenario, tasks=2), der()
    steps = run(part, learner)
    for s in range(2):
        net, stored = module(steps[0].params, s), {}
        optimizer = torch.optim.SGD(net.parameters(), lr=LR)
        for seen in steps:
            optimizer.zero_grad()
            x = seen.batch.x[s].double()
            z = net(x[:B])
            loss = cross_entropy(allowed(z, seen.fresh.mask, s), seen.fresh.y[s])
            if len(x) > B:
                # of a row that was fresh twice, the memory holds either outputs
                _, held = seen.batch.extra["der"]
                for row, kept in zip(x[B:], held[s]):
                    assert any(torch.allclose(kept, old) for old in stored[tuple(row.flatten().tolist())])
                loss = loss + 0.7 * mse_loss(net(x[B:]), held[s])
            loss.backward()
            optimizer.step()
            for row, new in zip(x[:B], z.detach()):
                stored.setdefault(tuple(row.flatten().tolist()), []).append(new)
        same_weights(learner.params, s, net)


def test_outputs_are_stored_when_the_row_is_fresh_not_after_the_task() -> None:
    learner, part = learner_of("domain", tasks=1, steps=2), der(capacity=100)
    steps = run(part, learner)
    for i, seen in enumerate(steps):
        held = part.memory.rows()["z"][:, B * i : B * (i + 1)]
        assert torch.equal(held, seen.out.logits[:, :B])
        after = learner.net(seen.fresh.x, seen.fresh.t).logits
        assert not torch.allclose(held, after)


def test_every_fresh_row_is_offered_to_a_reservoir() -> None:
    part = der()
    steps = run(part, learner_of())
    assert part.memory.policy == "reservoir" and part.memory.seen == B * len(steps)
    assert [s.batch.x.shape[1] - B for s in steps] == [0] + [5] * (len(steps) - 1)


def test_at_the_stored_outputs_neither_loss_nor_gradient() -> None:
    learner, part = learner_of("domain"), der()
    prepare(learner, Chain([part]))
    fresh = next(learner.batches(learner.stream.tasks[0]))
    z = learner.net(fresh.x, fresh.t).logits
    for off, value in ((0.0, 0.0), (0.3, 0.7 * 0.09)):
        part.memory.seen = 0
        part.memory.add(x=fresh.x, y=fresh.y, t=fresh.t, z=z + off)
        batch = part.batch(learner, fresh)
        leaves = {k: v.detach().requires_grad_() for k, v in learner.params.items()}
        _, out = learner.task_loss(leaves, batch)
        loss = torch.as_tensor(part.loss(learner, leaves, batch, out))
        torch.testing.assert_close(loss.detach(), torch.full((2,), value).double())
        grads = dict(zip(leaves, torch.autograd.grad(loss.sum(), list(leaves.values()))))
        assert all(g.abs().max() < 1e-12 for g in grads.values()) == (off == 0)
        # of 10 outputs each moves alike: 2 alpha off / C
        torch.testing.assert_close(grads["head.bias"], torch.full((2, 10), -2 * 0.7 * off / 10).double())


def test_all_heads_are_compared_in_the_task_scenario_too() -> None:
    learner, part = learner_of("task"), der()
    prepare(learner, Chain([part]))
    fresh = next(learner.batches(learner.stream.tasks[0]))
    z = learner.net(fresh.x, fresh.t).logits
    other = ~learner.stream.mask(fresh.t, 0)  # type: ignore[operator]
    part.memory.add(x=fresh.x, y=fresh.y, t=fresh.t, z=z + other)
    batch = part.batch(learner, fresh)
    _, out = learner.task_loss(learner.params, batch)
    value = torch.as_tensor(part.loss(learner, learner.params, batch, out))
    torch.testing.assert_close(value, torch.full((2,), 0.7 * 8 / 10).double())  # eight outputs are other heads'


def test_labels_are_not_replayed() -> None:
    for seen in run(der(), learner_of())[1:]:
        assert (seen.batch.w[:, B:] == 0).all() and torch.allclose(seen.batch.w[:, :B], torch.tensor(1 / B).double())


def test_without_weight_it_is_naive() -> None:
    learner, naive = learner_of(), learner_of()
    run(der(alpha=0.0), learner)
    run(Strategy(), naive)
    assert all(torch.allclose(v, naive.params[k], rtol=1e-12, atol=1e-14) for k, v in learner.params.items())


def test_it_finds_its_rows_beside_others_that_replay() -> None:
    settings: dict[str, Any] = {"policy": "reservoir", "weighting": "sum", "fill": "step", "replacement": False}
    other, part, learner = Replay(capacity=20, batch_size=3, **settings), der(), learner_of("domain", tasks=1)
    prepare(learner, chain := Chain([other, part]))
    train(learner, chain, Blind())
    fresh = next(learner.batches(learner.stream.tasks[0]))
    batch = chain.batch(learner, fresh)
    _, out = learner.task_loss(learner.params, batch)
    rows, z = batch.extra["der"]
    assert rows == slice(B + 3, B + 3 + z.shape[1]) and rows.stop == batch.w.shape[1]
    expected = 0.7 * (learner.net(batch.x[:, rows], batch.t[:, rows]).logits - z).square().mean((1, 2))
    torch.testing.assert_close(torch.as_tensor(part.loss(learner, learner.params, batch, out)), expected)


def test_classes_to_come_are_named_before_the_run() -> None:
    """With classes=seen what is held of them is what an untrained output happens to be."""
    learner = learner_of("class")
    (line,) = Chain([der()]).remarks(learner.stream, learner.model)
    assert line.startswith("der: classes=seen: ") and "use classes=all" in line
    for scenario, classes in (("class", "all"), ("task", "seen"), ("domain", "seen")):
        assert Chain([der()]).remarks(learner_of(scenario, classes=classes).stream, learner.model) == []


@pytest.mark.parametrize(
    ("changed", "said"),
    [({"capacity": 0}, "capacity=0"), ({"batch_size": 0}, "batch_size=0"), ({"alpha": -1.0}, "alpha=-1")],
)
def test_bad_values_are_named(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        der(**changed)
