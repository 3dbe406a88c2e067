"""The figures of an atlas. Each function draws one table of `harness.finished.atlas`; `draw` writes all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness import store
from harness.plotting import COLOURS, DASHES, STYLE, band, band_of, below, log_ticks, over_seeds, sheet
from harness.stats import student

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FAINT = 0.1  # nat: the least range of colours and axes, so rounding errors do not look like a wall
FLOOR = 1e-6  # densities below it are tails of the kernel
CELLS = 12  # up to this number of anchors, barriers are also written as numbers


def barriers(frame: pd.DataFrame, unit: str = "nat") -> Figure:
    """Mean over seeds of two loss barriers between every two anchors, under three losses."""
    anchors = sorted({*frame.start, *frame.end})
    panels = {"earlier": "earlier task's loss", "later": "later task's loss", "both": "mean of both"}
    kinds = {"barrier_entezari_loss": "above the chord", "instability_frankle_loss": "above the mean of the ends"}
    figure, axes = sheet("Barriers on the line between the nets after two tasks", 3, len(kinds), height=3.8)
    for line, (measure, label) in zip(axes, kinds.items()):
        mean = frame[frame.measure == measure].groupby(["of", "start", "end"]).value.mean()
        top = max(float(mean.max()), FAINT)
        for ax, (of, title) in zip(line, panels.items()):
            matrix = np.full((len(anchors) - 1, len(anchors) - 1), np.nan)
            for (start, end), value in mean[of].items():
                matrix[anchors.index(end) - 1, anchors.index(start)] = value
            image = ax.imshow(matrix, cmap="viridis", vmin=0, vmax=top)
            ax.set_title(title)
            ax.set_xticks(range(len(anchors) - 1), [str(t + 1) for t in anchors[:-1]])
            ax.set_yticks(range(len(anchors) - 1), [str(t + 1) for t in anchors[1:]])
            ax.set_xlabel("from the net after task")
            ax.spines[:].set_visible(False)
            for (row, column), value in np.ndenumerate(matrix) if len(anchors) <= CELLS else ():
                if np.isfinite(value):
                    ink = "white" if value < 0.6 * top else "black"
                    ax.text(column, row, f"{value:.2f}", ha="center", va="center", color=ink, fontsize=9)
        line[0].set_ylabel("to the net after task")
        figure.colorbar(image, ax=list(line), label=f"largest loss\n{label}, {unit}", shrink=0.9)
    return figure


def barriers_by_distance(frame: pd.DataFrame, unit: str = "nat") -> Figure:
    """The chord barriers against the distance in tasks, and the path between the farthest anchors."""
    figure, ((left, right),) = sheet("Barriers against distance in tasks", 2, width=5.2)
    chosen = frame[frame.measure == "barrier_entezari_loss"]
    chosen = chosen.assign(distance=chosen.end - chosen.start)
    first, last = frame.start.min(), frame.end.max()
    path = frame[(frame.measure == "loss") & (frame.start == first) & (frame.end == last)]
    for n, (of, label) in enumerate({"earlier": "earlier task", "later": "later task", "both": "mean of both"}.items()):
        means = chosen[chosen.of == of].groupby(["seed", "distance"]).value.mean().reset_index()
        band(left, *over_seeds(means, "distance"), label, n, marker="o")
        band(right, *over_seeds(path[path.of == of], "alpha"), label, n)
    left.set_ylim(bottom=min(0.0, left.get_ylim()[0]), top=max(FAINT, left.get_ylim()[1]))
    left.xaxis.get_major_locator().set_params(integer=True)
    left.set_xlabel("number of tasks between the two nets")
    left.set_ylabel(f"largest loss above the chord, {unit}")
    left.set_title("barrier, mean over pairs")
    right.set_xlabel("position on the line")
    right.set_xticks([0, 0.5, 1], [f"after task {first + 1}", "half way", f"after task {last + 1}"])
    right.set_ylabel(f"loss, {unit}")
    right.set_title(f"from task {first + 1} to task {last + 1}")
    figure.legend(
        *right.get_legend_handles_labels(), title="loss of", loc="outside lower center", ncols=3, frameon=False
    )
    return figure


def planes(frame: pd.DataFrame, unit: str = "nat") -> Figure:
    """The plane through three nets of one seed, one panel per task's loss."""
    names = sorted(frame.of.unique(), key=int)
    seed = frame.seed.min()
    after = ", ".join(str(int(n) + 1) for n in names)
    figure, (axes,) = sheet(f"Plane through the nets after tasks {after} (seed {seed})", 3)
    titles = [f"loss of task {int(n) + 1}" for n in names]
    corners = [int(n) + 1 for n in names]
    ways = (f"from net {corners[0]} to net {corners[1]}", f"across, to net {corners[2]}")
    return _contours(figure, axes, frame[frame.seed == seed], names, titles, corners, ways, unit)


