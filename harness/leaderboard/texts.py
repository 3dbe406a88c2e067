"""The leaderboard on a terminal and as Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence

from harness.leaderboard.columns import heading, overall_heading, overall_table, table
from harness.leaderboard.records import SCORES, Leaderboard

MEANING = """\
average accuracy: over all tasks at the end; new-task accuracy: just after each task, mean; forgetting: at the end;
plasticity lost: trainability gap, mean over tasks; sharpness: largest Hessian eigenvalue of the mean loss over all
tasks, at the end; barrier: highest rise of that loss above the straight line from one boundary to the next, mean.
step: time of a step over that of a plain step; memory: bytes held between tasks for one seed. In brackets behind a
rank: what 95 % of 2,000 paired bootstraps over seeds gave; with five seeds that is too narrow. IQM: interquartile
mean. less {baseline}: mean difference, paired by seed. > {baseline}: share of seeds on which the entry beats it, with
the exact 95 % interval. Detectable: the smallest difference from it that these seeds would have shown, with
probability 0.8 at the 5 % level (minimum detectable effect, Bloom 1995). Front: nothing has both a higher accuracy and
a lower step cost (s), memory (m) or forgetting (f). Not ranked: entries without all seeds (k/n: k of n are there). A
diverged seed counts, as accuracy 0, or minus infinity where scores may be negative."""


LEFT = ("strategy",)
# the others stand in the files: a terminal is narrow
TERMINAL = ("rank", *(s.title for s in SCORES), "step", "memory", "front")


def text(found: Leaderboard) -> list[str]:
    """Lines for a terminal."""
    lines: list[str] = []
    for board in found.boards:
        lines += [
            f"{board.stream}, setting {board.setting}",
            heading(board),
            *_aligned(*table(board, (*TERMINAL, f"> {board.baseline}"))),
        ]
        lines += [f"note: {note}" for note in board.notes] + [""]
    if found.overall:
        lines += ["all settings", overall_heading(found), *_aligned(*overall_table(found)), ""]
    return [*lines, *(f"note: {note}" for note in found.notes)]


def _aligned(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(line[i]) for line in [heads, *rows]) for i in range(len(heads))]
    return [
        "  " + "  ".join(f"{c:<{w}}" if h in LEFT else f"{c:>{w}}" for c, w, h in zip(line, widths, heads)).rstrip()
        for line in [heads, *rows]
    ]


def markdown(found: Leaderboard) -> str:
    """The whole leaderboard as Markdown."""
    parts = ["# Leaderboard", "", "Made by `python -m harness leaderboard`; not edited by hand.", ""]
    if found.overall:
        parts += ["## All settings", "", overall_heading(found), "", *piped(*overall_table(found)), ""]
    for board in found.boards:
        parts += [f"## {_escaped(board.stream)}", "", f"Setting {board.setting}: {_escaped(heading(board))}", ""]
        parts += [*piped(*table(board)), "", *(f"* {_escaped(note)}" for note in board.notes), ""]
    parts += [*(f"* {_escaped(note)}" for note in found.notes), "", "## Columns", ""]
    parts += [MEANING.format(baseline=found.baseline)]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(parts)) + "\n"


def piped(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table in Markdown."""
    bars = ["---" if h in LEFT else "---:" for h in heads]
    return [f"| {' | '.join(map(_escaped, line))} |" for line in [heads, bars, *rows]]


def _escaped(value: str) -> str:
    """Text that may come from a configuration, so that it is no markup.

    >>> print(_escaped("ewc (a|b <script>)"))
    ewc (a\\|b &lt;script>)
    """
    return " ".join(value.split()).replace("<", "&lt;").replace("|", "\\|").replace("`", "'")
