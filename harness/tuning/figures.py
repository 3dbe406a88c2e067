"""Figures of the trials: each method's score against its main setting."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from harness.jobs.trials import written
from harness.plotting import COLOURS
from harness.tuning import Tuned
from harness.tuning.breadth import Curve, curves, good_range
from harness.tuning.choice import Tried, numeric

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ACROSS = 4  # panels in a row
APART = 0.15  # of the distance to the next value


def naive(setting: Tuned) -> float:
    """The score without a method; NaN if it was not run."""
    return next((one.best.mean for one in setting.tried if one.label == "naive"), math.nan)


def panels(setting: Tuned) -> list[Tried]:
    """Strategies whose main setting was tried at two or more numbers."""
    return [one for one in setting.tried if len({v for t in one.trials if numeric(v := t.values.get(one.main))}) > 1]


def figure(setting: Tuned) -> Figure:
    """A panel per strategy: score at each value of its main setting with its 95 % interval, on a shared scale.

    Values are evenly spaced, because most grids are even in the logarithm.
    """
    shown = panels(setting)
    made, axes = _panels(len(shown), "Score on validation rows against each strategy's main setting")
    for ax, one in zip(axes, shown):
        _panel(ax, one, naive(setting))
    return _legend(made, axes, across=4)


def shared(settings: Sequence[Tuned]) -> dict[str, list[tuple[Tuned, Curve]]]:
    """The curves of each panel of `overall`: a method, in every setting in which a positive number was varied."""
    found: dict[str, list[tuple[Tuned, Curve]]] = {}
    for setting in settings:
        for curve in (curve for one in setting.tried for curve in curves(one)):
            found.setdefault(curve.label, []).append((setting, curve))
    return found


def overall(settings: Sequence[Tuned]) -> Figure:
    """A panel per method: score against its main setting, a line per stream; a bar for its good range, naive dotted."""
    from matplotlib.ticker import NullFormatter

    shown = shared(settings)
    made, axes = _panels(len(shown), "Score on validation rows. Bars: half of the gain over naive is kept")
    colours = {setting.name: COLOURS[i % len(COLOURS)] for i, setting in enumerate(settings)}
    for ax, (label, lines) in zip(axes, shown.items()):
        for setting, curve in lines:
            _line(ax, setting, curve, colours[setting.name])
        ax.set_xscale("log")
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.set_title(label)
        ax.set_xlabel(lines[0][1].main.partition(".")[2])
    return _legend(made, axes, across=2)


def _panels(count: int, title: str) -> tuple[Figure, list[Axes]]:
    """A figure of so many panels with one scale of accuracy."""
    from matplotlib.figure import Figure

    across = min(ACROSS, count)
    down = math.ceil(count / across)
    made = Figure(figsize=(max(3.0 * across, 7.2), 2.5 * down + 1.3), layout="constrained")
    made.suptitle(title)
    axes = made.subplots(down, across, squeeze=False, sharey=True)
    for ax in axes.flat[count:]:
        ax.set_axis_off()
    for line in axes:
        line[0].set_ylabel("average accuracy")
    return made, list(axes.flat[:count])


def _legend(made: Figure, axes: Sequence[Axes], across: int) -> Figure:
    names: dict[str, Any] = {}
    for ax in axes:
        names |= dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    made.legend(names.values(), names.keys(), loc="outside lower center", ncols=min(across, len(names)), frameon=False)
    return made


def _line(ax: Axes, setting: Tuned, curve: Curve, colour: str) -> None:
    floor, about = naive(setting), setting.name.removeprefix("tuned_")
    if not math.isnan(floor):
        ax.axhline(floor, color=colour, linestyle=":", linewidth=1.2, label=f"naive, {about}")
    ax.errorbar(
        curve.values, curve.means, curve.halves, color=colour, marker="o", markersize=3.5, capsize=2, linewidth=1.5,
        label=about,
    )  # fmt: skip
    if found := good_range(curve.values, curve.means, floor):
        level = (floor + curve.means.max()) / 2
        ax.plot([found.low, found.high], [level, level], color=colour, alpha=0.3, linewidth=7, solid_capstyle="butt")


def _panel(ax: Axes, one: Tried, floor: float) -> None:
    values = list(dict.fromkeys(t.values[one.main] for t in one.trials))
    x: list[float] = []
    for trial in one.trials:  # trials that differ in another setting are drawn next to each other
        at = values.index(trial.values[one.main])
        x += [at + APART * sum(t.values[one.main] == trial.values[one.main] for t in one.trials[: len(x)])]
    if not math.isnan(floor):
        ax.axhline(floor, color="#888888", linestyle=":", linewidth=1.2, label="naive")
    half = [0.0 if math.isnan(t.half) else t.half for t in one.trials]
    ax.errorbar(
        x, [t.mean for t in one.trials], half, color=COLOURS[0], linestyle="-" if len(values) == len(x) else "",
        marker="o", markersize=4, capsize=2, linewidth=1.5, label="trial",
    )  # fmt: skip
    marks = (("default", one.default, "s", "#000000", 9), ("chosen", one.best, "o", COLOURS[1], 13))
    for label, marked, shape, colour, size in marks:
        for where, trial in zip(x, one.trials):
            if trial is marked:
                ax.plot([where], [trial.mean], shape, color=colour, fillstyle="none", ms=size, mew=1.8, label=label)
    ax.set_xlim(-0.4, len(values) - 0.6)
    ax.set_xticks(range(len(values)), [f"{v:g}" if numeric(v) else written(v) for v in values])
    ax.set_title(one.label)
    ax.set_xlabel(one.main.partition(".")[2])
