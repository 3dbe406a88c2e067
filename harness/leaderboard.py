"""Finished runs side by side: one table for each setting, computed from the tables alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from harness import store
from harness.trackers import Array, interval


class Score(NamedTuple):
    """A column of the leaderboard: a metric at the last boundary, or its mean over all of them."""

    title: str
    metric: str
    last: bool


SCORES = (
    Score("average accuracy", "average_accuracy", True),
    Score("new-task accuracy", "learning_accuracy", False),
    Score("forgetting", "forgetting", True),
    Score("plasticity lost", "trainability_gap", False),
)


def leaderboard(folders: Sequence[Path]) -> list[str]:
    """Lines of text: the finished runs of each setting (stream, model, optimizer, budget) by average accuracy.

    Means and 95 % Student intervals are over the seeds of a run. Runs are compared within one setting
    only; a setting is named by its hash. A metric that a run did not record shows as -.
    """
    lines: list[str] = []
    for (stream, setting), runs in settings(folders).items():
        entries = [(run.manifest["strategy"], len(run.manifest["seeds"]), values, run) for values, run in ranked(runs)]
        width = max(len("strategy"), *(len(name) for name, *_ in entries))
        lines += [f"{stream}, setting {setting}, mean ± 95 % interval over seeds, by {SCORES[0].title}"]
        titles = "  ".join(f"{s.title:>17}" for s in SCORES)
        lines += [f"  {'strategy':<{width}}  seeds  {titles}  step cost   memory"]
        for name, seeds, values, run in entries:
            step, memory = cost(run)
            lines += [
                f"  {name:<{width}}  {seeds:>5}  {'  '.join(f'{shown(v):>17}' for v in values)}"
                f"  {times(step):>9}  {size(memory):>7}"
            ]
        lines += [""]
    return lines[:-1]


def settings(folders: Sequence[Path]) -> dict[tuple[str, str], list[store.Run]]:
    """Finished runs by stream and setting, within which they compare; in order of their names."""
    groups: dict[tuple[str, str], list[store.Run]] = {}
    for folder in folders:
        for run in store.find_runs(folder, purpose="run"):
            groups.setdefault((run.manifest["stream"], run.manifest["setting"]), []).append(run)
    return dict(sorted(groups.items()))


def ranked(runs: Sequence[store.Run]) -> list[tuple[list[Array], store.Run]]:
    """Runs with their scores, the highest first score first; runs without one come last."""
    entries = [(scores(run), run) for run in runs]
    return sorted(entries, key=lambda e: -np.nan_to_num(interval(e[0][0])[0], nan=-1.0))


def scores(run: store.Run) -> list[Array]:
    """Each score of every seed: [S], NaN where it was not recorded."""
    import pyarrow.compute as pc

    table = store.read_table(run, "metrics")
    whole = table.filter(pc.and_(pc.equal(table["axis"], ""), pc.equal(table["task"], -1)))
    found = whole.filter(pc.equal(whole["phase"], "end")).to_pandas()
    made = []
    for score in SCORES:
        rows = found[found.metric == score.metric]
        if score.last:
            rows = rows[rows.boundary == rows.boundary.max()]
        made.append(rows.groupby("seed").value.mean().to_numpy(dtype=np.float64))
    return made


def cost(run: store.Run) -> tuple[float, float]:
    """Time of a step over that of a plain step on the same task (median over tasks), and bytes held for a seed.

    1 for a run that is plain training itself; NaN where no step was timed.
    """
    timing = store.read_table(run, "timing").to_pandas()
    seconds = timing[timing.part.isin(["step", "plain step"])].pivot_table("seconds", "boundary", "part")
    ratio = float("nan")
    if "step" in seconds:
        plain = seconds["plain step"] if "plain step" in seconds else seconds["step"]
        ratio = float((seconds["step"] / plain).median())
    metrics = store.read_table(run, "metrics").to_pandas()
    held = metrics[metrics.metric == "memory"]
    return ratio, float(held[held.boundary == held.boundary.max()].value.mean())


def times(ratio: float) -> str:
    return "-" if np.isnan(ratio) else f"{ratio:.2f}"


def size(count: float) -> str:
    """Bytes for people.

    >>> size(0), size(340e3), size(2.5e6)
    ('0', '340 kB', '2.5 MB')
    """
    if np.isnan(count):
        return "-"
    for unit, one in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= one:
            return f"{count / one:.3g} {unit}"
    return f"{count:.0f}"


def shown(values: Array) -> str:
    mean, half, n = interval(values)
    return "-" if n == 0 else f"{mean:.3f}" if n == 1 else f"{mean:.3f} ± {half:.3f}"
