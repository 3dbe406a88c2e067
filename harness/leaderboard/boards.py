"""From entries to boards: which seeds are compared, which entries are complete, and the notes below the table."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from harness import store
from harness.leaderboard.code import versions
from harness.leaderboard.comparison import compared, score_means
from harness.leaderboard.entries import missing
from harness.leaderboard.naming import listed, setting_in_words, told_apart
from harness.leaderboard.records import Board, Entry, Place, Row, Score
from harness.store.scores import DETERMINED
from harness.wording import UNDEFINED


def board(place: Place, found: Sequence[Entry], interrupted: Sequence[store.Run], by: Score, baseline: str) -> Board:
    """The board of one setting: its entries, and the runs that started and did not finish."""
    seeds = reference([e.seeds for e in found] or [tuple(run.manifest["seeds"]) for run in interrupted])
    notes = versions(found)
    complete: list[Entry] = []
    partial: list[Entry] = []
    for entry in found:
        if set(seeds) <= set(entry.seeds):
            if more := set(entry.seeds) - set(seeds):
                notes.append(f"{entry.label}: seeds {listed(more)} are not compared because other entries lack them")
            entry = on(entry, seeds)
        whole = entry.seeds == seeds and not np.isnan(entry.scores[by.name]).any()
        (complete if whole else partial).append(entry)
    for entry in partial:
        if np.isnan(entry.scores[by.name]).all() and not entry.diverged:
            notes.append(f"{entry.label}: {by.title} {_missing(entry, by)}")
    against = _baseline(complete, baseline)
    if complete and against is None:
        notes.append(f"{baseline} is missing or incomplete, so nothing is compared with it")
    rows = compared(complete, by, against)
    rows += [_uncompared(e, seeds, by) for e in [*partial, *missing(interrupted, found)]]
    notes += hours(found)
    some = next(run for runs in [*(e.runs for e in found), interrupted] for run in runs)
    return Board(
        stream=place.stream,
        scenario=place.scenario,
        setting=f"{place.setting}, data {place.data}" if place.data else place.setting,
        version=place.version,
        split=place.split,
        about=setting_in_words(some.manifest),
        by=by,
        seeds=seeds,
        baseline=against.label if against else "",
        rows=tuple(rows),
        notes=tuple(notes),
    )


def _baseline(entries: Sequence[Entry], name: str) -> Entry | None:
    """The entry of this name, or the only one of the strategy of this name."""
    exact = [e for e in entries if e.label == name]
    alike = [e for e in entries if e.strategy == name]
    return exact[0] if exact else alike[0] if len(alike) == 1 else None


def reference(sets: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The seeds that are compared: the set that most entries were run with.

    Ties go to the set that more entries contain, then to the larger one.

    >>> reference([(0, 1, 2), (0, 1, 2), (0, 1, 2, 3, 4), (0, 1)])
    (0, 1, 2)
    """
    alike = Counter(sets)
    covered = {one: sum(set(one) <= set(other) for other in sets) for one in alike}
    return max(alike, key=lambda one: (alike[one], covered[one], len(one), one))


def on(entry: Entry, seeds: tuple[int, ...]) -> Entry:
    """The entry restricted to these seeds."""
    if entry.seeds == seeds:
        return entry
    at = [entry.seeds.index(s) for s in seeds]
    kept = {name: values[at] for name, values in entry.scores.items()}
    marks = {name: tuple(values[i] for i in at) for name, values in entry.marks.items()}
    return replace(
        entry, seeds=seeds, scores=kept, marks=marks, diverged=tuple(s for s in entry.diverged if s in seeds)
    )


def _missing(entry: Entry, by: Score) -> str:
    """Why no seed has a value, and what to do."""
    if entry.mark(by.name) == UNDEFINED:
        words = f"task{'s' * (len(entry.empty) > 1)} {listed(j + 1 for j in entry.empty)}"
        return f"is undefined, because {words} had no test rows" if entry.empty else "is undefined"
    if by.name in DETERMINED:
        return "was not measured, because not all tasks were tested; rerun with eval.tasks=seen"
    return f"was not measured; try python -m harness measure {entry.runs[0].path}"


def _uncompared(entry: Entry, seeds: tuple[int, ...], by: Score) -> Row:
    got = {s for s, v in zip(entry.seeds, entry.scores[by.name]) if not math.isnan(v)}
    return Row(entry, len(got & set(seeds)), score_means([entry])[0])


def hours(found: Sequence[Entry]) -> list[str]:
    """Training time of all entries, and the machines; empty if no times were recorded."""
    timed = [(run.manifest, e.seconds * len(run.manifest["seeds"])) for e in found for run in e.runs if e.seconds > 0]
    if not timed:
        return []
    spent = sum(seconds for _, seconds in timed) / 3600
    machines = Counter(_machine(facts) for facts, _ in timed)
    each = "; ".join(f"{name} ({count} run{'s' * (count > 1)})" for name, count in machines.most_common())
    return [f"{spent:.2g} training hours in total (without evaluation and metrics), on {each}"]


def _machine(facts: Mapping[str, Any]) -> str:
    hardware = facts.get("hardware", {})
    threads = facts.get("threads", 1)
    cpu = f"{hardware.get('cpu') or 'an unknown CPU'}, {threads} thread{'s' * (threads > 1)}"
    return hardware.get("gpu") or cpu


def incomparable(boards: Sequence[Board]) -> list[str]:
    """Why the settings of one stream are not compared with one another."""
    notes = []
    for stream in dict.fromkeys(b.stream for b in boards):
        same = [b for b in boards if b.stream == stream]
        if len(same) < 2:
            continue
        keys = ("tasks", "classes", "model", "optimizer", "train", "dtype", "pin", "start", "dataset", "threads")
        runs = [next(run for row in b.rows for run in row.entry.runs) for b in same]
        differences = told_apart(
            [
                {**{k: run.manifest["config"].get(k) for k in keys}, "stream_version": b.version, "split": b.split}
                for run, b in zip(runs, same)
            ]
        )
        each = "; ".join(
            f"{b.setting}: {text or 'other data, threads or device'}" for b, text in zip(same, differences)
        )
        notes.append(f"{stream}: {len(same)} settings that are not compared with one another ({each})")
    return notes
