"""Whether the learner can still learn: its units, features, weights and gradients, and the two gaps.

Measured on the frozen probe of task t: at phase "start" the new task's data before training on it, at phase "end"
the data of the task just trained. All forward passes are in evaluation mode.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from harness import tree
from harness.curvature import rowwise, value_and_grad
from harness.metrics import Readings, blank, objective, unmeasured
from harness.types import Boundary, Column, Reading, Unit

TAUS = (0.0, 0.025, 0.1)  # thresholds of Sokar et al. 2023

COLUMNS: dict[str, Column] = {
    "dead_frac": Column("lower", "fraction", "hidden units that are 0 on every probe row (Dohare et al. 2024)"),
    "dead_frac_layer": Column("lower", "fraction", "the same, layer by layer"),
    "redo_dormant_0": Column("lower", "fraction", "units with E|h| <= 0 x layer mean (Sokar et al. 2023)"),
    "redo_dormant_0_layer": Column("lower", "fraction", "the same, layer by layer"),
    "redo_dormant_0.025": Column("lower", "fraction", "units with E|h| <= 0.025 x layer mean (Sokar et al. 2023)"),
    "redo_dormant_0.025_layer": Column("lower", "fraction", "the same, layer by layer"),
    "redo_dormant_0.1": Column("lower", "fraction", "units with E|h| <= 0.1 x layer mean (Sokar et al. 2023)"),
    "redo_dormant_0.1_layer": Column("lower", "fraction", "the same, layer by layer"),
    "effective_rank": Column("", "dimensions", "exp of the entropy of the last features' singular values"),
    "srank_99": Column("", "dimensions", "fewest singular values with 99 % of their sum (Kumar et al. 2021)"),
    "stable_rank_true": Column("", "dimensions", "sum of squared singular values over the largest squared"),
    "weight_mag": Column("", "weight", "mean |w| over the weights of all layers, biases and norms excluded"),
    "weight_l2": Column("", "weight", "Euclidean norm of all parameters"),
    "dist_init_l2": Column("", "weight", "Euclidean distance of all parameters from the initialisation"),
    "grad_norm": Column("", "nat/weight", "norm of the gradient of the probe's mean loss"),
    "grad_zero_frac": Column("", "fraction", "entries of that gradient that are exactly 0"),
    "intransigence": Column("lower", "score", "a fresh net's score on the new task minus the learner's"),
    "trainability_gap": Column("lower", "score", "a fresh net's score on the new task minus that of plain training"),
}


def plasticity(b: Boundary, *, size: int, rank: bool, gradient: bool) -> Readings:
    """One forward pass over `size` probe rows, one SVD if `rank`, one backward pass if `gradient`."""
    batch = b.probe(b.t, size)
    with torch.no_grad():
        acts = b.trained(batch.x, batch.t).acts
    units = b.learner.model.units
    found: Readings = {**dormancy(acts, units), **weights(b)}
    if rank and units:
        sigma = singular_values(acts[units[-1].act])
        found["effective_rank"] = effective_rank(sigma)
        found["srank_99"] = srank(sigma, 0.99)
        found["stable_rank_true"] = stable_rank(sigma)
    if gradient:
        grads = value_and_grad(objective(b, batch), b.trained.params)[1]
        found["grad_norm"] = tree.norm(grads)
        found["grad_zero_frac"] = (
            torch.cat([(g == 0).reshape(len(g), -1) for g in grads.values()], 1).to(batch.w).mean(1)
        )
    if b.phase == "end":
        fresh = unmeasured(b) if b.control is None else b.control[:, b.t]
        found["intransigence"] = fresh - b.accuracy[:, b.t + 1, b.t].to(fresh.device)
        found["trainability_gap"] = fresh - (unmeasured(b) if b.gap is None else b.gap.to(fresh.device))
    return blank(b, found)


def strength(act: Tensor, size: int) -> Tensor:
    """E|h| of each unit over rows and space, summed over the copies that CReLU makes: [S, size]."""
    mean = act.abs().transpose(1, 2).flatten(2).mean(2)  # [S, k * size]
    return mean.view(len(act), -1, size).sum(1)


def dormant(h: Tensor, tau: float) -> Tensor:
    """1 where E|h| <= tau times the layer's mean, else 0, NaN where not finite: [S, size] -> [S, size].

    A layer in which nothing fires is dormant throughout.

    >>> dormant(torch.tensor([[0.0, 0.1, 3.9], [0.0, 0.0, 0.0]]), 0.1).tolist()
    [[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]]
    """
    asleep = (h <= tau * h.mean(1, keepdim=True)).to(h)
    return asleep.masked_fill(~h.isfinite(), math.nan)


def dormancy(acts: dict[str, Tensor], units: tuple[Unit, ...]) -> Readings:
    """Dead and ReDo-dormant fractions, over all units and of each layer."""
    strengths = [strength(acts[u.act], u.size) for u in units]
    names = [u.act for u in units]
    found: Readings = {}
    for name, tau in (("dead_frac", 0.0), *((f"redo_dormant_{tau:g}", tau) for tau in TAUS)):
        asleep = [dormant(h, tau) for h in strengths]
        if asleep:
            found[name] = torch.cat(asleep, 1).mean(1)
            found[f"{name}_layer"] = Reading(torch.stack([a.mean(1) for a in asleep], 1), axis="layer", coords=names)
    return found


def singular_values(act: Tensor) -> Tensor:
    """Singular values, descending, of the features [rows, units], uncentred, averaged over space: [S, r] float64."""
    features = act.double().flatten(3).mean(3) if act.dim() > 3 else act.double()
    return rowwise(lambda x: (torch.linalg.svdvals(x),), features)[0]


def effective_rank(sigma: Tensor) -> Tensor:
    """exp(-sum p log p), p = sigma / sum sigma: [S, r] -> [S], in [1, r]; 0 for the zero matrix.

    Roy & Vetterli (2007).

    >>> effective_rank(torch.tensor([[2.0, 2.0, 0.0], [5.0, 0.0, 0.0], [0.0, 0.0, 0.0]]))
    tensor([2., 1., 0.])
    """
    total = sigma.sum(1)
    p = sigma / total[:, None]
    return torch.where(total == 0, 0, torch.special.entr(p).sum(1).exp())


def srank(sigma: Tensor, share: float) -> Tensor:
    """Fewest leading singular values whose sum is at least `share` of all: [S, r] -> [S]; 0 for the zero matrix.

    Kumar et al. (2021) with share = 0.99. Not squared: with sigma^2 it is another measure.

    >>> srank(torch.tensor([[98.0, 1.5, 0.5], [50.0, 49.0, 1.0], [0.0, 0.0, 0.0]]), 0.99)
    tensor([2., 2., 0.])
    """
    total = sigma.sum(1)
    count = (sigma.cumsum(1) < share * total[:, None]).sum(1).to(sigma) + 1
    return torch.where(total == 0, 0, count).masked_fill(total.isnan(), math.nan)


def stable_rank(sigma: Tensor) -> Tensor:
    """sum sigma^2 / max sigma^2: [S, r] -> [S], in [1, r]; 0 for the zero matrix.

    >>> stable_rank(torch.tensor([[2.0, 1.0], [0.0, 0.0]]))
    tensor([1.2500, 0.0000])
    """
    energy = sigma.square()
    return torch.where(energy[:, 0] == 0, 0, energy.sum(1) / energy[:, 0])


def weights(b: Boundary) -> Readings:
    """Size of the parameters and their distance from the seed's own initialisation."""
    params = b.trained.params
    size = torch.cat([params[layer.weight].abs().flatten(1) for layer in b.learner.model.layers], 1)
    return {
        "weight_mag": size.mean(1),
        "weight_l2": tree.norm(params),
        "dist_init_l2": tree.norm(tree.sub(params, b.nets.initial.params)),
    }
