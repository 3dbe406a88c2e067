"""Joint and cumulative training: what they train on, for how long, and from where."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from harness import tree
from harness.learner import Budget, Learner
from harness.loop import prepare, train
from harness.models.mlp import MLP
from harness.optim import SGD, Optimizer
from harness.record import costs
from harness.rng import RandomStream, keys
from harness.rows import Rows
from harness.strategy import Chain, Strategy
from harness.toolbox.memory import Memory
from harness.types import Batch, Params, Stream, Task
from strategies.cumulative import Cumulative
from strategies.joint import Joint
from tests.observer import Blind

SIZES = (12, 6, 18)


def learner(optimizer: Optimizer | None = None) -> Learner:
    """Task i holds rows 100 i, 100 i + 1 ..."""
    numbers = torch.cat([torch.arange(n) + 100 * i for i, n in enumerate(SIZES)])
    starts = torch.tensor([0, *SIZES]).cumsum(0)
    tasks = []
    for i, n in enumerate(SIZES):
        index = (torch.arange(n) + starts[i]).expand(2, n)
        rows = Rows(DATA, index, torch.full((2, n), i), torch.full((2, 1), i), torch.full((2,), n))
        tasks.append(Task(i, rows, rows, rows, n))
    assert torch.equal(DATA[:, 0], numbers.double())
    stream = Stream("toy", 1, "domain", tuple(tasks), (1,), 3, (0, 1), "")
    return Learner(
        MLP((1,), 3, (4,)), stream, optimizer or SGD(lr=1e-4), Budget(epochs=1, batch_size=6), dtype=torch.float64
    )


DATA = torch.cat([torch.arange(n) + 100 * i for i, n in enumerate(SIZES)])[:, None].double()


class Watch(Strategy):
    def __init__(self) -> None:
        self.seen: dict[int, list[Batch]] = {}
        self.first: dict[int, Params] = {}
        self.last: dict[int, Params] = {}

    def batch(self, learner: Learner, batch: Batch) -> Batch:
        self.first.setdefault(learner.now, tree.copy(learner.params))
        self.seen.setdefault(learner.now, []).append(batch)
        return batch

    def end(self, learner: Learner, task: Task) -> None:
        self.last[task.index] = tree.copy(learner.params)


def run(part: Strategy, made: Learner | None = None) -> tuple[Watch, Learner]:
    made, watch = made or learner(), Watch()
    chain = Chain([part, watch])
    prepare(made, chain)
    train(made, chain, Blind())
    return watch, made


@pytest.mark.parametrize("kind", [Joint, Cumulative])
def test_an_epoch_is_a_pass_over_the_union(kind: Any) -> None:
    watch, _ = run(kind(steps="proportional"))
    for now in range(3):
        rows = torch.cat([b.x for b in watch.seen[now]], 1)[..., 0]
        expected = sorted(100.0 * i + j for i in range(now + 1) for j in range(SIZES[i]))
        assert all(sorted(r.tolist()) == expected for r in rows)
        for b in watch.seen[now]:
            assert torch.equal(b.y, (b.x[..., 0] // 100).long()) and torch.equal(b.t, b.y)


@pytest.mark.parametrize("kind", [Joint, Cumulative])
def test_equal_steps_are_those_of_naive(kind: Any) -> None:
    watch, _ = run(kind(steps="equal"))
    assert [len(watch.seen[i]) for i in range(3)] == [2, 1, 3]
    last = torch.cat([b.y for b in watch.seen[2]], 1)
    assert last.unique().numel() > 1


@pytest.mark.parametrize(("steps", "expected"), [("proportional", [2, 3, 6]), ("equal", [2, 1, 3])])
@pytest.mark.parametrize("kind", [Joint, Cumulative])
def test_the_budget_is_that_of_the_docstring(kind: Any, steps: str, expected: list[int]) -> None:
    watch, _ = run(kind(steps=steps))  # 12, 6 and 18 rows, batches of 6
    assert [len(watch.seen[i]) for i in range(3)] == expected


@pytest.mark.parametrize("kind", [Joint, Cumulative])
def test_every_row_so_far_is_memory(kind: Any) -> None:
    """As much as a memory of these rows would hold, also after the run was taken up again."""
    part, made, held = kind(steps="equal"), learner(), []

    class Weigh(Strategy):
        def setup(self, learner: Learner) -> None:
            held.append(costs.held(part.holds()))

        def end(self, learner: Learner, task: Task) -> None:
            held.append(costs.held(part.holds()))

    chain = Chain([part, Weigh()])
    prepare(made, chain)
    train(made, chain, Blind())
    row = 3 * 8  # a float64, a class and a task id
    assert held == [2 * row * n for n in (0, 12, 18, 36)]  # of both seeds
    memory = Memory(36, "reservoir", RandomStream(keys([0, 1], "x")))
    for task in made.stream.tasks:
        x, y, t = task.train.take(torch.arange(task.rows).expand(2, -1))
        memory.add(x=x, y=y, t=t)
    assert held[-1] == memory.nbytes
    again = kind(steps="equal")
    again.load_state_dict(part.state_dict())
    assert costs.held(again.holds()) == held[-1]


def test_each_variant_has_its_own_random_stream() -> None:
    names = [kind(steps=s).purpose for kind in (Joint, Cumulative) for s in ("proportional", "equal")]
    assert names == ["Joint", "Joint[equal]", "Cumulative", "Cumulative[equal]"]


@pytest.mark.parametrize("kind", [Joint, Cumulative])
def test_generated_rows_are_refused(kind: Any) -> None:
    made = learner()
    object.__setattr__(made.stream.tasks[1], "train", object())
    with pytest.raises(ValueError, match=rf"^{kind.__name__.lower()}: toy generates its rows"):
        prepare(made, Chain([kind(steps="equal")]))


@pytest.mark.parametrize("kind", [Joint, Cumulative])
def test_the_first_task_is_that_of_naive(kind: Any) -> None:
    joint, naive = run(kind(steps="proportional"))[0], run(Strategy())[0]
    for a, b in zip(joint.seen[0], naive.seen[0]):
        assert torch.equal(a.x, b.x)
    assert all(torch.equal(v, naive.first[0][k]) for k, v in joint.first[0].items())


def test_joint_begins_each_later_task_afresh() -> None:
    watch, _ = run(Joint(steps="equal"))
    nets = [watch.first[i]["fc1.weight"] for i in range(3)]
    for a, b in ((0, 1), (1, 2), (0, 2)):  # other draws each time, for both seeds
        assert ((nets[a] - nets[b]).abs().amax((1, 2)) > 0.05).all()
    assert not torch.equal(nets[1][0], nets[1][1])
    # a fresh net's weights are uniform on (-1, 1) for fan in 1, whatever the last one had become
    huge = learner()
    tree.assign(huge.params, tree.scale(huge.params, 1e6))
    watch, _ = run(Joint(steps="equal"), huge)
    assert watch.first[0]["fc1.weight"].abs().max() > 1 > watch.first[1]["fc1.weight"].abs().max()


def test_cumulative_goes_on_from_the_last_net_and_optimizer() -> None:
    made = learner(SGD(lr=1e-3, momentum=0.9))
    made.optimizer.reset = lambda *a: pytest.fail("the optimizer was reset")  # type: ignore[method-assign]
    watch, _ = run(Cumulative(steps="proportional"), made)
    for i in (1, 2):
        assert all(torch.equal(v, watch.last[i - 1][k]) for k, v in watch.first[i].items())


def test_joint_clears_the_optimizer() -> None:
    made = learner(SGD(lr=1e-3, momentum=0.9))
    resets = []
    original = made.optimizer.reset
    made.optimizer.reset = lambda *a: (resets.append(made.now), original(*a))[1]  # type: ignore[method-assign]
    run(Joint(steps="equal"), made)
    assert resets == [1, 2]


@pytest.mark.parametrize("kind", [Joint, Cumulative])
def test_bad_values_are_named(kind: Any) -> None:
    with pytest.raises(ValueError, match=r"^steps=double: choose one of"):
        kind(steps="double")
