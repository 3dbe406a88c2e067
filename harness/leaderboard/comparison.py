"""The statistics of a board: ranks, intervals, differences from the baseline, Pareto fronts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness import stats
from harness.leaderboard.records import FRONTS, SCORES, Entry, Row, Score


def compared(entries: Sequence[Entry], by: Score, baseline: Entry | None) -> list[Row]:
    """Complete entries, all on the same seeds, ranked by the mean of a score."""
    if not entries:
        return []
    sign = by.sign
    table = np.stack([sign * e.scores[by.name] for e in entries])  # [entries, seeds], higher is better
    rank, between = stats.ranks(table.mean(1)), np.stack(stats.rank_intervals(table), 1)
    middle, around = sign * stats.iqm(table), np.sort(sign * np.stack(stats.bootstrap([table], stats.iqm), 1), 1)
    front, means = fronts(entries), score_means(entries)
    base = sign * baseline.scores[by.name] if baseline is not None else np.full(table.shape[1], np.nan)
    with np.errstate(invalid="ignore"):  # both diverged: minus infinity minus itself
        apart = table - base
    distance, half = stats.student(sign * apart)
    rows = []
    for i, entry in enumerate(entries):
        row = Row(
            entry=entry,
            found=table.shape[1],
            means=means[i],
            rank=float(rank[i]),
            rank_interval=pair(between[i]),
            iqm=float(middle[i]),
            iqm_interval=pair(around[i]),
            fronts=tuple(name for name in FRONTS if front[name][i]),
        )
        if baseline is not None and entry is not baseline:
            share = stats.improvement(table[i], base)
            row = replace(
                row,
                difference=(float(distance[i]), float(half[i])),
                improvement=share,
                improvement_interval=stats.proportion_interval(share, len(base)),
                detectable=stats.detectable(apart[i]),
            )
        rows.append(row)
    return sorted(rows, key=lambda row: (row.rank, row.entry.label))


def pair(limits: Iterable[Any]) -> tuple[float, float]:
    low, high = map(float, limits)
    return low, high


def fronts(entries: Sequence[Entry]) -> dict[str, NDArray[np.bool_]]:
    """Which entries are on the Pareto front of average accuracy and each of FRONTS: name -> bool [entries]."""
    accuracy = np.array([e.scores["average_accuracy"].mean() for e in entries])
    costs = {
        "step": [e.step for e in entries],
        "memory": [e.memory for e in entries],
        "forgetting": [e.scores["forgetting"].mean() for e in entries],
    }
    return {name: stats.pareto(np.stack([accuracy, -np.array(cost)], 1)) for name, cost in costs.items()}


def score_means(entries: Sequence[Entry]) -> list[dict[str, tuple[float, float, int]]]:
    """For each entry and score: mean, half width, number of values. All entries have the same number of seeds."""
    made: list[dict[str, tuple[float, float, int]]] = [{} for _ in entries]
    for score in SCORES:
        table = np.stack([e.scores[score.name] for e in entries])
        mean, half = stats.student(table)
        there = (~np.isnan(table)).sum(1)
        for i, found in enumerate(made):
            found[score.name] = float(mean[i]), float(half[i]), int(there[i])
    return made
