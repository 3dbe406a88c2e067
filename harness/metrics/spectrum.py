"""The whole Hessian spectrum after a task, by stochastic Lanczos quadrature: density, negative mass, rank."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from harness.boundary import Boundary
from harness.landscape.curvature import Hessian, curvature_rank, density, negative_mass, quadrature
from harness.metrics import Readings, blank, by_probe, objective, probed
from harness.types import Batch, Column, Reading

REACH = 1.05  # of the grid, in units of the spectral radius

COLUMNS: dict[str, Column] = by_probe(
    {
        "spectral_density": Column("", "1", "density of eigenvalues in units of the spectral radius"),
        "spectral_radius": Column("", "nat/weight2", "largest |eigenvalue| found by the quadrature"),
        "negative_mass": Column("", "fraction", "sum of |lambda| over the negative / over all, with standard error"),
        "curvature_rank": Column("", "dimensions", "eigenvalues above threshold x lambda_max"),
    }
)


def spectrum(
    b: Boundary,
    *,
    probes: Sequence[str],
    size: int,
    tasks: int,
    vectors: int,
    steps: int,
    points: int,
    width: float,
    thresholds: Sequence[float],
) -> Readings:
    """Spectrum of the trained net's Hessian after a task, on each probe (see `metrics.probed`).

    * spectral_density [points]: phi(x) = mean over the vectors of sum_j weight_j N(x; lambda_j / radius, width^2) on a
      grid x in [-1.05, 1.05] (Ghorbani, Krishnan & Xiao 2019); spectral_radius turns x into eigenvalues.
    * negative_mass in [0, 1] with its standard error, and curvature_rank [thresholds] in [0, P], whose error is not
      known (the quadrature is biased at small thresholds): see `curvature`.

    Cost per probe: `vectors` x `steps` Hessian products and one gradient. NaN for a diverged seed and, except for the
    radius, for a flat seed; curvature_rank is NaN if no eigenvalue is positive. Raises ValueError for fewer than 2
    vectors or points, a non-positive width, or an unknown probe.
    """
    if b.phase != "end":
        return {}
    if points < 2 or width <= 0:
        raise ValueError(f"metrics.spectrum.points={points}, width={width}: need at least 2 points and a width above 0")

    def around(batch: Batch, key: Tensor) -> Readings:
        params = b.trained.params
        q = quadrature(Hessian(objective(b, batch), params), params, key, vectors=vectors, steps=steps)
        grid = torch.linspace(-REACH, REACH, points, dtype=torch.float64, device=key.device)
        values, radius = density(q, grid, width)
        return {
            "spectral_density": Reading(values, axis="grid", coords=[round(x, 6) for x in grid.tolist()]),
            "spectral_radius": radius,
            "negative_mass": Reading(*negative_mass(q)),
            "curvature_rank": Reading(curvature_rank(q, thresholds), axis="threshold", coords=thresholds),
        }

    return blank(b, probed(b, "spectrum", probes, size, tasks, around))
