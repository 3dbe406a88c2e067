"""Optimizer reset: the state goes, the net stays."""

import pytest
import torch

from harness import tree
from harness.learner import Learner
from harness.loop import prepare, train
from harness.models.mlp import MLP
from harness.optim import SGD, Adam, Optimizer
from harness.strategy import Chain, Strategy
from harness.types import Params, Task
from strategies.optimizer_reset import OptimizerReset
from tests.observer import Blind
from tests.toy import gaussian


class Watch(Blind):
    """Optimizer state as each task's first step finds it, and the parameters then and at the end."""

    def __init__(self, learner: Learner) -> None:
        self.learner, self.states = learner, list[dict[str, Params]]()
        self.starts, self.ends = list[Params](), list[Params]()

    def start(self, task: Task) -> None:
        self.states.append({s: tree.copy(v) for s, v in self.learner.optimizer.state.items()})
        self.starts.append(tree.copy(self.learner.params))

    def end(self, task: Task) -> None:
        self.ends.append(tree.copy(self.learner.params))


def run(optimizer: Optimizer, *parts: Strategy) -> Watch:
    learner = gaussian(lambda s: MLP(s.shape, 2, (6, 5)), optimizer, tasks=3, steps=4)
    prepare(learner, chain := Chain(parts))
    train(learner, chain, watch := Watch(learner))
    return watch


def same(a: Params, b: Params) -> bool:
    return all(torch.equal(v, b[k]) for k, v in a.items())


def test_the_state_goes_and_the_net_stays() -> None:
    watch, naive = run(Adam(lr=0.01), OptimizerReset()), run(Adam(lr=0.01))
    assert watch.states == [{}, {}, {}] and naive.states[1]["mean"]
    assert same(watch.ends[0], naive.ends[0]) and not same(watch.ends[1], naive.ends[1])
    assert all(same(watch.starts[i + 1], watch.ends[i]) for i in range(2))


@pytest.mark.parametrize("make", [lambda **k: Adam(lr=0.01, **k), lambda **k: SGD(lr=0.1, momentum=0.9, **k)])
def test_it_is_the_optimizers_own_reset(make) -> None:  # type: ignore[no-untyped-def]
    """Step counts are forgotten too: a kept count makes Adam's first step 3.15 times too long."""
    assert same(run(make(), OptimizerReset()).ends[2], run(make(reset=True)).ends[2])


def test_plain_sgd_has_nothing_to_forget() -> None:
    assert same(run(SGD(lr=0.1), OptimizerReset()).ends[2], run(SGD(lr=0.1)).ends[2])
