"""L2: none in the first task, then a geometric pull to where it ended."""

from __future__ import annotations

import pytest
import torch

from harness import tree
from harness.loop import prepare, train
from harness.models.mlp import MLP
from harness.optim import SGD
from harness.strategy import Chain
from strategies.l2 import L2
from tests.observer import Blind
from tests.toy import gaussian


def test_the_first_task_is_naive_and_the_anchor_is_where_it_ended() -> None:
    made, naive = (gaussian(lambda s: MLP(s.shape, 2, (3,)), SGD(lr=0.1)) for _ in range(2))
    part = L2(strength=5.0)
    for learner, parts in ((made, [part]), (naive, [])):
        prepare(learner, chain := Chain(parts))
        train(learner, chain, Blind())
    for k, v in made.params.items():
        assert torch.equal(v, naive.params[k]) and torch.equal(part.anchor[k], v)
        assert part.anchor[k].data_ptr() != v.data_ptr()


def test_without_a_task_the_distance_shrinks_geometrically() -> None:
    made, part = gaussian(lambda s: MLP(s.shape, 2, (3,)), SGD(lr=0.1), tasks=2), L2(strength=0.5)
    prepare(made, chain := Chain([part]))
    anchor = tree.copy(made.params)
    part.end(made, made.stream.tasks[0])
    for v in made.params.values():
        v.add_(1)
    made.task_loss = lambda params, batch, train=True: (  # type: ignore[method-assign]
        torch.zeros(2).double() * sum(v.sum() for v in params.values()),
        made.apply(params, {}, batch.x, batch.t),
    )
    train(made, chain, Blind(), start=1)  # ten steps
    for k, v in made.params.items():  # each multiplies the distance by 1 - lr strength
        torch.testing.assert_close(v - anchor[k], torch.full_like(v, 0.95**10), rtol=1e-12, atol=0)


def test_the_penalty_is_half_the_strength_times_the_squared_distance() -> None:
    made, part = gaussian(lambda s: MLP(s.shape, 2, ()), SGD(lr=0.1), tasks=2), L2(strength=3.0)
    prepare(made, Chain([part]))
    made.enter(made.stream.tasks[1])
    value = part.loss(made, {k: v + 2.0 for k, v in made.params.items()}, None, None)  # type: ignore[arg-type]
    torch.testing.assert_close(value, torch.full((2,), 1.5 * 4 * 10).double())


def test_a_negative_strength_is_named() -> None:
    with pytest.raises(ValueError, match=r"^strength=-1: must be at least 0$"):
        L2(strength=-1)
