"""GPM and OWM: what old inputs give stays, under any optimizer; the bases against worked numbers and the recursion."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from harness import rng, rows, tree
from harness.learner import Budget, Learner
from harness.loop import prepare, train
from harness.models.cnn import CNN
from harness.models.mlp import MLP
from harness.models.resnet18 import ResNet18
from harness.optim import SGD, Adam, AdamW, Optimizer
from harness.rows import Rows
from harness.strategy import Chain, Strategy
from harness.toolbox.projection import layer_inputs
from harness.types import Stream, Task
from strategies.gpm import GPM
from strategies.owm import OWM
from tests.observer import Blind
from tests.toy import begin

ROWS = 6
OPTIMIZERS: dict[str, Callable[[], Optimizer]] = {
    "sgd": lambda: SGD(lr=0.1),
    "sgd decay": lambda: SGD(lr=0.1, weight_decay=0.1),
    "momentum": lambda: SGD(lr=0.1, momentum=0.9),
    "adam": lambda: Adam(lr=0.01),
    "adamw": lambda: AdamW(lr=0.01, weight_decay=0.1),
}
METHODS: dict[str, Callable[[], Strategy]] = {
    "gpm": lambda: GPM(threshold=1.0, growth=0.0, samples=ROWS),
    "owm": lambda: OWM(alpha=1e-10, decay=1.0, batch_size=1),  # each row is its own mean
}


def two_tasks(model: Callable[[Stream], Any], optimizer: Optimizer, shape: tuple[int, ...]) -> Learner:
    """Six rows a task, fewer than the layers' inputs have dimensions; task 1's rows are all different."""
    x = rng.normal(rng.keys([3], "x"), 2 * ROWS, *shape, dtype=torch.float64)[0]
    made = []
    for i in range(2):
        index = torch.arange(i * ROWS, (i + 1) * ROWS).expand(2, -1)
        y = torch.stack([torch.arange(ROWS) % 2, torch.arange(ROWS) // 2 % 2])
        source = Rows(x, index, y, torch.zeros(2, 1).long(), torch.full((2,), ROWS))
        made.append(Task(i, source, source, source, ROWS))
    stream = Stream("two", 1, "domain", tuple(made), shape, 2, (0, 1), "")
    return Learner(model(stream), stream, optimizer, Budget(steps=12, batch_size=3), dtype=torch.float64)


class AfterFirst(Blind):
    """Keeps the net after task 0 and what it says about task 0's rows."""

    def __init__(self, learner: Learner) -> None:
        self.learner = learner

    def end(self, task: Task) -> None:
        if task.index == 0:
            self.params, self.logits = tree.copy(self.learner.params), old_logits(self.learner)


def old_logits(learner: Learner) -> Tensor:
    x, _, t = learner.stream.tasks[0].train.take(torch.arange(ROWS).expand(2, -1))
    return learner.net(x, t).logits.detach().clone()


def after_two(learner: Learner, *parts: Strategy) -> AfterFirst:
    chain, first = Chain(parts), AfterFirst(learner)
    prepare(learner, chain)
    train(learner, chain, first)
    return first


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_old_outputs_do_not_move_under_any_optimizer(kind: str, method: str, optimizer: str) -> None:
    def model(s: Stream) -> Any:
        return MLP(s.shape, 2, (14, 12)) if kind == "mlp" else CNN(s.shape, 2, (4, 9), (14,))

    shape = (20,) if kind == "mlp" else (3, 4, 4)
    learner = two_tasks(model, OPTIMIZERS[optimizer](), shape)
    first = after_two(learner, METHODS[method]())
    torch.testing.assert_close(old_logits(learner), first.logits, rtol=0, atol=1e-6)
    moved = {k for k, v in learner.params.items() if (v - first.params[k]).abs().amax() > 1e-4}
    assert {"fc1.weight", "head.weight"} <= moved
    naive = two_tasks(model, OPTIMIZERS[optimizer](), shape)
    assert (old_logits(naive) - after_two(naive).logits).abs().max() > 1e-2


def test_old_outputs_do_not_move_in_a_residual_net_with_group_norm() -> None:
    def model(s: Stream) -> Any:
        return ResNet18(s.shape, 2, 4, norm="group", groups=2)

    learner = two_tasks(model, SGD(lr=0.1, momentum=0.9), (1, 4, 4))
    first = after_two(learner, METHODS["gpm"]())
    torch.testing.assert_close(old_logits(learner), first.logits, rtol=0, atol=1e-6)
    assert (learner.params["head.weight"] - first.params["head.weight"]).abs().max() > 1e-4
    assert torch.equal(learner.params["stem.norm.gain"], first.params["stem.norm.gain"])


