"""ReDo: hand-set activations, and what must not change."""

from typing import Any

import pytest
import torch
from torch import Tensor

from harness import tree
from harness.learner import Learner
from harness.loop import prepare, train
from harness.models.mlp import MLP
from harness.optim import Adam
from harness.rows import Rows
from harness.strategy import Chain
from harness.types import Step, Task
from strategies.redo import ReDo
from tests.observer import Blind
from tests.toy import gaussian


def learner_of(dropout: float = 0.0) -> Learner:
    return gaussian(lambda s: MLP(s.shape, 2, (6, 5), dropout=dropout), Adam(lr=0.01), rows=200, tasks=2)


def inspect(redo: ReDo, learner: Learner) -> None:
    prepare(learner, Chain([redo]))
    batch = next(iter(learner.batches(learner.stream.tasks[0])))
    _, out = learner.task_loss(learner.params, batch)
    with torch.no_grad():
        redo.step(learner, Step(batch, batch, out, tree.zeros(learner.params), None))


def logits(learner: Learner) -> Tensor:
    (batch,) = learner.scan(learner.stream.tasks[0].test)
    return learner.net(batch.x, batch.t).logits


def test_a_unit_is_dormant_by_its_share_of_the_layers_mean() -> None:
    # a score over the unit's own mean would be 1 for every unit that is not exactly dead
    learner = learner_of()
    p, constant = learner.params, torch.tensor([4.0, 0.0, 0.09, 0.91, 0.0, 1.0]).double()
    p["fc1.weight"].zero_()
    p["fc1.bias"].copy_(torch.stack([constant, constant.flip(0) * 1000]))  # the scale of a layer does not matter
    p["fc2.weight"].zero_()
    p["fc2.bias"].copy_(torch.tensor([[1.0, 1.0, 1.0, 1.0, 1.0], [-1.0, 2.0, 2.0, 2.0, 2.0]]).double())
    inspect(ReDo(period=1, tau=0.1, samples=32), learner)
    # the layer's mean is 1: dormant are 0, .09, 0
    dormant = torch.tensor([[False, True, True, False, True, False], [False, True, False, True, True, False]])
    assert torch.equal((p["fc1.weight"] != 0).all(2), dormant)
    assert torch.equal((p["fc1.weight"] != 0).any(2), dormant)
    assert torch.equal(p["fc1.bias"] == 0, dormant)
    dormant = torch.tensor([[False] * 5, [True, False, False, False, False]])
    # incoming weights are fresh but for those from units of the layer below that are new themselves
    assert torch.equal((p["fc2.weight"] != 0).any(2), dormant)
    assert (p["fc2.weight"][1, 0] != 0).tolist() == [True, False, True, False, False, True]


def test_recycling_dead_units_leaves_the_outputs_alone() -> None:
    learner = learner_of()
    for name, unit in (("fc1", 1), ("fc1", 4), ("fc2", 0)):
        learner.params[f"{name}.bias"][0, unit] = -100  # dead on every row, in seed 0 only
    before, weights = logits(learner), tree.copy(learner.params)
    inspect(ReDo(period=1, tau=0.0, samples=200), learner)
    changed = (learner.params["fc1.weight"] != weights["fc1.weight"]).all(2)
    assert changed[0, [1, 4]].all()
    assert changed.sum() == 2
    assert torch.equal(logits(learner), before)


def test_units_are_measured_without_dropout() -> None:
    learner = learner_of(dropout=0.9)
    for name, bias in (("fc1", 5.0), ("fc2", 50.0)):
        learner.params[f"{name}.bias"].fill_(bias)  # all alive
    weights = tree.copy(learner.params)
    inspect_without_forward(ReDo(period=1, tau=0.0, samples=1), learner)
    assert all(torch.equal(weights[k], v) for k, v in learner.params.items())


def inspect_without_forward(redo: ReDo, learner: Learner) -> None:
    prepare(learner, Chain([redo]))
    nothing: Any = None
    with torch.no_grad():
        redo.step(learner, Step(nothing, nothing, nothing, {}, None))


def test_it_looks_every_period_steps_over_the_whole_stream() -> None:
    class Noted(ReDo):
        def step(self, learner: Learner, step: Step) -> None:
            before = learner.params["fc1.weight"].clone()
            super().step(learner, step)
            if not torch.equal(before, learner.params["fc1.weight"]):
                fired.append(self.count)

    fired: list[int] = []
    learner, chain = learner_of(), Chain([Noted(period=4, tau=100.0, samples=8)])  # all units are below 100 means
    prepare(learner, chain)
    train(learner, chain, Blind())
    assert fired == [4, 8, 12, 16, 20]  # two tasks of ten steps


def test_the_rows_are_those_of_the_current_task() -> None:
    learner, asked = learner_of(), []

    class Noted(Rows):
        def take(self, position: Tensor) -> Any:
            asked.append((id(self), position.shape[1]))
            return super().take(position)

    first, second = (Noted(**vars(t.train)) for t in learner.stream.tasks)
    tasks = [Task(i, rows, rows, rows, 200) for i, rows in enumerate((first, second))]
    object.__setattr__(learner.stream, "tasks", tuple(tasks))
    learner.enter(tasks[1])
    inspect_without_forward(ReDo(period=1, tau=0.0, samples=33), learner)
    assert asked == [(id(second), 33)]


@pytest.mark.parametrize(("key", "value"), [("period", 0), ("tau", -0.1), ("samples", 0)])
def test_a_value_out_of_range_is_named(key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{key}={value}: must be"):
        ReDo(**{**{"period": 1, "tau": 0.0, "samples": 1}, key: value})


def test_a_net_without_hidden_units_is_refused() -> None:
    learner = gaussian(lambda s: MLP(s.shape, 2, ()), Adam(lr=0.01))
    with pytest.raises(ValueError, match=r"^redo: MLP has no hidden units to replace"):
        prepare(learner, Chain([ReDo(period=1, tau=0.0, samples=1)]))
