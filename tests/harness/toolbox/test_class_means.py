"""Class templates: features, nearest means, herding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from harness import rng
from harness.models.mlp import MLP
from harness.models.module import Module
from harness.models.resnet18 import ResNet18
from harness.optim import SGD
from harness.toolbox import class_means
from tests.toy import gaussian


def normal(*shape: int, seed: int = 0) -> Tensor:
    return rng.normal(rng.keys([seed], "templates"), *shape, dtype=torch.float64)[0]


def plain_herding(z: Tensor, count: int) -> list[int]:
    """Rebuffi et al.'s algorithm 4, a row and a candidate at a time."""
    mean, chosen = z.mean(0), list[int]()
    for k in range(1, count + 1):
        left = [i for i in range(len(z)) if i not in chosen]
        away = [float((mean - (z[i] + z[chosen].sum(0)) / k).norm()) for i in left]
        chosen.append(left[min(range(len(left)), key=away.__getitem__)])
    return chosen


def test_herding_is_the_plain_algorithm_on_each_list() -> None:
    z, sizes = normal(2, 3, 20, 4), torch.tensor([[20, 7, 13], [1, 20, 9]])
    valid = torch.arange(20) < sizes[..., None]
    found = class_means.herd(z.masked_fill(~valid[..., None], 99.0), valid, 10)  # padding must not count
    for s in range(2):
        for c in range(3):
            n = int(sizes[s, c])
            assert found[s, c, : min(n, 10)].tolist() == plain_herding(z[s, c, :n], min(n, 10))


def test_herding_takes_no_row_twice_and_the_first_of_a_tie() -> None:
    z = normal(12, 3, seed=1)
    assert sorted(class_means.herd(z, torch.ones(12, dtype=torch.bool), 12).tolist()) == list(range(12))
    for seed in range(20):  # two rows are equally far from their mean, up to rounding
        pair = normal(2, 3, seed=seed).float()
        assert class_means.herd(pair, torch.ones(2, dtype=torch.bool), 2).tolist() == [0, 1]


def test_herding_follows_the_mean_better_than_chance() -> None:
    z = normal(200, 5, seed=2)
    order = class_means.herd(z, torch.ones(200, dtype=torch.bool), 20)
    herded = (z[order].mean(0) - z.mean(0)).norm()
    drawn = torch.stack([(z[torch.arange(i, i + 20)].mean(0) - z.mean(0)).norm() for i in range(0, 180, 20)])
    assert herded < 0.2 * drawn.min()


def test_nearest_is_the_squared_distance() -> None:
    z, mean = normal(2, 5, 3), normal(2, 4, 3, seed=1)
    seen = torch.tensor([[True, True, False, True]] * 2)
    got = class_means.nearest(z, mean, seen)
    for c in (0, 1, 3):
        torch.testing.assert_close(got[..., c], -(z - mean[:, None, c]).square().sum(2))
    assert (got[..., 2] == -class_means.FAR).all()
    assert got.log_softmax(2).isfinite().all()
    assert torch.equal(class_means.nearest(z, mean, seen & False).log_softmax(2).exp(), torch.full_like(got, 0.25))


def test_class_sums_leave_padding_out() -> None:
    z, y = normal(1, 6, 2), torch.tensor([[0, 1, 1, 0, 1, 0]])
    total, count = class_means.class_sums(z, y, torch.tensor([[1, 1, 1, 1, 1, 0]]), 3)
    torch.testing.assert_close(total[0, 0], z[0, [0, 3]].sum(0))
    torch.testing.assert_close(total[0, 1], z[0, [1, 2, 4]].sum(0))
    assert count.tolist() == [[2, 3, 0]]


@pytest.mark.parametrize("model", ["mlp", "residual"])
def test_features_are_what_the_head_reads(model: str) -> None:
    shape = (1, 4, 4)
    build = (lambda s: MLP(s.shape, 2, (6, 5), dropout=0.5)) if model == "mlp" else (lambda s: ResNet18(s.shape, 2, 2))
    learner = gaussian(build, SGD(lr=0.1), shape=shape)
    layer, width = class_means.head_layer(learner, "x")
    x, t = learner.stream.tasks[0].train.take(torch.arange(5).expand(2, 5))[::2]
    z = class_means.features(learner.net, layer, x, t)
    assert z.shape == (2, 5, width)
    head = learner.params["head.weight"], learner.params["head.bias"]
    torch.testing.assert_close(z @ head[0].mT + head[1][:, None], learner.net(x, t).logits)
    torch.testing.assert_close(
        class_means.features(learner.net, layer, x, t, unit=True), z / z.norm(dim=2, keepdim=True).clamp_min(1e-12)
    )
    assert torch.equal(class_means.features(learner.net, class_means.INPUT, x, t), x.flatten(2))
    # a read-out of the head's own is the net again, and records only if asked to
    again = class_means.readout(learner.net, layer, lambda z: z @ head[0].mT + head[1][:, None])
    torch.testing.assert_close(again(x, t).logits, learner.net(x, t).logits)
    assert again(x, t).inputs == {} and again(x, t, record=True).inputs.keys() == {
        la.input for la in learner.model.layers
    }


def test_a_model_without_a_head_is_refused() -> None:
    learner = gaussian(lambda s: Module(lambda: torch.nn.Linear(4, 2), 2), SGD(lr=0.1))
    with pytest.raises(ValueError, match=r"^slda: Module declares no layer as its head; use model=mlp$"):
        class_means.head_layer(learner, "slda")
    object.__setattr__(learner.stream, "loss", "mse")
    with pytest.raises(ValueError, match=r"^ncm: regression has no classes"):
        class_means.head_layer(learner, "ncm")
