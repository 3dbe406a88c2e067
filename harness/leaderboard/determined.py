"""Scores that the accuracy table determines, whatever was measured; and why a score has no value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from harness import store
from harness.stats import Array
from harness.store.scores import scores

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("seed", "boundary", "task", "accuracy", "n")  # of the accuracy table


@dataclass
class Determined:
    """What the accuracy tables of some runs say."""

    rows: pd.DataFrame  # run_id, seed, boundary, metric, value: the metrics that a run did not record itself
    empty: dict[str, tuple[int, ...]] = field(default_factory=dict)  # run_id -> tasks without test rows
    partial: set[str] = field(default_factory=set)  # runs in which some task so far was not tested at the end


def determined(runs: Sequence[store.Run], metrics: pd.DataFrame, accuracy: pd.DataFrame) -> Determined:
    """Average accuracy, new-task accuracy and forgetting of runs that did not record them, from their accuracy.

    The definitions are those of `harness.metrics.transfer`. `metrics` has at least one row at every boundary.
    """
    import pandas as pd

    have = set(zip(metrics.run_id, metrics.metric))
    last, tables = metrics.groupby("run_id").boundary.max(), dict(list(accuracy.groupby("run_id")))
    found = Determined(pd.DataFrame({"run_id": [], "seed": [], "boundary": [], "metric": [], "value": []}))
    made = []
    for run in runs:
        run_id, seeds = run.manifest["run_id"], run.manifest["seeds"]
        rows = tables.get(run_id)
        if rows is None:
            continue
        total = 1 + int(max(last.get(run_id, 0), rows.boundary.max()))
        r, n = matrix(rows, seeds, total)
        lost = {*run.manifest.get("diverged", [])} >= {*seeds}
        # a task is always tested just after it, so without a row it has no test rows
        empty = [j for j in range(total) if (n[:, :, j] == 0).any() or (not lost and np.isnan(n[:, j, j]).all())]
        found.empty[run_id] = tuple(empty)
        untested = np.isnan(n[:, -1]).all(0)
        if untested.any() and not set(np.flatnonzero(untested)) <= set(empty):
            found.partial.add(run_id)
        for name, values in scores(r).items():
            if (run_id, name) not in have:
                at = {"seed": np.repeat(seeds, total), "boundary": np.tile(np.arange(total), len(seeds))}
                made.append(pd.DataFrame({"run_id": run_id, **at, "metric": name, "value": values.ravel()}))
    if made:
        found.rows = pd.concat(made, ignore_index=True)
    return found


def matrix(rows: pd.DataFrame, seeds: Sequence[int], total: int) -> tuple[Array, Array]:
    """Accuracy and number of test rows of each seed on task j after task i: [S, T, T] each; NaN if not tested."""
    r = np.full((len(seeds), total, total), np.nan)
    n = r.copy()
    kept = rows[(rows.boundary >= 0) & (rows.task >= 0) & (rows.task < total) & rows.seed.isin(seeds)]
    order = np.argsort(seeds)
    at = (order[np.searchsorted(np.asarray(seeds)[order], kept.seed)], kept.boundary, kept.task)
    r[at], n[at] = kept.accuracy, kept.n
    return r, n
