"""The scores that an accuracy matrix determines, in numpy: for tables of runs that did not record them."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from harness.stats import Array

DETERMINED = ("average_accuracy", "learning_accuracy", "forgetting")
SCORES = ("average_accuracy", "learning_accuracy", "online_accuracy", "min_accuracy", "wc_accuracy")


def lowest(values: Array) -> float:
    """The lowest possible score, as which a diverged seed counts (`stats.counted`), from the scores of a run.

    0 for accuracies; minus infinity if a score is negative, as in regression.

    >>> lowest(np.array([0.5, np.nan])), lowest(np.array([-0.5, 0.2]))
    (0.0, -inf)
    """
    return -math.inf if bool((values < 0).any()) else 0.0


def scores(r: Array) -> Mapping[str, Array]:
    """The metrics of DETERMINED at each boundary, from r [S, T, T]: [S, T] each, NaN as in `metrics.transfer`.

    >>> found = scores(np.array([[[0.9, np.nan], [0.5, 0.8]]]))
    >>> {name: values.round(3).tolist() for name, values in found.items()}
    {'average_accuracy': [[0.9, 0.65]], 'learning_accuracy': [[0.9, 0.8]], 'forgetting': [[nan, 0.4]]}
    """
    total = r.shape[1]
    forgetting = np.full(r.shape[:2], np.nan)
    best = np.full(r.shape[::2], -np.inf)  # [S, T] of each task, since it was learnt
    for t in range(total):
        if t:
            forgetting[:, t] = (best[:, :t] - r[:, t, :t]).mean(1)
        best[:, : t + 1] = np.maximum(best[:, : t + 1], r[:, t, : t + 1])
    return {
        "average_accuracy": np.stack([r[:, t, : t + 1].mean(1) for t in range(total)], 1),
        "learning_accuracy": r.diagonal(axis1=1, axis2=2).copy(),
        "forgetting": forgetting,
    }
