"""MAS: closed form of a linear net, what is summed, what is averaged, and agreement with Avalanche at batch size 1."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch

from harness import tree
from harness.learner import Learner
from harness.loop import prepare, train
from harness.models.mlp import MLP
from harness.models.resnet18 import ResNet18
from harness.optim import SGD
from harness.strategy import Chain
from harness.types import Params
from strategies.mas import MAS
from tests import test_avalanche_agrees as bridge
from tests.observer import Blind
from tests.toy import gaussian


def mas(**changed: Any) -> MAS:
    return MAS(**{"strength": 1.0, "alpha": None, "samples": None, **changed})


def linear(tasks: int = 1) -> Learner:
    return gaussian(lambda s: MLP(s.shape, 2, ()), SGD(lr=0.1), tasks=tasks)


def closed_form(made: Learner) -> Params:
    """∂ ‖Wx + b‖² / ∂W_ci = 2 z_c x_i."""
    x, _, t = made.stream.tasks[0].train.take(torch.arange(64).expand(2, -1))
    z = made.net(x, t).logits.abs()
    return {"head.weight": 2 * z.mT @ x.abs() / 64, "head.bias": 2 * z.mean(1)}


@pytest.mark.parametrize(("alpha", "weights"), [(None, (1.0, 1.0, 1.0)), (0.25, (0.0625, 0.1875, 0.75))])
def test_importance_of_a_linear_net_over_three_tasks(alpha: float | None, weights: tuple[float, ...]) -> None:
    made, part = linear(tasks=3), mas(alpha=alpha)
    prepare(made, Chain([part]))
    expected = tree.zeros(made.params)
    for task, weight in zip(made.stream.tasks, weights):
        for v in made.params.values():
            v.mul_(-1.5).add_(0.3)
        part.end(made, task)
        expected = tree.add(expected, closed_form(made), weight)
    for k, v in expected.items():
        torch.testing.assert_close(part.importance[k], v, rtol=1e-10, atol=0)
        assert torch.equal(part.anchor[k], made.params[k])


def test_the_penalty_has_no_half() -> None:
    made, part = linear(), mas(strength=3.0)
    prepare(made, Chain([part]))
    part.end(made, made.stream.tasks[0])
    value = part.loss(made, {k: v + 2.0 for k, v in made.params.items()}, None, None)  # type: ignore[arg-type]
    expected = 3.0 * 4.0 * torch.stack([v.flatten(1).sum(1) for v in part.importance.values()]).sum(0)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)


def test_no_label_is_read() -> None:
    made, part, other = linear(), mas(), mas()
    task = made.stream.tasks[0]
    source: Any = task.train
    relabelled = replace(task, train=replace(source, y=1 - source.y))
    for one, data in ((part, task), (other, relabelled)):
        prepare(made, Chain([one]))
        one.end(made, data)
    assert all(torch.equal(v, other.importance[k]) for k, v in part.importance.items())


def test_the_importance_pass_is_in_evaluation_mode() -> None:
    """Avalanche's runs in training mode: it moves the running statistics, and dropout is on."""
    made = gaussian(lambda s: ResNet18(s.shape, 2, 2), SGD(lr=0.1), shape=(2, 8, 8), rows=8)
    part, before = mas(), tree.copy(made.buffers)
    prepare(made, Chain([part]))
    part.end(made, made.stream.tasks[0])
    assert all(torch.equal(v, before[k]) for k, v in made.buffers.items())
    net = gaussian(lambda s: MLP(s.shape, 2, (5,), dropout=0.5), SGD(lr=0.1))
    plain = gaussian(lambda s: MLP(s.shape, 2, (5,)), SGD(lr=0.1))
    parts = []
    for one in (net, plain):
        parts.append(mas())
        prepare(one, Chain([parts[-1]]))
        parts[-1].end(one, one.stream.tasks[0])
    assert all(torch.equal(v, parts[1].importance[k]) for k, v in parts[0].importance.items())


def test_avalanche_with_importance_batches_of_one_row_ends_at_the_same_weights() -> None:
    """A batch's gradient is then the row's; at other sizes its importance shrinks as the rows' gradients cancel."""
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("ignore")
        state = torch.random.get_rng_state()
        import avalanche
        import avalanche.benchmarks.utils
        import avalanche.evaluation.metrics
        import avalanche.training.plugins
        import avalanche.training.supervised

        stream = bridge.streams()["permuted"]
        ours = bridge.ours(stream, mas(strength=0.02, alpha=0.5))
        options = {"lambda_reg": 0.02, "alpha": 0.5}
        _, net = bridge.theirs(avalanche, stream, "MAS", train_mb_size=1, **options)
        _, shrunk = bridge.theirs(avalanche, stream, "MAS", train_mb_size=100, **options)
        torch.random.set_rng_state(state)
    assert bridge.distance(ours, net) < 2e-6
    assert bridge.distance(ours, shrunk) > 1e-3 and bridge.distance(bridge.ours(stream), net) > 0.01


def test_strength_zero_is_naive() -> None:
    runs = []
    for parts in ([mas(strength=0.0)], []):
        made = linear(tasks=2)
        prepare(made, chain := Chain(parts))
        train(made, chain, Blind())
        runs.append(made.params)
    assert all(torch.equal(v, runs[1][k]) for k, v in runs[0].items())


@pytest.mark.parametrize(
    ("changed", "said"),
    [({"strength": -1.0}, "strength=-1.0"), ({"alpha": 2.0}, "alpha=2.0"), ({"samples": 0}, "samples=0")],
)
def test_bad_values_are_named(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        mas(**changed)
