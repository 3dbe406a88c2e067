"""A merge on a terminal, and as a figure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness import store
from harness.finished.merge import ALIGNED, BASE, LAST, OWN, Merged
from harness.leaderboard.texts import aligned
from harness.plotting import COLOURS, STYLE, band, below, over_seeds, sheet
from harness.stats import student
from harness.wording import DIVERGED, UNDEFINED, UNMEASURED, mean_text, printable

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

HEADS = ("worst task", "loss", "λ₁", "lost by a pair", "ρ with barrier", "chosen")
GEOMETRY = {  # rows of the second table: measure, and whether it is of each task
    "barrier of the mean loss": ("barrier_entezari_loss", False),
    "barrier of each task's loss, mean": ("barrier_entezari_loss", True),
    "barrier of each task's error, mean": ("barrier_entezari_error", True),
    "hill of the mean loss above both ends": ("excess_loss", False),
    "distance": ("distance", False),
    "cosine of task vectors": ("cosine", False),
    "sign conflicts": ("sign_conflicts", False),
    "units moved": ("moved_share", False),
}


def text(found: Merged) -> list[str]:
    """Lines for a terminal."""
    import pandas as pd

    frame, about = pd.DataFrame(found.columns), found.about
    if about["unit"] == "accuracy":  # the rule for diverged seeds
        zero = (frame.measure == "accuracy") & (frame.second < 0) & frame.seed.isin(about["diverged"])
        frame.loc[zero & frame.value.isna(), "value"] = 0.0
    nets, mark = about["nets"], DIVERGED if about["diverged"] else UNDEFINED
    lines = [
        f"{len(nets)} nets of {' '.join(about['runs'])} ({about['strategy']} on {about['stream']}, scenario"
        f" {about['scenario']}), {frame.seed.nunique()} seeds",
        f"base of task vectors: {about['base'] or 'none'}",
    ]
    if about["batch_norm"]:
        lines.append("batch norm: running statistics of every merged net are recomputed on training rows")
    lines += ["", f"{about['unit']} on all test rows, mean ± 95 % interval over seeds"]
    lines += [*aligned(("merge", about["unit"], *HEADS), methods(frame, mark)), ""]
    lines += [f"between pairs of nets, mean over {_pairs(frame)} pairs"]
    lines += [*aligned(("merge", *ALIGNED), geometry(frame, mark)), ""]
    lines += [f"note: {note}" for note in found.notes]
    return [printable(line) for line in lines]


def methods(frame: pd.DataFrame, mark: str = UNDEFINED) -> list[list[str]]:
    """A line for each merge, and for what it is compared with: its score, and what `HEADS` says."""
    lines = []
    for name in frame[frame.method != ""].method.unique():
        rows = frame[(frame.method == name) & (frame.task >= 0)]
        by_task = rows[rows.measure == "accuracy"].groupby(["seed", "task"]).value.mean().unstack()
        alone = frame[(frame.method == name) & (frame.task < 0) & (frame["first"] < 0)]
        lost = frame[(frame.method == name) & (frame.measure == "lost")]
        shown = "each net on its own tasks" if name == OWN else name
        lines.append(
            [
                shown,
                cell(by_task.mean(axis=1, skipna=False).to_numpy(), mark=mark),
                cell(by_task.min(axis=1, skipna=False).to_numpy(), mark=mark),
                cell(_mean(rows[rows.measure == "loss"]), mark=mark),
                cell(_mean(alone[alone.measure == "lambda_max"]), ".3g", mark),
                cell(_mean(lost), mark=mark),
                cell(correlation(frame, name), "+.2f", mark),
                chosen(alone),
            ]
        )
    return lines


def chosen(rows: pd.DataFrame) -> str:
    """The values of a method's coefficients: one if all seeds chose it, else the smallest and the largest."""
    parts = []
    for measure, group in rows[rows.measure.str.startswith("chosen_")].groupby("measure", sort=False):
        low, high = group.value.min(), group.value.max()
        parts.append(f"{str(measure).removeprefix('chosen_')} {low:g}" + (f" to {high:g}" if high > low else ""))
    return ", ".join(parts)


KEY = ["seed", "first", "second"]


def barriers(frame: pd.DataFrame, method: str, measure: str = "", each: bool = True) -> pd.Series:
    """The barrier before a merge by seed and pair: for rebasin after alignment, else of the nets as they are.

    `measure`: by default Entezari's, of the error, or of the loss in a regression. `each`: of each task, then the mean;
    else that of the mean over tasks.
    """
    if not measure:
        kind = "error" if (frame.measure == "barrier_entezari_error").any() else "loss"
        measure = f"barrier_entezari_{kind}"
    how = ALIGNED[1] if method == "rebasin" else ALIGNED[0]
    rows = frame[(frame.measure == measure) & (frame.aligned == how) & ((frame.task >= 0) == each)]
    found: pd.Series = rows.groupby(KEY).value.mean()
    return found


