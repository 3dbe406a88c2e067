"""SimpleCIL: scikit-learn's nearest centroid by cosine, whatever the order of the tasks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import cosine_similarity

from harness.loop import prepare
from harness.strategy import Chain
from harness.toolbox import class_means
from strategies.simplecil import SimpleCIL
from tests.strategies.fixed import base, finished, in_order, logits, rows_of


def test_logits_are_cosines_with_the_class_means() -> None:
    learner = finished(part := SimpleCIL(features="input"))
    for s in range(3):
        seen = rows_of(learner, s)
        classes = np.unique(seen.y)
        centres = np.stack([seen.x[seen.y == c].mean(0) for c in classes])
        found = logits(part, learner, seen.test, s)
        np.testing.assert_allclose(found[:, classes], cosine_similarity(seen.test, centres), atol=1e-12)
        unseen = [c for c in range(10) if c not in classes]
        assert (found[:, unseen] == -class_means.FAR).all()


def test_it_is_the_mean_of_raw_features_not_of_directions() -> None:
    learner = in_order(part := SimpleCIL(features="input"), [])
    z = torch.tensor([[[3.0, 0.0], [0.0, 1.0]]]).double().expand(3, 2, 2)
    z = torch.cat([z, torch.zeros(3, 2, 62).double()], 2)
    part.means.add(z, torch.zeros(3, 2).long(), torch.ones(3, 2).double())
    found = logits(part, learner, np.eye(64)[:2], 0)[:, 0]
    np.testing.assert_allclose(found, np.array([3, 1]) / np.sqrt(10))


def test_the_order_of_tasks_does_not_matter_and_nothing_is_trained() -> None:
    found = []
    for order in ((0, 1, 2), (2, 0, 1)):
        learner = in_order(part := SimpleCIL(features="input"), order)
        found.append(logits(part, learner, rows_of(learner, 1).test, 1))
    np.testing.assert_allclose(found[0], found[1], atol=1e-12)
    fresh, trained = base(), finished(SimpleCIL(features="input"))
    prepare(fresh, Chain([SimpleCIL(features="input")]))
    assert all(torch.equal(v, trained.params[k]) for k, v in fresh.params.items())


def test_before_the_first_task_the_net_predicts() -> None:
    learner = base()
    part = SimpleCIL(features="input")
    prepare(learner, Chain([part]))
    net = learner.net
    assert part.deploy(learner, net) is net


def test_a_bad_value_is_named() -> None:
    with pytest.raises(ValueError, match=r"^features=vit: choose one of input, initial, frozen"):
        SimpleCIL(features="vit")
