"""Compares finished runs from their tables: a board for each setting, and one over all settings.

The entries of a board are strategies, each with its values, on one stream, model, optimizer, budget and split, with the
same seeds. The board's seeds are those that most entries were run with. An entry is complete if it has a value of the
sort key for each of them. Only complete entries are ranked, and no mean skips a missing value. A diverged seed is not
missing: from the boundary where it diverged, its accuracy counts as 0, or as minus infinity if scores may be negative.
Its other metrics are undefined and reduce the coverage.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.leaderboard.boards import board, incomparable
from harness.leaderboard.columns import cells, heading, overall_heading, overall_table, size, table
from harness.leaderboard.entries import finished, started
from harness.leaderboard.naming import setting_in_words, told_apart
from harness.leaderboard.records import BASELINE, BY_NAME, SCORES, Board, Entry, Leaderboard, Row
from harness.leaderboard.standings import overall
from harness.leaderboard.texts import MEANING, markdown, piped, text

__all__ = [
    "MEANING",
    "SCORES",
    "Board",
    "Entry",
    "Leaderboard",
    "Row",
    "cells",
    "heading",
    "leaderboard",
    "markdown",
    "overall",
    "overall_heading",
    "overall_table",
    "piped",
    "setting_in_words",
    "size",
    "table",
    "text",
    "told_apart",
]  # fmt: skip


def leaderboard(folders: Sequence[Path], *, by: str = "average_accuracy", baseline: str = BASELINE) -> Leaderboard:
    """Compare all finished runs of results folders. ValueError for an unknown score or baseline."""
    if by not in BY_NAME:
        raise ValueError(f"--by {by}: unknown score; choose from {', '.join(BY_NAME)}")
    if not BY_NAME[by].better:
        ranked = ", ".join(s.name for s in SCORES if s.better)
        raise ValueError(f"--by {by}: has no better direction, so it cannot rank; choose from {ranked}")
    groups, notes = finished(folders)
    interrupted = started(folders, notes)
    boards = [
        board(place, groups.get(place, []), interrupted.get(place, []), BY_NAME[by], baseline)
        for place in sorted({*groups, *interrupted}, key=lambda place: tuple(map(str, place)))
    ]
    entries = [row.entry for one in boards for row in one.rows]
    if entries and baseline not in (BASELINE, *(name for e in entries for name in (e.label, e.strategy))):
        known = ", ".join(sorted({e.label for e in entries}))
        raise ValueError(f"--baseline {baseline}: unknown entry; choose from {known}")
    return Leaderboard(tuple(boards), overall(boards, baseline), (*notes, *incomparable(boards)), baseline)
