"""Neural collapse against dense numpy formulas, exact simplices and the published trap."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from harness import tree
from harness.boundary import Boundary
from harness.metrics.collapse import COLUMNS, cdnv, classes, collapse, geometry, nc1
from harness.metrics.representation import features
from harness.types import Net, Reading

SETTINGS = {"size": 48, "tasks": 5}
F64 = torch.float64


def value(r: Tensor | Reading) -> Tensor:
    return r if isinstance(r, Tensor) else r.value


def simplex(number: int, width: int, seed: int = 0) -> Tensor:
    """Corners of a regular simplex about 0, turned at random: [C, D]."""
    g = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(width, width, dtype=F64, generator=g)).Q
    return (torch.eye(number, dtype=F64) - 1 / number) @ turn[:number]


def dense(z: np.ndarray, y: np.ndarray, w: np.ndarray, head: np.ndarray) -> dict[str, float]:
    """Every measure from whole covariance matrices, class by class, of one seed."""
    known = np.unique(y)
    n = len(known)
    mu = np.stack([np.average(z[y == c], 0, w[y == c]) for c in known])
    m = mu - mu.mean(0)
    within = sum(w[i] * np.outer(z[i] - mu[known == y[i]][0], z[i] - mu[known == y[i]][0]) for i in range(len(y)))
    lam, vec = np.linalg.eigh(m.T @ m / n)
    top = np.argsort(lam)[::-1][: n - 1]
    pinv = (vec[:, top] / lam[top]) @ vec[:, top].T
    var = [np.average(((z[y == c] - mu[k]) ** 2).sum(1), weights=w[y == c]) for k, c in enumerate(known)]
    pairs = [(i, j) for i in range(n) for j in range(i)]
    found = {
        "nc1": np.trace(within @ pinv) / n,
        "cdnv": np.mean([(var[i] + var[j]) / 2 / ((mu[i] - mu[j]) ** 2).sum() for i, j in pairs]),
        "nc3": ((head[known] / np.linalg.norm(head[known]) - m / np.linalg.norm(m)) ** 2).sum(),
    }
    for end, points in (("", m), ("_head", head[known])):
        norm = np.linalg.norm(points, axis=1)
        cos = np.array([points[i] @ points[j] / norm[i] / norm[j] for i, j in pairs])
        found[f"nc2_equinorm{end}"] = norm.std() / norm.mean()
        found[f"nc2_equiangular{end}"] = cos.std()
        found[f"nc2_maxangle{end}"] = np.abs(cos + 1 / (n - 1)).mean()
    return found


def test_agrees_with_dense_numpy_where_seeds_have_other_classes() -> None:
    rng = np.random.default_rng(0)
    z = rng.normal(size=(2, 40, 7))
    y = np.stack([rng.choice([0, 2, 3, 5], 40), rng.choice([1, 2, 4], 40)])  # of six outputs
    w = rng.uniform(0.5, 1.5, size=(2, 40))
    w /= w.sum(1, keepdims=True)
    head = rng.normal(size=(2, 6, 7))
    found = geometry(classes(*map(torch.from_numpy, (z, y, w)), 6), torch.from_numpy(head))
    for s in range(2):
        true = dense(z[s], y[s], w[s], head[s])
        assert set(true) == set(found) == {n.removesuffix("_task") for n in COLUMNS}
        for name, v in true.items():
            assert found[name][s].item() == pytest.approx(v, rel=1e-9), name


@pytest.mark.parametrize("number", [2, 4, 7])
def test_collapsed_features_on_a_simplex_give_0_everywhere(number: int) -> None:
    m = simplex(number, 9)
    y = torch.arange(5 * number) % number
    z = 3 * m[y] + torch.randn(9, dtype=F64, generator=torch.Generator().manual_seed(1))  # wherever its centre is
    found = geometry(classes(z[None], y[None], torch.full((1, len(y)), 1 / len(y), dtype=F64), number), 0.2 * m[None])
    for name, v in found.items():
        assert v.item() == pytest.approx(0, abs=1e-9), name


def test_float32_features_give_what_float64_ones_do() -> None:
    # with S_B inverted at the default tolerance this is -2.4e6 or 1.5e5 in place of 6.0
    g = torch.Generator().manual_seed(3)
    z = torch.randn(1, 300, 32, generator=g, dtype=F64)
    y = (torch.arange(300) % 10)[None]
    z = z + torch.randn(10, 32, generator=g, dtype=F64)[y[0]]
    w = torch.full((1, 300), 1 / 300, dtype=F64)
    exact, rounded = (geometry(classes(v, y, w, 10), z[:, :10]) for v in (z, z.float().double()))
    for name, v in exact.items():
        assert rounded[name].item() == pytest.approx(v.item(), rel=1e-5), name


def test_cdnv_tells_two_close_classes_apart_beside_a_far_one() -> None:
    mean = torch.tensor([0.0, 1e-5, 1e3], dtype=F64).repeat_interleave(2)
    z = torch.stack([mean, 1e-5 * torch.tensor([1.0, -1.0], dtype=F64).repeat(3)], 1)
    y, w = torch.arange(3).repeat_interleave(2), torch.full((1, 6), 1 / 6, dtype=F64)
    assert cdnv(classes(z[None], y[None], w, 3)).item() == pytest.approx(1 / 3)  # 1 for the close pair, 0 for others


@pytest.mark.parametrize("unit", [1.0, 1e-6])
@pytest.mark.parametrize(("off", "counts"), [(0.0, False), (1e-3, True)])
def test_directions_in_which_class_means_differ_by_rounding_alone_are_left_out(
    off: float, counts: bool, unit: float
) -> None:
    # means at -u, off v, u, each class with rows a u, -a u, b v, -b v about its mean
    turn = torch.linalg.qr(torch.randn(6, 6, dtype=F64, generator=torch.Generator().manual_seed(0))).Q
    a, b = 0.3, 0.002
    mean = torch.tensor([[-1.0, 0.0], [0.0, off], [1.0, 0.0]], dtype=F64)
    around = torch.tensor([[a, 0], [-a, 0], [0, b], [0, -b]], dtype=F64)
    z = unit * ((mean[:, None] + around).flatten(0, 1) @ turn[:2] + torch.linspace(0.1, 0.7, 6, dtype=F64))
    y, w = torch.arange(3).repeat_interleave(4), torch.full((1, 12), 1 / 12, dtype=F64)
    found = nc1(classes(z.float().double()[None], y[None], w, 3))
    # mean square within over the sum of squares between: (a^2 / 2) / 2, (b^2 / 2) / (2/3 off^2)
    true = a**2 / 4 + (3 * b**2 / (4 * off**2) if counts else 0)
    assert found.item() == pytest.approx(true, rel=1e-3)


def test_turning_shifting_and_scaling_the_features_changes_nothing_but_duality() -> None:
    rng = np.random.default_rng(4)
    z, head = torch.from_numpy(rng.normal(size=(1, 30, 5))), torch.from_numpy(rng.normal(size=(1, 3, 5)))
    y, w = (torch.arange(30) % 3)[None], torch.full((1, 30), 1 / 30, dtype=F64)
    turn = torch.linalg.qr(z[0, :5]).Q
    before = geometry(classes(z, y, w, 3), head)
    after = geometry(classes(4 * z @ turn + 7, y, w, 3), head @ turn)
    for name, v in before.items():
        torch.testing.assert_close(after[name], v, rtol=1e-9, atol=1e-12, msg=name)
    spread = geometry(classes(z + 3 * (z - z.roll(3, 1)), y, w, 3), head)  # the same class means, more within
    assert spread["nc1"] > 2 * before["nc1"] and spread["cdnv"] > 2 * before["cdnv"]


def test_undefined_cases() -> None:
    w = torch.full((3, 4), 0.25, dtype=F64)
    y = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1], [0, 0, 1, 1]])  # one class; one point for all; sound
    z = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]], dtype=F64).repeat(3, 1, 1)
    z[2] += torch.tensor([0.0, 3.0])[[0, 0, 1, 1], None]
    found = geometry(classes(z, y, w, 2), torch.ones(3, 2, 2, dtype=F64))
    assert found["nc1"].isnan().tolist() == [True, True, False]
    assert found["nc2_maxangle"].isnan().tolist() == [True, True, False]
    for name in ("equinorm", "equiangular", "maxangle"):
        assert found[f"nc2_{name}_head"].isnan().tolist() == [True, False, False]
    assert found["nc3"].isnan().tolist() == [True, True, False]
    assert found["cdnv"].tolist()[1] == torch.inf and found["cdnv"].isnan().tolist() == [True, False, False]


@pytest.mark.parametrize("scenario", ["domain", "task", "class"])
def test_each_task_is_measured_under_its_own_classes_on_the_trained_net(boundary, scenario: str) -> None:  # type: ignore[no-untyped-def]
    b: Boundary = boundary(t=2, scenario=scenario)
    b = replace(b, deployed=Net(tree.zeros(b.trained.params), {}, b.trained.apply))
    found = collapse(b, **SETTINGS)
    assert set(found) == set(COLUMNS)
    for i in range(3):
        batch = b.probe(i, 48)
        z = features(b.trained, "head", batch)
        torch.testing.assert_close(z, b.trained(batch.x, batch.t).acts["fc2"])
        for s in range(2):
            head = b.trained.params["head.weight"][s].numpy()
            true = dense(z[s].numpy(), batch.y[s].numpy(), batch.w[s].numpy(), head)
            for name, v in true.items():
                r = found[f"{name}_task"]
                assert isinstance(r, Reading) and r.axis == "task" and list(r.coords) == [0, 1, 2]
                assert r.value[s, i].item() == pytest.approx(v, rel=1e-8, abs=1e-12), name


def test_nothing_where_there_are_no_classes_or_no_head(boundary) -> None:  # type: ignore[no-untyped-def]
    assert collapse(boundary(loss="mse"), **SETTINGS) == {}
    assert collapse(boundary(phase="start"), **SETTINGS) == {}
    b: Boundary = boundary()
    b.learner.model.head = ()
    assert collapse(b, **SETTINGS) == {}
