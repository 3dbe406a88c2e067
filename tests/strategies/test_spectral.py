"""Spectral regularisation: value and gradient against a full singular value decomposition."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from harness import tree
from harness.learner import Learner
from harness.loop import prepare, train
from harness.models.cnn import CNN
from harness.models.mlp import MLP
from harness.models.module import Module
from harness.optim import SGD
from harness.strategy import Chain
from harness.types import Params
from strategies.spectral import Spectral
from tests.observer import Blind
from tests.toy import OneStage, gaussian

MODELS: dict[str, Any] = {
    "mlp": (lambda s: MLP(s.shape, 2, (6, 5), layer_norm=True), (4,)),
    "cnn": (lambda s: CNN(s.shape, 2, (3,), (4,)), (1, 4, 4)),
    "residual": (lambda s: OneStage(s.shape, 2), (1, 4, 4)),
}


def made(model: str = "mlp", steps: int = 5, lr: float = 0.1) -> Learner:
    build, shape = MODELS[model]
    return gaussian(build, SGD(lr=lr), shape=shape, steps=steps)


def value_and_grad(part: Spectral, learner: Learner) -> tuple[Tensor, Params]:
    batch = next(iter(learner.batches(learner.stream.tasks[0])))
    leaves = {k: v.clone().requires_grad_() for k, v in learner.params.items()}
    value = part.loss(learner, leaves, batch, learner.task_loss(leaves, batch)[1])
    return value.detach(), dict(zip(leaves, torch.autograd.grad(value.sum(), list(leaves.values()))))


@pytest.mark.parametrize("k", [*(pytest.param(k, marks=pytest.mark.nightly) for k in (1, 2)), 3])
@pytest.mark.parametrize("model", MODELS)
def test_value_and_gradient_are_those_of_the_decomposition(model: str, k: int) -> None:
    learner, part = made(model), Spectral(strength=0.3, k=k)
    prepare(learner, Chain([part]))
    for name, v in learner.params.items():  # norms away from 1 and 0, weights away from where they began
        v.mul_(1.3).add_(0.1 if ".norm." in name else 0.02)
    for _ in range(3000):
        part.iterate(learner.params)
    got, grads = value_and_grad(part, learner)
    leaves = {n: v.clone().requires_grad_() for n, v in learner.params.items()}
    expected = torch.zeros(2).double()
    for n, v in leaves.items():
        if n.endswith("weight"):
            top = torch.linalg.svdvals(v.flatten(2))[:, 0]
            expected = expected + (top**k - 1) ** 2
        elif n.endswith("gain"):
            expected = expected + ((v**k - 1) ** 2).sum(1)
        elif n.endswith("shift"):
            expected = expected + (v ** (2 * k)).sum(1)
        else:
            expected = expected + v.norm(dim=1) ** (2 * k)
    expected = 0.3 * expected
    torch.testing.assert_close(got, expected.detach(), rtol=1e-9, atol=1e-12)
    reference = torch.autograd.grad(expected.sum(), list(leaves.values()))
    for name, g in zip(leaves, reference):
        torch.testing.assert_close(grads[name], g, rtol=1e-5, atol=1e-8, msg=name)


def test_one_iteration_a_step_keeps_up_with_the_weights() -> None:
    learner, part = made(steps=60), Spectral(strength=0.0, k=2)
    prepare(learner, chain := Chain([part]))
    train(learner, chain, Blind())
    for n in part.weights:
        w = learner.params[n]
        sigma = torch.einsum("so,soi,si->s", part.u[n], w, part.v[n])
        top = torch.linalg.svdvals(w)[:, 0]
        assert (sigma <= top + 1e-12).all() and (sigma > 0.98 * top).all()


def test_singular_values_go_to_one() -> None:
    learner, part = made(steps=400, lr=0.01), Spectral(strength=5.0, k=2)
    prepare(learner, chain := Chain([part]))
    for v in learner.params.values():
        v.mul_(2)
    train(learner, chain, Blind())
    for n in part.weights:
        assert ((torch.linalg.svdvals(learner.params[n])[:, 0] - 1).abs() < 0.02).all()


def test_a_layer_of_zeros_keeps_its_vectors() -> None:
    learner, part = made(), Spectral(strength=1.0, k=1)
    prepare(learner, Chain([part]))
    before = tree.copy(part.u)
    learner.params["head.weight"].zero_()
    part.iterate(learner.params)
    assert torch.equal(part.u["head.weight"], before["head.weight"])
    _, grads = value_and_grad(part, learner)  # pushed away from 0 along u v
    assert (grads["head.weight"].flatten(1).norm(dim=1) - 2).abs().max() < 1e-9


def test_vectors_have_length_one_and_every_seed_its_own() -> None:
    learner, part = made("cnn"), Spectral(strength=1.0, k=2)
    prepare(learner, Chain([part]))
    for n in part.weights:
        for x in (part.u[n], part.v[n]):
            torch.testing.assert_close(x.norm(dim=1), torch.ones(2).double())
        assert not torch.allclose(part.v[n][0], part.v[n][1])


def test_at_strength_zero_the_run_is_naive_bit_for_bit() -> None:
    found = []
    for parts in ([], [Spectral(strength=0.0, k=2)]):
        learner = made()
        prepare(learner, chain := Chain(parts))
        train(learner, chain, Blind())
        found.append(learner.params)
    assert all(torch.equal(v, found[1][k]) for k, v in found[0].items())


def test_a_model_without_layers_is_refused() -> None:
    learner = gaussian(lambda s: Module(lambda: torch.nn.Linear(4, 2), 2), SGD(lr=0.1))
    with pytest.raises(ValueError, match=r"^spectral: Module declares no layers; use model=mlp$"):
        prepare(learner, Chain([Spectral(strength=1.0, k=2)]))


@pytest.mark.parametrize("changed", [{"strength": -1.0}, {"k": 0}])
def test_bad_values_are_named(changed: dict[str, Any]) -> None:
    (key, value), *_ = changed.items()
    with pytest.raises(ValueError, match=f"^{key}={value}: "):
        Spectral(**{"strength": 1.0, "k": 2, **changed})