@pytest.mark.parametrize("method", METHODS)
def test_the_first_task_is_trained_as_if_alone(method: str) -> None:
    def model(s: Stream) -> Any:
        return MLP(s.shape, 2, (8,))

    first = after_two(two_tasks(model, Adam(lr=0.01), (20,)), METHODS[method]())
    naive = after_two(two_tasks(model, Adam(lr=0.01), (20,)))
    assert all(torch.equal(v, naive.params[k]) for k, v in first.params.items())


@pytest.mark.parametrize("method", ["gpm", "owm"])
def test_with_a_head_per_task_old_heads_stay_and_the_own_one_is_free(method: str) -> None:
    learner, chain = begin((method,), "task", "mlp", Adam(lr=0.01), (0, 1), torch.float64, 4)
    masks = learner.stream.masks
    assert masks is not None

    class Watch(Blind):
        before: dict[str, Tensor]

        def start(self, task: Task) -> None:
            self.before = tree.copy(learner.params)

        def end(self, task: Task) -> None:
            own = masks[:, task.index].expand(2, -1)
            for k in learner.model.head:
                changed = (
                    (learner.params[k] != self.before[k]).flatten(2).any(2)
                    if "weight" in k
                    else (learner.params[k] != self.before[k])
                )
                assert changed[own].all() and (not task.index or not changed[~own].any())

    train(learner, chain, Watch())


# --- GPM ------------------------------------------------------------------------------------------


def linear_learner(x: Tensor, seeds: int = 2) -> Learner:
    """A linear net on the rows x [seeds, n, d]."""
    n = x.shape[1]
    index = torch.arange(seeds * n).view(seeds, n)
    y, size = torch.zeros(seeds, n).long(), torch.full((seeds,), n)
    source = Rows(x.flatten(0, 1), index, y, torch.zeros(seeds, 1).long(), size)
    task = Task(0, source, source, source, n)
    stream = Stream("linear", 1, "domain", (task,), x.shape[2:], 2, tuple(range(seeds)), "")
    return Learner(MLP(x.shape[2:], 2, ()), stream, SGD(lr=0.1), Budget(steps=1), dtype=torch.float64)


def allowed(x: Tensor, part: GPM | OWM) -> Tensor:
    learner = linear_learner(x, len(x))
    prepare(learner, Chain([part]))
    part.end(learner, learner.stream.tasks[0])
    return part.allowed["head.weight"]


