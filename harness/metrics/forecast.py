"""Curvature of the next task's loss before any training on it: does its collapse precede loss of plasticity?

Lewandowski et al. (2024) and He et al. (2025) report that curvature collapses at the start of a new task before
plasticity is lost. Compare these with the task's learning accuracy. No direction is better.
"""

from __future__ import annotations

from collections.abc import Sequence

from harness.boundary import Boundary
from harness.landscape import edge_of_stability
from harness.landscape.curvature import (
    Hessian,
    curvature_rank,
    krylov,
    moments,
    negative_mass,
    quadrature,
    random_signs,
    ritz,
)
from harness.metrics import Readings, blank, objective, on_train, own_key
from harness.metrics.sharpness import logit_norm
from harness.rng import fold
from harness.types import Column, Reading

COLUMNS: dict[str, Column] = on_train(
    {
        "next_lambda_max": Column("", "nat/weight2", "largest Hessian eigenvalue of the coming task's loss"),
        "next_lambda_residual": Column("lower", "nat/weight2", "||Hu - lambda u|| of that eigenvalue"),
        "next_trace": Column("", "nat/weight2", "Hessian trace of the coming task's loss, with standard error"),
        "next_stable_rank": Column("", "dimensions", "tr H^2 / lambda_max^2 of the coming task's loss"),
        "next_curvature_rank": Column("", "dimensions", "eigenvalues above threshold x lambda_max, coming task"),
        "next_negative_mass": Column("", "fraction", "sum of |lambda| over the negative / over all, coming task"),
        "next_eos_ratio": Column("", "", "first step x curvature of the coming task over the largest stable"),
        "next_probe_loss": Column("", "nat", "loss of the coming task before training on it"),
        "next_logit_norm": Column("", "logit", "mean norm of the competing logits on the coming task"),
    }
)


def forecast(
    b: Boundary,
    *,
    size: int,
    steps: int,
    trace_probes: int,
    vectors: int,
    quadrature_steps: int,
    thresholds: Sequence[float],
    edge_ratio: bool,
) -> Readings:
    """Curvature of task t's loss on `size` of its training rows at phase "start": after begin, before the first step.

    * next_lambda_max, with its residual, from `steps` Lanczos steps; next_trace and next_stable_rank = tr H^2 /
      lambda_max^2 in [0, P] from the same space and `trace_probes` vectors outside it, with standard errors.
    * next_curvature_rank [thresholds] (the epsilon-rank of He et al. 2025, relative to lambda_max) and
      next_negative_mass from `vectors` x `quadrature_steps` quadrature (see `curvature`); vectors=0 omits them.
    * next_eos_ratio: `edge_of_stability.ratio` at the learning rate of the first step. With Adam it is NaN if its state
      is fresh, and far above 1 if the task wakes weights that had no gradient so far (see `inverse_root` there).

    Cost: `steps` + `trace_probes` + `vectors` x `quadrature_steps` Hessian products, one gradient and one forward
    pass; `steps` more products with Adam. At t = 0 the net is the initialisation. NaN for a diverged seed; ranks are
    NaN for a flat seed. Raises ValueError for fewer than 1 step or one trace probe.
    """
    if b.phase != "start":
        return {}
    if steps < 1:
        raise ValueError(f"metrics.forecast.steps={steps}: must be at least 1")
    batch, key, params = b.probe(b.t, size), own_key(b, "forecast"), b.trained.params
    loss = objective(b, batch)
    hessian = Hessian(loss, params)
    space = krylov(hessian, random_signs(fold(key, "lanczos"), params), steps)
    values, residuals, *_ = ritz(space)
    found: Readings = {
        "next_lambda_max": values[:, 0],
        "next_lambda_residual": residuals[:, 0],
        "next_probe_loss": hessian.value,
        "next_logit_norm": logit_norm(b, batch),
    }
    if trace_probes:
        m = moments(hessian, space, params, fold(key, "trace"), trace_probes)
        top = values[:, 0].square()
        found["next_trace"] = Reading(m.trace, m.trace_error)
        found["next_stable_rank"] = Reading(m.square / top, m.square_error / top)
    if vectors:
        q = quadrature(hessian, params, fold(key, "quadrature"), vectors=vectors, steps=quadrature_steps)
        found["next_curvature_rank"] = Reading(curvature_rank(q, thresholds), axis="threshold", coords=thresholds)
        found["next_negative_mass"] = Reading(*negative_mass(q))
    if edge_ratio:
        lr = edge_of_stability.rate(b.learner, 0)
        found["next_eos_ratio"] = edge_of_stability.edge_ratio(
            b.learner, lr, loss, params, values[:, 0], fold(key, "edge"), steps
        )
    return blank(b, found)
