"""The command `verify`: run the missing rows of published protocols, and compare."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from harness.cli.parsing import settings_apart
from harness.wording import printable

if TYPE_CHECKING:
    from harness.verify.results import Result


def verify(args: argparse.Namespace) -> int:
    names, typed = settings_apart(args.rows)
    from harness.jobs.child import cores
    from harness.store import reporting
    from harness.verify.protocol import chosen, protocols
    from harness.verify.run import RESULTS, TRACES, TYPED, by_row, jobs, plan, results, trace_jobs, untraced, wanted
    from harness.verify.texts import text, write

    for word in typed:
        if word.partition("=")[0] not in TYPED:
            raise ValueError(f"verify {word}: cannot be changed here; the settings are {'=..., '.join(TYPED)}=...")
    found, out = protocols(), Path(args.out or "results")
    rows = chosen(found, names)
    shown = [p for p in found.values() if any(row in rows for row in p.rows)]
    every = wanted([row for p in shown for row in p.rows])
    own = [one for one in every if one.row in rows]
    values = dict(word.split("=", 1) for word in typed)
    runs, n_jobs = Path(values.get("results", RESULTS)), values.get("hydra.launcher.n_jobs", "")
    notes: list[str] = []

    def traced(known: list[Result]) -> int:
        return _sweep(trace_jobs(untraced(own, known), runs), runs / TRACES, typed)

    known = results(every, runs, out, notes)
    have = by_row(every, known)
    missing = [row for row in rows if row.name not in have]
    print(plan(rows, missing, int(n_jobs) if n_jobs.isdigit() else cores()), flush=True)
    edited = sum(one.row in missing for one in untraced(own, known))
    if edited:
        print(f"{edited} of them were run with other code: their first steps are compared before they are run again")
    code = 0
    try:
        if not args.plan:
            code = traced(known)
            have = by_row(own, results(every, runs, out, notes))
            code = code or _sweep(jobs([one for one in own if one.row.name not in have], runs), runs, typed)
            code = code or traced(results(every, runs, out, notes))
    finally:
        every_result = results(every, runs, out, notes)
        have = by_row(every, every_result)
        said = (printable(f"note: {note}") for note in dict.fromkeys(notes))
        print("\n".join(["", *text(shown, have), *said]), flush=True)
        if not args.plan:  # the page is of all protocols
            rest = wanted([row for p in found.values() if p not in shown for row in p.rows])
            with reporting(out, "--out FOLDER"):
                written = write(list(found.values()), have | by_row(rest, every_result), out)
            print("".join(f"written: {path}\n" for path in written), end="")
    return code


def _sweep(jobs: list[list[str]], folder: Path, typed: list[str]) -> int:
    """Run a list of jobs, each with what was typed; returns the exit code."""
    from harness.cli.training import train
    from harness.jobs.listed import Listed

    if not jobs:
        return 0
    Listed.jobs = jobs
    return train(["--multirun", "hydra/sweeper=listed", *typed, f"results={folder}"])
