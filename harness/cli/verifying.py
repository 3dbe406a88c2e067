"""The command `verify`: run the missing rows of published protocols, and compare."""

from __future__ import annotations

import argparse
from pathlib import Path

from harness.cli.parsing import settings_apart
from harness.wording import printable


def verify(args: argparse.Namespace) -> int:
    names, typed = settings_apart(args.rows)
    from harness.verify.protocol import chosen, protocols
    from harness.verify.run import RESULTS, TYPED, by_row, jobs, plan, results, wanted

    for word in typed:
        if word.partition("=")[0] not in TYPED:
            raise ValueError(f"verify {word}: cannot be changed here; the settings are {'=..., '.join(TYPED)}=...")
    found, out = protocols(), Path(args.out or "results")
    rows = chosen(found, names)
    shown = [p for p in found.values() if any(row in rows for row in p.rows)]
    every = wanted([row for p in shown for row in p.rows])
    values = dict(word.split("=", 1) for word in typed)
    runs, n_jobs = Path(values.get("results", RESULTS)), values.get("hydra.launcher.n_jobs", "")
    notes: list[str] = []
    have = by_row(every, results(every, runs, out, notes))
    missing = [row for row in rows if row.name not in have]
    from harness.jobs.child import cores

    print(plan(rows, missing, int(n_jobs) if n_jobs.isdigit() else cores()), flush=True)
    code = 0
    from harness.store import reporting
    from harness.verify.texts import text, write

    try:
        if missing and not args.plan:
            from harness.cli.training import train
            from harness.jobs.listed import Listed

            Listed.jobs = jobs([one for one in every if one.row in missing], runs)
            code = train(["--multirun", "hydra/sweeper=listed", f"results={runs}", *typed])
    finally:
        every_result = results(every, runs, out, notes)
        have = by_row(every, every_result)
        print("\n".join(["", *text(shown, have), *(printable(f"note: {note}") for note in notes)]), flush=True)
        if not args.plan:  # the page is of all protocols
            rest = wanted([row for p in found.values() if p not in shown for row in p.rows])
            with reporting(out, "--out FOLDER"):
                written = write(list(found.values()), have | by_row(rest, every_result), out)
            print("".join(f"written: {path}\n" for path in written), end="")
    return code