def random_planes(frame: pd.DataFrame, unit: str = "nat") -> Figure:
    """The loss around the first and the last net of one seed, along filter-normalised random directions."""
    names = sorted(frame.of.unique(), key=int)
    seed = frame.seed.min()
    figure, (axes,) = sheet(f"Filter-normalised random directions, mean loss (seed {seed})", len(names))
    titles = [f"after task {int(n) + 1}" for n in names]
    ways = ("one direction (1: as long as the filters)", "another direction")
    return _contours(figure, axes, frame[frame.seed == seed], names, titles, None, ways, unit)


def _contours(
    figure: Figure,
    axes: Sequence[Axes],
    frame: pd.DataFrame,
    names: Sequence[str],
    titles: Sequence[str],
    corners: Sequence[int] | None,
    ways: tuple[str, str],
    unit: str,
) -> Figure:
    from matplotlib.colors import LogNorm

    points = frame[frame.corner < 0]
    finite = points.value[np.isfinite(points.value) & (points.value > 0)]
    low, high = max(float(finite.min()), 1e-3), max(float(finite.max()), 2e-3)
    levels = np.geomspace(low, high, 21)
    drawn = None
    for ax, name, title in zip(axes, names, titles):
        table = points[points.of == name].pivot_table("value", "y", "x")
        z = np.clip(table.to_numpy(), low, high)
        how: dict[str, Any] = {"levels": levels, "norm": LogNorm(low, high)}
        drawn = ax.contourf(table.columns, table.index, z, cmap="viridis", **how)
        ax.contour(table.columns, table.index, z, colors="white", linewidths=0.4, alpha=0.6, **how)
        marks = frame[(frame.corner >= 0) & (frame.of == name)]
        for n, (x, y) in enumerate(zip(marks.x, marks.y)):
            ax.plot(x, y, "o", color="white", markeredgecolor="black", markersize=9)
            if corners is not None:
                box = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 1.5}
                ax.annotate(f"{corners[n]}", (x, y), (8, 8), textcoords="offset points", bbox=box)
        ax.set_title(title)
        ax.set_xlabel(ways[0])
    axes[0].set_ylabel(ways[1])
    bar = figure.colorbar(drawn, ax=list(axes), label=f"loss, {unit} (log scale)", shrink=0.85)  # type: ignore[arg-type]
    ticks = log_ticks(low, high)
    bar.set_ticks(ticks, labels=[f"{t:g}" for t in ticks])
    bar.minorticks_off()
    return figure


def seeds(frame: pd.DataFrame, unit: str = "nat") -> Figure:
    """Loss and error of the last task between two seeds' last nets, with their units as they are and aligned."""
    figure, (axes,) = sheet("From one seed's last net to another's, on the last task", 2, width=5.2)
    for ax, kind, label in zip(axes, ("loss", "error"), (f"loss, {unit}", "error, fraction")):
        for n, how in enumerate(frame.aligned.unique()):
            rows = frame[(frame.measure == kind) & (frame.aligned == how)]
            name = how if how == "as they are" else f"matched by {how}"
            band(ax, *over_seeds(rows, "alpha"), name, n)
        ax.set_xlabel("position on the line")
        ax.set_xticks([0, 0.5, 1], ["one seed", "half way", "another"])
        ax.set_ylabel(label)
    below(figure, axes[0], "hidden units")
    return figure


