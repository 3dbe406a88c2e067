"""Linear probes against scikit-learn, CKA against its definition over distinct rows, and the split of forgetting."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge, RidgeClassifier
from torch import Tensor

from harness import tree
from harness.boundary import Boundary
from harness.metrics.representation import COLUMNS, features, linear_cka, probe_accuracy, representation
from harness.types import Batch, Net, Reading
from tests.harness.metrics.nets import holding

SETTINGS = {"size": 40, "test_size": 50, "tasks": 5, "ridge": 0.1}


def value(r: Tensor | Reading) -> Tensor:
    return r if isinstance(r, Tensor) else r.value


def rows(y: Tensor, w: Tensor | None = None) -> Batch:
    share = torch.full(y.shape, 1 / y.shape[1], dtype=torch.float64) if w is None else w
    return Batch(y, y, y, share)


@pytest.mark.parametrize("width", [5, 60])  # fewer and more features than rows
@pytest.mark.parametrize("ridge", [0.01, 1.0])
def test_the_probe_is_scikit_learns_ridge(width: int, ridge: float) -> None:
    rng = np.random.default_rng(width)
    z, test = rng.normal(size=(2, 40, width)) * rng.uniform(0.1, 3, width) + 2, rng.normal(size=(2, 300, width)) + 2
    y, y_test = rng.choice([1, 2, 4], size=(2, 40)), rng.choice([1, 2, 4], size=(2, 300))
    w = rng.uniform(0.2, 1.8, size=(2, 40))
    w /= w.sum(1, keepdims=True)
    found = probe_accuracy(
        *(torch.from_numpy(v) for v in (z, test)),
        rows(torch.from_numpy(y), torch.from_numpy(w)),
        rows(torch.from_numpy(y_test)),
        6,
        ridge,
    )
    for s in range(2):
        strength = ridge * np.average((z[s] - np.average(z[s], 0, w[s])) ** 2, 0, w[s]).mean()
        model = Ridge(alpha=strength).fit(z[s], np.eye(6)[y[s]], sample_weight=w[s])
        assert found[s].item() == pytest.approx((model.predict(test[s]).argmax(1) == y_test[s]).mean(), abs=1e-12)
        if ridge == 1.0:  # unweighted, in the classifier's terms: alpha = n lambda
            even = rows(torch.from_numpy(y[s : s + 1]))
            again = probe_accuracy(
                torch.from_numpy(z[s : s + 1]), torch.from_numpy(test[s : s + 1]), even,
                rows(torch.from_numpy(y_test[s : s + 1])), 6, ridge,
            )  # fmt: skip
            classifier = RidgeClassifier(alpha=40 * z[s].var(0).mean()).fit(z[s], y[s])
            assert again.item() == pytest.approx(classifier.score(test[s], y_test[s]), abs=1e-12)


def test_the_probe_sees_neither_rotation_scale_nor_shift() -> None:
    rng = np.random.default_rng(7)
    z, test = torch.from_numpy(rng.normal(size=(1, 50, 6))), torch.from_numpy(rng.normal(size=(1, 400, 6)))
    y, y_test = (v[..., 0].sign().long().clamp(min=0) for v in (z + 0.5 * z.roll(1, 2), test))
    turn = torch.linalg.qr(z[0, :6]).Q
    plain = probe_accuracy(z, test, rows(y), rows(y_test), 2, 0.1)
    moved = probe_accuracy(100 * z @ turn + 9, 100 * test @ turn + 9, rows(y), rows(y_test), 2, 0.1)
    assert torch.equal(plain, moved) and 0.6 < plain.item() < 1


def test_dead_features_leave_the_most_frequent_class_and_nan_stays_in_its_seed() -> None:
    y = torch.tensor([[0, 2, 2, 2]]).repeat(2, 1)
    z = torch.zeros(2, 4, 3, dtype=torch.float64)
    z[1, 0, 0] = math.nan
    assert probe_accuracy(z, z, rows(y), rows(y), 3, 0.1).tolist() == [0.75, pytest.approx(math.nan, nan_ok=True)]


def brute_hsic(k: np.ndarray, m: np.ndarray) -> float:
    """The unbiased estimate as what it is: the mean over four distinct rows of (K_ij)(M_ij + M_qr - 2 M_iq)."""
    quads = itertools.permutations(range(len(k)), 4)
    return float(np.mean([k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q]) for i, j, q, r in quads]))


def test_cka_is_the_unbiased_estimate_over_distinct_rows() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 7, 3)) + 1
    y = x @ rng.normal(size=(3, 5)) + rng.normal(size=(2, 7, 5))
    found = linear_cka(torch.from_numpy(x), torch.from_numpy(y))
    for s in range(2):
        k, m = x[s] @ x[s].T, y[s] @ y[s].T
        true = brute_hsic(k, m) / math.sqrt(brute_hsic(k, k) * brute_hsic(m, m))
        assert found[s].item() == pytest.approx(true, rel=1e-10)


def test_cka_is_one_up_to_rotation_scale_and_shift_and_not_for_other_maps() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(1, 60, 8, dtype=torch.float64, generator=g)
    turn = torch.linalg.qr(x[0, :8]).Q
    assert linear_cka(x, -3 * x @ turn + 5).item() == pytest.approx(1, abs=1e-10)
    assert linear_cka(x, x + 1e6).item() == pytest.approx(1, abs=1e-8)  # far from 0 as well
    squeezed = x * torch.tensor([10.0, 1, 1, 1, 1, 1, 1, 1])
    assert linear_cka(x, squeezed).item() < 0.6


def test_cka_of_unrelated_features_is_about_0_where_the_plain_estimate_is_not() -> None:
    g = torch.Generator().manual_seed(1)
    x, y = torch.randn(2, 1, 100, 200, dtype=torch.float64, generator=g)
    centred = [v - v.mean(1, keepdim=True) for v in (x, y)]
    plain = (centred[0].mT @ centred[1]).norm() ** 2 / (
        (centred[0].mT @ centred[0]).norm() * (centred[1].mT @ centred[1]).norm()
    )
    assert plain > 0.6 and abs(linear_cka(x, y).item()) < 0.05


def test_cka_is_undefined_for_constant_features_and_three_rows() -> None:
    x = torch.randn(1, 9, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    assert linear_cka(x, torch.ones_like(x)).isnan().all() and linear_cka(x[:, :3], x[:, :3]).isnan().all()


@pytest.mark.parametrize("scenario", ["domain", "class"])
def test_deep_and_shallow_add_up_to_what_the_score_lost(boundary, scenario: str) -> None:  # type: ignore[no-untyped-def]
    b: Boundary = boundary(t=3, scenario=scenario)
    found = representation(b, **SETTINGS)
    assert set(found) == set(COLUMNS)
    deep, shallow = (value(found[f"forgetting_{n}_task"]) for n in ("deep", "shallow"))
    lost = torch.stack([b.accuracy[:, i + 1, i] - b.accuracy[:, 4, i] for i in range(3)], 1)
    torch.testing.assert_close(deep + shallow, lost)
    for name, each in (("deep", deep), ("shallow", shallow)):
        torch.testing.assert_close(value(found[f"forgetting_{name}"]), each.mean(1))
    for i in range(4):
        train, test = b.probe(i, 40), b.probe(i, 50, "test")
        score = []
        for net in (b.trained, b.nets[i] if i < 3 else b.trained):
            z, z_test = (features(net, "head", a) for a in (train, test))
            score.append(probe_accuracy(z, z_test, train, test, b.stream.outputs, 0.1))
        assert torch.equal(value(found["linear_probe_task"])[:, i], score[0])
        torch.testing.assert_close(value(found["readout_gap_task"])[:, i], score[0] - b.accuracy[:, 4, i])
        if i < 3:
            torch.testing.assert_close(deep[:, i], score[1] - score[0])
            now, then = (features(n, "head", train) for n in (b.trained, b.nets[i]))
            torch.testing.assert_close(value(found["cka_task"])[:, i], linear_cka(now, then))
    assert value(found["cka_task"])[:, 3].tolist() == pytest.approx([1, 1])
    assert (value(found["cka_task"])[:, 0] < 0.999).all()


def test_a_spoilt_head_is_shallow_and_spoilt_features_are_deep(boundary) -> None:  # type: ignore[no-untyped-def]
    b: Boundary = boundary(t=1)
    then = b.nets[0].params
    lost = b.accuracy.clone()
    lost[:, 1, 0], lost[:, 2, 0] = 0.9, 0.4
    head = {k: torch.zeros_like(v) if k.startswith("head") else v for k, v in then.items()}
    body = {k: torch.zeros_like(v) if k.startswith("fc2") else v for k, v in then.items()}
    one, other = (
        representation(replace(b, trained=Net(p, {}, b.trained.apply), accuracy=lost), **SETTINGS) for p in (head, body)
    )
    assert value(one["forgetting_deep"]).tolist() == [0, 0]
    assert value(one["forgetting_shallow"]).tolist() == pytest.approx([0.5, 0.5])
    assert value(one["cka_task"])[:, 0].tolist() == pytest.approx([1, 1])
    assert (value(other["forgetting_deep"]) > 0.1).all() and value(other["cka_task"])[:, 0].isnan().all()


def test_what_is_missing_is_nan_or_absent(boundary) -> None:  # type: ignore[no-untyped-def]
    first = representation(boundary(t=0), **SETTINGS)
    assert set(COLUMNS) - set(first) == {"forgetting_deep_task", "forgetting_shallow_task"}
    assert value(first["forgetting_deep"]).isnan().all() and value(first["forgetting_shallow"]).isnan().all()
    b: Boundary = boundary(t=2)
    b.accuracy[:, 3, 0] = math.nan  # eval.tasks left the first task out
    found = representation(b, **SETTINGS)
    assert value(found["forgetting_shallow_task"]).isnan()[0].tolist() == [True, False]
    assert value(found["forgetting_deep_task"]).isfinite().all()
    squared = representation(boundary(loss="mse"), **SETTINGS)
    assert set(squared) == {"cka_task"} and value(squared["cka_task"]).isfinite().all()
    assert representation(boundary(phase="start"), **SETTINGS) == {}


def test_a_net_that_was_not_kept_is_nan(boundary) -> None:  # type: ignore[no-untyped-def]
    b: Boundary = boundary()
    whole, few = representation(b, **SETTINGS), representation(holding(b, {1: b.nets[1]}), **SETTINGS)
    for name, known in (("cka_task", [False, True, False, True]), ("forgetting_deep_task", [False, True, False])):
        for i, there in enumerate(known):
            assert value(few[name])[:, i].isnan().all() != there, (name, i)
            assert not there or torch.equal(value(few[name])[:, i], value(whole[name])[:, i])
    assert torch.equal(value(few["linear_probe_task"]), value(whole["linear_probe_task"]))


def test_the_deployed_net_is_not_what_the_features_are_of(boundary) -> None:  # type: ignore[no-untyped-def]
    b: Boundary = boundary()
    other = replace(b, deployed=Net(tree.zeros(b.trained.params), {}, b.trained.apply))
    for name, r in representation(b, **SETTINGS).items():
        assert torch.equal(value(representation(other, **SETTINGS)[name]), value(r)), name


def test_two_threads_solve_what_one_does() -> None:
    # torch.linalg.solve of two systems of 400 is off by 1e58 on two threads, and of five it raises
    rng = np.random.default_rng(3)
    z, y = torch.from_numpy(rng.normal(size=(5, 512, 400))), torch.from_numpy(rng.choice(10, size=(5, 512)))
    threads, found = torch.get_num_threads(), []
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            found.append(probe_accuracy(z, z[:, :200], rows(y), rows(y[:, :200]), 10, 0.05))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*found) and (found[0] > 0.5).all()
