"""Merges of task vectors against loops over single numbers, and against dense singular value decompositions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from harness import tree
from harness.finished.merge_options import METHODS as NAMES
from harness.merging import vectors
from harness.merging.means import average
from harness.merging.table import METHODS
from harness.rng import keys
from harness.types import Params


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def nets(count: int = 3) -> tuple[Params, list[Params]]:
    """A base, and nets of two seeds with a matrix and a bias."""
    made = [{"w": draw(2, 4, 5, seed=i), "b": draw(2, 4, seed=30 + i)} for i in range(count + 1)]
    return made[0], made[1:]


def flat(params: Params, s: int) -> list[float]:
    return [*params["w"][s].flatten().tolist(), *params["b"][s].tolist()]


def test_task_arithmetic_is_the_mean_at_one_over_k_and_the_base_at_0() -> None:
    base, experts = nets()
    torch.testing.assert_close(vectors.task_arithmetic(base, experts, alpha=1 / 3), average(experts))
    torch.testing.assert_close(vectors.task_arithmetic(base, experts, alpha=0.0), base)
    far = vectors.task_arithmetic(base, experts, alpha=2.0)
    expected = base["w"] + 2 * sum(net["w"] - base["w"] for net in experts)
    torch.testing.assert_close(far["w"], expected)


def test_magmax_takes_the_largest_change_of_each_weight() -> None:
    base, experts = nets()
    found = vectors.magmax(base, experts, scale=0.7)
    for s in (0, 1):
        start, ends = flat(base, s), [flat(net, s) for net in experts]
        expected = []
        for i, zero in enumerate(start):
            changes = [end[i] - zero for end in ends]
            expected.append(zero + 0.7 * max(changes, key=abs))
        assert flat(found, s) == pytest.approx(expected, rel=1e-12)


def test_of_equal_changes_the_last_counts() -> None:
    base, experts = {"w": torch.zeros(1, 2)}, [{"w": torch.tensor([[2.0, -3.0]])}, {"w": torch.tensor([[-2.0, 3.0]])}]
    assert vectors.magmax(base, experts, scale=1.0)["w"].tolist() == [[-2.0, 3.0]]


def by_hand(base: list[float], ends: list[list[float]], keep: int, scale: float) -> list[float]:
    """TIES, number by number."""
    changes = [[e - b for e, b in zip(end, base)] for end in ends]
    for tau in changes:
        kept = sorted(range(len(tau)), key=lambda i: -abs(tau[i]))[:keep]
        tau[:] = [v if i in kept else 0.0 for i, v in enumerate(tau)]
    merged = []
    for i, zero in enumerate(base):
        column = [tau[i] for tau in changes]
        sign = math.copysign(1, sum(column)) if sum(column) else 0
        same = [v for v in column if v * sign > 0]
        merged.append(zero + scale * (sum(same) / len(same) if same else 0.0))
    return merged


@pytest.mark.parametrize(("density", "keep"), [(0.25, 6), (0.5, 12), (1.0, 24)])
def test_ties_trims_elects_and_merges(density: float, keep: int) -> None:
    base, experts = nets(4)
    found = vectors.ties(base, experts, density=density, scale=1.3)
    for s in (0, 1):
        expected = by_hand(flat(base, s), [flat(net, s) for net in experts], keep, 1.3)
        assert flat(found, s) == pytest.approx(expected, rel=1e-12)


def test_ties_leaves_another_tasks_head_to_the_net_that_trained_it() -> None:
    base, experts = {"h": torch.zeros(1, 2)}, [{"h": torch.tensor([[4.0, 0.0]])}, {"h": torch.tensor([[0.0, 6.0]])}]
    assert vectors.ties(base, experts, density=1.0, scale=1.0)["h"].tolist() == [[4.0, 6.0]]
    assert vectors.magmax(base, experts, scale=1.0)["h"].tolist() == [[4.0, 6.0]]


def test_dare_keeps_the_expectation_and_drops_its_share() -> None:
    seeds, rate = 4000, 0.8
    base = {"w": torch.full((seeds, 2), 3.0)}
    experts = [{"w": torch.tensor([[4.0, 1.0]]).expand(seeds, 2)}, {"w": torch.tensor([[3.0, 5.0]]).expand(seeds, 2)}]
    found = vectors.dare(base, experts, key=keys(range(seeds), "x"), rate=rate, alpha=0.5)["w"]
    expected = vectors.task_arithmetic(base, experts, alpha=0.5)["w"][0]
    error = found.std(0) / math.sqrt(seeds)
    assert ((found.mean(0) - expected).abs() < 4 * error).all()
    spread = 0.25 * torch.tensor([1.0, 4.0 + 4.0]) * rate / (1 - rate)  # Σ alpha² τ² rate / (1 - rate), independent
    assert ((found.var(0) / spread - 1).abs() < 0.1).all()
    assert float((found[:, 0] == 3).float().mean()) == pytest.approx(rate, abs=0.03)


def test_dare_without_dropping_is_task_arithmetic() -> None:
    base, experts = nets()
    found = vectors.dare(base, experts, key=keys([0, 1], "x"), rate=0.0, alpha=0.3)
    torch.testing.assert_close(found, vectors.task_arithmetic(base, experts, alpha=0.3))


def projected(tau: np.ndarray, total: np.ndarray, share: float) -> np.ndarray:
    """What the authors' code removes, entry by entry in full bases, without directions of the null space."""
    u, sigma, vt = np.linalg.svd(total)
    rank, count = 0, int((sigma > 1e-9 * sigma.max(initial=0)).sum()) if sigma.any() else 0
    for r in range(1, count + 1):
        if sigma[:r].sum() <= (share + 1e-10) * sigma.sum():
            rank = r
    m = u.T @ tau @ vt.T
    for i in range(m.shape[0]):
        for j in range(m.shape[1]):
            if (i < rank and j < rank) or (i == j and i < count):
                m[i, j] = 0
    removed: np.ndarray = u @ m @ vt
    return removed


