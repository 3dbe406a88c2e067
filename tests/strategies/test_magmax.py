"""MagMax and OPCM: what is deployed against their formulas, where each task starts, batch norm, bad values."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from harness import tree
from harness.learner import Learner
from harness.loop import prepare, train
from harness.merging import vectors
from harness.models.mlp import MLP
from harness.optim import SGD
from harness.strategy import Chain, Strategy
from harness.types import Params, Task
from strategies.magmax import MagMax
from strategies.opcm import OPCM
from tests.observer import Blind
from tests.toy import MODELS, gaussian


class Watch(Strategy):
    """The weights before and after each task."""

    def __init__(self) -> None:
        self.before: list[Params] = []
        self.after: list[Params] = []

    def begin(self, learner: Learner, task: Task) -> Task:
        self.before.append(tree.copy(learner.params))
        return task

    def end(self, learner: Learner, task: Task) -> None:
        self.after.append(tree.copy(learner.params))


def run(part: Strategy, tasks: int = 3, **kw: Any) -> tuple[Watch, Learner]:
    watch = Watch()
    made = gaussian(lambda s: MLP(s.shape, s.outputs, (5,)), SGD(lr=0.3, momentum=0.9), tasks=tasks, **kw)
    chain = Chain([part, watch])
    prepare(made, chain)
    train(made, chain, Blind())
    return watch, made


def same(a: Params, b: Params) -> bool:
    return all(torch.equal(v, b[k]) for k, v in a.items())


@pytest.mark.parametrize("start", ["last", "initial"])
def test_magmax_deploys_the_merge_of_all_nets(start: str) -> None:
    part = MagMax(scale=0.6, start=start)
    watch, made = run(part)
    expected = vectors.magmax(watch.before[0], watch.after, scale=0.6)
    torch.testing.assert_close(part.deploy(made, made.net).params, expected)
    assert not same(expected, made.params)


def test_opcm_deploys_the_merge_of_all_nets() -> None:
    part = OPCM(share=0.4)
    watch, made = run(part)
    expected = vectors.opcm(watch.before[0], watch.after, ["fc1.weight", "head.weight"], share=0.4)
    assert [m.weight for m in made.model.layers] == ["fc1.weight", "head.weight"]
    torch.testing.assert_close(part.deploy(made, made.net).params, expected)


def test_tasks_start_from_the_last_net_or_from_the_initial_one() -> None:
    for part, independent in ((MagMax(scale=1.0, start="last"), False), (MagMax(scale=1.0, start="initial"), True),
                              (OPCM(share=0.5), True)):  # fmt: skip
        watch, _ = run(part)
        for t in (1, 2):
            assert same(watch.before[t], watch.before[0] if independent else watch.after[t - 1]), (part.name, t)


def test_an_expert_does_not_depend_on_the_tasks_before_it() -> None:
    class Skipped(Strategy):
        def begin(self, learner: Learner, task: Task) -> Task:
            return task if task.index == 2 else Task(task.index, task.train, task.val, task.test, epoch=0)

    part, watch = OPCM(share=0.5), Watch()
    made = gaussian(lambda s: MLP(s.shape, s.outputs, (5,)), SGD(lr=0.3, momentum=0.9), tasks=3)
    chain = Chain([part, Skipped(), watch])
    prepare(made, chain)
    train(made, chain, Blind())
    whole, _ = run(OPCM(share=0.5))
    assert same(watch.after[2], whole.after[2])  # with momentum: the optimizer starts afresh too
    assert not same(watch.after[1], whole.after[1])


def test_after_one_task_its_net_is_deployed_as_trained() -> None:
    for part in (MagMax(scale=0.5, start="last"), OPCM(share=0.5)):
        _, made = run(part, tasks=1)
        torch.testing.assert_close(part.deploy(made, made.net).params, made.params)


@pytest.mark.parametrize("part", [MagMax(scale=0.7, start="initial"), OPCM(share=0.5)])
def test_batch_norm_statistics_are_those_of_the_merged_net(part: Any) -> None:
    made = gaussian(MODELS["residual"], SGD(lr=0.1), shape=(3, 8, 8), tasks=2, steps=3, rows=16)
    part.random = made.random("strategy/x")
    prepare(made, Chain([part]))
    train(made, Chain([part]), Blind())
    net = part.deploy(made, made.net)
    x, _, t = made.stream.tasks[1].train.take(torch.arange(16).expand(2, 16))
    z = made.apply(net.params, net.buffers, x, t, record=True).preacts["stem"].movedim(2, 1).flatten(2)
    assert ((net.buffers["stem.norm.mean"] - z.mean(2)).abs() < 0.25 * z.std(2)).all()
    assert ((net.buffers["stem.norm.var"] / z.var(2)).log().abs() < 0.25).all()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: MagMax(scale=0.0, start="last"), "scale=0.0"),
        (lambda: MagMax(scale=0.5, start="first"), "start=first"),
        (lambda: OPCM(share=1.5), "share=1.5"),
    ],
)
def test_bad_values_are_named(make: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()
