"""Calibration against worked examples, scikit-learn, scipy and known temperatures."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from sklearn.metrics import brier_score_loss, log_loss
from torch import Tensor

from harness import tree
from harness.boundary import Boundary
from harness.metrics import shares
from harness.metrics.calibration import COLUMNS, Answers, brier, calibration, ece, nll, temperature
from harness.types import Net, Reading

SETTINGS = {"size": 40, "tasks": 5}
F64 = torch.float64


def value(r: Tensor | Reading) -> Tensor:
    return r if isinstance(r, Tensor) else r.value


def drawn(seed: int, n: int = 500, c: int = 5, scale: float = 2.0) -> Answers:
    g = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(2, n, c, dtype=F64, generator=g)
    w = torch.rand(2, n, dtype=F64, generator=g) + 0.1
    return Answers(logits, torch.randint(c, (2, n), generator=g), w / w.sum(1, keepdim=True))


def test_errors_are_scikit_learns_and_the_binned_sum() -> None:
    a = drawn(0)
    for s in range(2):
        p, y, w = a.logits[s].softmax(1).numpy(), a.y[s].numpy(), a.w[s].numpy()
        assert nll(a)[s].item() == pytest.approx(log_loss(y, p, sample_weight=w, labels=range(5)))
        true = brier_score_loss(y, p, sample_weight=w, labels=range(5), scale_by_half=False)
        assert brier(a)[s].item() == pytest.approx(true)
        confidence, right = p.max(1), p.argmax(1) == y
        total = 0.0
        for m in range(15):
            inside = (confidence > m / 15) & (confidence <= (m + 1) / 15)
            if inside.any():
                gap = np.average(right[inside], weights=w[inside]) - np.average(confidence[inside], weights=w[inside])
                total += w[inside].sum() * abs(gap)
        assert ece(a)[s].item() == pytest.approx(total)


def test_a_bin_holds_its_upper_edge_and_certainty_counts() -> None:
    p = torch.tensor([[[0.8, 0.2], [0.81, 0.19], [1.0, 0.0]]], dtype=F64)
    y, w = torch.tensor([[0, 1, 0]]), torch.full((1, 3), 1 / 3, dtype=F64)
    # in fifths (0.6, 0.8] and (0.8, 1]: |1 - 0.8| / 3 + |(0 + 1) - (0.81 + 1)| / 3
    assert ece(Answers(p.log(), y, w), 5).item() == pytest.approx((0.2 + 0.81) / 3)


@pytest.mark.parametrize("true", [0.3, 1.0, 4.0])
def test_the_temperature_of_synthetic_logits_is_found(true: float) -> None:
    # rows of every class, weighted by the probability that it has: then the expectation is exact
    log_p = torch.randn(2, 30, 1, 4, dtype=F64, generator=torch.Generator().manual_seed(1)).log_softmax(3)
    logits = (true * log_p + 3).expand(-1, -1, 4, -1).flatten(1, 2)
    y = torch.arange(4).repeat(30).expand(2, -1)
    w = (log_p.exp() / 30).flatten(1)
    assert temperature(Answers(logits, y, w)).tolist() == pytest.approx([true] * 2, rel=1e-9)


def test_the_temperature_is_scipys_minimum_and_masked_outputs_do_not_matter() -> None:
    a = drawn(2)
    a = a._replace(y=torch.where(a.y < 2, a.logits.argmax(2), a.y))  # better than chance
    for s in range(2):
        z, y, w = a.logits[s], a.y[s], a.w[s]
        objective = lambda u: -(w * (z * math.exp(-u)).log_softmax(1)[range(len(y)), y]).sum().item()  # noqa: E731, B023
        best = minimize_scalar(objective, bounds=(-4, 4), method="bounded", options={"xatol": 1e-9})
        assert temperature(a)[s].item() == pytest.approx(math.exp(best.x), rel=1e-6)
    wide = a._replace(logits=torch.cat([a.logits, torch.full((2, 500, 3), -torch.inf, dtype=F64)], 2))
    for f in (temperature, ece, nll, brier):
        torch.testing.assert_close(f(wide), f(a), rtol=1e-12, atol=0)


def test_temperatures_at_the_ends_of_the_range_and_without_rows() -> None:
    a = drawn(3)
    sure, blind = a._replace(y=a.logits.argmax(2)), a._replace(y=a.logits.argmin(2))
    assert temperature(sure).tolist() == pytest.approx([0.01] * 2)
    assert temperature(blind).tolist() == pytest.approx([100] * 2)
    assert temperature(Answers(a.logits[:, :0], a.y[:, :0], a.w[:, :0])).isnan().all()


def test_nan_stays_in_its_seed() -> None:
    a = drawn(4)
    a.logits[1, 0, 0] = math.nan
    for f in (temperature, ece, nll, brier):
        assert f(a).isnan().tolist() == [False, True], f.__name__


@pytest.mark.parametrize("scenario", ["domain", "task", "class"])
def test_tasks_are_measured_on_test_rows_and_fitted_on_validation_rows_under_this_mask(boundary, scenario: str) -> None:  # type: ignore[no-untyped-def]
    b: Boundary = boundary(t=2, scenario=scenario)
    found = calibration(b, **SETTINGS)
    assert set(found) == set(COLUMNS)
    used = {"domain": [slice(0, 2)] * 3, "task": [slice(0, 2), slice(2, 4), slice(4, 6)], "class": [slice(0, 6)] * 3}
    parts: dict[str, list[Answers]] = {"val": [], "test": []}
    for i in range(3):
        for split in parts:
            batch, columns = b.probe(i, 40, split), used[scenario][i]
            logits = b.deployed(batch.x, batch.t).logits[..., columns]
            parts[split].append(Answers(logits, batch.y - columns.start, batch.w))
        t = temperature(parts["val"][i])
        tempered = parts["test"][i]._replace(logits=parts["test"][i].logits / t[:, None, None])
        expected = {"temperature": t, "ece_tempered": ece(tempered), "nll_tempered": nll(tempered)}
        expected |= {f.__name__: f(parts["test"][i]) for f in (ece, nll, brier)}
        for name, true in expected.items():
            r = found[f"{name}_task"]
            assert isinstance(r, Reading) and r.axis == "task" and list(r.coords) == [0, 1, 2]
            torch.testing.assert_close(r.value[:, i], true, rtol=1e-9, atol=1e-12, msg=name)
    for name in ("nll", "brier"):  # means of means
        torch.testing.assert_close(value(found[name]), value(found[f"{name}_task"]).mean(1))
    if scenario != "task":  # the pooled rows; masks are alike
        whole = Answers(*(torch.cat(list(v), 1) for v in zip(*parts["test"])))
        torch.testing.assert_close(value(found["ece"]), ece(whole._replace(w=whole.w / 3)))


def test_val_and_test_rows_are_different_draws(boundary) -> None:  # type: ignore[no-untyped-def]
    b: Boundary = boundary()
    x = [b.probe(0, 20, split).x for split in ("train", "val", "test")]
    assert not torch.equal(x[0], x[1]) and not torch.equal(x[1], x[2])
    assert torch.equal(b.probe(0, 20, "test").x, x[2])


def test_few_measured_tasks_stand_for_all(boundary) -> None:  # type: ignore[no-untyped-def]
    found = calibration(boundary(t=3), size=40, tasks=2)
    weight = torch.tensor(shares((0, 3), 3), dtype=F64)
    torch.testing.assert_close(value(found["nll"]), value(found["nll_task"]) @ weight)


def test_it_is_of_the_deployed_net_and_nan_where_its_logits_are_distances(boundary) -> None:  # type: ignore[no-untyped-def]
    b: Boundary = boundary()
    flat = Net(tree.zeros(b.trained.params), {}, b.trained.apply)
    found = calibration(replace(b, deployed=flat), **SETTINGS)
    assert value(found["nll"]).tolist() == pytest.approx([math.log(2)] * 2)
    distances = calibration(replace(b, deployed=replace(flat, probabilistic=False)), **SETTINGS)
    assert set(distances) == set(COLUMNS) and all(value(r).isnan().all() for r in distances.values())


def test_nothing_for_regression_or_before_a_task(boundary) -> None:  # type: ignore[no-untyped-def]
    assert calibration(boundary(loss="mse"), **SETTINGS) == {}
    assert calibration(boundary(phase="start"), **SETTINGS) == {}


@pytest.mark.parametrize("held", [[1, 0], [0, 0]])
def test_without_validation_rows_there_is_no_temperature_and_the_rest_stands(boundary, held: list[int]) -> None:  # type: ignore[no-untyped-def]
    b: Boundary = boundary(t=1)
    tasks = list(b.stream.tasks)
    tasks[1] = replace(tasks[1], val=replace(tasks[1].val, size=tasks[1].val.size * torch.tensor(held)))
    stream = replace(b.stream, tasks=tuple(tasks))
    b.learner.stream = stream
    bare, full = calibration(replace(b, stream=stream), **SETTINGS), calibration(boundary(t=1), **SETTINGS)
    without = [not h for h in held]
    for name in ("temperature", "ece_tempered", "nll_tempered"):
        assert value(bare[name]).isnan().tolist() == without
        assert value(bare[f"{name}_task"]).isnan().T.tolist() == [[False, False], without]
    for name in ("ece", "nll", "brier"):
        torch.testing.assert_close(value(bare[name]), value(full[name]))
