"""The statistics over all boards: mean rank, interquartile mean, probability of improvement."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from harness import stats
from harness.leaderboard.comparison import pair
from harness.leaderboard.naming import shared
from harness.leaderboard.records import UNKNOWN, Board, Standing
from harness.stats import Array


def comparing(boards: Sequence[Board]) -> list[Board]:
    """The boards that compare at least two entries."""
    return [b for b in boards if sum(not math.isnan(r.rank) for r in b.rows) > 1]


def overall(boards: Sequence[Board], baseline: str) -> tuple[Standing, ...]:
    """Mean rank, IQM and probability of improvement over all boards that compare at least two entries.

    Only entries that are complete on every board are ranked, among themselves. Each board resamples its own seeds, the
    same for all entries. The IQM and its bootstrap, and the probability of improvement (over all pairs of seeds, mean
    over boards), are those of Agarwal et al. (2021) with boards as tasks.
    """
    boards = comparing(boards)
    if len(boards) < 2:
        return ()
    sign = boards[0].by.sign
    ranked = [[r.entry for r in b.rows if not math.isnan(r.rank)] for b in boards]
    names = shared([[(e.label, e.strategy) for e in entries] for entries in ranked])
    complete = [{name[e.label]: e for e in entries} for name, entries in zip(names, ranked)]
    counts = Counter(label for entries in complete for label in entries)
    diverged = Counter(label for entries in complete for label, entry in entries.items() for _ in entry.diverged)
    whole = sorted(label for label, count in counts.items() if count == len(boards))
    rest = sorted(set(counts) - set(whole), key=lambda label: (-counts[label], label))
    unranked = [Standing(label, counts[label], diverged[label]) for label in rest]
    if not whole:
        return tuple(unranked)
    by = boards[0].by.name
    stacked = [
        np.stack([sign * entries[label].scores[by] for label in whole]) for entries in complete
    ]  # [whole, seeds]
    rank = np.mean([stats.ranks(x.mean(1)) for x in stacked], 0)
    # added up board by board: all boards' draws together would be the largest thing in memory
    drawn = sum((stats.resampled_ranks(x, seed=i) for i, x in enumerate(stacked)), np.zeros(1)) / len(stacked)
    several = min(x.shape[1] for x in stacked) > 1
    between = np.stack(stats.limits(drawn.T), 1)
    base = whole.index(baseline) if baseline in whole else None
    made = []
    for i, label in enumerate(whole):
        mine = [x[i] for x in stacked]
        standing = Standing(
            label=label,
            found=len(boards),
            diverged=diverged[label],
            rank=float(rank[i]),
            rank_interval=pair(between[i]) if several else UNKNOWN,
            iqm=float(sign * stats.iqm(np.concatenate(mine))),
            iqm_interval=pair(sorted(sign * float(v) for v in stats.bootstrap(mine, stats.iqm))),
        )
        if base is not None and i != base:
            share, limits = _improvement(mine, [x[base] for x in stacked])
            standing = replace(standing, improvement=share, improvement_interval=limits)
        made.append(standing)
    return (*sorted(made, key=lambda s: (s.rank, s.label)), *unranked)


def _improvement(mine: Sequence[Array], base: Sequence[Array]) -> tuple[float, tuple[float, float]]:
    share = float(np.mean([stats.improvement_unpaired(x, y) for x, y in zip(mine, base)]))
    if min(map(len, [*mine, *base])) < 2:
        return share, UNKNOWN
    drawn = [
        stats.improvement_unpaired(x[stats.draws(len(x), seed=2 * i)], y[stats.draws(len(y), seed=2 * i + 1)])
        for i, (x, y) in enumerate(zip(mine, base))
    ]
    return share, pair(stats.limits(np.mean(drawn, 0)))