@pytest.mark.parametrize("share", [0.0, 0.5, 0.8, 1.0])
def test_opcm_adds_what_a_dense_decomposition_leaves(share: float) -> None:
    base, experts = nets(3)
    found = vectors.opcm(base, experts, ["w"], share=share)
    for s in (0, 1):
        zero = base["w"][s].numpy()
        w, b, lengths = np.zeros((4, 5)), np.zeros(4), []
        for net in experts:
            tau, shift = net["w"][s].numpy() - zero, (net["b"] - base["b"])[s].numpy()
            lengths.append(math.sqrt((tau**2).sum() + (shift**2).sum()))
            w, b = w + projected(tau, w, share), b + shift
        factor = np.mean(lengths) / math.sqrt((w**2).sum() + (b**2).sum())
        np.testing.assert_allclose(found["w"][s].numpy(), zero + factor * w, rtol=1e-9, atol=1e-11)
        np.testing.assert_allclose(found["b"][s].numpy(), base["b"][s].numpy() + factor * b, rtol=1e-9, atol=1e-11)


def test_what_opcm_adds_is_orthogonal_to_what_is_there() -> None:
    _, (a, b) = nets(2)
    total, tau = {"w": a["w"]}, {"w": b["w"]}
    for share in (0.0, 0.6, 1.0):
        assert float(tree.dot(vectors.apart(tau, total, ["w"], share), total).abs().max()) < 1e-12
    low = {"w": a["w"][:, :, :1] @ b["w"][:, :1]}  # of rank 1
    assert torch.allclose(vectors.apart(low, low, ["w"], 0.0)["w"], torch.zeros(()).double(), atol=1e-12)
    assert vectors.apart(tau, tree.zeros(total), ["w"], 1.0)["w"].equal(tau["w"])  # nothing is there yet


def test_opcm_of_a_diverged_seed_leaves_the_other() -> None:
    base, experts = nets()
    whole = vectors.opcm(base, experts, ["w"])
    experts[1]["w"][0] = torch.nan
    found = vectors.opcm(base, experts, ["w"])
    assert found["w"][0].isnan().any()
    torch.testing.assert_close(found["w"][1], whole["w"][1])
    for name in ("task_arithmetic", "magmax", "ties"):
        merged = getattr(vectors, name)(base, experts)
        assert merged["w"][1].isfinite().all(), name


def test_row_s_depends_on_row_s_alone() -> None:
    base, experts = nets()
    one, ones = {k: v[1:] for k, v in base.items()}, [{k: v[1:] for k, v in net.items()} for net in experts]
    both = keys([3, 4], "x")
    for name, how in (("task_arithmetic", {}), ("magmax", {}), ("ties", {}), ("dare", {"key": both})):
        alone = {"key": both[1:]} if how else {}
        whole = getattr(vectors, name)(base, experts, **how)
        torch.testing.assert_close(getattr(vectors, name)(one, ones, **alone)["w"], whole["w"][1:])


def test_angles_and_conflicts() -> None:
    a, b = {"w": torch.tensor([[3.0, 4.0, 0.0]])}, {"w": torch.tensor([[4.0, -3.0, 1.0]])}
    assert vectors.cosines([a, b])[0].flatten().tolist() == pytest.approx([1, 0, 0, 1], abs=1e-12)
    assert vectors.conflicts(a, b).tolist() == [0.5]
    zero = {"w": torch.zeros(1, 3)}
    assert vectors.conflicts(a, zero).isnan().all() and vectors.cosines([a, zero])[0, 0, 1].isnan()


def test_the_command_lists_the_methods_of_the_table() -> None:
    assert tuple(METHODS) == NAMES


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("task_arithmetic", {"alpha": -1.0}),
        ("magmax", {"scale": math.nan}),
        ("ties", {"density": 0.0}),
        ("ties", {"scale": -0.5}),
        ("dare", {"rate": 1.0, "key": keys([0, 1], "x")}),
        ("opcm", {"share": 2.0, "names": ["w"]}),
    ],
)
def test_bad_values_are_named(name: str, values: dict[str, float]) -> None:
    base, experts = nets()
    key, value = next(iter(values.items()))
    with pytest.raises(ValueError, match=f"{name}: {key}={value}"):
        getattr(vectors, name)(base, experts, **values)
