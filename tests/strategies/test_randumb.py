"""RanDumb: the kernel that its features approximate, and scikit-learn's shrinkage and discriminant."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.covariance import oas
from sklearn.metrics.pairwise import rbf_kernel

from harness.toolbox import class_means
from strategies.randumb import RanDumb, shrunk
from tests.strategies.fixed import finished, in_order, logits, rows_of


def randumb(**changed: Any) -> RanDumb:
    return RanDumb(**{"features": "input", "projected": 20, "gamma": 1.0, **changed})


def fourier(part: RanDumb, x: Any, s: int) -> Any:
    angle = x @ part.frequency[s].double().numpy() + part.phase[s].double().numpy()
    return np.sqrt(2 / part.projected) * np.cos(angle)


@pytest.mark.parametrize("gamma", [0.3, 2.0])
def test_inner_products_approximate_the_kernel(gamma: float) -> None:
    in_order(part := randumb(projected=2000, gamma=gamma), [])
    x = np.random.default_rng(0).normal(size=(6, 64))
    h = part.fourier(torch.tensor(x).expand(3, 6, 64))
    for s in range(3):
        np.testing.assert_allclose((h[s] @ h[s].T).numpy(), rbf_kernel(x, gamma=gamma / 64), atol=0.08)
    assert not torch.equal(h[0], h[1])


def test_shrinkage_is_scikit_learns() -> None:
    x = np.random.default_rng(1).normal(size=(2, 30, 7)) @ np.diag([3.0, 1, 1, 1, 0.5, 0.1, 0])
    covariance = torch.tensor(np.einsum("snd,sne->sde", x, x) / 30)
    found = shrunk(covariance, torch.tensor([30.0, 30.0]).double())
    for s in range(2):
        np.testing.assert_allclose(found[s].numpy(), oas(x[s], assume_centered=True)[0], atol=1e-12)
    one = torch.eye(3).double()[None]
    torch.testing.assert_close(shrunk(one, torch.ones(1).double()), one)  # 0 / 0: nothing left to shrink


def test_after_all_tasks_it_is_the_discriminant_of_all_rows() -> None:
    learner = finished(part := randumb())
    for s in range(3):
        seen = rows_of(learner, s)
        h, classes = fourier(part, seen.x, s), np.unique(seen.y)
        means = np.stack([h[seen.y == c].mean(0) for c in classes])
        inside = h - means[np.searchsorted(classes, seen.y)]
        precision = np.linalg.inv(oas(inside, assume_centered=True)[0])
        new = fourier(part, seen.test, s)
        found = logits(part, learner, seen.test, s)
        # minus half the Mahalanobis distance, without the term that all classes share
        wanted = new @ precision @ means.T - 0.5 * np.einsum("cd,de,ce->c", means, precision, means)
        np.testing.assert_allclose(found[:, classes], wanted, rtol=1e-8, atol=1e-8)
        assert (np.delete(found, classes, 1) < -class_means.FAR / 2).all()


def test_the_order_of_tasks_does_not_matter() -> None:
    found = []
    for order in ((0, 1, 2), (2, 0, 1)):
        learner = in_order(part := randumb(), order)
        found.append(logits(part, learner, rows_of(learner, 1).test, 1))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("changed", [{"features": "vit"}, {"projected": 0}, {"gamma": 0}])
def test_bad_values_are_named(changed: dict[str, Any]) -> None:
    (key, value), *_ = changed.items()
    with pytest.raises(ValueError, match=f"^{key}={value}: "):
        randumb(**changed)