def correlation(frame: pd.DataFrame, method: str, measure: str = "", each: bool = True) -> np.ndarray:
    """Spearman's ρ over pairs of nets between `barriers` and what the method's merge loses: one for each seed.

    NaN for fewer than three pairs, or if one of the two does not vary.
    """
    from scipy.stats import rankdata

    barrier = barriers(frame, method, measure, each)
    lost = frame[(frame.measure == "lost") & (frame.method == method)].set_index(KEY).value
    both = lost.to_frame("lost").join(barrier.rename("barrier")).reset_index()
    found = []
    for _, rows in both.groupby("seed"):
        x, y = rankdata(rows.barrier), rankdata(rows.lost)
        finite = bool(np.isfinite(rows[["barrier", "lost"]].to_numpy(np.float64)).all())
        varies = len(rows) > 2 and finite and x.std() > 0 and y.std() > 0
        found.append(float(np.corrcoef(x, y)[0, 1]) if varies else math.nan)
    return np.array(found)


def geometry(frame: pd.DataFrame, mark: str = UNDEFINED) -> list[list[str]]:
    """A line for each quantity between two nets: as they are, and after alignment."""
    lines = []
    for title, (measure, each) in GEOMETRY.items():
        rows = frame[(frame.measure == measure) & (frame["first"] >= 0) & ((frame.task >= 0) == each)]
        cells = []
        for how in ALIGNED:
            own = rows[rows.aligned.isin([how, ""] if how == ALIGNED[0] else [how])]
            cells.append(cell(_mean(own), ".3g" if measure == "distance" else ".3f", mark))
        if len(rows):
            lines.append([title, *cells])
    return lines


def cell(values: np.ndarray, form: str = ".3f", mark: str = UNDEFINED) -> str:
    """Mean and 95 % half width over seeds; `mark` if a seed has none; nothing is not measured."""
    if not len(values):
        return UNMEASURED
    mean, half = map(float, student(values))
    return mean_text(mean, half, int((~np.isnan(values)).sum()), len(values), form, mark)


def _mean(rows: pd.DataFrame) -> np.ndarray:
    """The mean of each seed."""
    return np.array([group.value.mean(skipna=False) for _, group in rows.groupby("seed")])


def _pairs(frame: pd.DataFrame) -> int:
    return len(frame[frame.measure == "distance"][["first", "second"]].drop_duplicates())


def figure(found: Merged) -> Figure:
    """The merges beside the nets that they merge, the lines between pairs, and a pair's barrier against its loss."""
    import pandas as pd

    frame = pd.DataFrame(found.columns)
    unit = found.about["unit"]
    title = f"Merging {len(found.about['nets'])} nets: {found.about['strategy']} on {found.about['stream']}"
    drawn, ((left, middle, right),) = sheet(title, 3, width=4.6, height=4.6)
    names = [name for name in frame[frame.method != ""].method.unique() if name not in (OWN, LAST, BASE)]
    for place, name in enumerate([*names, LAST, OWN]):
        rows = frame[(frame.method == name) & (frame.task >= 0) & (frame.measure == "accuracy")]
        mean, half = student(_mean(rows))
        colour = COLOURS[0] if name in names else COLOURS[1]
        left.errorbar(mean, -place, xerr=np.nan_to_num(half), fmt="o", color=colour, capsize=3)
    left.set_yticks([-i for i in range(len(names) + 2)], [*names, LAST, OWN])
    left.set_xlabel(f"{unit}, mean over tasks")
    for n, how in enumerate(frame[frame.aligned != ""].aligned.unique()):
        rows = frame[(frame.measure == "loss") & (frame.aligned == how)]
        label = how if how == ALIGNED[0] else f"matched by {how}"
        means = rows.groupby(["seed", "alpha"]).value.mean().reset_index()
        band(middle, *over_seeds(means, "alpha"), label, n)
    middle.set_xlabel("position between two nets, mean over pairs")
    middle.set_ylabel("loss on their tasks, nat" if unit == "accuracy" else "loss on their tasks")
    for n, name in enumerate(("average", "rebasin")):
        barrier = barriers(frame, name).groupby(KEY[1:]).mean()
        lost = frame[(frame.measure == "lost") & (frame.method == name)].groupby(KEY[1:]).value.mean()
        if len(lost):
            fill = {} if n == 0 else {"fillstyle": "none", "markersize": 9}  # both may have the same points
            right.plot(barrier.reindex(lost.index), lost, "os"[n], color=COLOURS[n], label=name, **fill)
    right.locator_params(nbins=5)
    right.set_xlabel(f"barrier of a pair, mean of its tasks, {'error' if unit == 'accuracy' else 'loss'}")
    right.set_ylabel(f"{unit} lost by merging it")
    if right.get_legend_handles_labels()[0]:
        right.legend(frameon=False)
    below(drawn, middle, "hidden units")
    return drawn


def draw(found: Merged) -> Path:
    """Write merge.svg beside the table."""
    from matplotlib import rc_context

    path = found.folder / "merge.svg"
    with rc_context(STYLE), store.reporting(found.folder, "--out FOLDER"):
        store.save_figure(figure(found), path)
    return path


def read(folder: Path) -> Merged:
    """What was written into a folder."""
    import pandas as pd

    frame, about = pd.read_parquet(folder / "merge.parquet"), store.read_about(folder / "merge.parquet")
    if about is None:
        raise store.Damaged(folder / "merge.parquet", "does not say how it was made")
    columns: Mapping[str, list[Any]] = {str(name): frame[name].tolist() for name in frame.columns}
    return Merged(columns, about, (), folder)
