"""Reset and head reset: what is new, what stays, and that nothing of the past gets through."""

import pytest
import torch
from torch import Tensor

from harness import tree
from harness.learner import Learner
from harness.loop import prepare, train
from harness.models.mlp import MLP
from harness.optim import SGD, Adam, Optimizer
from harness.strategy import Chain, Strategy
from harness.types import Params, Task
from strategies.head_reset import HeadReset
from strategies.reset import Reset
from tests.observer import Blind
from tests.toy import OneStage, gaussian


def toy(model: str, optimizer: Optimizer, steps: int = 4) -> Learner:
    if model == "mlp":
        return gaussian(lambda s: MLP(s.shape, 2, (6, 5)), optimizer, tasks=3, steps=steps)
    return gaussian(lambda s: OneStage(s.shape, 2), optimizer, shape=(1, 8, 8), tasks=3, steps=steps)


class Watch(Blind):
    """Parameters, buffers and optimizer state as each task's first step finds them, and after its last."""

    def __init__(self, learner: Learner) -> None:
        self.learner = learner
        self.starts: list[tuple[Params, Params]] = []
        self.states: list[dict[str, Params]] = []
        self.ends: list[Params] = []

    def start(self, task: Task) -> None:
        self.starts.append((tree.copy(self.learner.params), tree.copy(self.learner.buffers)))
        self.states.append({s: tree.copy(v) for s, v in self.learner.optimizer.state.items()})

    def end(self, task: Task) -> None:
        self.ends.append(tree.copy(self.learner.params))


def run(learner: Learner, *parts: Strategy) -> Watch:
    watch, chain = Watch(learner), Chain(parts)
    prepare(learner, chain)
    train(learner, chain, watch)
    return watch


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("model", ["mlp", "residual"])
def test_reset_equals_naive_on_the_first_task(model: str) -> None:
    naive, fresh = run(toy(model, Adam(lr=0.01), 2)), run(toy(model, Adam(lr=0.01), 2), Reset())
    assert equal(naive.ends[0], fresh.ends[0])
    assert not equal(naive.ends[1], fresh.ends[1])


@pytest.mark.parametrize("model", ["mlp", "residual"])
def test_reset_lets_nothing_of_the_past_through(model: str) -> None:
    # another learning rate on task 0 must leave no trace on task 1: weights, statistics, moments, step counts
    class Faster(Reset):
        def begin(self, learner: Learner, task: Task) -> Task:
            learner.optimizer.base_lr = learner.optimizer.lr = 0.01 if task.index else 0.05
            return super().begin(learner, task)

        @property
        def purpose(self) -> str:
            return "Reset"

    slow, fast = run(toy(model, Adam(lr=0.01), 2), Reset()), run(toy(model, Adam(lr=0.01), 2), Faster())
    assert not equal(slow.ends[0], fast.ends[0])
    for i in (1, 2):
        assert equal(slow.starts[i][0], fast.starts[i][0])
        assert equal(slow.starts[i][1], fast.starts[i][1])
        assert equal(slow.ends[i], fast.ends[i])
        assert slow.states[i] == {}


def test_every_task_has_another_fresh_net_and_every_seed_its_own() -> None:
    starts = [p["fc1.weight"] for p, _ in run(toy("mlp", SGD(lr=0.1)), Reset()).starts]
    flat = torch.cat([w.flatten(1) for w in starts])
    assert len(flat.unique(dim=0)) == 6
    assert flat.abs().max() <= 0.5  # U(-1/sqrt(4), 1/sqrt(4))
    assert flat[2:].std() == pytest.approx(0.5 / 3**0.5, rel=0.2)


def test_a_fresh_nets_statistics_are_those_of_the_start() -> None:
    watch = run(toy("residual", SGD(lr=0.1), 2), Reset())
    assert watch.starts[0][1]
    assert equal(watch.starts[0][1], watch.starts[2][1])


@pytest.mark.parametrize("init", ["fresh", "zero"])
@pytest.mark.parametrize("optimizer", [True, False])
def test_head_reset_renews_the_head_alone(init: str, optimizer: bool) -> None:
    learner = toy("mlp", SGD(lr=0.1, momentum=0.9))
    watch = run(learner, HeadReset(init=init, optimizer=optimizer))
    assert equal(watch.ends[0], run(toy("mlp", SGD(lr=0.1, momentum=0.9))).ends[0])
    for i in (1, 2):
        for k, v in watch.starts[i][0].items():
            moved, head = v != watch.ends[i - 1][k], k in ("head.weight", "head.bias")
            assert moved.any() == head
            assert moved.all() == head or init == "zero"  # what a dead unit writes to was 0 before
            assert watch.states[i]["momentum"][k].any() != (head and optimizer)
    heads = torch.cat([w["head.weight"].flatten(1) for w, _ in watch.starts[1:]])
    if init == "zero":
        assert not heads.any()
    else:
        assert len(heads.unique(dim=0)) == 4
        assert 0 < heads.abs().max() <= 5**-0.5


def test_separate_heads_have_nothing_to_reset() -> None:
    assert "task" not in HeadReset.scenarios


def test_a_wrong_option_is_named() -> None:
    with pytest.raises(ValueError, match=r"^init=ones: choose one of fresh, zero$"):
        HeadReset(init="ones", optimizer=True)
