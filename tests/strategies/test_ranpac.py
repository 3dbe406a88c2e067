"""RanPAC: ridge regression on all rows at once, by scikit-learn; the ridge by squared errors of rows held out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from harness.loop import prepare
from harness.strategy import Chain
from harness.toolbox import class_means
from strategies.ranpac import RIDGES, RanPAC
from tests.strategies.fixed import base, finished, in_order, logits, rows_of


def ranpac(**changed: Any) -> RanPAC:
    return RanPAC(**{"features": "input", "projected": 20, "ridge": 0.5, "held_out": 0.2, **changed})


def projected(part: RanPAC, x: Any, s: int) -> Any:
    return np.maximum(x @ part.projection[s].double().numpy(), 0)


@pytest.mark.parametrize("scenario", ["class", "domain"])
def test_after_all_tasks_it_is_the_ridge_regression_on_all_rows(scenario: str) -> None:
    learner = finished(part := ranpac(), scenario)
    for s in range(3):
        seen = rows_of(learner, s)
        model = Ridge(alpha=0.5, fit_intercept=False, solver="cholesky")
        model.fit(projected(part, seen.x, s), np.eye(10)[seen.y])
        found, classes = logits(part, learner, seen.test, s), np.unique(seen.y)
        np.testing.assert_allclose(
            found[:, classes], projected(part, seen.test, s) @ model.coef_.T[:, classes], atol=1e-9
        )
        assert (np.delete(found, classes, 1) == -class_means.FAR).all()


def test_the_order_of_tasks_does_not_matter() -> None:
    found = []
    for order in ((0, 1, 2), (2, 0, 1)):
        learner = in_order(part := ranpac(), order)
        found.append(logits(part, learner, rows_of(learner, 1).test, 1))
    np.testing.assert_allclose(found[0], found[1], atol=1e-9)


def test_the_ridge_has_the_smallest_squared_error_on_rows_that_its_regression_did_not_see() -> None:
    """Kept and held-out rows are recovered from the order in which the rows were taken."""
    learner = base()
    part = ranpac(ridge=None, held_out=0.25)
    prepare(learner, Chain([part]))
    task, taken = learner.stream.tasks[0], []

    class Watched:
        size = task.train.size

        @staticmethod
        def take(position: Any) -> Any:
            taken.append(position)
            return task.train.take(position)

    part.end(learner, type(task)(0, Watched(), task.val, task.test))  # type: ignore[arg-type]
    held, kept = taken
    assert held.shape == (3, 4) and kept.shape == (3, 14)  # a quarter of 18, rounded
    chosen = set()
    for s in range(3):
        assert sorted(torch.cat([held, kept], 1)[s].tolist()) == list(range(18))
        parts = []
        for position in (kept, held):
            x, y, _ = task.train.take(position)
            parts.append((projected(part, x[s].flatten(1).double().numpy(), s), np.eye(10)[y[s].numpy()]))
        (h, target), (h2, target2) = parts
        errors = [
            np.square(h2 @ np.linalg.solve(h.T @ h + ridge * np.eye(20), h.T @ target) - target2).sum()
            for ridge in RIDGES
        ]
        assert part.chosen[s] == RIDGES[int(np.argmin(errors))]
        chosen.add(float(part.chosen[s]))
        whole, both = np.concatenate([h, h2]), np.concatenate([target, target2])
        wanted = np.linalg.solve(whole.T @ whole + float(part.chosen[s]) * np.eye(20), whole.T @ both)
        np.testing.assert_allclose(part.weight[s].numpy(), wanted, atol=1e-8)
    assert all(1e-8 < ridge < 1e8 for ridge in chosen)


def test_held_out_rows_of_all_tasks_choose_the_ridge() -> None:
    learner = finished(part := ranpac(ridge=None))
    assert part.gram.shape == (3, 2, 20, 20)
    for s in range(3):
        seen = rows_of(learner, s)
        h = projected(part, seen.x, s)
        np.testing.assert_allclose(part.gram[s].sum(0).numpy(), h.T @ h, rtol=1e-9)
        assert part.cross[s, 1].sum() < part.cross[s, 0].sum() / 2  # a fifth


def test_a_ridge_whose_matrix_is_indefinite_by_rounding_is_not_chosen() -> None:
    in_order(part := ranpac(ridge=None), [])
    part.gram[:] = -1e-3 * torch.eye(20).double()
    part.cross[:] = 1.0
    assert bool((part.choose() > 1e-3).all())


@pytest.mark.parametrize(
    "changed", [{"features": "vit"}, {"projected": 0}, {"ridge": 0}, {"held_out": 0}, {"held_out": 1}]
)
def test_bad_values_are_named(changed: dict[str, Any]) -> None:
    (key, value), *_ = changed.items()
    with pytest.raises(ValueError, match=f"^{key}={value}: "):
        ranpac(**changed)
