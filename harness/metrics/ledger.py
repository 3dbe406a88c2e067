"""The forgetting ledger: how much of an old task's loss increase its own optimum predicts.

Let theta_i be the net after task i, theta_t the current net and d = theta_t - theta_i. Expanded at theta_i,

    L_i(theta_t) - L_i(theta_i) = g'd + 1/2 d'Hd + residual,    g, H: gradient and Hessian of L_i at theta_i
    1/2 d'Hd <= 1/2 lambda_1 |d|^2

(Mirzadeh et al. 2020; Yin et al. 2020 predict forgetting by the second term). The residual is what no local expansion
at the old optimum can capture: a net that moved far (non-local forgetting, Lanzillotta et al. 2024). No claim is built
in; the terms are reported next to the actual change.

L_i is the mean loss over task i's frozen probe in evaluation mode, always under this boundary's mask. With
scenario=class and classes=seen, later classes compete at theta_i too, although it never saw them. It is then not an
optimum of this loss; the first-order term measures by how much, and `ledger_mask` is the loss that the wider mask alone
added before any weight moved. g and H use the running statistics of theta_i; the effect of updating them is part of the
residual, and reported as `ledger_statistics`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from harness import tree
from harness.boundary import Boundary
from harness.landscape.curvature import Hessian, lanczos
from harness.metrics import Readings, blank, score, spaced
from harness.types import Column, Loss, Net, Params, Reading

COLUMNS: dict[str, Column] = {
    "ledger_loss": Column("lower", "nat", "loss of the old task now minus just after it", "train"),
    "ledger_accuracy": Column("higher", "accuracy", "probe accuracy on the old task now minus just after it", "train"),
    "ledger_first": Column(
        "", "nat", "first-order term of that change of loss, g'd at the net just after the task", "train"
    ),
    "ledger_second": Column("", "nat", "second-order term, 1/2 d'Hd at the net just after the task", "train"),
    "ledger_residual": Column("", "nat", "change of loss minus both terms: the non-local part", "train"),
    "ledger_distance": Column("", "weight", "|d|, Euclidean distance to the net just after the task"),
    "ledger_gradient": Column(
        "", "nat/weight", "|g|, which is 0 if that net is an optimum of the task's loss", "train"
    ),
    "ledger_mask": Column(
        "", "nat", "loss added by the competition of later classes, at the net just after the task", "train"
    ),
    "ledger_statistics": Column("", "nat", "change of loss by the running statistics, at the current weights", "train"),
    "ledger_lambda_max": Column(
        "", "nat/weight2", "largest Hessian eigenvalue at the net just after the task", "train"
    ),
    "ledger_lambda_residual": Column("lower", "nat/weight2", "||Hu - lambda u|| of that eigenvalue", "train"),
    "ledger_bound": Column("", "nat", "1/2 lambda_max |d|^2, upper bound of the second-order term", "train"),
    "ledger_share": Column("", "fraction", "share of |d|^2 in the eigenspace of the k largest eigenvalues", "train"),
}


def ledger(b: Boundary, *, size: int, tasks: int, steps: int, k: int) -> Readings:
    """The account of every measured old task i < t after task t: [S, tasks] each; empty at t = 0.

    The old tasks are those of `metrics.spaced(t, tasks)`. `steps` are Lanczos steps from d at theta_i, one Hessian
    product each: 1 gives only the second-order term, more than `k` also lambda_max, the bound and the share of d in the
    top-k eigenspace, a number in [0, 1] that is k/P for a random direction in P dimensions. The steps start at d, so
    one run gives all four, without state between boundaries. lambda_max is a lower bound until its residual is small.
    In exact arithmetic it converges to the largest eigenvalue in whose eigenspace d has a component, so the bound
    holds. Fewer steps overstate the share: on digits 12 steps by up to about 20 times, 20 by a third at most, 30 by
    3 %.

    Cost per old task: `steps` Hessian products, 1 gradient, 3 forward passes (1 more with batch norm, 1 more with
    scenario=class); `steps` copies of the parameters. NaN if the net after task i was not kept (keep=last); the share
    is NaN if the net has not moved. Regression has no accuracy. ValueError for 1 < steps <= k.

    On a quadratic loss the residual is 0. L = (w - 1)^2, from w = 2 to w = 5: g'd = 2 * 3, 1/2 d'Hd = 9, 1 -> 16:

    >>> account(lambda p: (p["w"][:, 0] - 1) ** 2, {"w": torch.tensor([[2.0]])}, {"w": torch.tensor([[3.0]])}, 1, 0)
    {'first': tensor([6.]), 'distance': tensor([3.]), 'gradient': tensor([2.]), 'second': tensor([9.])}
    """
    if steps < 1 or 1 < steps <= k:
        raise ValueError(f"metrics.ledger.steps={steps}: must be 1, or above k={k} for the bound and the share")
    if b.phase != "end" or b.t == 0:
        return {}
    old = spaced(b.t, tasks)[:-1]
    rows = [entry(b, i, size, steps, k) if i in b.nets else {} for i in old]
    lost = torch.full_like(b.accuracy[:, 0, 0], math.nan, device=b.learner.device)
    names = [n for n in COLUMNS if any(n in row for row in rows)]
    columns = {n: torch.stack([row.get(n, lost) for row in rows], 1) for n in names}
    return blank(b, {n: Reading(v, axis="task", coords=old) for n, v in columns.items()})


def entry(b: Boundary, i: int, size: int, steps: int, k: int) -> dict[str, Tensor]:
    """The change of old task i's loss, and its terms at the task's own optimum: column -> [S]."""
    then, now, batch = b.nets[i], b.trained, b.probe(i, size)
    before, after = score(b, then, batch), score(b, now, batch)
    found = {"ledger_loss": after[:, 0] - before[:, 0]}
    if b.stream.loss != "mse":
        found["ledger_accuracy"] = before[:, 1] - after[:, 1]
    if b.stream.masks is not None and b.stream.scenario == "class":
        found["ledger_mask"] = before[:, 0] - score(b, then, batch, now=i)[:, 0]
    if now.buffers:
        found["ledger_statistics"] = after[:, 0] - score(b, Net(now.params, then.buffers, now.apply), batch)[:, 0]
    loss = b.learner.objective([batch], b.stream, b.t, then.buffers, then.apply)
    terms = account(loss, then.params, tree.sub(now.params, then.params), steps, k)
    found |= {f"ledger_{name}": value for name, value in terms.items()}
    found["ledger_residual"] = found["ledger_loss"] - found["ledger_first"] - found["ledger_second"]
    return found


@torch.no_grad()
def account(loss: Loss, at: Params, d: Params, steps: int, k: int) -> dict[str, Tensor]:
    """The local terms of `ledger` for `loss` at `at` in direction d: [S] each."""
    hessian, distance = Hessian(loss, at), tree.norm(d)
    found = {
        "first": tree.dot(hessian.gradient, d),
        "distance": distance,
        "gradient": tree.norm(hessian.gradient),
    }
    if steps == 1:
        return {**found, "second": tree.dot(d, hessian(d)) / 2}
    values, residuals, _, share = lanczos(hessian, d, steps)
    assert share is not None
    half = distance.square() / 2

    def scaled(curvature: Tensor) -> Tensor:
        return torch.where(distance == 0, 0, half * curvature)

    return {
        **found,
        "second": scaled((values * share).sum(1)),  # d is in the Krylov space
        "lambda_max": values[:, 0],
        "lambda_residual": residuals[:, 0],
        "bound": scaled(values[:, 0]),
        "share": share[:, :k].sum(1),
    }
