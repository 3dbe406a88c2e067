"""The report on a W&B server: the leaderboard's tables as text, and panels over the runs on the server.

The text needs no run on the server. The panels of a board show its runs that were online or sent by `sync`, grouped by
strategy and by the settings in which runs of one strategy differ. Each call creates a new report.
"""

from __future__ import annotations

import importlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness import store
from harness.leaderboard import (
    MEANING,
    SCORES,
    Board,
    Leaderboard,
    heading,
    leaderboard,
    overall_heading,
    overall_table,
    piped,
    table,
)
from harness.store.entries import leaves
from harness.trackers.sync import target_of
from harness.trackers.wandb import AXIS, Target, require_server, temporary
from harness.wording import first_line, markdown

WIDTH, HEIGHT, ACROSS = 8, 6, 3  # of a panel, in W&B's units; panels in a row


def publish(folders: Sequence[Path], changes: Mapping[str, Any], *, by: str, baseline: str) -> str:
    """Publish a report of the finished runs in results folders, or of single runs; returns its address.

    ValueError without the extra `reports`, an API key, a server, or a single project of all runs.
    """
    try:
        wr: Any = importlib.import_module("wandb_workspaces.reports.v2")
    except ImportError as error:
        raise ValueError(
            "report --wandb: needs wandb-workspaces; install it with pip install 'harness[reports]'"
        ) from error
    found = leaderboard(folders, by=by, baseline=baseline)
    if not found.boards:
        raise ValueError(f"report --wandb: no finished run in {', '.join(map(str, folders))}")
    target = _one_target(found, changes)
    with temporary("report"):
        require_server(target.init_timeout)
        where = {"project": target.project} | ({"entity": target.entity} if target.entity else {})
        try:
            made = wr.Report(**where, title="Continual learning", description=_counts(found), width="fluid")
            made.blocks = blocks(wr, found, made.entity, target.project)
            made.save()
        except Exception as error:  # any error of the library or the server
            raise ValueError(
                f"report --wandb: W&B failed ({type(error).__name__}: {first_line(error, 200)})"
            ) from error
        return str(made.url)


def _one_target(found: Leaderboard, changes: Mapping[str, Any]) -> Target:
    """The project that all runs went to."""
    targets = [target_of(run, changes) for run in _runs(found.boards)]
    for key in ("project", "entity"):
        if len(values := sorted({str(getattr(t, key)) for t in targets})) > 1:
            raise ValueError(
                f"report --wandb: the runs went to {', '.join(values)}; choose one with tracker.{key}=NAME"
            )
    return targets[0]


def _runs(boards: Sequence[Board]) -> list[store.Run]:
    return [run for board in boards for row in board.rows for run in row.entry.runs]


def _counts(found: Leaderboard) -> str:
    return f"{len(_runs(found.boards))} runs in {len(found.boards)} settings, by python -m harness report --wandb"


def blocks(wr: Any, found: Leaderboard, entity: str, project: str) -> list[Any]:
    """The report from top to bottom."""
    from wandb_workspaces import expr

    made: list[Any] = [wr.TableOfContents()]
    if found.overall:
        text = [markdown(overall_heading(found)), "", *piped(*overall_table(found))]
        made += [wr.H1("All settings"), wr.MarkdownBlock("\n".join(text))]
    for board in found.boards:
        notes = [f"* {markdown(note)}" for note in board.notes]
        text = [markdown(f"Setting {board.setting}: {heading(board)}"), "", *piped(*table(board)), "", *notes]
        made += [wr.H1(board.stream), wr.MarkdownBlock("\n".join(text))]
        if runs := _runs([board]):
            runset = wr.Runset(
                entity=entity,
                project=project,
                name=f"{board.stream}, {board.setting}",
                filters=expr.And(expr.Metric("ID").isin(sorted(run.manifest["run_id"] for run in runs))),
                groupby=["config.manifest.strategy", *differing(runs)],
            )
            made.append(wr.PanelGrid(runsets=[runset], panels=panels(wr, board)))
    notes = [f"* {markdown(note)}" for note in found.notes]
    meaning = MEANING.format(baseline=markdown(found.baseline))
    return [*made, wr.H1("Columns"), wr.MarkdownBlock("\n".join([*notes, "", meaning]))]


def differing(runs: Sequence[store.Run]) -> list[str]:
    """Keys of the configuration in which runs of one strategy differ, in W&B's notation."""
    specs: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for run in runs:
        specs[run.manifest["strategy"]].append(dict(leaves(run.manifest["config"]["strategy"])))
    keys = {
        key
        for alike in specs.values()
        for key in {key for one in alike for key in one}
        if any(one.get(key) != alike[0].get(key) for one in alike)
    }
    return [f"config.strategy.{key}" for key in sorted(keys)]


def panels(wr: Any, board: Board) -> list[Any]:
    """Every measured score by task; accuracy and forgetting as bars; forgetting and accuracy by cost."""
    there = [s for s in SCORES if any(row.means[s.name][2] for row in board.rows)]
    made = [
        *(wr.LinePlot(title=s.title, x=AXIS, y=[s.metric], title_x="task", title_y=s.title) for s in there),
        *(wr.BarPlot(title=f"{s.title}, at the end", metrics=[s.metric]) for s in there if s.last),
        *(
            wr.ScatterPlot(title=title, x=wr.SummaryMetric(x), y=wr.SummaryMetric(y))
            for title, x, y in (
                ("forgetting by compute (step, plain step = 1)", "cost/step", "forgetting"),
                ("average accuracy by compute (step, plain step = 1)", "cost/step", "average_accuracy"),
                ("average accuracy by forgetting", "forgetting", "average_accuracy"),
                ("average accuracy by memory (bytes)", "memory", "average_accuracy"),
            )
        ),
        wr.WeavePanelSummaryTable(table_name="accuracy_matrix"),
    ]
    for i, panel in enumerate(made):
        panel.layout = wr.Layout(x=i % ACROSS * WIDTH, y=i // ACROSS * HEIGHT, w=WIDTH, h=HEIGHT)
    return made
