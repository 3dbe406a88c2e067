"""Fixed features: which net they come from, which tasks take steps, and what is said of a net in between."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch

from harness import tree
from harness.learner import Learner
from harness.loop import prepare, train
from harness.models.mlp import MLP
from harness.optim import SGD
from harness.strategy import Chain
from harness.toolbox.fixed_features import FixedFeatures
from harness.types import Params, Task
from strategies.fecam import FeCAM
from strategies.randumb import RanDumb
from strategies.ranpac import RanPAC
from strategies.simplecil import SimpleCIL
from tests.observer import Blind
from tests.toy import gaussian, go


class Watch(Blind):
    def __init__(self, learner: Learner) -> None:
        self.learner, self.ends = learner, list[tuple[int, Params]]()

    def end(self, task: Task) -> None:
        self.ends.append((self.learner.steps, tree.copy(self.learner.params)))


def learner() -> Learner:
    return gaussian(lambda s: MLP(s.shape, 2, (6, 5)), SGD(lr=0.1), tasks=3, steps=4)


@pytest.mark.parametrize(("source", "steps"), [("input", [0, 0, 0]), ("initial", [0, 0, 0]), ("frozen", [4, 0, 0])])
def test_where_features_come_from_and_which_tasks_take_steps(source: str, steps: list[int]) -> None:
    one = learner()
    start, watch, part = tree.copy(one.params), Watch(one), SimpleCIL(features=source)
    prepare(one, chain := Chain([part]))
    train(one, chain, watch)
    assert [n for n, _ in watch.ends] == steps
    x, _, t = one.stream.tasks[0].test.take(torch.arange(64).expand(2, 64))
    acts = one.apply(start if source == "initial" else watch.ends[0][1], {}, x, t).acts["fc2"]
    torch.testing.assert_close(part.fixed(x, t), x if source == "input" else acts)
    assert part.fixed.width == (4 if source == "input" else 5)
    one.params["fc1.weight"].zero_()  # as another strategy may
    part.fixed.end(one, one.stream.tasks[1])
    torch.testing.assert_close(part.fixed(x, t), x if source == "input" else acts)
    cosine = (
        torch.nn.functional.normalize(part.fixed(x, t), dim=-1)
        @ torch.nn.functional.normalize(part.means.mean, dim=-1).mT
    )
    torch.testing.assert_close(part.deploy(one, one.net)(x, t).logits, cosine)


@pytest.mark.parametrize("source", ["input", "initial", "frozen"])
def test_its_net_is_saved_and_read_back(source: str) -> None:
    one, two = learner(), learner()
    part, other = SimpleCIL(features=source), SimpleCIL(features=source)
    prepare(one, chain := Chain([part]))
    train(one, chain, Blind())
    prepare(two, Chain([other]))
    file = io.BytesIO()
    torch.save(part.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    x, _, t = one.stream.tasks[0].test.take(torch.arange(64).expand(2, 64))
    assert torch.equal(part.fixed(x, t), other.fixed(x, t))
    assert (len(part.fixed.state_dict()["params"]) > 0) == (source != "input")


@pytest.mark.parametrize("method", [SimpleCIL, RanPAC, RanDumb, FeCAM])
def test_a_net_between_inputs_that_are_features_and_the_method_is_named(method: Any) -> None:
    more = {
        RanPAC: {"projected": 9, "ridge": None, "held_out": 0.2},
        RanDumb: {"projected": 9, "gamma": 1.0},
        FeCAM: {"power": 0.5, "shrinkage": 1.0},
    }.get(method, {})
    vectors, images = learner().stream, go((), "class", "mlp", "sgd").learner.stream
    hidden, flat = MLP((4,), 2, (6,)), MLP((4,), 2, ())
    for source in ("initial", "frozen"):
        part = method(features=source, **more)
        (said,) = part.remarks(vectors, hidden)
        assert f"use strategy.{part.name}.features=input" in said
        assert part.remarks(vectors, flat) == part.remarks(images, hidden) == []
    assert method(features="input", **more).remarks(vectors, hidden) == []


def test_regression_has_no_classes() -> None:
    one = learner()
    object.__setattr__(one.stream, "loss", "mse")
    with pytest.raises(ValueError, match="simplecil: regression has no classes"):
        FixedFeatures(one, "input", "simplecil")
