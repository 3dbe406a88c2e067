"""The figures of a board in the report, drawn from the tables, each with its numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from harness import ROOT, stats
from harness.leaderboard import Board, Entry
from harness.report import svg
from harness.stats import Array
from harness.store import scores
from harness.store.scores import SCORES

if TYPE_CHECKING:
    import pandas as pd

MOST = 20  # entries of a board that are drawn and described whole
SHOWN = 12  # most boundaries or tasks shown in a matrix


class Figure(NamedTuple):
    title: str
    svg: Markup
    heads: list[str]
    rows: list[list[str]]  # the same as text
    key: tuple[tuple[str, int], ...] = ()  # its own legend, if it is not that of the board
    note: str = ""


class Group(NamedTuple):
    title: str
    text: str
    figures: list[Figure]
    folded: bool = False


class Curve(NamedTuple):
    metric: str
    title: str
    unit: str
    note: str = ""


STORY = (
    Curve("average_accuracy", "Average accuracy over the tasks so far", "accuracy"),
    Curve("forgetting", "Forgetting", "accuracy lost"),
    Curve("learning_accuracy", "Accuracy on the new task", "accuracy"),
    Curve("trainability_gap", "Plasticity lost", "accuracy lost"),
)
LANDSCAPE = (
    Curve("lambda_max_joint", "Sharpness: top eigenvalue, all tasks seen", "nat/weight²"),
    Curve("trace_joint", "Trace of the Hessian, all tasks seen", "nat/weight²"),
    Curve("barrier_entezari_loss_joint", "Barrier on the line from the last boundary", "nat"),
    Curve("path_length", "Length of that line", "distance"),
)
FAINT = 1e-3  # of the largest value
ACROSS = ("alpha", "task", "layer", "rho", "")  # axes that are not spectra


def groups(board: Board, rows: pd.DataFrame, accuracy: pd.DataFrame) -> list[Group]:
    """All groups that have a figure. The tables contain the board's runs, and may contain others.

    Of a board with more than `MOST` entries the first are drawn, and each group says so.
    """
    known_entries = [row.entry for row in board.rows if row.entry.seeds]
    entries = known_entries[:MOST]
    ids = {run.manifest["run_id"] for entry in entries for run in entry.runs}
    if len(entries) < len(known_entries):
        rows, accuracy = (table[table.run_id.isin(ids)] for table in (rows, accuracy))
    whole = rows[(rows.axis == "") & (rows.task == -1)]
    lowest = scores.lowest(accuracy.accuracy.to_numpy(dtype=np.float64))
    texts = declared_columns()
    known = {c.metric for c in (*STORY, *LANDSCAPE)}
    often = whole.groupby("metric").boundary.nunique()
    rest = [Curve(name, name, *texts.get(name, ("", ""))) for name in sorted(set(often[often > 1].index) - known)]
    made = [
        Group(
            "What it costs",
            "Average accuracy against compute, memory and forgetting. The line is the Pareto front;"
            " filled points are on it.",
            _fronts(board),
        ),
        Group(
            "Accuracy",
            "Test accuracy in percent on each task (across) after each task (down), mean over seeds."
            " A column that gets darker downwards is a task being forgotten.",
            _matrices(entries, accuracy, lowest),
        ),
        Group(
            "Forgetting and plasticity",
            "Mean over seeds with its 95 % interval, which may run off the chart. A diverged seed counts with the"
            " lowest accuracy; the line of any other quantity ends where a seed diverged.",
            _curves(entries, whole, STORY, lowest),
        ),
        Group(
            "The landscape",
            "Measured at the trained parameters after each task.",
            _curves(entries, whole, LANDSCAPE, lowest),
        ),
        Group(
            "Paths",
            "Loss along the straight line from the last boundary (0) to this one (1): a valley or a wall?"
            " Each card has its own scale.",
            _paths(entries, rows),
        ),
        Group("Spectra", "At the last boundary.", _spectra(entries, rows)),
        Group(
            "All other metrics",
            "One chart per metric. With many lines, the intervals are only in the numbers.",
            _curves(entries, whole, rest, lowest, bands=len(entries) <= svg.COLOURS),
            folded=True,
        ),
    ]
    if len(entries) < len(known_entries):
        cut = f" Of {len(known_entries)} entries, the first {MOST} are drawn."
        made = [made[0], *(group._replace(text=group.text + cut) for group in made[1:])]
    return [group for group in made if group.figures]


Cube = tuple[Entry, int, Array, Array]  # an entry, its place, coordinates [K], values [K, seeds]


def _cubes(entries: Sequence[Entry], rows: pd.DataFrame, column: str) -> list[Cube]:
    """One metric of each entry that has it, by a coordinate; NaN if a seed has no value."""
    owner = {run.manifest["run_id"]: i for i, entry in enumerate(entries) for run in entry.runs}
    of = rows.run_id.map(owner).to_numpy()
    at, seed, value = rows[column].to_numpy(np.float64), rows.seed.to_numpy(), rows.value.to_numpy(np.float64)
    made = []
    for i, entry in enumerate(entries):
        mine = (of == i) & np.isin(seed, entry.seeds)
        if mine.any():
            x, place = np.unique(at[mine], return_inverse=True)
            table = np.full((len(x), len(entry.seeds)), math.nan)
            table[place, np.searchsorted(entry.seeds, seed[mine])] = value[mine]
            made.append((entry, i, x, table))
    return made


def _series(entry: Entry, style: int, x: Array, values: Array) -> svg.Series:
    mean, half = stats.student(values)
    half = np.where(np.isnan(half), 0.0, half) if values.shape[1] < 2 else half
    return svg.Series(entry.label, style, x, mean, mean - half, mean + half)


def _chart(
    title: str,
    series: Sequence[svg.Series],
    x_title: str,
    unit: str,
    whole: bool,
    bands: bool = True,
    **more: object,
) -> Figure:
    shown = series if bands else [s._replace(low=s.y, high=s.y) for s in series]
    drawn = svg.lines(f"{title}, by {x_title}; the numbers follow", shown, x_title, unit, whole=whole)
    at = sorted({float(x) for s in series for x in s.x})
    chosen = [at[i] for i in _spread(len(at), SHOWN)]
    rows = []
    for s in series:
        found = dict(zip(s.x.tolist(), zip(s.y, s.high - s.y)))
        rows.append([s.label, *(_text(*found.get(x, (math.nan, math.nan))) for x in chosen)])
    return Figure(title, drawn, [x_title, *map(svg.number, chosen)], rows, **more)  # type: ignore[arg-type]


def _text(mean: float, half: float) -> str:
    return svg.number(mean) + (f" ± {svg.number(half)}" if half > 0 else "")


def _curves(
    entries: Sequence[Entry], whole: pd.DataFrame, curves: Sequence[Curve], lowest: float, bands: bool = True
) -> list[Figure]:
    made = []
    by_metric = dict(list(whole.groupby("metric")))
    for curve in (c for c in curves if c.metric in by_metric):
        cubes = _cubes(entries, by_metric[curve.metric], "boundary")
        floor = lowest if curve.metric in SCORES else None
        series = [_series(e, i, x + 1, stats.counted(values, _lost(e), floor)) for e, i, x, values in cubes]
        if any(np.isfinite(s.y).any() for s in series):
            made.append(_chart(curve.title, series, "after task", curve.unit, True, bands, note=curve.note))
    return made


def _lost(entry: Entry) -> NDArray[np.bool_]:
    return np.isin(entry.seeds, entry.diverged)


def _fronts(board: Board) -> list[Figure]:
    ranked = [(i, row) for i, row in enumerate(r for r in board.rows if r.entry.seeds)]
    ranked = [(i, row) for i, row in ranked if not math.isnan(row.rank)]
    if len(ranked) < 2:
        return []
    accuracy = {i: float(row.entry.scores["average_accuracy"].mean()) for i, row in ranked}
    axes = {
        "step": ("Compute", "time of a step, plain step = 1", {i: row.entry.step for i, row in ranked}),
        "memory": ("Memory", "kilobytes held per seed", {i: row.entry.memory / 1e3 for i, row in ranked}),
        "forgetting": ("Forgetting", "forgetting", {i: row.means["forgetting"][0] for i, row in ranked}),
    }
    made = []
    for name, (title, unit, cost) in axes.items():
        points = [(row.entry.label, i, cost[i], accuracy[i], name in row.fronts) for i, row in ranked]
        drawn = svg.scatter(f"Average accuracy against {unit}; the numbers follow", points, unit, "average accuracy")
        if drawn:
            rows = [[p[0], svg.number(p[2]), svg.number(p[3]), "yes" if p[4] else "no"] for p in points]
            made.append(Figure(title, drawn, ["strategy", unit, "average accuracy", "on the front"], rows))
    return made


def _matrices(entries: Sequence[Entry], accuracy: pd.DataFrame, lowest: float) -> list[Figure]:
    cells = accuracy[accuracy.boundary >= 0]
    values = cells.accuracy.to_numpy(dtype=np.float64)
    values = values[np.isfinite(values)]
    if not len(values):
        return []
    low, high = min(0.0, float(values.min())), float(values.max())
    if low == 0 and high <= 1:
        high = 1.0  # the same colours on every board
    made = []
    owner = {run.manifest["run_id"]: i for i, entry in enumerate(entries) for run in entry.runs}
    of, at = cells.run_id.map(owner).to_numpy(), [cells[c].to_numpy() for c in ("boundary", "task", "seed", "accuracy")]
    for i, entry in enumerate(entries):
        chosen = (of == i) & np.isin(at[2], entry.seeds)
        if not chosen.any():
            continue
        after, task, seed, score = (column[chosen] for column in at)
        score = stats.counted(score.astype(np.float64), np.isin(seed, entry.diverged), lowest)
        (after, down), (task, across) = (np.unique(column, return_inverse=True) for column in (after, task))
        total, count = np.zeros((len(after), len(task))), np.zeros((len(after), len(task)))
        np.add.at(total, (down, across), score)
        np.add.at(count, (down, across), 1)
        mean = np.where(count > 0, total / np.maximum(count, 1), math.nan)
        rows, columns = ([int(x[k]) for k in _spread(len(x), SHOWN)] for x in (after, task))
        table = mean[np.ix_(_spread(len(after), SHOWN), _spread(len(task), SHOWN))]
        drawn = svg.heat(f"Accuracy of {entry.label}; the numbers follow", table, rows, columns, low, high)
        text = [[f"after {i + 1}", *map(svg.number, line)] for i, line in zip(rows, table)]
        made.append(Figure(entry.label, drawn, ["", *(f"task {j + 1}" for j in columns)], text))
    return made


ENDS = (("path_loss_old", "old tasks", 0), ("path_loss_new", "new task", 1), ("path_loss_joint", "all", 2))


def _paths(entries: Sequence[Entry], table: pd.DataFrame) -> list[Figure]:
    along = table[(table.task == -1) & (table.axis == "alpha") & table.metric.isin([name for name, *_ in ENDS])]
    along = along.assign(coord=along.coord.astype(float))
    made = []
    boundaries = sorted(along.boundary.unique())
    shown = sorted({0, len(boundaries) - 1}) if boundaries else []
    for entry in entries:
        mine = along[along.run_id.isin({run.manifest["run_id"] for run in entry.runs})]
        for t in [boundaries[i] for i in shown]:
            series = []
            for name, title, style in ENDS:
                for _, _, x, values in _cubes([entry], mine[(mine.boundary == t) & (mine.metric == name)], "coord"):
                    series.append(_series(entry, style, x, values)._replace(label=title))
            if any(np.isfinite(s.y).any() for s in series):
                key = tuple((title, style) for _, title, style in ENDS)
                title = f"{entry.label}, task {t} to {t + 1}"
                made.append(_chart(title, series, "along the line", "loss, nat", False, key=key))
    return made


def _spectra(entries: Sequence[Entry], table: pd.DataFrame) -> list[Figure]:
    spread = table[(table.task == -1) & ~table.axis.isin(ACROSS) & ~table.metric.str.contains("residual")]
    spread = spread[spread.coord.str.fullmatch(r"[-+.\deE]+")]
    texts = declared_columns()
    made = []
    for name in sorted(set(spread.metric)):
        rows = spread[(spread.metric == name)]
        rows = rows[rows.boundary == rows.boundary.max()]
        rows = rows.assign(coord=rows.coord.astype(float))
        if rows.coord.nunique() < 3:
            continue
        cubes = _cubes(entries, rows, "coord")
        top, prefix = float(rows.value.max()), ""
        if (rows.value >= 0).all() and (rows.value < top * FAINT).mean() > 0.2:  # a density, whose tails matter
            prefix = "log10 of "
            cubes = [(e, i, x, np.log10(np.maximum(values, top * FAINT**2))) for e, i, x, values in cubes]
        series = [_series(e, i, x, values) for e, i, x, values in cubes]
        if any(np.isfinite(s.y).any() for s in series):
            unit, text = texts.get(name, ("", name))
            unit = unit if unit not in ("", "1") else "value"
            whole = bool((rows.coord % 1 == 0).all())
            made.append(_chart(text or name, series, str(rows.axis.iloc[0]), prefix + unit, whole))
    return made


@cache
def declared_columns() -> dict[str, tuple[str, str]]:
    """Unit and meaning of each built-in metric, from the page that is generated from them: their code imports torch."""
    page = ROOT / "harness" / "metrics" / "README.md"
    found = {}
    for line in page.read_text("utf-8").splitlines():
        cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) == 5 and "net" in cells[3]:
            unit = "" if cells[2] == "-" else cells[2]
            found[cells[0]] = unit.replace("weight2", "weight²"), cells[4]
    return found


def _spread(n: int, limit: int) -> list[int]:
    return list(range(n)) if n <= limit else [round(i * (n - 1) / (limit - 1)) for i in range(limit)]
