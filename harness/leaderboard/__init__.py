"""Finished runs side by side, from their tables alone: a board for each setting, and one over all settings.

What is compared: the entries of a board are strategies (with the values they were run with) on one stream, model,
optimizer, budget and split, on the same seeds. The board's seeds are those that most entries were run with. An entry is
complete if it has a value of the sort key for each of them; only complete entries are ranked, and no mean skips a
missing value. A diverged seed is no missing one: its accuracy counts as 0, or as minus infinity where scores may be
negative, from the boundary on at which it diverged; its other measures are undefined, and shown as coverage.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.leaderboard.boards import board, incomparable
from harness.leaderboard.columns import cells, heading, overall_heading, overall_table, size, table
from harness.leaderboard.entries import begun, finished
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
    """All finished runs of results folders, compared. ValueError for a score or a baseline that there is not."""
    if by not in BY_NAME:
        raise ValueError(f"--by {by}: no such score; there is {', '.join(BY_NAME)}")
    if not BY_NAME[by].better:
        ranked = ", ".join(s.name for s in SCORES if s.better)
        raise ValueError(f"--by {by}: neither more nor less of it is better; choose from {ranked}")
    groups, notes = finished(folders)
    cut_short = begun(folders)
    boards = [
        board(place, groups.get(place, []), cut_short.get(place, []), BY_NAME[by], baseline)
        for place in sorted({*groups, *cut_short}, key=lambda place: tuple(map(str, place)))
    ]
    labels = {row.entry.label for one in boards for row in one.rows}
    if labels and baseline not in (BASELINE, *labels):
        raise ValueError(f"--baseline {baseline}: no such entry; there is {', '.join(sorted(labels))}")
    return Leaderboard(tuple(boards), overall(boards, baseline), (*notes, *incomparable(boards)), baseline)
