"""Sharpness at the trained net, on frozen probes: eigenvalues, trace and rank of the Hessian, Fisher trace.

Read them together with `probe_loss` and `logit_norm`: scaling the logits alone changes all of them by orders of
magnitude. Rescaling ReLU layers changes all but `lambda_max_adaptive`, `probe_loss` and `logit_norm`. No direction is
better: that flat minima forget less is a claim to test, not a fact.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from harness import tree
from harness.boundary import Boundary
from harness.landscape import edge_of_stability
from harness.landscape.curvature import Hessian, krylov, moments, random_signs, ritz, scaled, top_of
from harness.landscape.fisher import diagonal_on
from harness.learner import mask_logits
from harness.metrics import Readings, blank, by_probe, objective, on_train, own_key, probed
from harness.rng import fold
from harness.types import Batch, Column, Reading

LOWEST_STEPS = 40  # after 20 the smallest eigenvalue of a digits MLP was a fifth of the true one, after 40 within 1 %

COLUMNS: dict[str, Column] = by_probe(
    {
        "lambda_max": Column("", "nat/weight2", "largest Hessian eigenvalue"),
        "lambda_top": Column("", "nat/weight2", "k-th largest Hessian eigenvalue"),
        "lambda_residual": Column("lower", "nat/weight2", "||Hu - lambda u|| of each of the largest"),
        "lambda_min": Column("", "nat/weight2", "smallest Hessian eigenvalue"),
        "lambda_bottom": Column("", "nat/weight2", "k-th smallest Hessian eigenvalue"),
        "lambda_bottom_residual": Column("lower", "nat/weight2", "||Hu - lambda u|| of each of the smallest"),
        "lambda_max_adaptive": Column("", "nat", "largest eigenvalue of |W| H |W|, invariant to rescaled ReLU layers"),
        "trace": Column("", "nat/weight2", "Hessian trace with standard error"),
        "stable_rank_hessian": Column("", "dimensions", "tr H^2 / lambda_max^2 with standard error"),
        "fisher_trace": Column("", "nat/weight2", "trace of the Fisher information = Gauss-Newton matrix, exact"),
        "probe_loss": Column("", "nat", "loss at the net itself"),
        "logit_norm": Column("", "logit", "mean Euclidean norm of the competing logits"),
    }
) | on_train({"eos_ratio": Column("", "", "step x curvature over the largest stable, task just trained; 1: the edge")})


def sharpness(
    b: Boundary,
    *,
    probes: Sequence[str],
    size: int,
    tasks: int,
    k: int,
    lowest: int,
    steps: int,
    trace_probes: int,
    adaptive_steps: int,
    fisher: bool,
    edge_ratio: bool,
) -> Readings:
    """Curvature of the trained net's loss after a task, on each probe (see `metrics.probed`), in evaluation mode.

    * lambda_max, lambda_top [k]: largest eigenvalues from `steps` Lanczos steps, with residuals: each is
      within its residual of an eigenvalue, and a lower bound. lambda_min, lambda_bottom [lowest]: smallest, from the
      same run, upper bounds; they converge last and need at least 40 steps.
    * trace: unbiased, from the Lanczos space and `trace_probes` vectors outside it (`curvature.moments`), and
      stable_rank_hessian = tr H^2 / lambda_max^2 in [0, P], at least 1 if lambda_max is the largest in absolute value.
    * lambda_max_adaptive: lambda_max of |W| H |W| (Kwon et al. 2021: the adaptive rise is rho^2 / 2 times it at a
      minimum), from `adaptive_steps` steps.
    * fisher_trace: mean_x E_{y ~ p(y|x)} ||grad log p(y|x)||^2 with y over all classes (Martens 2020), for mean squared
      error that of the Gauss-Newton matrix; never negative. If the net is linear in each single weight (ReLU, no norm),
      it equals the trace of the Hessian exactly.
    * eos_ratio: see `edge_of_stability.ratio`, at the learning rate of the last step; needs the probe "current".
    * probe_loss, logit_norm: needed to interpret the others.

    Cost per probe: `steps` + `trace_probes` + `adaptive_steps` Hessian products and one gradient; the Fisher trace of
    ten classes costs about two products. The ratio is free with SGD and `steps` products with Adam. `lowest`,
    `trace_probes` (with the rank) and `adaptive_steps` can be 0 to omit them. NaN for a diverged seed;
    stable_rank_hessian is NaN for a flat seed. Raises ValueError for k < 1, fewer steps than eigenvalues, or an unknown
    probe.
    """
    if b.phase != "end":
        return {}
    if lowest and steps < LOWEST_STEPS:
        raise ValueError(
            f"metrics.sharpness.steps={steps}: lambda_min needs at least {LOWEST_STEPS}; raise steps or set lowest=0"
        )
    if k < 1 or steps < max(k, lowest):
        raise ValueError(f"metrics.sharpness.k={k}, steps={steps}: k must be at least 1, and steps at least k")

    def around(batch: Batch, key: Tensor) -> Readings:
        loss, params = objective(b, batch), b.trained.params
        hessian = Hessian(loss, params)
        space = krylov(hessian, random_signs(fold(key, "lanczos"), params), steps)
        values, residuals, *_ = ritz(space)
        order = range(1, k + 1)
        found: Readings = {
            "lambda_max": values[:, 0],
            "lambda_top": Reading(values[:, :k], axis="k", coords=order),
            "lambda_residual": Reading(residuals[:, :k], axis="k", coords=order),
            "probe_loss": hessian.value,
            "logit_norm": logit_norm(b, batch),
        }
        if lowest:
            low, order = values.flip(1)[:, :lowest], range(1, lowest + 1)
            found["lambda_min"] = low[:, 0]
            found["lambda_bottom"] = Reading(low, axis="k", coords=order)
            found["lambda_bottom_residual"] = Reading(residuals.flip(1)[:, :lowest], axis="k", coords=order)
        if trace_probes:
            m = moments(hessian, space, params, fold(key, "trace"), trace_probes)
            top = values[:, 0].square()
            found["trace"] = Reading(m.trace, m.trace_error)
            found["stable_rank_hessian"] = Reading(m.square / top, m.square_error / top)
        if adaptive_steps:
            matvec = scaled(hessian, {name: v.abs() for name, v in params.items()})
            found["lambda_max_adaptive"] = top_of(matvec, params, fold(key, "lanczos"), k=1, steps=adaptive_steps)[0][
                :, 0
            ]
        if fisher:
            found["fisher_trace"] = fisher_trace(b, batch)
        return found

    found = probed(b, "sharpness", probes, size, tasks, around)
    if edge_ratio and "current" in probes:
        lam, loss, key = found["lambda_max_current"], objective(b, b.probe(b.t, size)), own_key(b, "sharpness", "edge")
        assert isinstance(lam, Tensor)
        lr = edge_of_stability.rate(b.learner, max(b.learner.planned - 1, 0))
        found["eos_ratio"] = edge_of_stability.edge_ratio(b.learner, lr, loss, b.trained.params, lam, key, steps)
    return blank(b, found)


def fisher_trace(b: Boundary, batch: Batch) -> Tensor:
    """Trace of the trained net's Fisher information over a batch, exact over the classes: [S]."""
    twin = copy.copy(b.learner)
    twin.params, twin.buffers, twin.apply = b.trained.params, b.trained.buffers, b.trained.apply
    masked = replace(batch, mask=b.stream.mask(batch.t, b.t))
    diagonal = diagonal_on(twin, [masked], "exact", b.random)  # "exact" draws nothing
    return tree.dot(diagonal, {name: torch.ones_like(v) for name, v in diagonal.items()})


@torch.no_grad()
def logit_norm(b: Boundary, batch: Batch) -> Tensor:
    """Weighted mean over rows of the norm of the logits that compete: [S]."""
    logits = mask_logits(b.trained(batch.x, batch.t).logits, b.stream.mask(batch.t, b.t))
    norms: Tensor = torch.linalg.vector_norm(logits.masked_fill(logits.isneginf(), 0), dim=-1)
    return (batch.w * norms).sum(1)
