"""A run's CPU time and peak memory against seeds, width, tasks and rows, one at a time: a page and a figure.

    python -m tests.benchmarks growth [--axes seeds tasks] [--most 60] [--out results/scaling.md]

Every point is the whole command line in a process of its own, with one thread: naive training with metrics=fast on
permuted tasks of synthetic rows of 20 features (ten classes, each normal around a centre). The base is 5 seeds, two
layers of 100 units, 5 tasks and 2,000 rows, an epoch a task in steps of 32 rows; one of these changes. Every boundary
tests the last five tasks, except on the axis "tasks, all tested". Points that are in the JSON file beside the page are
kept, so an interrupted command goes on where it stopped. `--most` runs no point that takes longer (in seconds).
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from math import log, nan
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np

from harness.plotting import COLOURS, STYLE, sheet
from tests.benchmarks import timing

BASE = {"seeds": 5, "width": 100, "tasks": 5, "rows": 2000}
FEATURES, CLASSES, BATCH = 20, 10, 32
START = {"seeds": 1, "width": 1, "tasks": 1, "rows": 100}  # what a run costs before it does anything
# axis -> value -> seconds on the CPU, when the page was written
AXES: dict[str, dict[int, float]] = {
    "seeds": {1: 6, 2: 8, 5: 8, 10: 6, 30: 9, 150: 19},
    "width": {32: 7, 100: 7, 320: 8, 1000: 17, 2000: 60},
    "tasks": {10: 9, 30: 13, 100: 31, 300: 90, 1000: 290},
    "tasks, all tested": {10: 9, 30: 17, 100: 66, 300: 450},
    "rows": {1000: 7, 10_000: 9, 100_000: 30, 1_000_000: 260},
}
BOUNDARY = ("metric", "checkpoint")  # parts of a boundary that are neither training nor testing
NOISE = 3.0, 20.0  # seconds and MiB above the smallest run from which a difference counts
NEAR = 1.2  # a local slope up to this is called linear


@dataclass(frozen=True)
class Line:
    """A point: CPU seconds, peak memory in MiB, and the median time of each part of a boundary, in milliseconds."""

    axis: str
    value: int
    cpu: float
    memory: float
    boundary: dict[str, float]  # of the last twenty


# --- a point ------------------------------------------------------------------------------------------


def sizes(axis: str, value: int) -> dict[str, int]:
    """Seeds, width, tasks and rows of a point."""
    return START if axis == "start" else {**BASE, axis.partition(",")[0]: value}


def command(axis: str, value: int, data: Path, results: Path) -> list[str]:
    size = sizes(axis, value)
    return [
        *(sys.executable, "-m", "harness", "strategy=naive", "metrics=fast", "gap=false", "control=false"),
        *("tracker.mode=disabled", "tasks=permuted", "dataset=npz", f"dataset.path={data}", f"results={results}"),
        *(f"tasks.n_tasks={size['tasks']}", f"seeds={[*range(size['seeds'])]}", f"model.widths={[size['width']] * 2}"),
        *("train.epochs=1", f"train.batch_size={BATCH}", f"eval.tasks={'seen' if 'all' in axis else 5}", "threads=1"),
    ]


def synthetic(rows: int, file: Path) -> None:
    draw = np.random.default_rng(0)
    label = draw.integers(0, CLASSES, rows)
    centre = draw.normal(size=(CLASSES, FEATURES))
    np.savez(file, x=(centre[label] + draw.normal(size=(rows, FEATURES))).astype(np.float32), y=label)


def measured(axis: str, value: int) -> Line:
    """Run a point. RuntimeError with the end of its output if it fails."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        synthetic(sizes(axis, value)["rows"], folder / "data.npz")
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # imports are not what is measured
        with (folder / "log").open("w+") as output:
            started = subprocess.Popen(
                command(axis, value, folder / "data.npz", folder), stdout=output, stderr=output, env=environment
            )
            _, status, usage = os.wait4(started.pid, 0)
            started.returncode = os.waitstatus_to_exitcode(status)
            if started.returncode:
                raise RuntimeError(f"{axis} {value}: failed; {(folder / 'log').read_text()[-500:]}")
        (run,) = (folder / "runs").glob("*/*/*")
        # a process begins with the memory of this one, which is less than any run's
        memory = usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
        return Line(axis, value, usage.ru_utime + usage.ru_stime, memory, last_boundaries(run))


def last_boundaries(run: Path, count: int = 20) -> dict[str, float]:
    """Part -> its median time at the last boundaries, in milliseconds of wall time; metrics are added up."""
    import pyarrow.parquet as pq

    rows = pq.read_table(run / "timing.parquet", columns=["boundary", "part", "seconds"]).to_pylist()
    last = max(row["boundary"] for row in rows)
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        if row["boundary"] > last - count:
            at = found.setdefault(row["part"].partition("/")[0], {})
            at[row["boundary"]] = at.get(row["boundary"], 0.0) + 1e3 * row["seconds"]
    return {part: median(at.values()) for part, at in found.items()}


