"""The scores of old tasks while the next task is learnt, including dips that are not visible at the boundaries.

De Lange, van de Ven & Tuytelaars (2023), Continual evaluation for lifelong learning: identifying the stability gap,
ICLR. Computed from scores every `eval.every` steps within a task; empty without them.
"""

from __future__ import annotations

from torch import Tensor

from harness.boundary import Boundary
from harness.metrics import Readings, of_deployed
from harness.types import Column, Reading

COLUMNS: dict[str, Column] = of_deployed({
    "score_inside": Column("higher", "score", "score on each task so far, every eval.every steps of this task", "test"),
    "min_accuracy": Column("higher", "score", "mean over old tasks of the lowest score since it was learnt", "test"),
    "min_accuracy_task": Column("higher", "score", "that lowest score of each old task", "test"),
    "wc_accuracy": Column("higher", "score", "mean of the score on this task and the lowest on each old task", "test"),
    "stability_gap": Column("lower", "score", "mean over old tasks of stability_gap_task", "test"),
    "stability_gap_task": Column("lower", "score", "score after the last step minus the lowest in this task", "test"),
})  # fmt: skip


def stability(b: Boundary) -> Readings:
    """All metrics of this file, after a task, on a fixed subset of each task's test rows.

    The scores of the last step are from before the strategy's end hook (merging, distillation); the accuracy matrix is
    from after it. NaN if an old task was not measured (eval.tasks). Costs nothing beyond the scores.
    """
    if b.phase != "end" or b.inside is None:
        return {}
    steps, score, least = b.inside
    seen = score[:, :, : b.t + 1]
    found: Readings = {
        "score_inside": Reading(
            seen.flatten(1),
            axis="step",
            coords=[n for n in steps for _ in range(b.t + 1)],
            tasks=list(range(b.t + 1)) * len(steps),
        ),
        "min_accuracy": least[:, : b.t].mean(1),
        "wc_accuracy": wc_accuracy(seen[:, -1, -1], least[:, : b.t]),
        "stability_gap": stability_gap(seen[:, :, : b.t]).mean(1),
    }
    if b.t:
        found["min_accuracy_task"] = Reading(least[:, : b.t], axis="task", coords=range(b.t))
        found["stability_gap_task"] = Reading(stability_gap(seen[:, :, : b.t]), axis="task", coords=range(b.t))
    return found


def wc_accuracy(new: Tensor, least: Tensor) -> Tensor:
    """WC-ACC, a/k + (1 - 1/k) mean of the lowest: score on the k-th task [S], lowest on the old [S, k - 1] -> [S].

    A lower bound of the average accuracy at every step since the tasks were learnt. With one task it is a.

    >>> import torch
    >>> wc_accuracy(torch.tensor([0.9]), torch.tensor([[0.2, 0.4]]))
    tensor([0.5000])
    """
    return (new + least.sum(1)) / (least.shape[1] + 1)


def stability_gap(score: Tensor) -> Tensor:
    """Last score minus the lowest: [S, K, tasks] -> [S, tasks], at least 0.

    The paper means a drop that is recovered; this is the recovered amount. A score that only falls, as in naive
    training, has no gap: that is forgetting. NaN if a score is NaN.

    >>> import torch
    >>> stability_gap(torch.tensor([[[0.9, 0.9], [0.3, 0.6], [0.7, 0.4]]]))
    tensor([[0.4000, 0.0000]])
    """
    return score[:, -1:].squeeze(1) - score.amin(1)
