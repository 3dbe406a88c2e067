"""Calibration of the deployed net's probabilities on the test rows of each task, under this boundary's mask.

Guo, Pleiss, Sun & Weinberger (2017), On calibration of modern neural networks, ICML. The temperature is fitted on the
task's validation rows, which are never trained on; its effect is measured on the test rows. "Overall" is over the rows
of all tasks seen, with the measured tasks weighted by the number they represent (`metrics.shares`).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from harness.boundary import Boundary
from harness.learner import mask_logits
from harness.metrics import Readings, blank, of_deployed, shares, spaced
from harness.types import Column, Reading

BINS = 15
HOTTEST = 100.0  # temperatures are searched in [1 / HOTTEST, HOTTEST]

_TEXT = {
    "ece": ("lower", "probability", "expected calibration error, 15 bins of equal width (Guo et al. 2017)", "test"),
    "nll": ("lower", "nat", "negative log-likelihood of the true class", "test"),
    "brier": ("lower", "", "squared error of the probabilities, summed over classes", "test"),
    "temperature": ("", "", "divisor of the logits with the lowest nll, in [0.01, 100]; above 1: overconfident", "val"),
    "ece_tempered": ("lower", "probability", "ece with the logits divided by the temperature", "test"),
    "nll_tempered": ("lower", "nat", "nll with the logits divided by the temperature", "test"),
}  # fmt: skip
COLUMNS: dict[str, Column] = of_deployed(
    {
        name + task: Column(better, unit, text + (", each task" if task else ", all tasks seen"), data)
        for name, (better, unit, text, data) in _TEXT.items()
        for task in ("", "_task")
    }
)


def calibration(b: Boundary, *, size: int, tasks: int) -> Readings:
    """Calibration of each measured task (`metrics.spaced`) and overall on `size` test rows of each, after a task.

    The temperature uses as many validation rows, and is NaN without any. Cost: two forward passes of the deployed
    net per task. Empty for regression. NaN if the deployed net's logits are not log-probabilities up to a constant
    (nearest class means): their softmax, and so its error, depends on the unit of length of the distances.
    """
    if b.phase != "end" or b.stream.loss == "mse":
        return {}
    measured = spaced(b.t, tasks)
    parts = [(answers(b, i, size, "val"), answers(b, i, size, "test")) for i in measured]
    each = [calibration_scores(val, test) for val, test in parts]
    of_all = calibration_scores(*(pooled([part[k] for part in parts], shares(measured, b.t)) for k in range(2)))
    found: Readings = dict(of_all)
    found.update(
        {f"{n}_task": Reading(torch.stack([e[n] for e in each], 1), axis="task", coords=measured) for n in of_all}
    )
    if not b.deployed.probabilistic:
        found = {n: _undefined(v) for n, v in found.items()}
    return blank(b, found)


def _undefined(r: Tensor | Reading) -> Tensor | Reading:
    return r * math.nan if isinstance(r, Tensor) else r._replace(value=r.value * math.nan)


class Answers(NamedTuple):
    """A net's answers on rows."""

    logits: Tensor  # [S, N, C], minus infinity for outputs that do not compete
    y: Tensor  # [S, N]
    w: Tensor  # [S, N] weights that sum to 1


@torch.no_grad()
def answers(b: Boundary, task: int, size: int, split: str) -> Answers:
    """The deployed net on rows of a task, under this boundary's mask; of weight NaN for a seed that has none."""
    if not int(getattr(b.stream.tasks[task], split).size.max()):
        alone = torch.full((b.learner.S, 1), math.nan, dtype=torch.float64, device=b.learner.device)
        return Answers(alone.new_zeros(*alone.shape, b.stream.outputs), torch.zeros_like(alone).long(), alone)
    batch = b.probe(task, size, split)
    logits = mask_logits(b.deployed(batch.x, batch.t).logits, b.stream.mask(batch.t, b.t))
    return Answers(logits.double(), batch.y, batch.w.double())


def pooled(parts: list[Answers], weight: tuple[float, ...]) -> Answers:
    """The rows of all parts, with their weights scaled by `weight`."""
    logits, y, w = (torch.cat(list(v), 1) for v in zip(*(a._replace(w=a.w * c) for a, c in zip(parts, weight))))
    return Answers(logits, y, w)


