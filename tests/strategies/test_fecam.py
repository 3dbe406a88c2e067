"""FeCAM: its distances by numpy, class by class, from numpy's covariances."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from harness.toolbox import class_means
from strategies.fecam import FeCAM, correlation
from tests.strategies.fixed import finished, in_order, logits, rows_of


def fecam(**changed: Any) -> FeCAM:
    return FeCAM(**{"features": "input", "power": 0.5, "shrinkage": 1.0, **changed})


def by_hand(x: Any, y: Any, new: Any, power: float, shrinkage: float) -> Any:
    """Minus the squared distance of every new row to every class that occurs."""

    def tukey(v: Any) -> Any:
        return np.where(v < 0, -1, 1) * np.abs(v) ** power

    def unit(v: Any) -> Any:
        return v / np.linalg.norm(v, axis=-1, keepdims=True)

    columns = []
    for c in np.unique(y):
        mine = x[y == c]
        cov = np.cov(tukey(mine).T)
        D = len(cov)
        off = ~np.eye(D, dtype=bool)
        cov = cov + shrinkage * np.where(off, cov[off].mean(), np.diag(cov).mean())
        sd = np.sqrt(np.diag(cov))
        away = unit(tukey(new)) - unit(tukey(mine.mean(0)))
        columns.append(-np.einsum("nd,de,ne->n", away, np.linalg.inv(cov / np.outer(sd, sd)), away))
    return np.stack(columns, 1)


@pytest.mark.parametrize(("power", "shrinkage"), [(0.5, 1.0), (1.0, 0.1), (0.7, 100.0)])
def test_logits_are_minus_the_distances_of_all_rows_at_once(power: float, shrinkage: float) -> None:
    learner = finished(part := fecam(power=power, shrinkage=shrinkage))
    for s in range(3):
        seen = rows_of(learner, s)
        found, classes = logits(part, learner, seen.test, s), np.unique(seen.y)
        np.testing.assert_allclose(found[:, classes], by_hand(seen.x, seen.y, seen.test, power, shrinkage), rtol=1e-7)
        assert (np.delete(found, classes, 1) == -class_means.FAR).all()


def test_recurring_classes_and_any_order_give_the_same() -> None:
    found = []
    for order in ((0, 1, 2), (2, 0, 1)):
        learner = in_order(part := fecam(), order, "domain")
        found.append(logits(part, learner, rows_of(learner, 1).test, 1))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-7)
    seen = rows_of(learner, 1)
    np.testing.assert_allclose(found[0], by_hand(seen.x, seen.y, seen.test, 0.5, 1.0), rtol=1e-6)


def test_negative_features_keep_their_sign() -> None:
    z = torch.tensor([-4.0, 0.0, 9.0])
    assert fecam().tukey(z).tolist() == [-2.0, 0.0, 3.0]


def test_a_class_of_one_row_has_the_identity() -> None:
    assert torch.equal(correlation(torch.zeros(1, 3, 3).double(), 1.0), torch.eye(3).double()[None])
    learner = in_order(part := fecam(), [])
    one = torch.rand(3, 1, 64).double()
    for moments in (part.plain, part.moments):
        moments.add(one if moments is part.plain else part.tukey(one), torch.full((3, 1), 4), torch.ones(3, 1).double())
    assert abs(logits(part, learner, one[0].numpy(), 0)[0, 4]) < 1e-20


def test_a_flat_feature_beside_others_gets_the_mean_variance() -> None:
    made = correlation(torch.diag(torch.tensor([4.0, 0.0])).double()[None], 0.5)
    torch.testing.assert_close(made, torch.eye(2).double()[None])


@pytest.mark.parametrize("changed", [{"features": "vit"}, {"power": 0}, {"power": 2}, {"shrinkage": 0}])
def test_bad_values_are_named(changed: dict[str, Any]) -> None:
    (key, value), *_ = changed.items()
    with pytest.raises(ValueError, match=f"^{key}={value}: "):
        fecam(**changed)
