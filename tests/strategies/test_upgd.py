"""UPGD: steps by hand, and what it is under each optimizer."""

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
from harness.optim import SGD, Adam, Optimizer
from harness.strategy import Chain
from harness.types import Aux, Params, Step
from strategies.upgd import UPGD
from tests.observer import Blind
from tests.toy import gaussian

LR = 0.1


def upgd(**changed: Any) -> UPGD:
    settings = {
        "utility": "global",
        "maximum": "corrected",
        "decay": 0.9,
        "sigma": 0.0,
        "weight_decay": 0.0,
        "scale": 2.0,
    }
    return UPGD(**{**settings, **changed})


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


def two_steps(part: UPGD) -> list[list[float]]:
    """Two weights after each of two steps of SGD with lr 0.1; the gradients are given."""
    learner = learner_of()
    prepare(learner, Chain([part]))
    part.trace, found = {"w": torch.zeros(1, 2).double()}, []
    learner.params = {"w": torch.tensor([[1.0, -2.0]]).double()}
    for g in ([-2.0, -0.5], [1.0, 1.0]):
        before, grads = tree.copy(learner.params), {"w": torch.tensor([g]).double()}
        learner.params["w"] -= 0.1 * grads["w"]
        part.step(learner, Step(None, None, None, grads, before))  # type: ignore[arg-type]
        found.append(learner.params["w"][0].tolist())
    return found


# utilities -g w: 2 and -1; the trace is a tenth of them, corrected 2 and -1. The first maximum is 2, or 0.2 raw:
# arguments 1 and -1/2, or 10 and -5; 1 - s is .26894142 and .62245933, or .0000453979 and .9933071491.
# Steps of lr g (1 - s): .2 * .26894142 = .05378828 and .05 * .62245933 = .03112297; or .2 * .0000453979 and .04966536.
# In the second step the weights are w = 1.05378828 and -1.96887703: utilities -1.05378828 and 1.96887703; trace
# .18 - .105378828 = .074621172 and -.09 + .196887703 = .106887703; by their maximum .69812681 and 1, so that 1 - s
# is .33222767 and .26894142. With the raw maximum w = 1.00000908 and -1.95033464: trace .079999092 and .105033464; by
# .19 times their maximum: 4.00870195 and 5.26315789; 1 - s .01783315 and .00515224.
BY_HAND = {
    "corrected": [[1.05378828, -1.96887703], [1.05378828 - 0.1 * 0.33222767, -1.96887703 - 0.1 * 0.26894142]],
    "raw": [[1.00000908, -1.95033464], [1.00000908 - 0.1 * 0.01783315, -1.95033464 - 0.1 * 0.00515224]],
}


@pytest.mark.parametrize("maximum", BY_HAND)
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_two_steps_by_hand(maximum: str, scale: float) -> None:
    found = two_steps(upgd(maximum=maximum, scale=scale))
    if scale == 1:
        assert found == [pytest.approx(row, abs=2e-8) for row in BY_HAND[maximum]]
    else:  # the first step is twice as long
        first = [w + 2 * (x - w) for w, x in zip((1.0, -2.0), BY_HAND[maximum][0])]
        assert found[0] == pytest.approx(first, abs=2e-8)


def test_weight_decay_is_not_gated() -> None:
    plain, decayed = (two_steps(upgd(weight_decay=d))[0] for d in (0.0, 0.5))
    assert [b - a for a, b in zip(plain, decayed)] == pytest.approx([-0.05, 0.1], abs=1e-12)  # lr 0.1, weights 1 and -2


def test_the_maximum_is_over_all_weights_of_a_seed() -> None:
    u = {"w": torch.tensor([[1.0, 4.0], [8.0, 2.0]]), "b": torch.tensor([[2.0], [-4.0]])}
    scaled = upgd().scaled(u)
    assert scaled["w"].tolist() == [[0.25, 1.0], [1.0, 0.25]] and scaled["b"].tolist() == [[0.5], [-0.5]]


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
    "changed",
    [{"utility": "both"}, {"maximum": "x"}, {"decay": 1.0}, {"sigma": -1}, {"weight_decay": -1}, {"scale": 0}],
)
def test_bad_values_are_named(changed: dict[str, Any]) -> None:
    (key, value), *_ = changed.items()
    with pytest.raises(ValueError, match=f"^{key}={value}: "):
        upgd(**changed)
