"""Hidden units on a set of rows: silent, of constant sign, saturated, or copies of one another.

"Dead" and "dormant" mean different things in different papers; each definition has its own column. A metric of units is
averaged over all units of the net (larger layers count more), and per layer. The k channels that CReLU or Fourier
features make of a unit count as one unit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from harness.types import Column, Reading, Unit

TAUS = (0.0, 0.025, 0.1)  # thresholds of Sokar et al. 2023
SATURATED = 0.9  # of the asymptote (Dohare et al. 2024)
ALIKE = 0.95  # cosine (Joudaki et al. 2025)

_TEXT = {
    "dead_frac": "hidden units that are 0 on every probe row (Dohare et al. 2024)",
    **{f"redo_dormant_{t:g}": f"units with E|h| <= {t:g} x layer mean (Sokar et al. 2023)" for t in TAUS},
    "lop_dormant_0.01": "units that are nonzero on less than 1 % of rows and positions (Dohare et al. 2024, CIFAR-100)",
    "dead_95": "units with |h| < 1e-7 on more than 95 % of rows and positions (Joudaki et al. 2025)",
    "zero_act_frac": "activations that are 0; not a count of units (Elsayed & Mahmood 2024)",
    "duplicate_frac": "pairs of live units of a layer whose activations have a cosine above 0.95 (Joudaki et al. 2025)",
}
COLUMNS: dict[str, Column] = {
    name + layer: Column("lower", "fraction", "the same, per layer" if layer else text, "train")
    for name, text in _TEXT.items()
    for layer in ("", "_layer")
} | {
    "saturated_0.9": Column("", "fraction", "activations beyond 0.9 of their asymptote, if they have one", "train"),
    "saturated_0.9_layer": Column("", "fraction", "the same, per layer", "train"),
    "unit_sign_entropy": Column("", "bit", "mean over units of the entropy of [h > 0] over the rows", "train"),
    "unit_sign_entropy_layer": Column("", "bit", "the same, per layer", "train"),
}


def dormancy(acts: Mapping[str, Tensor], units: tuple[Unit, ...]) -> dict[str, Tensor | Reading]:
    """Every metric of this file except duplicates, over all units and per layer; empty without units."""
    parts: dict[str, dict[str, Tensor]] = {}  # measure -> act -> value of each unit [S, H]
    for u in units:
        h = acts[u.act].unflatten(2, (-1, u.size))  # [S, B, k, H, ...]
        strong = strength(acts[u.act], u.size)
        firing = fraction(h.ne(0).any(2), h)
        of_unit = {
            "dead_frac": dormant(strong, 0.0),
            **{f"redo_dormant_{tau:g}": dormant(strong, tau) for tau in TAUS},
            "lop_dormant_0.01": (firing < 0.01).to(h),
            "dead_95": (fraction((h.abs() < 1e-7).all(2), h) > 0.95).to(h),
            "zero_act_frac": fraction(h.eq(0).flatten(1, 2), h),
            "unit_sign_entropy": sign_entropy(fraction(h[:, :, 0] > 0, h)),
        }
        if u.asymptote is not None:
            of_unit["saturated_0.9"] = fraction((h.abs() > SATURATED * u.asymptote).flatten(1, 2), h)
        for name, each in of_unit.items():
            parts.setdefault(name, {})[u.act] = each.masked_fill(~strong.isfinite(), math.nan)
    found: dict[str, Tensor | Reading] = {}
    for name, layers in parts.items():
        found[name] = torch.cat(list(layers.values()), 1).mean(1)
        means = torch.stack([each.mean(1) for each in layers.values()], 1)
        found[f"{name}_layer"] = Reading(means, axis="layer", coords=list(layers))
    return found


def strength(act: Tensor, size: int) -> Tensor:
    """E|h| of each unit over rows and space, summed over CReLU's copies: [S, size]."""
    mean = act.abs().mean((1, *range(3, act.dim())))  # [S, k * size]
    return mean.view(len(act), -1, size).sum(1)


def fraction(where: Tensor, like: Tensor) -> Tensor:
    """Fraction of rows and positions that are True: bool [S, B, H, ...] -> [S, H] of the dtype of `like`."""
    mean: Tensor = where.to(like.dtype).mean((1, *range(3, where.dim())))
    return mean


def dormant(h: Tensor, tau: float) -> Tensor:
    """1 if E|h| <= tau times the layer's mean, else 0; NaN if not finite: [S, size] -> [S, size].

    In a layer where nothing fires, every unit is dormant.

    >>> dormant(torch.tensor([[0.0, 0.1, 3.9], [0.0, 0.0, 0.0]]), 0.1).tolist()
    [[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]]
    """
    asleep = (h <= tau * h.mean(1, keepdim=True)).to(h)
    return asleep.masked_fill(~h.isfinite(), math.nan)


def sign_entropy(p: Tensor) -> Tensor:
    """Entropy in bits of an event of probability p: 0 if it never or always happens, 1 at p = 1/2.

    For relu and tanh [h > 0] is the sign of the pre-activation; for Fourier features it is that of the sine.

    >>> sign_entropy(torch.tensor([0.0, 0.25, 0.5, 1.0]))
    tensor([0.0000, 0.8113, 1.0000, 0.0000])
    """
    bits: Tensor = (torch.special.entr(p) + torch.special.entr(1 - p)) / math.log(2)
    return bits


def duplicates(acts: Mapping[str, Tensor], units: tuple[Unit, ...]) -> dict[str, Tensor | Reading]:
    """Share of pairs of live units of a layer with a cosine above `ALIKE`: overall, and per layer.

    The cosine is of the activations over rows and positions, uncentred, with CReLU's copies concatenated. A unit that
    is always 0 is in no pair; NaN for a layer without two live units, and overall if no layer has two. Costs
    rows x units^2.
    """
    if not units:
        return {}
    counts = [alike(acts[u.act].unflatten(2, (-1, u.size)).movedim(3, 1).flatten(2)) for u in units]
    found, pairs = (torch.stack(c, 1) for c in zip(*counts))  # [S, layers]
    return {
        "duplicate_frac": found.sum(1) / pairs.sum(1),
        "duplicate_frac_layer": Reading(found / pairs, axis="layer", coords=[u.act for u in units]),
    }


def alike(h: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs of rows of h [S, H, N] with a cosine above `ALIKE`, and all pairs of rows that are not 0: [S], [S].

    >>> alike(torch.tensor([[[1.0, 0.0], [2.0, 0.1], [0.0, 3.0], [0.0, 0.0]]]))
    (tensor([1.]), tensor([3.]))
    """
    norm = torch.linalg.vector_norm(h, dim=2, keepdim=True)
    unit = h / norm.clamp(min=torch.finfo(h.dtype).tiny)
    live = (norm[..., 0] > 0).to(h).sum(1)
    close = ((unit @ unit.mT > ALIKE).triu(1)).to(h).sum((1, 2))
    bad = ~norm.isfinite().all((1, 2))
    return close.masked_fill(bad, math.nan), live * (live - 1) / 2
