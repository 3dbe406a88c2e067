"""The text of every cell, and the heading of a table."""

from __future__ import annotations

import math
from collections.abc import Sequence

from harness.leaderboard.naming import listed
from harness.leaderboard.records import SCORES, UNKNOWN, Board, Leaderboard, Standing
from harness.leaderboard.standings import comparing
from harness.wording import UNDEFINED, mean_text


def cells(board: Board) -> list[dict[str, str]]:
    """The rows as text, by title of the column. Columns without any value are left out."""
    scores = [s for s in SCORES if s == board.by or any(row.means[s.name][2] for row in board.rows)]
    timed = any(not math.isnan(row.entry.step) for row in board.rows)
    held = any(not math.isnan(row.entry.memory) for row in board.rows)
    several = sum(not math.isnan(row.rank) for row in board.rows) > 1
    made = []
    for row in board.rows:
        entry = row.entry
        diverged = f"{len(entry.diverged)} diverged" if entry.diverged else ""
        undefined = "undefined" if not row.found and entry.mark(board.by.name) == UNDEFINED else ""
        line = {
            "rank": _ranged(row.rank, row.rank_interval, ".0f"),
            "strategy": entry.label,
            "seeds": _coverage(row.found, len(board.seeds), diverged or undefined, entry.state),
        }
        for score in scores:
            mean, half, found = row.means[score.name]
            line[score.title] = mean_text(mean, half, found, len(entry.seeds), score.form, entry.mark(score.name))
            if score == board.by:
                line["IQM"] = _ranged(row.iqm, row.iqm_interval, score.form)
        if board.baseline:
            line[f"minus {board.baseline}"] = _spread(*row.difference, "+.3f")
            line[f"> {board.baseline}"] = _ranged(row.improvement, row.improvement_interval, ".2f")
            line["detectable"] = _ranged(row.detectable, form=".3f")
        if timed:
            line["step"] = _ranged(entry.step, form=".2f")
        if held:
            line["memory"] = size(entry.memory)
        if several:
            line["front"] = "".join(name[0] for name in row.fronts) or "-"
        made.append(line)
    return made


def _coverage(found: int, of: int, diverged: str, state: str = "done") -> str:
    """How many are complete, and what happened to the others.

    >>> _coverage(3, 3, ""), _coverage(3, 3, "1 diverged"), _coverage(0, 3, "", "not finished")
    ('3', '3, 1 diverged', '0/3, not finished')
    """
    parts = [f"{found}" if found == of else f"{found}/{of}", diverged, "" if state == "done" else state]
    return ", ".join(part for part in parts if part)


def _standing_cells(standing: Standing, boards: int, baseline: str, form: str) -> dict[str, str]:
    lost = standing.diverged
    diverged = f"{lost} seed{'s' * (lost > 1)} diverged" if lost else ""
    return {
        "mean rank": _ranged(standing.rank, standing.rank_interval, ".2f"),
        "strategy": standing.label,
        "settings": _coverage(standing.found, boards, diverged),
        "IQM": _ranged(standing.iqm, standing.iqm_interval, form),
        f"P(> {baseline})": _ranged(standing.improvement, standing.improvement_interval, ".2f"),
    }


def _ranged(value: float, limits: tuple[float, float] = UNKNOWN, form: str = ".3f") -> str:
    """A number, with its interval in brackets if it has one.

    >>> _ranged(2, (1, 3), ".0f"), _ranged(2, (2, 2), ".0f"), _ranged(2, form=".2f"), _ranged(math.nan)
    ('2 (1–3)', '2 (2)', '2.00', '-')
    """
    if math.isnan(value):
        return "-"
    if math.isnan(limits[0]):
        return format(value, form)
    low, high = (format(v, form) for v in limits)
    return f"{value:{form}} ({low})" if low == high else f"{value:{form}} ({low}–{high})"


def _spread(mean: float, half: float, form: str) -> str:
    if math.isnan(mean):
        return "-"
    return format(mean, form) + ("" if math.isnan(half) else f" ± {format(half, form.lstrip('+'))}")


def size(count: float) -> str:
    """Bytes as text.

    >>> size(0), size(340e3), size(2.5e6)
    ('0', '340 kB', '2.5 MB')
    """
    if math.isnan(count):
        return "-"
    for unit, one in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= one:
            return f"{count / one:.3g} {unit}"
    return f"{count:.0f}"


def heading(board: Board) -> str:
    """What is compared, the order, and the seeds."""
    n = len(board.seeds)
    over = f"{'mean ± 95 % interval over seeds' if n > 1 else 'seed'} {listed(board.seeds)} (n = {n})"
    split = "" if board.split == "test" else f" on the {board.split} split"
    return f"{board.about}. Sorted by {board.by.title}{split}; {over}."


Table = tuple[list[str], list[list[str]]]  # heads, rows


def table(board: Board, columns: Sequence[str] = ()) -> Table:
    """All columns or these; the strategy and the number of seeds are always included."""
    rows = cells(board)
    heads = [h for h in rows[0] if not columns or h in (*columns, "strategy", "seeds")]
    return heads, [[row[h] for h in heads] for row in rows]


def overall_heading(found: Leaderboard) -> str:
    """What is compared over all settings, the order, and the seeds."""
    boards = comparing(found.boards)
    seeds = dict.fromkeys(f"{listed(board.seeds)} (n = {len(board.seeds)})" for board in boards)
    return (
        f"{len(boards)} settings, {boards[0].by.title} over seeds {' or '.join(seeds)} in each. Sorted by mean rank"
        " among the entries that are complete in every setting."
    )


def overall_table(found: Leaderboard) -> Table:
    """The standings, in settings that compare at least two entries."""
    boards = comparing(found.boards)
    rows = [_standing_cells(s, len(boards), found.baseline, boards[0].by.form) for s in found.overall]
    return list(rows[0]), [list(row.values()) for row in rows]
