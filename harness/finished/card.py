"""A run's card: its forgetting ledger, its paths, and sharpness beside forgetting, from its tables alone.

No claim is drawn from it. One run shows what happened to it; whether sharpness explains forgetting takes a designed
grid of runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from harness import store
from harness.stats import student

if TYPE_CHECKING:
    import pandas as pd


class Item(NamedTuple):
    title: str
    metric: str
    form: str = ".3f"


LEDGER = (
    Item("accuracy", "ledger_accuracy"),
    Item("loss", "ledger_loss"),
    Item("first order", "ledger_first"),
    Item("second order", "ledger_second"),
    Item("residual", "ledger_residual"),
    Item("bound", "ledger_bound", ".1f"),
    Item("distance", "ledger_distance", ".2f"),
)
BESIDE = (
    Item("forgetting", "forgetting"),
    Item("λ₁ current", "lambda_max_current", ".1f"),
    Item("λ₁ joint", "lambda_max_joint", ".1f"),
    Item("trace joint", "trace_joint", ".0f"),
    Item("worst rise joint", "rise_worst_plain_joint"),
    Item("adaptive rise joint", "rise_worst_adaptive_joint"),
    Item("loss joint", "probe_loss_joint"),
    Item("logit norm joint", "logit_norm_joint", ".1f"),
)
BOUND = ", the bound ½ λ₁ |d|² on the second"
TEXT = """\
# {strategy} on {stream}

Made by `python -m harness card RUN` from the tables of run {run_id} ({seeds} seeds, {tasks} tasks). Means over seeds
with 95 % Student intervals. No claim is drawn from one run.

## The forgetting ledger

What happened to each old task between its own boundary and the last one, and what its own optimum foretold: change of
accuracy and of loss, first- and second-order terms of that change of loss,
what they leave over{bound}, and |d|. Losses in nat.

{ledger}

## The path card

![Loss of the old tasks against loss of the new one on the line between two boundaries](card.png)

Each line is the straight path from one boundary's net (circle) to the next (square): what the new task gains, to the
left, and what the old ones pay, upwards.

## Sharpness beside forgetting

{beside}
"""


def card(path: Path, out: Path | None = None) -> list[Path]:
    """Write card.md and its figure into `out` (the run's own folder unless named); the files written.

    ValueError for no finished run, or one that lacks a measure: the line says which command adds it.
    """
    from matplotlib import rc_context

    from harness.finished.atlas_figures import path_card
    from harness.plotting import STYLE, save

    with store.RunFolder.reopen(path) as folder:
        manifest = folder.manifest
        frame = store.read_table(folder, "metrics").to_pandas()
    found = set(frame.metric)
    wanted = {"ledger": "ledger_loss", "connectivity": "path_loss_old", "sharpness": "lambda_max_joint"}
    if lacking := [name for name, metric in wanted.items() if metric not in found]:
        command = f"python -m harness measure {path} metrics=[{','.join(lacking)}]"
        raise ValueError(f"{path}: lacks what a card shows; add it: {command}")
    frame = frame[frame.phase == "end"]
    last = int(frame.boundary.max())
    old = frame[(frame.boundary == last) & (frame.task >= 0)]
    each = frame[(frame.axis.isin(["", "rho"])) & (frame.task < 0)]
    text = TEXT.format(
        strategy=manifest["strategy"],
        stream=manifest["stream"],
        run_id=manifest["run_id"],
        seeds=len(manifest["seeds"]),
        tasks=last + 1,
        bound=BOUND if old[old.metric == "ledger_bound"].value.notna().any() else "",
        ledger=table(old, "task", LEDGER),
        beside=table(each, "boundary", BESIDE, "after task"),
    )
    out = path if out is None else out
    with rc_context(STYLE), store.reporting(out, "out=FOLDER"):
        out.mkdir(parents=True, exist_ok=True)
        figure = path_card(frame)
        for kind in ("png", "svg"):
            save(figure, out / f"card.{kind}")
        store.write_text(out / "card.md", text)
    return [out / f"card.{kind}" for kind in ("md", "png", "svg")]


def table(frame: pd.DataFrame, by: str, items: Sequence[Item], title: str = "") -> str:
    """A Markdown table: a row for each value of `by`, a column for each item that was recorded."""
    shown = [item for item in items if frame[frame.metric == item.metric].value.notna().any()]
    lines = [f"| {title or by} | {' | '.join(item.title for item in shown)} |", "| ---: |" + " ---: |" * len(shown)]
    for t, rows in frame.groupby(by):
        cells = [cell(rows[rows.metric == item.metric].value.to_numpy(dtype=np.float64), item.form) for item in shown]
        if any(c != "-" for c in cells):
            lines.append(f"| {int(str(t)) + 1} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cell(values: np.ndarray, form: str) -> str:
    """Mean and half width of the 95 % interval.

    >>> cell(np.array([1.0, 2.0, 3.0]), ".1f"), cell(np.array([np.nan]), ".1f")
    ('2.0 ± 2.5', '-')
    """
    mean, half = map(float, student(values, nan="skip"))
    n = np.isfinite(values).sum()
    return "-" if n == 0 else f"{mean:{form}}" + (f" ± {half:{form}}" if n > 1 else "")
