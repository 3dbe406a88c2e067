"""What the tests of replay methods share: toy learners, a witness of every step, one seed's net in plain torch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from harness import tree
from harness.learner import Budget, Learner
from harness.loop import prepare, train
from harness.models.mlp import MLP
from harness.optim import SGD
from harness.rows import Rows
from harness.strategy import Chain, Strategy
from harness.types import Batch, Out, Params, Step, Task
from tests.observer import Blind
from tests.toy import stream

LR = 0.05


def learner_of(
    scenario: str = "class", *, steps: int = 4, tasks: int = 3, optimizer: Any = None, **changed: Any
) -> Learner:
    """Two seeds, batches of 8 digits, an MLP of one hidden layer."""
    made = stream(scenario, (0, 1))
    made = replace(made, tasks=tuple(map(in_unit_range, made.tasks[:tasks])), **changed)
    budget = Budget(steps=steps, batch_size=8)
    return Learner(MLP(made.shape, made.outputs, (6,)), made, optimizer or SGD(lr=LR), budget, dtype=torch.float64)


def in_unit_range(task: Task) -> Task:
    """The task with pixels in 0..1, as generators want them."""
    data = cast(Rows, task.train).data
    unit = (data - data.min()) / (data.max() - data.min())
    parts = {n: replace(cast(Rows, getattr(task, n)), data=unit) for n in ("train", "val", "test")}
    return replace(task, **parts)


class Seen(NamedTuple):
    now: int
    fresh: Batch
    batch: Batch
    params: Params  # before the step
    out: Out


class Witness(Strategy):
    """Stands last and keeps every step."""

    def __init__(self) -> None:
        self.steps: list[Seen] = []

    def batch(self, learner: Learner, batch: Batch) -> Batch:
        self.params = tree.copy(learner.params)
        return batch

    def step(self, learner: Learner, step: Step) -> None:
        self.steps.append(Seen(learner.now, step.fresh, step.batch, self.params, step.out))


def run(part: Strategy, learner: Learner) -> list[Seen]:
    witness = Witness()
    prepare(learner, chain := Chain([part] if part.alone else [part, witness]))
    train(learner, chain, Blind())
    return witness.steps


def module(params: Params, s: int) -> nn.Sequential:
    """One seed's net as PyTorch has it."""
    shapes = [params[f"{n}.weight"][s].shape for n in ("fc1", "head")]
    net = nn.Sequential(nn.Flatten(), nn.Linear(*shapes[0][::-1]), nn.ReLU(), nn.Linear(*shapes[1][::-1])).double()
    with torch.no_grad():
        for layer, name in ((net[1], "fc1"), (net[3], "head")):
            layer.weight.copy_(params[f"{name}.weight"][s])
            layer.bias.copy_(params[f"{name}.bias"][s])
    return net


def same_weights(params: Params, s: int, net: nn.Sequential) -> None:
    for k, v in module(params, s).state_dict().items():
        torch.testing.assert_close(net.state_dict()[k], v)


def allowed(logits: Tensor, mask: Tensor | None, s: int) -> Tensor:
    """One seed's logits [B, C], those that do not compete at minus infinity."""
    return logits if mask is None else logits.masked_fill(~mask[s if len(mask) > 1 else 0], -torch.inf)
