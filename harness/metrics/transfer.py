"""Forgetting and transfer, from the accuracy matrix.

R [S, T+1, T]: R[s, i+1, j] is the test score on task j after training on task i; row 0 is the initialisation. NaN
means not measured, and every result that needs such an entry is NaN: no mean is silently taken over fewer tasks. The
functions take any R of that shape, so definitions can be applied to a table without a run.
"""

from __future__ import annotations

import torch
from torch import Tensor

from harness.boundary import Boundary
from harness.metrics import Readings, of_deployed
from harness.types import Column, Reading

COLUMNS: dict[str, Column] = of_deployed(
    {
        "average_accuracy": Column("higher", "score", "mean test score over the tasks seen so far"),
        "learning_accuracy": Column(
            "higher", "score", "test score on the new task just after training on it, R[t+1,t]"
        ),
        "forgetting": Column(
            "lower", "score", "mean over old tasks of the best score since learnt minus the score now"
        ),
        "forgetting_task": Column("lower", "score", "the same for each old task"),
        "backward_transfer": Column("higher", "score", "mean over old tasks of the score now minus when just learnt"),
        "forward_transfer": Column(
            "higher", "score", "mean over tasks 1..t of the score before training minus untrained"
        ),
    }
) | {
    "online_accuracy": Column(
        "higher", "score", "mean over the task's steps of the score before each update, in training mode"
    ),
}


def transfer(b: Boundary) -> Readings:
    """All metrics of this file, after a task; the score is accuracy unless the stream names another."""
    if b.phase != "end":
        return {}
    per_task = forgetting_of_tasks(b.accuracy, b.t)
    found: Readings = {
        "average_accuracy": average_accuracy(b.accuracy, b.t),
        "learning_accuracy": learning_accuracy(b.accuracy, b.t),
        "forgetting": per_task.mean(1),
        "backward_transfer": backward_transfer(b.accuracy, b.t),
        "forward_transfer": forward_transfer(b.accuracy, b.t),
        "online_accuracy": b.online.mean(1),
    }
    first = first_tested(b.accuracy, b.t)
    if first < b.t:
        found["forgetting_task"] = Reading(per_task[:, first:], axis="task", coords=range(first, b.t))
    return found


def first_tested(r: Tensor, t: int) -> int:
    """The first task tested after task t: later than 0 on a long stream whose last tasks alone are tested.

    >>> first_tested(torch.tensor([[[0.1, 0.2], [0.9, 0.3], [float("nan"), 0.8]]]), 1)
    1
    """
    return int((~r[:, t + 1, : t + 1].isnan()).any(0).int().argmax())


def average_accuracy(r: Tensor, t: int) -> Tensor:
    """Mean over j <= t of R[t+1, j]: [S].

    >>> r = torch.tensor([[[0.1, 0.2], [0.9, 0.3], [0.5, 0.8]]])
    >>> average_accuracy(r, 1), learning_accuracy(r, 1), forgetting_of_tasks(r, 1)
    (tensor([0.6500]), tensor([0.8000]), tensor([[0.4000]]))
    >>> backward_transfer(r, 1), forward_transfer(r, 1)
    (tensor([-0.4000]), tensor([0.1000]))
    """
    return r[:, t + 1, : t + 1].mean(1)


def learning_accuracy(r: Tensor, t: int) -> Tensor:
    """R[t+1, t]: [S]. Riemer et al. (2019) and our tables use this name for its mean over boundaries."""
    return r[:, t + 1, t]


def forgetting_of_tasks(r: Tensor, t: int) -> Tensor:
    """max over j <= i < t of R[i+1, j], minus R[t+1, j], for each j < t: [S, t]; negative if it got better.

    Chaudhry et al. (2018), with the maximum over the boundaries at which task j had been learnt.
    """
    if t == 0:
        return r[:, 0, :0]
    now = r[:, t + 1, :t]
    first = first_tested(r, t)
    best = torch.full_like(now, -torch.inf)
    for i in range(first, t):  # row by row: columns of a large matrix are slow to read
        best[:, first : i + 1] = best[:, first : i + 1].maximum(r[:, i + 1, first : i + 1])
    return best - now


def backward_transfer(r: Tensor, t: int) -> Tensor:
    """Mean over j < t of R[t+1, j] - R[j+1, j]: [S]; NaN at t = 0 (Lopez-Paz & Ranzato 2017)."""
    learnt = r[:, 1:].diagonal(dim1=1, dim2=2)  # [S, T]
    return (r[:, t + 1, :t] - learnt[:, :t]).mean(1)


def forward_transfer(r: Tensor, t: int) -> Tensor:
    """Mean over 1 <= j <= t of R[j, j] - R[0, j]: [S]; NaN at t = 0 (Lopez-Paz & Ranzato 2017).

    Row j is the net just before it trains on task j; row 0, the seed's own initialisation, takes the place of their
    random initialisation. NaN unless later tasks are evaluated before they are trained.
    """
    before = r.diagonal(dim1=1, dim2=2)  # [S, T]
    return (before - r[:, 0])[:, 1 : t + 1].mean(1)
