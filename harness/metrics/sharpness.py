"""How sharp the trained point is, on frozen probes: eigenvalues, trace and worst rise of the loss.

Read them beside `probe_loss` and `logit_norm`: scaling the logits alone moves every one of them by orders of
magnitude, and only the adaptive rise is blind to rescaled ReLU units. No direction is better: that flat minima
forget less is a claim to test, not a fact.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from harness.curvature import Hessian, hutchpp, top_of, worst_rise
from harness.learner import mask_logits
from harness.metrics import Readings, blank, mixture, objective, spread
from harness.random import fold
from harness.types import Batch, Boundary, Column, Reading

PROBES = ("first", "current", "joint")

COLUMNS: dict[str, Column] = {
    "lambda_max_first": Column("", "nat/weight2", "largest Hessian eigenvalue, loss of the first task"),
    "lambda_max_current": Column("", "nat/weight2", "largest Hessian eigenvalue, loss of the task just trained"),
    "lambda_max_joint": Column("", "nat/weight2", "largest Hessian eigenvalue, mean loss over the tasks seen"),
    "lambda_top_first": Column("", "nat/weight2", "k-th largest Hessian eigenvalue, first task"),
    "lambda_top_current": Column("", "nat/weight2", "k-th largest Hessian eigenvalue, current task"),
    "lambda_top_joint": Column("", "nat/weight2", "k-th largest Hessian eigenvalue, mean over the tasks seen"),
    "lambda_residual_first": Column("lower", "nat/weight2", "||Hu - lambda u|| of each, first task"),
    "lambda_residual_current": Column("lower", "nat/weight2", "||Hu - lambda u|| of each, current task"),
    "lambda_residual_joint": Column("lower", "nat/weight2", "||Hu - lambda u|| of each, mean over the tasks seen"),
    "trace_first": Column("", "nat/weight2", "Hessian trace (Hutch++) with standard error, first task"),
    "trace_current": Column("", "nat/weight2", "Hessian trace (Hutch++) with standard error, current task"),
    "trace_joint": Column("", "nat/weight2", "Hessian trace (Hutch++) with standard error, mean over the tasks seen"),
    "sam_onestep_first": Column("", "nat", "rise of the loss after SAM's step of length rho, first task"),
    "sam_onestep_current": Column("", "nat", "rise of the loss after SAM's step of length rho, current task"),
    "sam_onestep_joint": Column("", "nat", "rise of the loss after SAM's step of length rho, mean over the tasks seen"),
    "sam_worst_first": Column("", "nat", "largest rise found within distance rho, first task"),
    "sam_worst_current": Column("", "nat", "largest rise found within distance rho, current task"),
    "sam_worst_joint": Column("", "nat", "largest rise found within distance rho, mean over the tasks seen"),
    "asam_worst_first": Column("", "nat", "largest rise found within ||e/|w||| <= rho, first task"),
    "asam_worst_current": Column("", "nat", "largest rise found within ||e/|w||| <= rho, current task"),
    "asam_worst_joint": Column("", "nat", "largest rise found within ||e/|w||| <= rho, mean over the tasks seen"),
    "probe_loss_first": Column("", "nat", "loss at the point itself, first task"),
    "probe_loss_current": Column("", "nat", "loss at the point itself, current task"),
    "probe_loss_joint": Column("", "nat", "loss at the point itself, mean over the tasks seen"),
    "logit_norm_first": Column("", "logit", "mean Euclidean norm of the competing logits, first task"),
    "logit_norm_current": Column("", "logit", "mean Euclidean norm of the competing logits, current task"),
    "logit_norm_joint": Column("", "logit", "mean Euclidean norm of the competing logits, mean over the tasks seen"),
}


def sharpness(
    b: Boundary,
    *,
    probes: Sequence[str],
    size: int,
    tasks: int,
    k: int,
    steps: int,
    trace_probes: int,
    rho: float,
    rho_adaptive: float,
    ascent: int,
) -> Readings:
    """Sharpness of the trained net after a task, on `size` rows of each probe.

    "first" and "current" are one task's rows; "joint" is the mean loss over the tasks seen, from rows split evenly
    over at most `tasks` of them (`metrics.spread`). Cost of a probe: `steps` + `trace_probes` Hessian products and
    2 `ascent` + 3 gradients. After the first task the three are one, and measured once.
    """
    if b.phase != "end":
        return {}
    for probe in probes:
        if probe not in PROBES:
            raise ValueError(f"metrics.sharpness.probes={probe}: choose from {', '.join(PROBES)}")
    key = fold(fold(b.random.base, "sharpness"), b.t)
    made: dict[str, dict[str, Tensor | Reading]] = {}
    found: Readings = {}
    for probe in probes:
        same = "current" if b.t == 0 else probe
        if same not in made:
            batch = _rows(b, same, size, tasks)
            made[same] = around(b, batch, fold(key, same), k, steps, trace_probes, rho, rho_adaptive, ascent)
        found.update({f"{name}_{probe}": value for name, value in made[same].items()})
    return blank(b, found)


def _rows(b: Boundary, probe: str, size: int, tasks: int) -> Batch:
    if probe == "joint":
        return mixture(b, spread(b.t, tasks), size)
    return b.probe(0 if probe == "first" else b.t, size)


def around(
    b: Boundary,
    batch: Batch,
    key: Tensor,  # [S]
    k: int,
    steps: int,
    trace_probes: int,
    rho: float,
    rho_adaptive: float,
    ascent: int,
) -> Readings:
    """Every measure of this file for the loss of one batch."""
    loss, params = objective(b, batch), b.trained.params
    hessian = Hessian(loss, params)
    top = top_of(hessian, params, fold(key, "lanczos"), k=k, steps=steps)
    value, stderr = hutchpp(hessian, params, fold(key, "trace"), trace_probes)
    at_point = hessian.value
    del hessian  # its graph, before others are built
    plain = worst_rise(loss, params, rho, ascent)
    adaptive = worst_rise(loss, params, rho_adaptive, ascent, adaptive=True)
    order = range(1, top.values.shape[1] + 1)
    return {
        "lambda_max": top.values[:, 0],
        "lambda_top": Reading(top.values, axis="k", coords=order),
        "lambda_residual": Reading(top.residuals, axis="k", coords=order),
        "trace": Reading(value, stderr),
        "sam_onestep": Reading(plain.one_step[:, None], axis="rho", coords=(rho,)),
        "sam_worst": Reading(plain.worst[:, None], axis="rho", coords=(rho,)),
        "asam_worst": Reading(adaptive.worst[:, None], axis="rho", coords=(rho_adaptive,)),
        "probe_loss": at_point,
        "logit_norm": logit_norm(b, batch),
    }


@torch.no_grad()
def logit_norm(b: Boundary, batch: Batch) -> Tensor:
    """Weighted mean over rows of the norm of the logits that compete: [S]."""
    logits = mask_logits(b.trained(batch.x, batch.t).logits, b.stream.mask(batch.t, b.t))
    norms: Tensor = torch.linalg.vector_norm(logits.masked_fill(logits.isneginf(), 0), dim=-1)
    return (batch.w * norms).sum(1)
