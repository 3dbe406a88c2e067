"""NCM: its means by hand, and that it reads the net as it is now."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from harness import tree
from harness.learner import Learner
from harness.loop import prepare, train
from harness.strategy import Chain
from harness.toolbox import class_means
from harness.types import Net
from strategies.ncm import NCM
from strategies.replay import Replay
from tests.observer import Blind
from tests.toy import SEEDS, go


def ncm(**changed: Any) -> NCM:
    return NCM(**{"means": "memory", "capacity": 30, "normalise": False, **changed})


def run(part: NCM, scenario: str = "class") -> Learner:
    """Three tasks of two digits' classes, or of permutations, with three seeds."""
    learner = go((), scenario, "mlp", "sgd", steps=1).learner
    chain = Chain([part])
    prepare(learner, chain)
    train(learner, chain, Blind())
    return learner


def every_row(learner: Learner, task: int, s: int) -> tuple[Tensor, Tensor, Tensor]:
    source = learner.stream.tasks[task].train
    n = int(source.size[s])
    x, y, t = source.take(torch.arange(n).expand(learner.S, n))
    return x[s : s + 1], y[s], t[s : s + 1]


def hidden(learner: Learner, x: Tensor, t: Tensor, s: int) -> Tensor:
    """The last hidden layer of seed s by hand: [n, H]."""
    p = {k: v[s] for k, v in learner.params.items()}
    h = x[0].flatten(1).double()
    for name in ("fc1", "fc2"):
        h = (h @ p[f"{name}.weight"].T + p[f"{name}.bias"]).relu()
    return h


@pytest.mark.parametrize("normalise", [False, True])
def test_with_all_rows_held_it_is_the_nearest_class_mean(normalise: bool) -> None:
    part = ncm(capacity=90, normalise=normalise)
    learner = run(part)
    net = part.deploy(learner, learner.net)
    for s in range(len(SEEDS)):
        rows = [every_row(learner, i, s) for i in range(3)]
        z = torch.cat([hidden(learner, x, t, s) for x, _, t in rows])
        y = torch.cat([y for _, y, _ in rows])
        z = z / z.norm(dim=1, keepdim=True).clamp_min(1e-12) if normalise else z
        held = part.memory.rows()
        kept = hidden(learner, held["x"][s : s + 1], held["t"], s)
        kept = kept / kept.norm(dim=1, keepdim=True).clamp_min(1e-12) if normalise else kept
        mean = torch.stack([kept[held["y"][s] == c].mean(0) for c in range(6)])
        mean = mean / mean.norm(dim=1, keepdim=True).clamp_min(1e-12) if normalise else mean
        x, t = torch.cat([x for x, _, _ in rows], 1), torch.cat([t for _, _, t in rows], 1)
        spread = [v.expand(3, *v.shape[1:]) for v in (x, t)]
        expected = -(z[:, None] - mean).square().sum(2)
        torch.testing.assert_close(net(*spread).logits[s, :, :6], expected)
        assert (net(*spread).logits[s, :, 6:] == -class_means.FAR).all()  # classes of tasks 3 and 4
        assert len(y) == len(z)


def test_running_means_are_those_of_the_net_at_each_tasks_end() -> None:
    part = ncm(means="running")
    learner = go((), "domain", "mlp", "sgd", steps=1).learner
    ends: list[Tensor] = []

    class Watch(Blind):
        def end(self, task: Any) -> None:
            zs, ys = zip(*((hidden(learner, x, t, 1), y) for x, y, t in [every_row(learner, task.index, 1)]))
            ends.append(torch.stack([zs[0][ys[0] == c].sum(0) for c in range(10)]))

    chain = Chain([part])
    prepare(learner, chain)
    train(learner, chain, Watch())
    torch.testing.assert_close(part.sum[1], sum(ends[1:], ends[0]))
    assert part.count[1].sum() == 3 * 90


def test_means_of_a_memory_move_with_the_net() -> None:
    part = ncm()
    learner = run(part)
    x, t = learner.stream.tasks[0].test.take(torch.arange(5).expand(3, 5))[::2]
    before = part.deploy(learner, learner.net)(x, t).logits
    for v in learner.params.values():
        v.mul_(2)
    assert not torch.allclose(part.deploy(learner, learner.net)(x, t).logits, before)


def test_means_are_those_of_the_net_that_is_deployed() -> None:
    """An average of the weights that stands earlier in the list, say, not the weights as trained."""
    part = ncm()
    learner = run(part)
    other = Net(tree.scale(learner.params, 1.5), learner.buffers, learner.apply)
    x, t = learner.stream.tasks[0].test.take(torch.arange(5).expand(3, 5))[::2]
    found = part.deploy(learner, other)(x, t).logits
    learner.params = other.params
    torch.testing.assert_close(found, part.deploy(learner, learner.net)(x, t).logits)


def test_training_is_untouched_and_the_head_answers_before_there_is_a_mean() -> None:
    alone, beside = go(("replay",), "class", "mlp", "adam"), go(("replay", "ncm"), "class", "mlp", "adam")
    assert all(torch.equal(v, beside.learner.params[k]) for k, v in alone.learner.params.items())
    assert not torch.equal(alone.logits()[0], beside.logits()[0])
    learner, part = alone.learner, ncm()
    prepare(learner, Chain([part]))
    assert part.deploy(learner, learner.net).apply is learner.net.apply
    assert isinstance(beside.chain.parts[0], Replay)


@pytest.mark.parametrize("changed", [{"means": "median"}, {"capacity": 0}])
def test_bad_values_are_named(changed: dict[str, Any]) -> None:
    (key, value), *_ = changed.items()
    with pytest.raises(ValueError, match=f"^{key}={value}: "):
        ncm(**changed)