def calibration_scores(val: Answers, test: Answers) -> dict[str, Tensor]:
    """Every metric of this file: [S] each."""
    t = temperature(val)
    tempered = test._replace(logits=test.logits / t[:, None, None])
    return {
        "ece": ece(test),
        "nll": nll(test),
        "brier": brier(test),
        "temperature": t,
        "ece_tempered": ece(tempered),
        "nll_tempered": nll(tempered),
    }


def nll(a: Answers) -> Tensor:
    """Mean of -log p(y): [S], at least 0; infinite if a true class has probability 0."""
    return -(a.w * a.logits.log_softmax(2).gather(2, a.y[..., None])[..., 0]).sum(1)


def brier(a: Answers) -> Tensor:
    """Mean of sum_c (p_c - [c = y])^2: [S], in [0, 2] (Brier 1950). For two classes, half of it has the same name.

    >>> brier(Answers(torch.tensor([[[0.8, 0.2], [0.6, 0.4]]]).log(), torch.tensor([[0, 1]]), torch.full((1, 2), 0.5)))
    tensor([0.4000])
    """
    return (a.w * (a.logits.softmax(2) - one_hot(a.y, a.logits.shape[2])).square().sum(2)).sum(1)


def ece(a: Answers, bins: int = BINS) -> Tensor:
    """sum over bins of |rows that are right - sum of their confidence|, rows counted by weight: [S], in [0, 1].

    Bin m has the rows whose confidence, the largest probability, is in ((m - 1) / bins, m / bins]. Guo et al. (2017)
    after Naeini, Cooper & Hauskrecht (2015). Biased upwards on few rows: on 512 rows a calibrated net has 0.01 (if
    confident) to 0.05.

    >>> p = torch.tensor([[[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.6, 0.4]]], dtype=torch.float64)
    >>> y, w = torch.tensor([[0, 1, 0, 1]]), torch.full((1, 4), 0.25)
    >>> ece(Answers(p.log(), y, w))  # half of each bin is right: (0.4 + 0.1) / 2
    tensor([0.2500], dtype=torch.float64)
    """
    confidence, answer = a.logits.softmax(2).max(2)
    bin_ = ((confidence * bins).ceil() - 1).nan_to_num().long()
    excess = a.w * ((answer == a.y).to(confidence) - confidence)
    return excess.new_zeros(len(excess), bins).scatter_add(1, bin_, excess).abs().sum(1)


def temperature(a: Answers) -> Tensor:
    """The T > 0 that minimises the mean of -log softmax(logits / T)_y: [S], in [1 / HOTTEST, HOTTEST].

    The objective is convex in b = 1 / T; its derivative mean(E_p[logit] - logit_y) is bisected on log b to 1e-12.
    A result at an end of the range means that the optimum is there or beyond: at the low end if no row is wrong, at the
    high end if answers are no better than chance. NaN without rows.

    >>> z = torch.tensor([[[math.log(9.0), 0.0]]], dtype=torch.float64).expand(1, 4, 2)
    >>> temperature(Answers(z, torch.tensor([[0, 0, 0, 1]]), torch.full((1, 4), 0.25)))  # log 9 = 2 log 3: p = 3/4
    tensor([2.0000], dtype=torch.float64)
    """
    z = a.logits - a.logits.amax(2, keepdim=True)
    finite = z.masked_fill(z.isneginf(), 0)
    target = (a.w * z.gather(2, a.y[..., None])[..., 0]).sum(1)
    low = torch.full_like(target, -math.log(HOTTEST))
    high = -low
    for _ in range(43):
        middle = (low + high) / 2
        p = (z * middle.exp()[:, None, None]).softmax(2)
        rising = (a.w * (p * finite).sum(2)).sum(1) > target
        low, high = torch.where(rising, low, middle), torch.where(rising, middle, high)
    known = (a.w.sum(1) > 0) & target.isfinite()
    return (-(low + high) / 2).exp().masked_fill(~known, math.nan)
