"""XdG and separate networks: which units are silent, which net a row goes through."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from harness import tree
from harness.learner import Budget, Learner
from harness.loop import prepare, train
from harness.models.cnn import CNN
from harness.models.mlp import MLP
from harness.optim import SGD, Adam
from harness.strategy import Chain, Strategy
from harness.types import Net, Params, Task
from strategies.separate import Separate
from strategies.xdg import XdG
from tests.observer import Blind
from tests.toy import MODELS, stream


def learner(part: Strategy, model: Any = None, optimizer: Any = None) -> tuple[Learner, Chain]:
    source = stream("task", (0, 1))
    net = model(source) if model else MLP(source.shape, source.outputs, (10, 15))
    made = Learner(net, source, optimizer or SGD(lr=0.1), Budget(steps=4, batch_size=8), dtype=torch.float64)
    chain = Chain([part])
    prepare(made, chain)
    return made, chain


def test_a_fixed_number_of_units_is_silent_in_each_task() -> None:
    part = XdG(share=0.75)
    learner(part)
    for act, size, silent in (("fc1", 10, 7), ("fc2", 15, 11)):
        gates = part.gates[act]
        assert gates.shape == (2, 3, size)
        assert ((gates == 0) | (gates == 1)).all()
        assert ((gates == 0).sum(-1) == silent).all()
        assert not torch.equal(gates[:, 0], gates[:, 1])  # tasks differ
        assert not torch.equal(gates[0], gates[1])  # and seeds


@pytest.mark.parametrize("train_", [False, True])
def test_a_row_passes_through_the_units_of_its_task(train_: bool) -> None:
    part = XdG(share=0.75)
    made, _ = learner(part, lambda s: CNN(s.shape, s.outputs, (4, 8), (6,)))
    x, _, _ = made.stream.tasks[0].train.take(torch.arange(5).expand(2, 5))
    t = torch.tensor([[0, 1, 2, 1, 0], [2, 2, 1, 0, 0]])
    out = made.apply(made.params, made.buffers, x, t, train=train_)
    for u in made.model.units:
        for s in range(2):
            for b in range(5):
                silent = part.gates[u.act][s, t[s, b]] == 0
                assert (out.acts[u.act][s, b, silent] == 0).all()
    plain = made.model(made.params, made.buffers, x, t)
    assert not torch.allclose(out.logits, plain.logits)


def test_a_silent_unit_learns_nothing_from_its_task() -> None:
    part = XdG(share=0.75)
    made, chain = learner(part)
    before = tree.copy(made.params)
    made.stream = replace(made.stream, tasks=made.stream.tasks[:1])
    train(made, chain, Blind())
    silent, later = (part.gates[n][:, 0] == 0 for n in ("fc1", "fc2"))
    for s in range(2):
        assert torch.equal(made.params["fc1.weight"][s, silent[s]], before["fc1.weight"][s, silent[s]])
        assert torch.equal(made.params["fc2.weight"][s][:, silent[s]], before["fc2.weight"][s][:, silent[s]])
        assert torch.equal(made.params["head.weight"][s][:, later[s]], before["head.weight"][s][:, later[s]])
        assert (made.params["fc1.weight"][s, ~silent[s]] != before["fc1.weight"][s, ~silent[s]]).any()


def test_share_of_zero_is_naive() -> None:
    made, chain = learner(XdG(share=0.0))
    train(made, chain, Blind())
    naive, none = learner(Strategy())
    train(naive, none, Blind())
    assert all(torch.equal(v, naive.params[k]) for k, v in made.params.items())


def test_gates_do_not_depend_on_how_often_the_strategy_was_set_up() -> None:
    first, second = XdG(share=0.5), XdG(share=0.5)
    learner(first)
    learner(second)
    assert all(torch.equal(v, second.gates[k]) for k, v in first.gates.items())


class Deployed(Strategy):
    """What is deployed after every task says about every task."""

    def __init__(self, part: Strategy) -> None:
        self.part, self.said = part, []  # type: ignore[var-annotated]

    def end(self, learner: Learner, task: Task) -> None:
        self.said.append([says(self.part.deploy(learner, learner.net), t) for t in learner.stream.tasks])


def says(net: Net, task: Task) -> torch.Tensor:
    x, _, t = task.test.take(torch.arange(8).expand(2, 8))
    return net(x, t).logits


@pytest.mark.parametrize("model", MODELS)
def test_each_task_is_answered_by_the_net_that_it_alone_trained(model: str) -> None:
    part = Separate()
    made, _ = learner(part, MODELS[model], Adam(lr=0.01))
    starts: list[Params] = [tree.copy(n.params) for n in part.nets]
    buffers = [tree.copy(n.buffers) for n in part.nets]
    watch = Deployed(part)
    train(made, Chain([part, watch]), Blind())
    for i, task in enumerate(made.stream.tasks):
        alone, chain = learner(Strategy(), MODELS[model], Adam(lr=0.01))
        tree.assign(alone.params, starts[i])
        alone.buffers = tree.copy(buffers[i])
        untrained = says(alone.net, task)
        train_one(alone, chain, task)
        for boundary, said in enumerate(watch.said):
            expected = says(alone.net, task) if boundary >= i else untrained
            assert torch.equal(said[i], expected)
    assert not torch.equal(starts[0]["head.weight"], starts[1]["head.weight"])
    assert not torch.equal(starts[1]["head.weight"], starts[2]["head.weight"])


def train_one(made: Learner, chain: Chain, task: Task) -> None:
    made.stream = replace(made.stream, tasks=(task,))
    train(made, chain, Blind())


def test_rows_of_several_tasks_are_routed_one_by_one() -> None:
    part = Separate()
    made, chain = learner(part)
    train(made, chain, Blind())
    net = chain.deploy(made, made.net)
    x, _, _ = made.stream.tasks[0].test.take(torch.arange(6).expand(2, 6))
    t = torch.tensor([[0, 1, 2, 0, 1, 2], [2, 2, 2, 0, 0, 1]])
    out = net(x, t)
    for s in range(2):
        for b in range(6):
            alone = part.nets[int(t[s, b])](x, t)
            torch.testing.assert_close(out.logits[s, b], alone.logits[s, b], rtol=0, atol=0)
            torch.testing.assert_close(out.acts["fc1"][s, b], alone.acts["fc1"][s, b], rtol=0, atol=0)


def test_the_current_tasks_net_is_the_one_handed_in() -> None:
    part = Separate()
    made, chain = learner(part)
    train(made, chain, Blind())
    doubled = Net(tree.scale(made.params, 2), made.buffers, made.apply)
    net = chain.deploy(made, doubled)
    last, first = made.stream.tasks[2], made.stream.tasks[0]
    assert torch.equal(says(net, last), says(doubled, last))
    assert torch.equal(says(net, first), says(part.nets[0], first))


def test_share_is_checked() -> None:
    for share in (-0.1, 1.0):
        with pytest.raises(ValueError, match=f"share={share}"):
            XdG(share=share)