@pytest.mark.parametrize(("threshold", "kept"), [(0.0, 0), (0.7, 1), (0.74, 1), (0.76, 2), (0.97, 3), (1.0, 3)])
def test_gpm_keeps_as_few_directions_as_reach_the_threshold(threshold: float, kept: int) -> None:
    # energies 12, 3, 1 of 16 along three axes: shares .75, .9375, 1; the fourth axis has none
    inputs = torch.tensor([[12**0.5, 0, 0, 0], [0, 3**0.5, 0, 0], [0, 0, 1.0, 0]]).double()
    turned = torch.linalg.qr(rng.normal(rng.keys([1], "q"), 4, 4, dtype=torch.float64)[0])[0]
    Q = allowed(torch.stack([inputs, inputs @ turned.T]), GPM(threshold=threshold, growth=0.0, samples=3))
    expected = torch.diag((torch.arange(4) >= kept).double())
    torch.testing.assert_close(Q[0], expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(Q[1], turned @ expected @ turned.T, rtol=0, atol=1e-12)


def test_gpm_counts_what_is_already_protected_towards_the_threshold() -> None:
    first = torch.tensor([[[2.0, 0, 0]]]).double().repeat(1, 3, 1)
    learner = linear_learner(first, 1)
    part = GPM(threshold=0.9, growth=0.0, samples=3)
    prepare(learner, Chain([part]))
    part.end(learner, learner.stream.tasks[0])
    for inputs, free in (
        ([[3.0, 1, 0], [3, 0, 0.5], [3, 0, 0]], [0, 1, 1]),
        ([[3.0, 2, 0], [3, 0, 1], [3, 0, 0]], [0, 0, 1]),
    ):
        # energy 27 of 28.25 is protected (.956 >= .9); then 27 of 32 (.84), and 31 of 32 with the second axis
        task = linear_learner(torch.tensor([inputs]).double(), 1).stream.tasks[0]
        part.end(learner, task)
        torch.testing.assert_close(part.allowed["head.weight"][0], torch.diag(torch.tensor(free).double()))


def test_gpm_s_threshold_grows_with_the_tasks_up_to_one() -> None:
    inputs = torch.tensor([[[12**0.5, 0, 0, 0], [0, 3**0.5, 0, 0], [0, 0, 1.0, 0]]]).double()
    learner = linear_learner(inputs, 1)
    source = learner.stream.tasks[0].train
    for index, kept in ((0, 1), (1, 2), (9, 3)):
        part = GPM(threshold=0.7, growth=0.1, samples=3)
        prepare(learner, Chain([part]))
        part.end(learner, Task(index, source, source, source, 3))
        assert round(float(part.allowed["head.weight"].diagonal(dim1=1, dim2=2).sum())) == 4 - kept


@pytest.mark.parametrize("method", METHODS)
def test_a_diverged_seed_does_not_take_the_others_down(method: str) -> None:
    x = rng.normal(rng.keys([0, 1], "x"), 3, 5, dtype=torch.float64)
    whole = allowed(x, METHODS[method]())  # type: ignore[arg-type]
    x[1, 0, 0] = torch.nan
    torch.testing.assert_close(allowed(x, METHODS[method]())[0], whole[0], rtol=1e-9, atol=1e-12)  # type: ignore[arg-type]


# --- OWM ------------------------------------------------------------------------------------------


def test_owm_with_one_mean_is_its_formula() -> None:
    x = torch.tensor([[[1.0, 0.0], [3.0, 4.0]], [[0.0, 0.0], [0.0, 2.0]]]).double()  # means (2, 2), (0, 1)
    P = allowed(x, OWM(alpha=0.5, decay=0.1, batch_size=2))
    for s, mean in enumerate(([2.0, 2.0, 1.0], [0.0, 1.0, 1.0])):  # the last entry is the bias's input
        r = torch.tensor(mean).double()
        expected = torch.eye(3).double() - torch.outer(r, r) / (0.5 + r @ r)
        torch.testing.assert_close(P[s], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_owm_is_the_paper_s_recursion(kind: str) -> None:
    def model(s: Stream) -> Any:
        return MLP(s.shape, 2, (7,)) if kind == "mlp" else CNN(s.shape, 2, (3,), (5,))

    learner = two_tasks(model, SGD(lr=0.1), (1, 4, 4))
    part = OWM(alpha=0.9, decay=0.01, batch_size=2)
    prepare(learner, Chain([part]))
    P = {k: v.clone() for k, v in part.allowed.items()}
    for i, task in enumerate(learner.stream.tasks):
        key = rng.fold(part.random.base, i + 1)  # the order that the strategy draws
        position = rows.order(key, task.train.size, 0, ROWS)
        for j, found in enumerate(layer_inputs(learner, task, position, 2, bias=True)):
            alpha = 0.9 * 0.01 ** (j / 3)
            for k, v in found.items():
                for s in range(2):
                    for r in v[s].mean(0):
                        gain = P[k][s] @ r / (alpha + r @ P[k][s] @ r)
                        P[k][s] -= torch.outer(gain, P[k][s] @ r)
        part.end(learner, task)
    for k, v in P.items():
        torch.testing.assert_close(part.allowed[k], v, rtol=0, atol=1e-9)
        assert (v - torch.eye(v.shape[1]).double()).abs().max() > 0.1


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: GPM(threshold=1.1, growth=0.0, samples=1), "threshold=1.1"),
        (lambda: GPM(threshold=0.9, growth=-0.1, samples=1), "growth=-0.1"),
        (lambda: GPM(threshold=0.9, growth=0.0, samples=0), "samples=0"),
        (lambda: OWM(alpha=0.0, decay=0.5, batch_size=1), "alpha=0.0"),
        (lambda: OWM(alpha=1.0, decay=0.0, batch_size=1), "decay=0.0"),
        (lambda: OWM(alpha=1.0, decay=0.5, batch_size=0), "batch_size=0"),
    ],
)
def test_bad_values_are_named(make: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()
