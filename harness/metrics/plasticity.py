"""Can the learner still learn? Its units, features, weights and gradients, and the two gaps.

Measured on the frozen probe of task t (training rows): in phase "start" the new task's data before training on it, in
phase "end" the data of the task just trained. All forward passes are in evaluation mode.
"""

from __future__ import annotations

import torch

from harness import tree
from harness.boundary import Boundary
from harness.landscape.curvature import value_and_grad
from harness.metrics import Readings, blank, dormancy, objective, ranks, unmeasured
from harness.types import Column

COLUMNS: dict[str, Column] = {
    **dormancy.COLUMNS,
    **ranks.COLUMNS,
    "weight_mag": Column("", "weight", "mean |w| over the weights of all layers, biases and norms excluded"),
    "weight_l2": Column("", "weight", "Euclidean norm of all parameters"),
    "dist_init_l2": Column("", "weight", "Euclidean distance of all parameters from the initialisation"),
    "grad_norm": Column("", "nat/weight", "norm of the gradient of the probe's mean loss", "train"),
    "grad_zero_frac": Column("", "fraction", "entries of that gradient that are exactly 0", "train"),
    "intransigence": Column("lower", "score", "a fresh net's score on the new task minus the trained net's", "test"),
    "intransigence_deployed": Column(
        "lower", "score", "a fresh net's score on the new task minus the deployed net's", "test", "deployed"
    ),
    "trainability_gap": Column(
        "lower", "score", "a fresh net's score on the new task minus that of plain training", "test", ""
    ),
}


def plasticity(b: Boundary, *, size: int, duplicates: bool, rank: bool, gradient: bool) -> Readings:
    """Cost: one forward pass over `size` probe rows, and about as much again for each of `duplicates` (a product of
    rows x units^2 per layer), `rank` (an SVD of the last features) and `gradient` (a backward pass).
    """
    batch = b.probe(b.t, size)
    with torch.no_grad():
        acts = b.trained(batch.x, batch.t).acts
    units = b.learner.model.units
    found: Readings = {**dormancy.dormancy(acts, units), **weights(b)}
    if duplicates:
        found.update(dormancy.duplicates(acts, units))
    if rank and units:
        found.update(ranks.feature_ranks(acts[units[-1].act]))
    if gradient:
        grads = value_and_grad(objective(b, batch), b.trained.params)[1]
        found["grad_norm"] = tree.norm(grads)
        found["grad_zero_frac"] = (
            torch.cat([(g == 0).reshape(len(g), -1) for g in grads.values()], 1).to(batch.w).mean(1)
        )
    if b.phase == "end":
        fresh = unmeasured(b) if b.control is None else b.control[:, b.t]
        given_out = b.accuracy[:, b.t + 1, b.t]
        mine = given_out if b.trained_score is None else b.trained_score
        found["intransigence"] = fresh - mine.to(fresh.device)
        found["intransigence_deployed"] = fresh - given_out.to(fresh.device)
        found["trainability_gap"] = fresh - (unmeasured(b) if b.gap is None else b.gap.to(fresh.device))
    return blank(b, found)


def weights(b: Boundary) -> Readings:
    """Size of the parameters and their distance from the seed's own initialisation."""
    params = b.trained.params
    found: Readings = {
        "weight_l2": tree.norm(params),
        "dist_init_l2": tree.norm(tree.sub(params, b.nets.initial.params)),
    }
    size = [params[layer.weight].abs().flatten(1) for layer in b.learner.model.layers]
    if size:  # a user's own module may declare no layers
        found["weight_mag"] = torch.cat(size, 1).mean(1)
    return found
