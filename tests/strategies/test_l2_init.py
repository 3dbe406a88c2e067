"""L2-Init: value and gradient by hand, and the decay towards the start in closed form."""

import pytest
import torch

from harness import tree
from harness.learner import Learner
from harness.loop import prepare, train
from harness.models.mlp import MLP
from harness.optim import SGD
from harness.strategy import Chain
from harness.types import Params
from strategies.l2_init import L2Init
from tests.observer import Blind
from tests.toy import gaussian


def learner_of(layer_norm: bool = False, steps: int = 5) -> Learner:
    return gaussian(lambda s: MLP(s.shape, 2, (3,), layer_norm=layer_norm), SGD(lr=0.1), steps=steps)


def penalty(strength: float, learner: Learner, moved: Params) -> tuple[torch.Tensor, Params]:
    part = L2Init(strength=strength)
    prepare(learner, Chain([part]))
    tree.assign(learner.params, moved)  # the anchor must be a copy
    batch = next(iter(learner.batches(learner.stream.tasks[0])))
    leaves = {k: v.clone().requires_grad_() for k, v in learner.params.items()}
    _, out = learner.task_loss(leaves, batch)
    value = torch.as_tensor(part.loss(learner, leaves, batch, out))
    grads = torch.autograd.grad(value.sum(), list(leaves.values()), materialize_grads=True, allow_unused=True)
    return value.detach(), dict(zip(leaves, grads, strict=True))


def test_the_penalty_is_strength_times_the_squared_distance() -> None:
    learner = learner_of()
    moved = {k: v + torch.tensor([0.5, -2.0]).view(2, *[1] * (v.dim() - 1)) for k, v in learner.params.items()}
    value, grads = penalty(0.01, learner, moved)
    n = 4 * 3 + 3 + 3 * 2 + 2  # parameters
    assert torch.allclose(value, torch.tensor([0.01 * n * 0.25, 0.01 * n * 4]).double())  # no factor 1/2
    for g in grads.values():
        assert torch.allclose(g[0], torch.full_like(g[0], 0.01))
        assert torch.allclose(g[1], torch.full_like(g[1], -0.04))


def test_at_the_start_there_is_no_penalty() -> None:
    learner = learner_of()
    value, grads = penalty(1.0, learner, tree.copy(learner.params))
    assert torch.equal(value, torch.zeros(2).double())
    assert all(torch.equal(g, torch.zeros_like(g)) for g in grads.values())


def test_norm_parameters_are_free() -> None:
    learner = learner_of(layer_norm=True)
    _, grads = penalty(1.0, learner, {k: v + 1 for k, v in learner.params.items()})
    assert {k for k, g in grads.items() if not g.any()} == {"fc1.norm.gain", "fc1.norm.shift"}


def test_without_a_task_the_distance_shrinks_geometrically() -> None:
    learner, part = learner_of(steps=30), L2Init(strength=0.5)
    start = tree.copy(learner.params)
    prepare(learner, chain := Chain([part]))
    for v in learner.params.values():
        v.add_(1)
    learner.task_loss = lambda params, batch, train=True: (  # type: ignore[method-assign]
        torch.zeros(2).double() * sum(v.sum() for v in params.values()),
        learner.apply(params, {}, batch.x, batch.t),
    )
    train(learner, chain, Blind())
    for k, v in learner.params.items():  # each step multiplies the distance by 1 - 2 lr strength = 0.9
        assert torch.allclose(v - start[k], torch.full_like(v, 0.9**30))


def test_at_strength_zero_the_run_is_naive_bit_for_bit() -> None:
    found = []
    for parts in ([], [L2Init(strength=0.0)]):
        learner = learner_of()
        prepare(learner, chain := Chain(parts))
        train(learner, chain, Blind())
        found.append(learner.params)
    assert all(torch.equal(found[0][k], found[1][k]) for k in found[0])


def test_a_negative_strength_is_named() -> None:
    with pytest.raises(ValueError, match=r"^strength=-1: must be at least 0$"):
        L2Init(strength=-1)
