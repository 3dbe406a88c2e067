"""Notes on the code that made the runs of a board: versions of one entry, and entries made by different code."""

from __future__ import annotations

from collections.abc import Sequence

from harness import store
from harness.leaderboard.naming import listed
from harness.leaderboard.records import Entry
from harness.store import sources
from harness.store.entries import base


def versions(found: Sequence[Entry]) -> list[str]:
    """A note for each entry of which versions mix, and one if entries were made by different code."""
    groups: dict[str, list[Entry]] = {}
    for entry in found:
        groups.setdefault(base(entry.label), []).append(entry)
    notes = []
    for name, entries in groups.items():
        runs = [run for entry in entries for run in entry.runs]
        changed = sources.differing([run.manifest for run in runs])
        if len(entries) > 1:
            said = f" ({sources.listed(changed)})" if changed else ""
            notes.append(f"{', '.join(sorted(entry.label for entry in entries))}: versions of {name}{said}")
        elif changed:
            notes.append(f"{name}: versions of it are mixed, because {sources.listed(changed)} between {_seeds(runs)}")
    if between := sources.differing(
        *[[run.manifest for entry in entries for run in entry.runs] for entries in groups.values()]
    ):
        notes.append(f"{sources.listed(between)} between entries, whose results may differ for this reason")
    return notes


def _seeds(runs: Sequence[store.Run]) -> str:
    return " and ".join(f"seeds {listed(run.manifest['seeds'])}" for run in runs)