# --- what the points say --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Growth:
    """How a quantity grows along an axis, beyond what a run costs at the start."""

    slope: float  # of log against log, where it exceeds the start
    fixed: int | None  # up to here fixed costs are more than half
    steeper: int | None  # the first value after which it grows faster than linearly


def growth(x: Sequence[float], y: Sequence[float], start: float, noise: float) -> Growth:
    """Least squares of log(y - start) against log x over the points where y - start exceeds `noise`.

    >>> growth([1, 10, 100, 1000], [5.1, 6.0, 15.0, 105.0], 5.0, 0.5)
    Growth(slope=1.0, fixed=10, steeper=None)
    """
    above = [(log(a), log(b - start)) for a, b in zip(x, y) if b - start > noise]
    slope = nan
    if len(above) > 1:
        u, v = (mean(values) for values in zip(*above))
        slope = sum((a - u) * (b - v) for a, b in above) / sum((a - u) ** 2 for a, _ in above)
    fixed = [a for a, b in zip(x, y) if b < 2 * start]
    known = [(a, b - start) for a, b in zip(x, y) if b - start > noise]
    steep = [a for (a, b), (c, d) in itertools.pairwise(known) if log(d / b) > NEAR * log(c / a)]
    return Growth(round(slope, 3), int(max(fixed)) if fixed else None, int(steep[0]) if steep else None)


def grown(lines: Sequence[Line]) -> Iterator[tuple[str, list[Line], Growth, Growth]]:
    """Axis, its points, and the growth of time and memory."""
    (start,) = (line for line in lines if line.axis == "start")
    for axis in AXES:
        points = sorted((line for line in lines if line.axis == axis), key=lambda line: line.value)
        if points:
            x = [line.value for line in points]
            time = growth(x, [line.cpu for line in points], start.cpu, NOISE[0])
            yield axis, points, time, growth(x, [line.memory for line in points], start.memory, NOISE[1])


def page(lines: Sequence[Line], machine: dict[str, Any], figure: str) -> str:
    (start,) = (line for line in lines if line.axis == "start")
    hours = sum(line.cpu for line in lines) / 3600
    base = ", ".join(f"{v:,} {k}" for k, v in BASE.items() if k != "width")
    text = [
        "# How a run grows",
        "",
        f"CPU time and peak memory of a whole command as one setting changes around {base}, two layers of"
        f" {BASE['width']} units: naive training on permuted tasks of synthetic rows ({FEATURES} features, {CLASSES}"
        f" classes), `metrics=fast`, an epoch a task in steps of {BATCH} rows, one thread. A boundary tests the last"
        ' five tasks, and all tasks so far on the axis "tasks, all tested". Every point is one process.',
        "",
        f"Made by `python -m tests.benchmarks growth` in {hours:.1f} CPU hours on {machine['cpu']}, {machine['cores']}"
        f" cores, torch {machine['torch']}; the machine was busy, which adds to CPU time.",
        "",
        f"![CPU time and memory against seeds, width, tasks and rows]({figure})",
        "",
        "Hollow points are within noise of the smallest run.",
        "",
        f"The smallest run (one seed, one task, three steps) takes {start.cpu:.1f} s and {start.memory:.0f} MiB, which"
        " slopes leave out: they are those of log (value - smallest run) against log setting, fitted to the points that"
        f" exceed it by {NOISE[0]:.0f} s or {NOISE[1]:.0f} MiB. Slope 1 is linear. Fixed costs prevail up to the last"
        " setting that takes less than twice the smallest run; growth is steeper from where a local slope exceeds"
        f" {NEAR}. The parameters of a net, and so its time, grow with the square of its width.",
        "",
        "| axis | from, to | CPU s | slope | mostly fixed to | steeper from | MiB | slope | fixed to | steeper from |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for axis, points, time, memory in grown(lines):
        first, last = points[0], points[-1]
        cells = [axis, f"{first.value:,}, {last.value:,}", f"{first.cpu:.1f}, {last.cpu:.1f}", *_cells(time)]
        cells += [f"{first.memory:.0f}, {last.memory:.0f}", *_cells(memory)]
        text.append(f"| {' | '.join(cells)} |")
    have = {(line.axis, line.value) for line in lines}
    left = [f"{axis} {value:,}" for axis, values in AXES.items() for value in values if (axis, value) not in have]
    text += ["", f"Not run: {'; '.join(left)}. Repeating the command runs them."] if left else []
    text += ["", "## Points", "", "| axis | value | CPU s | MiB |", "| --- | ---: | ---: | ---: |"]
    text += [f"| {line.axis} | {line.value:,} | {line.cpu:.1f} | {line.memory:.0f} |" for line in lines]
    text += [
        "",
        "## A boundary of a long run",
        "",
        "Median times at the last twenty boundaries, over the time of training a task, which is the same in all of them"
        " (other processes slow both). Metrics and checkpoint are what a boundary costs apart from testing.",
        "",
        "| axis | tasks | metrics and checkpoint | testing |",
        "| --- | ---: | ---: | ---: |",
    ]
    for line in lines:
        if line.axis.startswith("tasks"):
            apart, tests = (sum(line.boundary[part] for part in parts) for parts in (BOUNDARY, ("evaluate",)))
            train = line.boundary["train"]
            text.append(f"| {line.axis} | {line.value:,} | {apart / train:.2f} | {tests / train:.2f} |")
    return "\n".join(text) + "\n"


def _cells(found: Growth) -> list[str]:
    places = ["-" if value is None else f"{value:,}" for value in (found.fixed, found.steeper)]
    return ["-" if found.slope != found.slope else f"{found.slope:.2f}", *places]


def draw(lines: Sequence[Line], file: Path) -> None:
    """Time above, memory below, a column for each axis; hollow points are not beyond noise."""
    from matplotlib import rc_context

    (start,) = (line for line in lines if line.axis == "start")
    shown = [*grown(lines)]
    with rc_context(STYLE):
        figure, axes = sheet("CPU time and peak memory of a run", panels=len(shown), rows=2, width=3.2, height=3.0)
        for (axis, points, *found), column in zip(shown, axes.T):
            x = np.array([line.value for line in points], dtype=float)
            for ax, name, grows, base, noise in zip(column, ("cpu", "memory"), found, (start.cpu, start.memory), NOISE):
                y = np.array([getattr(line, name) for line in points]) - base
                known = y > noise
                ax.loglog(x[known], y[known], "o", color=COLOURS[0])
                ax.loglog(x[~known & (y > 0)], y[~known & (y > 0)], "o", color=COLOURS[0], fillstyle="none")
                if known.sum() > 1:
                    middle = np.exp(np.log(x[known]).mean()), np.exp(np.log(y[known]).mean())
                    line = middle[1] * (x[known] / middle[0]) ** grows.slope
                    ax.loglog(x[known], line, color=COLOURS[1], linewidth=1.5, label=f"slope {grows.slope:.2f}")
                    ax.legend(frameon=False, loc="upper left")
                ax.set_xlabel(axis)
        axes[0, 0].set_ylabel("CPU s above smallest run")
        axes[1, 0].set_ylabel("MiB above smallest run")
        figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)


