"""Which rows are missing, and the jobs that make them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from harness.config.preflight import compositions
from harness.store import sources
from harness.store.readers import finished, unfinished
from harness.verify.protocol import Row
from harness.verify.results import NAME, Result, collect, current, key_of, load, method_of, save, traced
from harness.verify.trace import WORDS, Traces, key_of_trace, same, traces

SHARED = ("metrics=off", "gap=false", "control=false", "tracker.mode=disabled", "keep=last")  # none moves a number
TYPED = ("dataset.root", "results", "device", "threads", "hydra.launcher.n_jobs")  # nor does any of these, by intent
RESULTS = "results/verify"
TRACES = "traces"  # within it


@dataclass(frozen=True)
class Wanted:
    """A row with what its result must have been made with."""

    row: Row
    key: str
    method: str
    trace: str  # key of its trace


def wanted(rows: Sequence[Row]) -> list[Wanted]:
    """Compose the settings of each row. ValueError for a row whose settings cannot work."""
    made = compositions([[*row.settings, *SHARED] for row in rows])
    return [Wanted(row, key_of(cfg), method_of(cfg), key_of_trace(cfg)) for row, cfg in zip(rows, made)]


def results(rows: Sequence[Wanted], runs: Path, out: Path, notes: list[str]) -> list[Result]:
    """All results of `out` and of the finished runs, each once, with their traces; written back to `out` if changed."""
    known = load(out / NAME)
    new = collect(((one.key, one.row) for one in rows), runs, notes)
    have = {_identity(result) for result in known}
    every = [*known, *(result for result in new if _identity(result) not in have)]
    every = kept(rows, every, traces(runs / TRACES, notes))
    if {*every} != {*known}:
        save(every, out / NAME)
    return every


def _identity(result: Result) -> tuple[str, ...]:
    return result.run_id, result.ended_at, result.score, result.method


def kept(rows: Sequence[Wanted], found: Sequence[Result], made: Traces) -> list[Result]:
    """The results with their traces, and again with today's code where an edit left the trace as it was."""
    keys = {one.key: one.trace for one in rows}
    every = [
        result if result.trace else replace(result, trace=made.get((keys.get(result.key, ""), result.method), ()))
        for result in found
    ]
    for one in rows:
        before, now = traced(every, one.key, one.row.score), made.get((one.trace, one.method), ())
        if before and not current(every, one.key, one.method, one.row.score) and same(before.trace, now):
            every.append(replace(before, method=one.method))
    return every


def untraced(rows: Sequence[Wanted], found: Sequence[Result]) -> list[Wanted]:
    """Rows whose trace is to be made: of a result that has none, or to see whether an edit changed it."""
    needed = []
    for one in rows:
        have = current(found, one.key, one.method, one.row.score)
        if not have.trace if have else traced(found, one.key, one.row.score):
            needed.append(one)
    return needed


def by_row(rows: Sequence[Wanted], found: Sequence[Result]) -> dict[str, Result]:
    """The result of each row that has one."""
    pairs = ((one.row.name, current(found, one.key, one.method, one.row.score)) for one in rows)
    return {name: result for name, result in pairs if result is not None}


def plan(rows: Sequence[Row], missing: Sequence[Row], n_jobs: int) -> str:
    """What will be run, and how long it takes.

    >>> row = Row("p/ewc", ("strategy=ewc",), 90.0, 1.0, 10, 1.0, 90.0, "")
    >>> plan([row, row], [row], 2)
    '2 rows, 1 to run: 1.5 hours of one core, with 2 jobs at a time'
    >>> plan([row, row], [], 2)
    '2 rows, none to run'
    """
    if not missing:
        return f"{len(rows)} rows, none to run"
    hours = sum(row.minutes for row in missing if not math.isnan(row.minutes)) / 60
    least = "at least " if any(math.isnan(row.minutes) for row in missing) else ""
    at_once = f", with {n_jobs} job{'s' * (n_jobs != 1)} at a time"
    return f"{len(rows)} rows, {len(missing)} to run: {least}{hours:.1f} hours of one core{at_once}"


def jobs(missing: Sequence[Wanted], runs: Path) -> list[list[str]]:
    """What is typed for each row: with force=true if a run of it was made, or begun, with other code."""
    stale = _edited(runs)
    return [[*one.row.settings, *SHARED, *["force=true"] * (one.key in stale)] for one in missing]


def trace_jobs(needed: Sequence[Wanted], runs: Path) -> list[list[str]]:
    """What is typed for the trace of each row."""
    stale = _edited(runs / TRACES)
    return [[*one.row.settings, *SHARED, *WORDS, *["force=true"] * (one.trace in stale)] for one in needed]


def _edited(runs: Path) -> set[str]:
    notes: list[str] = []  # of damaged runs, which the sweep names
    found = [*finished([runs], {}, notes), *unfinished([runs], notes)]
    return {key_of(run.manifest["config"]) for run in found if sources.edited(run.manifest)}
