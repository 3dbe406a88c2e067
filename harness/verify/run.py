"""Which rows are missing, and the jobs that make them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.config.preflight import compositions
from harness.store import sources
from harness.store.readers import finished, unfinished
from harness.verify.protocol import Row
from harness.verify.results import NAME, Result, collect, current, key_of, load, method_of, save

SHARED = ("metrics=off", "gap=false", "control=false", "tracker.mode=disabled", "keep=last")  # none moves a number
TYPED = ("dataset.root", "results", "device", "threads", "hydra.launcher.n_jobs")  # nor does any of these, by intent
RESULTS = "results/verify"


@dataclass(frozen=True)
class Wanted:
    """A row with what its result must have been made with."""

    row: Row
    key: str
    method: str


def wanted(rows: Sequence[Row]) -> list[Wanted]:
    """Compose the settings of each row. ValueError for a row whose settings cannot work."""
    made = compositions([[*row.settings, *SHARED] for row in rows])
    return [Wanted(row, key_of(cfg), method_of(cfg)) for row, cfg in zip(rows, made)]


def results(rows: Sequence[Wanted], runs: Path, out: Path, notes: list[str]) -> list[Result]:
    """All results of `out` and of the finished runs, each once; written back to `out` if there are new ones."""
    known = load(out / NAME)
    new = collect(((one.key, one.row) for one in rows), runs, notes)
    seen = {(result.run_id, result.ended_at, result.score) for result in new}
    every = [*(result for result in known if (result.run_id, result.ended_at, result.score) not in seen), *new]
    if {*every} != {*known}:
        save(every, out / NAME)
    return every


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
    notes: list[str] = []  # of damaged runs, which the sweep names
    found = [*finished([runs], {}, notes), *unfinished([runs], notes)]
    stale = {key_of(run.manifest["config"]) for run in found if sources.edited(run.manifest)}
    return [[*one.row.settings, *SHARED, *["force=true"] * (one.key in stale)] for one in missing]