# --- the command ----------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> list[Line]:
    import argparse

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axes", nargs="+", default=list(AXES), choices=list(AXES))
    parser.add_argument("--most", type=float, default=float("inf"), help="seconds of the longest point")
    parser.add_argument("--out", type=Path, help="page to write, with its points and figure beside it")
    options = parser.parse_args(arguments)
    kept: dict[tuple[str, int], Line] = {}
    points = None if options.out is None else options.out.with_suffix(".json")
    if points and points.exists():
        kept = {(row["axis"], row["value"]): Line(**row) for row in json.loads(points.read_text())["points"]}
    points_of = [(axis, value, about) for axis in options.axes for value, about in AXES[axis].items()]
    wanted = [("start", 1, 5.0)] + [p for p in points_of if p[2] <= options.most or p[:2] in kept]
    missing = [point for point in wanted if point[:2] not in kept]
    hours = sum(seconds for *_, seconds in missing) / 3600
    print(f"{len(missing)} points to run, {len(wanted) - len(missing)} kept: about {hours:.2f} hours")
    print(f"{'axis':<20}{'value':>10}{'CPU s':>9}{'MiB':>8}", flush=True)
    for axis, value, _ in wanted:
        if (axis, value) not in kept:
            kept[axis, value] = measured(axis, value)
            if points:
                _save(points, [*kept.values()])
        line = kept[axis, value]
        print(f"{axis:<20}{value:>10,}{line.cpu:>9.1f}{line.memory:>8.0f}", flush=True)
    lines = [kept[axis, value] for axis, value, _ in wanted]
    for axis, _, time, memory in grown(lines):
        print(f"{axis:<20}slope of time {time.slope:.2f}, of memory {memory.slope:.2f}")
    if options.out:
        draw(lines, options.out.with_suffix(".svg"))
        options.out.write_text(page(lines, timing.machine(), options.out.with_suffix(".svg").name))
    return lines


def _save(file: Path, lines: Sequence[Line]) -> None:
    unfinished = file.with_suffix(".tmp")
    unfinished.write_text(json.dumps({"points": [asdict(line) for line in lines]}, indent=1) + "\n")
    unfinished.replace(file)


if __name__ == "__main__":
    main()
