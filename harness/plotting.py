"""What all drawings share: matplotlib without a window, colours for the colour-blind, 95 % bands over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.stats import Array, student

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito (2008): distinct under every common colour blindness; without yellow, which is too faint on white
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", "-.", ":")
STYLE: Any = {
    "font.size": 11,
    "axes.titlesize": 12,
    "figure.titlesize": 14,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "harness",  # the same table gives the same file
    "svg.fonttype": "none",
}


def sheet(title: str, panels: int = 1, rows: int = 1, width: float = 4.6, height: float = 4.2) -> tuple[Figure, Any]:
    """A figure with panels side by side, and its axes [rows, panels]."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(width * panels, 6.4), height * rows), layout="constrained")
    figure.suptitle(title)
    return figure, figure.subplots(rows, panels, squeeze=False)


def band_of(values: Array) -> tuple[Array, Array]:
    """Mean over seeds of values [S, K] and half width of its 95 % interval, 0 if unknown: [K] each."""
    mean, half = student(values.T)
    return mean, np.nan_to_num(half)


def band(ax: Axes, x: Sequence[float], values: Array, label: str, number: int, **how: Any) -> None:
    """Mean over seeds of values [S, K] as a line, its 95 % Student interval as a band."""
    mean, half = band_of(values)
    colour = COLOURS[number % len(COLOURS)]
    ax.plot(x, mean, color=colour, linestyle=DASHES[number % len(DASHES)], label=label, linewidth=2, **how)
    ax.fill_between(x, mean - half, mean + half, color=colour, alpha=0.2, linewidth=0)


def below(figure: Figure, ax: Axes, title: str) -> None:
    """One legend for all panels, under them."""
    figure.legend(*ax.get_legend_handles_labels(), title=title, loc="outside lower center", ncols=3, frameon=False)


def over_seeds(frame: pd.DataFrame, column: str) -> tuple[list[float], Array]:
    """The coordinates of `column`, and the values by seed and coordinate [S, K]."""
    table = frame.pivot_table("value", "seed", column, dropna=False)
    return [float(x) for x in table.columns], table.to_numpy(dtype=np.float64)


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers for a logarithmic axis: 1, 3, 10..., or even steps if these are too few.

    >>> log_ticks(0.02, 5.0), log_ticks(0.7, 2.4)
    ([0.03, 0.1, 0.3, 1.0, 3.0], [0.8, 1.2, 1.6, 2.0, 2.4])
    """
    from matplotlib.ticker import MaxNLocator

    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [t for p in powers for t in (10.0**p, 3 * 10.0**p) if low <= t <= high]
    if len(ticks) < 3:
        ticks = [float(t) for t in MaxNLocator(5).tick_values(low, high) if low <= t <= high]
    return [float(f"{t:.6g}") for t in ticks]
