"""One self-contained HTML file with the leaderboard and, on request, all figures. Opens offline."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import store
from harness.leaderboard import (
    MEANING,
    SCORES,
    Board,
    Leaderboard,
    Row,
    cells,
    heading,
    leaderboard,
    overall_heading,
    overall_table,
)
from harness.report.figures import Group, groups
from harness.store.readers import Wanted, snapshot

TEMPLATE = Path(__file__).parent / "page.html.j2"
PALETTE = 8


def report(folders: Sequence[Path], *, by: str = "average_accuracy", baseline: str = "naive") -> str:
    """The HTML report of the finished runs in results folders, or of single runs."""
    import pyarrow.dataset as ds

    found = leaderboard(folders, by=by, baseline=baseline)
    wanted = {
        "metrics": Wanted(("seed", "boundary", "task", "metric", "axis", "coord", "value"), ds.field("phase") == "end"),
        "accuracy": Wanted(("seed", "boundary", "task", "accuracy")),
    }
    read = snapshot(folders, wanted, purpose="run")
    by_board = []
    for board in found.boards:
        ids = {run.manifest["run_id"] for row in board.rows for run in row.entry.runs}
        metrics, accuracy = (read.tables[name][read.tables[name].run_id.isin(ids)] for name in wanted)
        by_board.append(groups(board, metrics, accuracy))
    return html(found, by_board)


def html(found: Leaderboard, figures: Sequence[Sequence[Group]] = ()) -> str:
    """The report as HTML; `figures` are the groups of each board."""
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    boards = [_board(board, figures[i] if figures else ()) for i, board in enumerate(found.boards)]
    return environment.from_string(TEMPLATE.read_text("utf-8")).render(
        boards=boards,
        overall=overall_table(found) if found.overall else None,
        overall_heading=overall_heading(found) if found.overall else "",
        notes=found.notes,
        meaning=MEANING.format(baseline=found.baseline),
        runs=sum(len(row.entry.runs) for board in found.boards for row in board.rows),
        palette=PALETTE,
    )


def _board(board: Board, figures: Sequence[Group]) -> dict[str, Any]:
    shown = cells(board)
    drawn = [row for row in board.rows if row.entry.seeds]
    styles = {id(row): i for i, row in enumerate(drawn)}
    return {
        "id": store.slug(f"{board.stream}-{board.setting}-{board.version}-{board.split}"),
        "stream": board.stream,
        "setting": board.setting,
        "heading": heading(board),
        "notes": board.notes,
        "heads": list(shown[0]),
        "rows": [
            {
                "style": styles.get(id(row)),
                "cells": [(head, text, _value(head, row)) for head, text in line.items()],
                "ranked": row.rank == row.rank,
            }
            for row, line in zip(board.rows, shown)
        ],
        "legend": [(row.entry.label, i) for i, row in enumerate(drawn)],
        "groups": figures,
        "entries": [_origin(row) for row in board.rows] if figures else [],
    }


def _value(head: str, row: Row) -> float | str:
    """The value that a column is sorted by."""
    means = {score.title: row.means[score.name][0] for score in SCORES}
    others: dict[str, float | str] = {
        "rank": row.rank,
        "seeds": row.found,
        "IQM": row.iqm,
        "detectable": row.detectable,
        "step": row.entry.step,
        "memory": row.entry.memory,
        "front": len(row.fronts),
        "strategy": row.entry.label,
    }
    if head in means:
        return means[head]
    if head.startswith("minus "):
        return row.difference[0]
    return row.improvement if head.startswith("> ") else others[head]


def _origin(row: Row) -> dict[str, Any]:
    """How to reproduce an entry: command, configuration, source and machine of each run."""
    from omegaconf import OmegaConf

    runs = []
    for run in row.entry.runs:
        facts = run.manifest
        argv = [str(a) for a in facts.get("argv", [])]
        git = facts.get("git") or {}
        runs.append(
            {
                "command": shlex.join(["python", "-m", "harness", *argv[1:]]),
                "path": str(run.path),
                "facts": {
                    "run": facts.get("run_id"),
                    "seeds": ", ".join(map(str, facts.get("seeds", []))),
                    "source": str(facts.get("source", ""))[:12],
                    "commit": f"{str(git.get('commit', ''))[:12]}{' with changes' if git.get('dirty') else ''}",
                    "versions": ", ".join(f"{k} {v}" for k, v in (facts.get("versions") or {}).items()),
                    "machine": ", ".join(
                        str((facts.get("hardware") or {}).get(k) or "") for k in ("cpu", "gpu", "platform")
                    ).replace(", ,", ","),
                    "ended": facts.get("ended_at"),
                },
                "config": OmegaConf.to_yaml(OmegaConf.create(facts["config"])),
            }
        )
    return {"label": row.entry.label, "runs": runs, "state": row.entry.state}
