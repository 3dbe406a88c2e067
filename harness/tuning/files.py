"""Sensitivity: the score of every trial, as tables and figures."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import store
from harness.jobs.trials import written
from harness.leaderboard.texts import piped
from harness.plotting import COLOURS, STYLE, save
from harness.tuning import Tuned
from harness.tuning.choice import Tried, numeric
from harness.tuning.preset import scored, worded

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ACROSS = 4  # panels side by side
APART = 0.15  # of the way to the next value


def write(settings: Sequence[Tuned], out: Path) -> list[Path]:
    """sensitivity.md and .parquet, and a figure for each setting that has a value to vary."""
    import matplotlib
    import pandas as pd

    out.mkdir(parents=True, exist_ok=True)
    store.write_text(out / "sensitivity.md", markdown(settings))
    with store.replacing(out / "sensitivity.parquet") as tmp:
        pd.DataFrame([record for setting in settings for record in records(setting)]).to_parquet(tmp, index=False)
    written = [out / "sensitivity.md", out / "sensitivity.parquet"]
    for setting in settings:
        if panels(setting):
            written.append(out / f"{setting.name}.svg")
            with matplotlib.rc_context(STYLE):
                save(figure(setting), written[-1])
    return written


def text(settings: Sequence[Tuned]) -> list[str]:
    """What was chosen, for a terminal."""
    lines = []
    for setting in settings:
        width = max(len(one.label) for one in setting.tried)
        lines += [setting.name, setting.about]
        for one in setting.tried:
            values = worded(one.best.values) or "nothing to tune"
            said = [
                values,
                *["the default"] * (one.best.default and bool(one.main)),
                *[f"{one.edge} tried"] * bool(one.edge),
            ]
            lines += [f"  {one.label:<{width}}  {scored(one.best)}  {', '.join(said)}"]
        lines += [*(f"note: {note}" for note in setting.notes), ""]
    return lines[:-1]


def records(setting: Tuned) -> Iterator[dict[str, Any]]:
    """A record for each seed of each trial."""
    for one in setting.tried:
        for number, trial in enumerate(one.trials):
            value = trial.values.get(one.main)
            for seed, score in zip(one.seeds, trial.scores):
                yield {
                    "setting": setting.name,
                    "strategy": one.label,
                    "trial": number,
                    "values": worded(trial.values),
                    "main": one.main,
                    "main_value": float(value) if numeric(value) else math.nan,
                    "seed": seed,
                    "average_accuracy": float(score),
                    "diverged": seed in trial.diverged,
                    "default": trial.default,
                    "chosen": trial is one.best,
                    "run_ids": " ".join(trial.runs),
                }


def markdown(settings: Sequence[Tuned]) -> str:
    """All trials as Markdown."""
    parts = [
        "# Sensitivity",
        "",
        "Average accuracy at the end on validation rows, mean over seeds with its 95 % interval; a seed that diverged",
        "counts, with the lowest score there is. Test rows chose nothing. Made by `python -m harness tune`; not edited",
        "by hand.",
    ]
    for setting in settings:
        parts += ["", f"## {setting.name}", "", setting.about, ""]
        if panels(setting):
            parts += [f"![Score of each strategy against its main setting]({setting.name}.svg)", ""]
        parts += [*piped(("strategy", "values", "average accuracy", ""), list(_rows(setting)))]
        parts += ["", *(f"* {note}" for note in setting.notes)] if setting.notes else []
    return "\n".join(parts) + "\n"


def _rows(setting: Tuned) -> Iterator[tuple[str, ...]]:
    for one in setting.tried:
        for trial in one.trials:
            marks = ["default"] * trial.default + ["chosen"] * (trial is one.best and bool(one.main))
            if trial is one.best and one.edge:
                marks += [f"{one.edge} tried"]
            yield one.label, worded(trial.values) or "nothing to tune", scored(trial), ", ".join(marks)


def panels(setting: Tuned) -> list[Tried]:
    """Strategies whose main setting was tried at two numbers or more."""
    return [one for one in setting.tried if len({v for t in one.trials if numeric(v := t.values.get(one.main))}) > 1]


def figure(setting: Tuned) -> Figure:
    """A panel for each strategy: score at each value of its main setting, on one scale, with its 95 % interval.

    The values stand at even distances, since most grids are even in the logarithm.
    """
    from matplotlib.figure import Figure

    shown = panels(setting)
    across = min(ACROSS, len(shown))
    down = math.ceil(len(shown) / across)
    made = Figure(figsize=(max(3.0 * across, 6.4), 2.5 * down + 1.3), layout="constrained")
    made.suptitle("Score on validation rows against each strategy's main setting")
    axes = made.subplots(down, across, squeeze=False, sharey=True)
    naive = next((one.best.mean for one in setting.tried if one.label == "naive"), math.nan)
    for ax, one in zip(axes.flat, shown):
        _panel(ax, one, naive)
    for ax in axes.flat[len(shown) :]:
        ax.set_axis_off()
    for line in axes:
        line[0].set_ylabel("average accuracy")
    names: dict[str, Any] = {}
    for ax in axes.flat:
        names |= dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    made.legend(names.values(), names.keys(), loc="outside lower center", ncols=len(names), frameon=False)
    return made


def _panel(ax: Axes, one: Tried, naive: float) -> None:
    values = list(dict.fromkeys(t.values[one.main] for t in one.trials))
    x: list[float] = []
    for trial in one.trials:  # those that differ in another setting stand beside one another
        at = values.index(trial.values[one.main])
        x += [at + APART * sum(t.values[one.main] == trial.values[one.main] for t in one.trials[: len(x)])]
    if not math.isnan(naive):
        ax.axhline(naive, color="#888888", linestyle=":", linewidth=1.2, label="naive")
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
