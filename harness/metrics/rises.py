"""How much the loss rises around the trained net: the worst rise within a ball (SAM, ASAM) and the average rise.

Variants control for scale: plain, adaptive (invariant to rescaled ReLU layers), and both with normalised logits (also
invariant to confidence). Read the first two together with `probe_loss` and `logit_norm` of `sharpness`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from harness.boundary import Boundary
from harness.landscape.curvature import value_and_grad
from harness.landscape.rises import average_rise, normalised, worst_rise
from harness.metrics import Readings, blank, by_probe, objective, probed
from harness.rng import fold
from harness.types import Batch, Column, Params, Reading

VARIANTS = {
    "plain": "||e|| <= rho",
    "adaptive": "||e/|w||| <= rho",
    "normalised": "||e|| <= rho, logits normalised",
    "adaptive_normalised": "||e/|w||| <= rho, logits normalised",
}

COLUMNS: dict[str, Column] = by_probe(
    {
        **{f"rise_onestep_{v}": Column("", "nat", f"rise after SAM's step, {ball}") for v, ball in VARIANTS.items()},
        **{f"rise_worst_{v}": Column("", "nat", f"largest rise found within {ball}") for v, ball in VARIANTS.items()},
        **{
            f"rise_average_{v}": Column("", "nat", f"mean rise under noise of size rho per weight, as {ball}")
            for v, ball in VARIANTS.items()
        },
        "probe_loss_normalised": Column("", "nat", "loss of the normalised logits without perturbation"),
    }
)


def rises(
    b: Boundary,
    *,
    probes: Sequence[str],
    size: int,
    tasks: int,
    variants: Sequence[str],
    ascent: int,
    pairs: int,
    rho: float,
    rho_adaptive: float,
    rho_average: float,
    rho_average_adaptive: float,
) -> Readings:
    """Rise of the trained net's loss after a task, on each probe (see `metrics.probed`) and in each variant [S, rho].

    * rise_worst: max over the ball of L(w + e) - L(w), by `ascent` steps of projected gradient ascent; at least 0, a
      lower bound of the maximum. rise_onestep: after the first step, which is SAM's (Foret et al. 2021; adaptive: Kwon
      et al. 2021).
    * rise_average: mean over normal noise from `pairs` pairs of draws, with standard error (Andriushchenko et al.
      2023); may be negative. Its radii are per weight, and so much smaller than those of the ball.
    * Variants: plain; adaptive, e relative to |w|; normalised, the same with normalised logits (`rises.normalised`).

    Cost per probe: for each loss, plain and normalised, a gradient; for each variant `ascent` - 1 more, and 2 `pairs` +
    2 forward passes. 0 omits either.
    Regression has no normalised variants. NaN for a diverged seed. Raises ValueError for an unknown variant or probe.
    """
    if b.phase != "end":
        return {}
    for variant in variants:
        if variant not in VARIANTS:
            raise ValueError(f"metrics.rises.variants={variant}: choose from {', '.join(VARIANTS)}")

    def around(batch: Batch, key: Tensor) -> Readings:
        params = b.trained.params
        found: Readings = {}
        here: dict[bool, tuple[Tensor, Params]] = {}  # loss and gradient at the net, by whether logits are normalised
        for variant in variants:
            adaptive, flat = variant.startswith("adaptive"), variant.endswith("normalised")
            if flat and b.stream.loss == "mse":
                continue
            loss = objective(b, batch)
            if flat:
                apply = normalised(b.trained.apply, b.stream, b.t)
                loss = b.learner.objective([batch], b.stream, b.t, b.trained.buffers, apply)
                with torch.no_grad():
                    found["probe_loss_normalised"] = loss(params)
            if ascent:
                radius = rho_adaptive if adaptive else rho
                if flat not in here:
                    here[flat] = value_and_grad(loss, params)
                rise = worst_rise(loss, params, radius, ascent, adaptive=adaptive, here=here[flat])
                found[f"rise_onestep_{variant}"] = _at(radius, rise.one_step)
                found[f"rise_worst_{variant}"] = _at(radius, rise.worst)
            if pairs:
                radius = rho_average_adaptive if adaptive else rho_average
                mean, error = average_rise(loss, params, fold(key, "average"), radius, pairs, adaptive=adaptive)
                found[f"rise_average_{variant}"] = _at(radius, mean, error)
        return found

    return blank(b, probed(b, "rises", probes, size, tasks, around))


def _at(rho: float, value: Tensor, error: Tensor | None = None) -> Reading:
    return Reading(value[:, None], None if error is None else error[:, None], axis="rho", coords=(rho,))
