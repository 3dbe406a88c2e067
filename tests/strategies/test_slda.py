"""SLDA: the stream's statistics are those of all rows at once, and the answers scikit-learn's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor

from harness import rng, tree
from harness.learner import Learner
from harness.loop import prepare, train
from harness.models.mlp import MLP
from harness.optim import SGD
from harness.strategy import Chain
from harness.toolbox.moments import SharedScatter
from harness.types import Params, Task
from strategies.ncm import NCM
from strategies.slda import SLDA
from tests.observer import Blind
from tests.toy import gaussian, go

S, N, D, C = 2, 60, 5, 3


def rows() -> tuple[Tensor, Tensor]:
    key = rng.keys([0, 1], "slda")
    y = (torch.arange(N) % C).expand(S, N)  # equally many of each
    z = rng.normal(key, N, D, dtype=torch.float64) @ (torch.eye(D) + torch.linspace(0.2, 1, D * D).view(D, D)).double()
    return z + 3 * torch.nn.functional.one_hot(y, D), y


def streamed(z: Tensor, y: Tensor, batches: list[int], shrinkage: float = 1e-4) -> SLDA:
    part = SLDA(features="input", shrinkage=shrinkage)
    prepare(gaussian(lambda s: MLP(s.shape, C, (4,)), SGD(lr=0.1), shape=(D,)), Chain([part]))
    part.moments = SharedScatter(S, C, D, "cpu")
    for a, b in zip(z.split(batches, 1), y.split(batches, 1)):
        part.moments.add(a, b, torch.ones(b.shape).double())
    return part


@pytest.mark.parametrize("batches", [[1] * N, [60], [7, 1, 30, 2, 20]])
def test_the_stream_gives_the_covariance_of_all_rows_at_once(batches: list[int]) -> None:
    z, y = rows()
    part = streamed(z, y, batches)
    for s in range(S):
        groups = [z[s][y[s] == c].numpy() for c in range(C)]
        scatter = sum(np.cov(g.T, bias=True) * len(g) for g in groups)
        np.testing.assert_allclose(part.moments.mean[s], [g.mean(0) for g in groups], atol=1e-10, rtol=0)
        np.testing.assert_allclose(part.moments.scatter[s], scatter, atol=1e-10, rtol=0)
        assert part.moments.count[s].tolist() == [20, 20, 20]


def test_a_net_between_features_and_the_answer_is_named() -> None:
    vectors, images = gaussian(lambda s: MLP(s.shape, C, (4,)), SGD(lr=0.1), shape=(D,)), go((), "class", "mlp", "sgd")
    ncm = NCM(means="memory", capacity=9, normalise=False)
    chain = Chain([SLDA(features="frozen", shrinkage=0.1), ncm])
    hidden, flat = (MLP((D,), C, widths) for widths in ((4,), ()))
    said = chain.remarks(vectors.stream, hidden)
    assert [line.split(":")[0] for line in said] == ["slda", "ncm"]
    assert "use strategy.slda.features=input" in said[0] and "use model.widths=[]" in said[1]
    assert chain.remarks(vectors.stream, flat) == []
    assert chain.remarks(images.learner.stream, hidden) == []
    assert SLDA(features="input", shrinkage=0.1).remarks(vectors.stream, hidden) == []


def test_the_first_row_of_a_class_adds_nothing_to_the_covariance() -> None:
    z, y = rows()
    part = streamed(1000 + z[:, :3], y[:, :3], [1, 1, 1])  # one row of each class
    assert not part.moments.scatter.any()


def test_padding_counts_for_nothing() -> None:
    z, y = rows()
    part, padded = streamed(z, y, [60]), streamed(z, y, [30, 30])
    padded.moments.add(z + 7, y, torch.zeros(S, N).double())
    for a, b in (
        (part.moments.mean, padded.moments.mean),
        (part.moments.scatter, padded.moments.scatter),
        (part.moments.count, padded.moments.count),
    ):
        torch.testing.assert_close(a, b)


def test_it_is_scikit_learns_discriminant_analysis() -> None:
    z, y = rows()
    weight, bias = streamed(z, y, [13, 47], shrinkage=1e-13).discriminant()
    for s in range(S):
        other = LinearDiscriminantAnalysis(solver="lsqr").fit(z[s].numpy(), y[s].numpy())
        ours = (z[s] @ weight[s].T + bias[s]).numpy()
        theirs = other.decision_function(z[s].numpy()) - np.log(1 / C)  # priors, which SLDA has not
        np.testing.assert_allclose(ours, theirs, rtol=1e-7, atol=1e-7)


def test_shrinkage_mixes_in_the_identity() -> None:
    z, y = rows()
    part = streamed(z, y, [60], shrinkage=0.3)
    weight, bias = part.discriminant()
    precision = np.linalg.inv(0.7 * part.moments.scatter[0].numpy() / N + 0.3 * np.eye(D))
    mean = part.moments.mean[0].numpy()
    np.testing.assert_allclose(weight[0], mean @ precision)
    np.testing.assert_allclose(bias[0], -0.5 * np.einsum("cd,de,ce->c", mean, precision, mean))
    whole = streamed(z, y, [60], shrinkage=1.0).discriminant()  # nearest class mean
    torch.testing.assert_close(whole[0], part.moments.mean)


class Watch(Blind):
    def __init__(self, learner: Learner) -> None:
        self.learner, self.ends = learner, list[tuple[int, Params]]()

    def end(self, task: Task) -> None:
        self.ends.append((self.learner.steps, tree.copy(self.learner.params)))


@pytest.mark.parametrize("features", ["frozen", "input"])
def test_later_tasks_take_no_step(features: str) -> None:
    learner = gaussian(lambda s: MLP(s.shape, 2, (6, 5)), SGD(lr=0.1), tasks=3, steps=4)
    start, part, watch = tree.copy(learner.params), SLDA(features=features, shrinkage=1e-4), Watch(learner)
    prepare(learner, chain := Chain([part]))
    train(learner, chain, watch)
    assert [n for n, _ in watch.ends] == [4 if features == "frozen" else 0, 0, 0]
    for _, params in watch.ends[1:]:
        assert all(torch.equal(v, watch.ends[0][1][k]) for k, v in params.items())
    assert torch.equal(start["fc1.weight"], learner.params["fc1.weight"]) == (features == "input")
    assert part.moments.count.sum(1).tolist() == [3 * 64] * 2
    x, _, t = learner.stream.tasks[0].test.take(torch.arange(64).expand(2, 64))
    z = x if features == "input" else learner.net(x, t).acts["fc2"]
    weight, bias = part.discriminant()
    torch.testing.assert_close(part.deploy(learner, learner.net)(x, t).logits, z @ weight.mT + bias[:, None])


@pytest.mark.parametrize("names", [("joint", "slda"), ("slda", "joint"), ("slda", "reset")])
def test_its_features_stay_beside_strategies_that_renew_the_net(names: tuple[str, str]) -> None:
    beside, alone = go(names, "class", "mlp", "sgd"), go(("slda",), "class", "mlp", "sgd")
    for a, b in zip(beside.logits(), alone.logits()):
        assert torch.equal(a, b)


def test_order_of_the_tasks_does_not_matter_on_raw_inputs() -> None:
    run = go(("naive",), "class", "mlp", "sgd", steps=1).learner
    found = []
    for order in ((0, 1, 2), (2, 0, 1)):
        part = SLDA(features="input", shrinkage=1e-4)
        prepare(run, Chain([part]))
        for i in order:
            part.end(run, run.stream.tasks[i])
        found.append(part)
    torch.testing.assert_close(found[0].moments.scatter, found[1].moments.scatter)
    torch.testing.assert_close(found[0].moments.mean, found[1].moments.mean)


@pytest.mark.parametrize("changed", [{"features": "imagenet"}, {"shrinkage": 0}, {"shrinkage": 1.5}])
def test_bad_values_are_named(changed: dict[str, Any]) -> None:
    (key, value), *_ = changed.items()
    with pytest.raises(ValueError, match=f"^{key}={value}: "):
        SLDA(**{"features": "input", "shrinkage": 1e-4, **changed})
