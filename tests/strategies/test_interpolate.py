"""Interpolation: the ends of the line, the middle, and batch-norm statistics."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from harness import tree
from harness.learner import Budget, Learner
from harness.loop import prepare, train
from harness.models.mlp import MLP
from harness.models.resnet18 import ResNet18
from harness.optim import SGD
from harness.rows import Rows
from harness.strategy import Chain, Strategy
from harness.types import Params, Stream, Task
from strategies.interpolate import Interpolate
from tests.observer import Blind


def learner(x: Tensor, model: object, tasks: int = 3, n: int = 16) -> Learner:
    draw = torch.Generator().manual_seed(5)
    made = []
    for i in range(tasks):
        y = torch.randint(0, 3, (2, n), generator=draw)
        index = torch.randint(0, len(x), (2, n), generator=draw)
        rows = Rows(x, index, y, torch.zeros(2, 1, dtype=torch.int64), torch.full((2,), n))
        made.append(Task(i, rows, rows, rows, n))
    stream = Stream("toy", 1, "domain", tuple(made), x.shape[1:], 3, (0, 1), "")
    return Learner(model, stream, SGD(lr=0.1), Budget(steps=3, batch_size=8), dtype=torch.float64)  # type: ignore[arg-type]


def mlp() -> Learner:
    x = torch.randn(40, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return learner(x, MLP((4,), 3, (5,)))


def run(made: Learner, part: Strategy) -> list[tuple[Params, Params]]:
    """The weights after each task's last step, and after `end`."""
    found: list[tuple[Params, Params]] = []

    class Before(Strategy):
        def end(self, learner: Learner, task: Task) -> None:
            found.append((tree.copy(learner.params), {}))

    class After(Strategy):
        def end(self, learner: Learner, task: Task) -> None:
            found[-1] = (found[-1][0], tree.copy(learner.params))

    chain = Chain([Before(), part, After()])
    prepare(made, chain)
    train(made, chain, Blind())
    return found


@pytest.mark.parametrize("weight", [0.0, 0.25, 0.5, 1.0])
def test_each_boundary_lies_on_the_line_from_the_last(weight: float) -> None:
    history = run(mlp(), Interpolate(weight_new=weight))
    assert all(torch.equal(v, history[0][1][k]) for k, v in history[0][0].items())  # the first task's net is kept
    for (_, old), (new, merged) in pairwise(history):
        for k, v in merged.items():
            torch.testing.assert_close(v, (1 - weight) * old[k] + weight * new[k], rtol=1e-12, atol=1e-14)
            if weight in (0, 1):
                assert torch.equal(v, (old, new)[int(weight)][k])


def test_weight_new_of_one_is_naive() -> None:
    merged, naive = run(mlp(), Interpolate(weight_new=1.0)), run(mlp(), Strategy())
    assert all(torch.equal(v, naive[-1][1][k]) for k, v in merged[-1][1].items())


def test_batch_norm_statistics_are_measured_at_the_merged_net() -> None:
    images = torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    made = learner(3 * images + 1, ResNet18((3, 8, 8), 3, 2), tasks=2)
    part = Interpolate(weight_new=0.5)
    history = run(made, part)
    assert not torch.equal(history[-1][0]["head.weight"], history[-1][1]["head.weight"])
    # The first convolution's output has a mean and a variance that do not depend on any other statistic.
    task = made.stream.tasks[1]
    x, _, t = task.train.take(torch.arange(16).expand(2, 16))
    out = made.apply(made.params, made.buffers, x, t, record=True)
    stem = made.model.layers[0].preact
    z = out.preacts[stem].movedim(2, 1).flatten(2)  # [S, C, n h w]
    mean = next(k for k in made.buffers if stem in k and "mean" in k)
    var = next(k for k in made.buffers if stem in k and "var" in k)
    spread = z.std(2)
    assert ((made.buffers[mean] - z.mean(2)).abs() < 0.25 * spread).all()  # 256 rows drawn of 16
    assert ((made.buffers[var] / z.var(2)).log().abs() < 0.25).all()


def test_read_out_rows_that_compete_for_the_first_time_are_kept() -> None:
    # halving a new class's row towards an initialisation that was never trained is no average of two nets
    made = mlp()
    masks = torch.tensor([[[True, False, False], [False, True, False], [False, False, True]]])
    made.stream = replace(made.stream, scenario="class", masks=masks)
    history = run(made, Interpolate(weight_new=0.25))
    for i, ((_, old), (new, merged)) in enumerate(pairwise(history), 1):
        half = 0.75 * old["head.weight"] + 0.25 * new["head.weight"]
        assert torch.equal(merged["head.weight"][:, i:], new["head.weight"][:, i:])
        torch.testing.assert_close(merged["head.weight"][:, :i], half[:, :i], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("weight", [-0.1, 1.1])
def test_bad_values_are_named(weight: float) -> None:
    with pytest.raises(ValueError, match=f"weight_new={weight}"):
        Interpolate(weight_new=weight)
