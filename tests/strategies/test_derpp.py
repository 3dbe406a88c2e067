"""DER++: two draws, three terms; the authors' loop by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy, mse_loss

from harness.loop import prepare
from harness.strategy import Chain
from strategies.derpp import DERpp
from tests.strategies.by_hand import LR, allowed, learner_of, module, run, same_weights

B, K = 8, 5


def derpp(**changed: Any) -> DERpp:
    return DERpp(**{"capacity": 20, "batch_size": K, "alpha": 0.7, "beta": 0.4, **changed})


@pytest.mark.parametrize("scenario", ["task", "domain", "class"])
def test_it_steps_as_the_authors_loop_does(scenario: str) -> None:
    # mammoth: ce(net(x), y) + alpha mse_loss(net(buf_x), buf_logits) + beta ce(net(buf_x'), buf_y'), two draws
    learner, part = learner_of(scenario, tasks=2), derpp()
    steps = run(part, learner)
    for s in range(2):
        net = module(steps[0].params, s)
        optimizer = torch.optim.SGD(net.parameters(), lr=LR)
        for seen in steps:
            optimizer.zero_grad()
            x, y = seen.batch.x[s].double(), seen.batch.y[s]
            loss = cross_entropy(allowed(net(x[:B]), seen.fresh.mask, s), y[:B])
            if len(x) > B:
                mask = learner.stream.mask(seen.batch.t, seen.now)
                rest = mask if mask is None or mask.shape[1] == 1 else mask[:, B + K :]
                loss = loss + 0.7 * mse_loss(net(x[B : B + K]), seen.batch.extra["derpp"][1][s])
                loss = loss + 0.4 * cross_entropy(allowed(net(x[B + K :]), rest, s), y[B + K :])
            loss.backward()
            optimizer.step()
        same_weights(learner.params, s, net)


def test_outputs_are_stored_when_the_row_is_fresh_not_after_the_task() -> None:
    part = derpp(capacity=100)
    for i, seen in enumerate(run(part, learner_of("domain", tasks=1, steps=2))):
        assert torch.equal(part.memory.rows()["z"][:, B * i : B * (i + 1)], seen.out.logits[:, :B])


def test_the_two_terms_see_independent_draws() -> None:
    # Avalanche's version draws one batch for both
    steps = run(derpp(), learner_of("domain"))[3:]
    for seen in steps:
        assert seen.batch.x.shape[1] == B + 2 * K
        assert not torch.equal(seen.batch.x[:, B : B + K], seen.batch.x[:, B + K :])
    for s in range(2):  # nor is one draw the complement of the other
        pairs = [(x[s, B : B + K].flatten(1), x[s, B + K :].flatten(1)) for x in (seen.batch.x for seen in steps)]
        assert any((a[:, None] == b).all(2).any() for a, b in pairs)


def test_a_row_comes_with_its_own_outputs() -> None:
    part = derpp(capacity=100)
    steps = run(part, learner_of("domain"))
    held = part.memory.rows()
    for seen in steps[1:]:
        _, z = seen.batch.extra["derpp"]
        for s in range(2):
            for x, kept in zip(seen.batch.x[s, B : B + K], z[s]):
                place = (held["z"][s] == kept).all(1).nonzero()
                assert any(torch.equal(held["x"][s, i], x) for i in place[:, 0])


def test_weights_of_the_labels() -> None:
    for seen in run(derpp(), learner_of())[1:]:
        w = seen.batch.w[0]
        expected = torch.tensor([1 / B] * B + [0.0] * K + [0.4 / K] * K).double()
        torch.testing.assert_close(w, expected)


def test_at_the_stored_outputs_the_distance_is_zero() -> None:
    learner, part = learner_of("domain"), derpp()
    prepare(learner, Chain([part]))
    fresh = next(learner.batches(learner.stream.tasks[0]))
    part.memory.add(x=fresh.x, y=fresh.y, t=fresh.t, z=learner.net(fresh.x, fresh.t).logits)
    batch = part.batch(learner, fresh)
    leaves = {k: v.detach().requires_grad_() for k, v in learner.params.items()}
    _, out = learner.task_loss(leaves, batch)
    loss = torch.as_tensor(part.loss(learner, leaves, batch, out))
    assert loss.abs().max() < 1e-20
    assert all(g.abs().max() < 1e-12 for g in torch.autograd.grad(loss.sum(), list(leaves.values())))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"capacity": 0}, "capacity=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"alpha": -1.0}, "alpha=-1"),
        ({"beta": -1.0}, "beta=-1"),
    ],
)
def test_bad_values_are_named(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        derpp(**changed)
