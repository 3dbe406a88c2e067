"""UPGD: steps by hand, and what it is under each optimizer."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from harness import tree
from harness.learner import Learner
from harness.loop import prepare, train
from harness.models.cnn import CNN
from harness.models.mlp import MLP
from harness.optim import SGD, Adam, Optimizer
from harness.strategy import Chain
from harness.types import Aux, Params, Step
from strategies.upgd import UPGD
from tests.observer import Blind
from tests.toy import gaussian

LR = 0.1


def upgd(**changed: Any) -> UPGD:
    return UPGD(**{"utility": "global", "decay": 0.9, "sigma": 0.0, "weight_decay": 0.0, "scale": 2.0, **changed})


def learner_of(optimizer: Optimizer | None = None, steps: int = 6) -> Learner:
    return gaussian(lambda s: MLP(s.shape, 2, (5,)), optimizer or SGD(lr=LR), steps=steps)


class Trace(Blind):
    """Parameters before the first step and after each, and the gradients."""

    def __init__(self, learner: Learner) -> None:
        self.learner, self.points, self.grads = learner, [tree.copy(learner.params)], list[Params]()

    def step(self, step: Step, aux: Aux) -> None:
        self.points.append(tree.copy(self.learner.params))
        self.grads.append(tree.copy(step.grads))


def run(part: UPGD | None, learner: Learner) -> Trace:
    chain, trace = Chain([part] if part else []), Trace(learner)
    prepare(learner, chain)
    train(learner, chain, trace)
    return trace


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_under_sgd_it_is_the_authors_update(scale: float) -> None:
    trace = run(upgd(weight_decay=0.05, scale=scale), learner_of())
    for s in range(2):
        u = {k: torch.zeros_like(v[s]) for k, v in trace.points[0].items()}
        for n, grads in enumerate(trace.grads, 1):
            for k in u:
                u[k] = 0.9 * u[k] + 0.1 * (-grads[k][s] * trace.points[n - 1][k][s])
            hat = {k: v / (1 - 0.9**n) for k, v in u.items()}
            top = max(float(v.max()) for v in hat.values())  # over all weights of this seed
            assert top > 0
            for k, g in grads.items():
                theta = trace.points[n - 1][k][s]
                gate = 1 - torch.sigmoid(hat[k] / top)
                expected = theta * (1 - LR * 0.05) - scale * LR * g[s] * gate
                torch.testing.assert_close(trace.points[n][k][s], expected, rtol=1e-10, atol=1e-12)


def test_one_weight_by_hand() -> None:
    part, learner = upgd(), learner_of()
    prepare(learner, Chain([part]))
    part.trace = {"w": torch.zeros(1, 2).double()}
    learner.params = {"w": torch.tensor([[0.9, -1.9]]).double()}
    before = {"w": torch.tensor([[1.0, -2.0]]).double()}
    grads = {"w": torch.tensor([[-2.0, -0.5]]).double()}  # utilities -g w = 2, -1
    part.step(learner, Step(None, None, None, grads, before))  # type: ignore[arg-type]
    gates = [2 / (1 + math.e), 2 / (1 + math.exp(-0.5))]
    expected = torch.tensor([[1 - 0.1 * gates[0], -2 + 0.1 * gates[1]]]).double()
    torch.testing.assert_close(learner.params["w"], expected)


def test_local_utility_is_scaled_by_each_units_incoming_weights() -> None:
    u = {"w": torch.tensor([[[3.0, 4.0], [0.0, -2.0]]]), "b": torch.tensor([[6.0, 8.0]])}
    scaled = upgd(utility="local").scaled(u)
    torch.testing.assert_close(scaled["w"], torch.tensor([[[0.6, 0.8], [0.0, -1.0]]]))
    torch.testing.assert_close(scaled["b"], torch.tensor([[0.6, 0.8]]))
    filters = torch.arange(1.0, 9.0).view(1, 2, 1, 2, 2)
    found = upgd(utility="local").scaled({"w": filters})["w"]
    torch.testing.assert_close(found.flatten(2).norm(dim=2), torch.ones(1, 2))
    learner = gaussian(lambda s: CNN(s.shape, 2, (3,), (4,)), SGD(lr=LR), shape=(1, 4, 4))
    assert all(v.isfinite().all() for v in run(upgd(utility="local", sigma=0.1), learner).points[-1].values())


def test_where_no_utility_is_positive_no_weight_is_protected() -> None:
    """Dividing by a maximum of 0 or below would give NaN or turn the order round."""
    u = {"w": torch.tensor([[-1.0, -3.0], [0.0, 0.0], [2.0, -1.0]])}
    s = torch.sigmoid(upgd().scaled(u)["w"])
    assert s[0].tolist() == [0, 0] and s[1].tolist() == [0.5, 0.5]
    torch.testing.assert_close(s[2], torch.sigmoid(torch.tensor([1.0, -0.5])))


@pytest.mark.parametrize("optimizer", [lambda: SGD(lr=LR, momentum=0.9), lambda: Adam(lr=0.01)])
def test_it_gates_what_the_optimizer_did(optimizer: Any) -> None:
    trace, learner = run(upgd(), learner_of(optimizer(), steps=1)), learner_of(optimizer(), steps=1)
    plain = run(None, learner)
    u = tree.scale(tree.mul(trace.grads[0], trace.points[0]), -1)
    top = torch.stack([v.flatten(1).amax(1) for v in u.values()]).amax(0)
    for k, before in trace.points[0].items():
        gate = 2 * (1 - torch.sigmoid(u[k] / top.view(-1, *[1] * (before.dim() - 1))))
        torch.testing.assert_close(trace.points[1][k] - before, gate * (plain.points[1][k] - before))


def test_the_perturbation_has_the_size_of_lr_sigma() -> None:
    def moved(sigma: float) -> Tensor:
        learner = gaussian(lambda s: MLP(s.shape, 2, (400,)), SGD(lr=LR), steps=1)
        return torch.cat([v.flatten(1) for v in run(upgd(sigma=sigma), learner).points[-1].values()], 1)

    noise = moved(0.5) - moved(0.0)
    assert (noise.mean(1).abs() < 0.005).all()
    # a useless weight has gate 1; most of these are nearly useless
    assert ((noise.std(1) / (LR * 0.5) - 1).abs() < 0.1).all()
    assert not torch.equal(noise[0], noise[1])


def test_scale_two_without_utility_is_the_optimizers_step() -> None:
    part, learner = upgd(), learner_of(steps=3)
    part.scaled = tree.zeros  # type: ignore[method-assign, assignment]
    gated, plain = run(part, learner), run(None, learner_of(steps=3))
    for k, v in gated.points[-1].items():
        torch.testing.assert_close(v, plain.points[-1][k])


@pytest.mark.parametrize(
    "changed", [{"utility": "both"}, {"decay": 1.0}, {"sigma": -1}, {"weight_decay": -1}, {"scale": 0}]
)
def test_bad_values_are_named(changed: dict[str, Any]) -> None:
    (key, value), *_ = changed.items()
    with pytest.raises(ValueError, match=f"^{key}={value}: "):
        upgd(**changed)