def joint(frame: pd.DataFrame, unit: str = "nat") -> Figure:
    """Mean loss of all anchors' tasks on the line from the first, a middle and the last net to the joint net."""
    ways = list(frame.aligned.unique())
    figure, (axes,) = sheet("From a net of the stream to the joint net: mean loss of all tasks", len(ways), width=5.2)
    starts = sorted(frame.start.unique())
    chosen = frame[(frame.measure == "loss") & (frame.of == "all")]
    for ax, how in zip(axes, ways):
        for n, t in enumerate(sorted({starts[0], starts[len(starts) // 2], starts[-1]})):
            rows = chosen[(chosen.aligned == how) & (chosen.start == t)]
            band(ax, *over_seeds(rows, "alpha"), f"after task {t + 1}", n)
        ax.set_title("units as they are" if how == "as they are" else f"the joint net's units matched by {how}")
        ax.set_xticks([0, 0.5, 1], ["stream", "half way", "joint"])
        ax.set_ylim(0, max(1.05 * float(chosen.value.max()), FAINT))
    axes[0].set_ylabel(f"loss, {unit}")
    below(figure, axes[0], "net of the stream")
    return figure


def spectra(frame: pd.DataFrame, unit: str = "nat") -> Figure:
    """Spectral densities of the Hessian after the first, the middle and the last task: mean over seeds, and each."""
    figure, ((ax,),) = sheet("Hessian spectrum of the mean loss over the tasks seen", 1, width=8.0)
    for n, t in enumerate(sorted(frame.after.unique())):
        rows = frame[frame.after == t]
        largest = (rows.groupby("seed").eigenvalue.max() / rows.share.max()).to_numpy()
        mean, half = map(float, student(largest))
        spread = f" ± {half:.2g}" if np.isfinite(half) else ""
        share, values = over_seeds(rows, "share")
        how = {"color": COLOURS[n], "linestyle": DASHES[n]}
        ax.semilogy(share, values.mean(0), linewidth=2, label=f"after task {t + 1}: {mean:.3g}{spread}", **how)
        ax.semilogy(share, values.T, linewidth=0.6, alpha=0.45, **how)
    seen = frame[frame.value > FLOOR]
    ax.set_ylim(FLOOR, 10 * float(seen.value.max()))
    ax.set_xlim(float(seen.share.min()) - 0.05, 1.1)
    ax.set_xlabel("eigenvalue / largest absolute eigenvalue of the seed (thin lines: single seeds)")
    ax.set_ylabel(f"density, weight²/{unit}")
    ax.legend(title=f"largest, {unit}/weight²", frameon=False)
    return figure


def path_card(frame: pd.DataFrame, unit: str = "nat") -> Figure:
    """Old tasks' loss against the new task's on the line between consecutive boundaries: mean over seeds and band."""
    from matplotlib import colormaps

    figure, ((ax,),) = sheet("From each boundary's net to the next", 1, width=7.0, height=5.0)
    boundaries = sorted(frame[frame.metric == "path_loss_old"].boundary.unique())
    colours = colormaps["viridis"](np.linspace(0, 0.9, len(boundaries)))
    for t, colour in zip(boundaries, colours):
        rows = frame[(frame.boundary == t) & (frame.axis == "alpha")]
        rows = rows.assign(alpha=rows.coord.astype(float))
        new, old = (over_seeds(rows[rows.metric == f"path_loss_{name}"], "alpha")[1] for name in ("new", "old"))
        mean, half = band_of(old)
        x = np.nanmean(new, 0)
        ax.plot(x, mean, color=colour, linewidth=2, label=f"task {t + 1}")
        ax.fill_between(x, mean - half, mean + half, color=colour, alpha=0.2, linewidth=0)
        ax.plot(x[0], mean[0], "o", color=colour, markersize=8)
        ax.plot(x[-1], mean[-1], "s", color=colour, markersize=8)
    ax.set_xlabel(f"loss of the new task, {unit} (log scale)")
    ax.set_ylabel(f"mean loss of the old tasks, {unit}")
    ax.set_xscale("log")
    ax.set_ylim(bottom=0)
    ticks = log_ticks(*ax.get_xlim())
    ax.set_xticks(ticks, labels=[f"{t:g}" for t in ticks])
    ax.minorticks_off()
    ax.legend(title="new task", frameon=False)
    return figure


DRAWN: dict[str, tuple[str, Callable[..., Figure]]] = {  # figure -> table, function
    "barriers": ("barriers", barriers),
    "barriers_by_distance": ("barriers", barriers_by_distance),
    "planes": ("planes", planes),
    "random_planes": ("random_planes", random_planes),
    "seeds": ("seeds", seeds),
    "joint": ("joint", joint),
    "spectra": ("spectra", spectra),
}


def draw(folder: Path, unit: str = "nat") -> list[Path]:
    """Draw every table in `folder` as PNG and SVG in the same folder; returns the files written."""
    import pandas as pd
    from matplotlib import rc_context

    written = []
    for name, (table, function) in DRAWN.items():
        source = folder / f"{table}.parquet"
        if not source.exists() or (frame := pd.read_parquet(source)).empty:
            continue
        with rc_context(STYLE):
            figure = function(frame, unit=unit)
            for kind in ("png", "svg"):
                path = folder / f"{name}.{kind}"
                store.save_figure(figure, path)
                written.append(path)
    return written
