"""iCaRL: which exemplars, which loss, whose answer."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from harness import tree
from harness.learner import Learner
from harness.loop import prepare, train
from harness.models.mlp import MLP
from harness.optim import SGD
from harness.rng import keys, normal
from harness.strategy import Chain, Strategy
from harness.toolbox.class_means import herd
from harness.types import Batch, Task
from strategies.icarl import ICaRL
from tests.observer import Blind
from tests.toy import begin, gaussian, go

M = 13  # exemplars: 6, 3, 2 a class after 1, 2, 3 tasks of two classes


def icarl(**changed: Any) -> ICaRL:
    return ICaRL(**{"capacity": M, "batch_size": 6, "shares": "seen", "temperature": 1.0, **changed})


class Watch(Strategy):
    """Keeps every batch, and what the strategy holds after every task."""

    def __init__(self, part: ICaRL) -> None:
        self.part, self.batches = part, list[tuple[int, Batch]]()
        self.held: list[list[dict[int, list[Tensor]]]] = []
        self.nets: list[dict[str, Tensor]] = []

    def batch(self, learner: Learner, batch: Batch) -> Batch:
        self.batches.append((learner.now, batch))
        return batch

    def end(self, learner: Learner, task: Task) -> None:
        self.nets.append(tree.copy(learner.params))
        self.held.append([lists(self.part, s) for s in range(learner.S)])


def lists(part: ICaRL, s: int) -> dict[int, list[Tensor]]:
    """Exemplars of each class in the order of their list."""
    found: dict[int, list[Tensor]] = {}
    n = int(part.size[s])
    for i in sorted(range(n), key=lambda i: int(part.rank[s, i])):
        found.setdefault(int(part.y[s, i]), []).append(part.x[s, i])
    return found


def run(part: ICaRL, scenario: str = "class", steps: int = 3) -> tuple[Learner, Watch]:
    learner, _ = begin((), scenario, "mlp", SGD(lr=0.05), (0, 1), torch.float64, steps)
    chain = Chain([part, watch := Watch(part)])
    prepare(learner, chain)
    train(learner, chain, Blind())
    return learner, watch


def unit(p: dict[str, Tensor], s: int, x: Tensor) -> Tensor:
    """The last hidden layer of seed s at length 1: [n, H]."""
    h = x.flatten(1).double()
    for name in ("fc1", "fc2"):
        h = (h @ p[f"{name}.weight"][s].T + p[f"{name}.bias"][s]).relu()
    return h / h.norm(dim=1, keepdim=True).clamp_min(1e-12)


def test_every_class_keeps_its_share_and_the_lists_are_cut_from_behind() -> None:
    learner, watch = run(icarl())
    assert learner.stream.masks is not None
    for s in range(2):
        for i, share in enumerate((6, 3, 2)):
            held = watch.held[i][s]
            assert {c: len(x) for c, x in held.items()} == dict.fromkeys(range(2 * i + 2), share)
            for c in range(2 * i):
                earlier = watch.held[i - 1][s][c][:share]
                assert all(torch.equal(a, b) for a, b in zip(held[c], earlier))


def test_exemplars_are_those_of_plain_herding() -> None:
    learner, watch = run(icarl())
    for s in range(2):
        for i in range(3):
            source = learner.stream.tasks[i].train
            x, y, _ = source.take(torch.arange(int(source.size[s])).expand(2, -1))
            for c in (2 * i, 2 * i + 1):
                rows = x[s][y[s] == c]
                z = unit(watch.nets[i], s, rows)
                chosen: list[int] = []
                for k, held in enumerate(watch.held[i][s][c], 1):
                    away = (z.mean(0) - (z + z[chosen].sum(0)) / k).norm(dim=1)
                    away[chosen] = torch.inf
                    chosen.append(int(away.argmin()))
                    assert torch.equal(rows[chosen[-1]].double(), held)


def test_a_class_with_few_rows_keeps_them_all() -> None:
    learner, watch = run(icarl(capacity=400))
    for s in range(2):
        labels = [learner.stream.tasks[i].train.labels()[s] for i in range(3)]
        counts = torch.cat([v[v >= 0] for v in labels]).bincount().tolist()
        assert [len(watch.held[2][s][c]) for c in range(6)] == counts


def test_with_shares_of_all_classes_a_list_never_changes() -> None:
    """Each of ten classes has four rows from the start, as a budget for each class."""
    _, watch = run(icarl(capacity=49, shares="all"))
    for s in range(2):
        for i in range(3):
            held = watch.held[i][s]
            assert {c: len(x) for c, x in held.items()} == dict.fromkeys(range(2 * i + 2), 4)
            for c in range(2 * i):
                assert all(torch.equal(a, b) for a, b in zip(held[c], watch.held[i - 1][s][c]))


@pytest.mark.parametrize("now", [1, 2])
@pytest.mark.parametrize(("scenario", "temperature"), [("class", 1.0), ("task", 1.0), ("class", 2.0)])
def test_the_loss_is_the_papers(scenario: str, temperature: float, now: int) -> None:
    part = icarl(temperature=temperature)
    learner, watch = run(part, scenario)
    batch = [b for i, b in watch.batches if i == now][-1]
    fresh, n = 8, learner.stream.tasks[now].rows
    e = {1: 2 * 6, 2: 4 * 3}[now]  # exemplars of two or four classes
    assert batch.x.shape[1] == fresh + 6 and not batch.w.any()
    params = tree.scale(learner.params, 1.1)
    out = learner.apply(params, learner.buffers, batch.x, batch.t, train=True)
    learner.enter(learner.stream.tasks[now])
    got = part.loss(learner, params, batch, out)
    old = watch.nets[now - 1]  # the net at the last boundary
    for s in range(2):
        g = out.logits[s].sigmoid()
        hidden = 1 / (1 + (-learner.apply(old, {}, batch.x, batch.t).logits[s] / temperature).exp())
        total = torch.zeros(()).double()
        for i in range(fresh + 6):
            share = n / (n + e) / fresh if i < fresh else e / (n + e) / 6
            for c in range(2 * now + 2):  # unseen classes have no term
                q = hidden[i, c] if c < 2 * now else float(batch.y[s, i] == c)
                total = total - share * (q * g[i, c].log() + (1 - q) * (1 - g[i, c]).log())
        torch.testing.assert_close(got[s], total)


def test_exemplars_are_trained_on() -> None:
    """A fault that was found in a well-known code: held and answered with, but never trained on."""
    _, watch = run(icarl())
    for now, batch in watch.batches:
        assert batch.x.shape[1] == (8 if now == 0 else 14)
        w, _ = batch.extra["icarl"]
        torch.testing.assert_close(w.sum(1), torch.ones(2).double())
        for s in range(2 if now else 0):
            held = torch.stack([x for group in watch.held[now - 1][s].values() for x in group])
            assert all((row == held).flatten(1).all(1).any() for row in batch.x[s, 8:])
            assert (batch.y[s, 8:] < 2 * now).all() and (w[s, 8:] > 0).all()


def test_the_first_task_has_no_old_net_in_its_loss() -> None:
    _, watch = run(icarl())
    _, target = watch.batches[0][1].extra["icarl"]
    assert torch.equal(target, F.one_hot(watch.batches[0][1].y, 10).double())


def test_the_old_net_answers_in_evaluation_mode() -> None:
    learner = go(("icarl",), "class", "residual", "sgd").learner
    part = icarl()
    prepare(learner, Chain([part]))
    learner.enter(learner.stream.tasks[1])
    batch = next(iter(learner.batches(learner.stream.tasks[1])))
    alone = part.batch(learner, replace(batch, **{k: getattr(batch, k)[:, :1] for k in ("x", "y", "t", "w")}))
    among = part.batch(learner, batch)
    torch.testing.assert_close(alone.extra["icarl"][1][:, 0], among.extra["icarl"][1][:, 0])


def test_the_answer_is_the_nearest_mean_of_exemplars() -> None:
    part = icarl()
    learner, watch = run(part)
    net = part.deploy(learner, learner.net)
    x, _, t = learner.stream.tasks[1].test.take(torch.arange(10).expand(2, 10))
    for s in range(2):
        mean = torch.stack([unit(learner.params, s, torch.stack(watch.held[2][s][c])).mean(0) for c in range(6)])
        mean = mean / mean.norm(dim=1, keepdim=True)
        away = (unit(learner.params, s, x[s])[:, None] - mean).square().sum(2)
        torch.testing.assert_close(net(x, t).logits[s, :, :6], -away)


def test_herding_is_avalanches() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from avalanche.training.storage_policy import HerdingSelectionStrategy
    z = normal(keys([3], "herding"), 40, 6, dtype=torch.float64)[0]
    other = HerdingSelectionStrategy(torch.nn.Identity(), "")
    assert herd(z, torch.ones(40, dtype=torch.bool), 40).tolist() == other.make_sorted_indices_from_features(z)


def test_classes_that_come_back_are_refused() -> None:
    learner = gaussian(lambda s: MLP(s.shape, 2, (3,)), SGD(lr=0.1), tasks=2)
    with pytest.raises(ValueError, match=r"^icarl: classes of toy recur in later tasks"):
        prepare(learner, Chain([icarl()]))
    learner, _ = begin((), "class", "mlp", SGD(lr=0.05), (0,), torch.float64, 1)
    with pytest.raises(ValueError, match=r"^strategy\.icarl\.capacity=9: must be at least 10, one row for each class$"):
        prepare(learner, Chain([icarl(capacity=9)]))


@pytest.mark.parametrize("key", ["capacity", "batch_size", "temperature"])
def test_bad_values_are_named(key: str) -> None:
    with pytest.raises(ValueError, match=f"^{key}=0: must be "):
        icarl(**{key: 0})
    with pytest.raises(ValueError, match=r"^shares=x: "):
        icarl(shares="x")
