"""The spectrum at a boundary: its columns, its probes, and what it leaves behind."""

from typing import Any

import pytest
import torch
from torch import Tensor

from harness import tree
from harness.boundary import Boundary
from harness.landscape.curvature import Hessian, curvature_rank, density, negative_mass, quadrature
from harness.metrics import own_key
from harness.metrics.spectrum import COLUMNS, spectrum
from harness.types import Reading

SETTINGS: dict[str, Any] = {
    "probes": ["first", "current", "joint"], "size": 48, "tasks": 4, "vectors": 3, "steps": 12, "points": 43,
    "width": 0.05, "thresholds": [0.1, 0.01],
}  # fmt: skip


def value(r: Tensor | Reading) -> Tensor:
    return r if isinstance(r, Tensor) else r.value


def test_columns_are_those_of_the_quadrature_of_each_probes_loss(boundary) -> None:  # type: ignore[no-untyped-def]
    b: Boundary = boundary(t=2)
    found = spectrum(b, **SETTINGS)
    assert set(found) == set(COLUMNS) and spectrum(boundary(phase="start"), **SETTINGS) == {}
    for probe, tasks in (("first", [0]), ("current", [2]), ("joint", [0, 1, 2])):
        loss = b.loss(tasks, 48 // len(tasks))
        key = own_key(b, "spectrum", probe)
        q = quadrature(Hessian(loss, b.trained.params), b.trained.params, key, vectors=3, steps=12)
        grid = found[f"spectral_density_{probe}"]
        assert isinstance(grid, Reading) and grid.axis == "grid" and grid.value.shape == (2, 43)
        assert [grid.coords[i] for i in (0, 21, 42)] == [-1.05, 0, 1.05]
        phi, radius = density(q, torch.tensor(grid.coords, dtype=torch.float64), 0.05)
        torch.testing.assert_close(grid.value, phi, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(value(found[f"spectral_radius_{probe}"]), radius)
        mass, rank = found[f"negative_mass_{probe}"], found[f"curvature_rank_{probe}"]
        assert isinstance(mass, Reading) and isinstance(rank, Reading) and rank.stderr is None
        torch.testing.assert_close((mass.value, mass.stderr), negative_mass(q), rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(rank.value, curvature_rank(q, [0.1, 0.01]), rtol=1e-6, atol=1e-9)


def test_row_s_is_seed_s_alone_and_a_diverged_seed_is_nan(boundary) -> None:  # type: ignore[no-untyped-def]
    together, alone = spectrum(boundary((3, 5, 8)), **SETTINGS), spectrum(boundary((5,)), **SETTINGS)
    b: Boundary = boundary((3, 5, 8))
    b.trained.params["head.bias"][0, 0] = torch.nan
    lost = spectrum(b, **SETTINGS)
    for name, r in together.items():
        torch.testing.assert_close(value(r)[1:2], value(alone[name]), rtol=1e-6, atol=1e-8, msg=name)
        assert value(lost[name])[0].isnan().all() and torch.equal(value(lost[name])[1:], value(r)[1:]), name


def test_nothing_is_changed_and_settings_are_checked(boundary) -> None:  # type: ignore[no-untyped-def]
    b: Boundary = boundary(dtype=torch.float32)
    kept, rng, count = tree.copy(b.trained.params), torch.get_rng_state(), b.random.count
    first, second = (spectrum(b, **SETTINGS) for _ in range(2))
    assert all(torch.equal(value(first[n]), value(second[n])) for n in first)
    assert all(torch.equal(v, kept[k]) and v.grad is None and not v.requires_grad for k, v in b.trained.params.items())
    assert torch.equal(torch.get_rng_state(), rng) and b.random.count == count
    with pytest.raises(ValueError, match=r"metrics\.spectrum\.points=43, width=0: "):
        spectrum(b, **{**SETTINGS, "width": 0})
