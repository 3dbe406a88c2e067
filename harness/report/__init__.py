"""One self-contained HTML file with the leaderboard and, on request, all figures. Opens offline."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from harness.leaderboard.determined import COLUMNS, determined
from harness.report.figures import MOST, Group, groups
from harness.store.readers import Snapshot, Wanted, snapshot

if TYPE_CHECKING:
    import pandas as pd

TEMPLATE = Path(__file__).parent / "page.html.j2"
PALETTE = 8


def report(folders: Sequence[Path], *, by: str = "average_accuracy", baseline: str = "naive") -> str:
    """The HTML report of the finished runs in results folders, or of single runs."""
    found = leaderboard(folders, by=by, baseline=baseline)
    wanted = {
        "metrics": Wanted(("seed", "boundary", "task", "metric", "axis", "coord", "value"), {"phase": ["end"]}),
        "accuracy": Wanted(COLUMNS),
    }
    read = snapshot(folders, wanted, purpose="run")
    measured, accuracy = _completed(read), read.tables["accuracy"]
    by_board = []
    for board in found.boards:
        ids = {run.manifest["run_id"] for row in board.rows for run in row.entry.runs}
        by_board.append(groups(board, *(table[table.run_id.isin(ids)] for table in (measured, accuracy))))
    return html(found, by_board)


def _completed(read: Snapshot) -> pd.DataFrame:
    """The metrics, with the scores that the accuracy table determines where a run did not record them."""
    import pandas as pd

    metrics = read.tables["metrics"]
    have = set(metrics.run_id[metrics.metric == "average_accuracy"])
    runs = [run for run in read.runs if run.manifest["run_id"] not in have]
    rows = determined(runs, metrics, read.tables["accuracy"]).rows if runs else metrics[:0]
    return pd.concat([metrics, rows.assign(task=-1, axis="", coord="")], ignore_index=True) if len(rows) else metrics


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
        "entries": [_origin(row, i < MOST) for i, row in enumerate(board.rows)] if figures else [],
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


def _origin(row: Row, whole: bool) -> dict[str, Any]:
    """How to reproduce an entry: command and, if `whole`, configuration, source and machine of each run."""
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
                "config": _yaml(facts["config"]) if whole else "",
            }
        )
    return {"label": row.entry.label, "runs": runs, "state": row.entry.state}


def _yaml(config: Any) -> str:
    import yaml

    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # OmegaConf's takes thirty times as long
    text: str = yaml.dump(config, Dumper=dumper, sort_keys=False, default_flow_style=False, allow_unicode=True)
    return text
