"""A run on the terminal: a line for each boundary, then a table and the accuracy matrix."""

from __future__ import annotations

import math
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TextIO

import numpy as np
from numpy.typing import NDArray

from harness.stats import Array, student
from harness.store.scores import scores
from harness.trackers import About, Summary, floor, quantity
from harness.wording import DIVERGED, UNDEFINED, UNMEASURED, mean_text, wrapped

if TYPE_CHECKING:
    from rich.console import Console as RichConsole
    from rich.progress import Progress, TaskID


class Shown(NamedTuple):
    """A quantity to show: `key` is new, old or a metric; `over` says which boundaries the final table uses."""

    title: str
    key: str
    format: str = ".3f"
    over: str = "last"  # the last boundary, or mean: over all boundaries


LINE = (
    Shown("new", "new"),
    Shown("old", "old"),
    Shown("forgetting", "forgetting"),
    Shown("plasticity lost", "trainability_gap"),
    Shown("sharpness", "lambda_max_joint", ".3g"),
)
TABLE = (
    Shown("average accuracy", "average_accuracy"),
    Shown("accuracy on the new task, mean", "new", over="mean"),
    Shown("accuracy on old tasks", "old"),
    Shown("forgetting", "forgetting"),
    Shown("backward transfer", "backward_transfer"),
    Shown("forward transfer", "forward_transfer"),
    Shown("loss of plasticity (trainability gap), mean", "trainability_gap", over="mean"),
    Shown("intransigence, mean", "intransigence", over="mean"),
    Shown("sharpness (top eigenvalue, seen tasks)", "lambda_max_joint", ".4g"),
)
COMPARED = ("trainability_gap", "intransigence")  # with nets that are trained only if control and gap are true
CELLS = 20  # largest number of rows and columns of the accuracy matrix
_RAMP = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))  # viridis


class Console:
    """Plain lines; on a terminal also a progress bar, and a coloured matrix."""

    def __init__(
        self,
        title: str = "",
        *,
        line: Sequence[Shown] = LINE,
        table: Sequence[Shown] = TABLE,
        closing: Sequence[str] = (),
        stream: TextIO | None = None,
    ) -> None:
        self.title, self.line, self.table, self.closing = title, line, table, closing
        self.stream = sys.stdout if stream is None else stream
        self.history: list[Summary] = []
        self.rich: RichConsole | None = None
        self.bar: Progress | None = None
        self.task: TaskID | None = None
        self.control: TaskID | None = None

    def start(self, about: About, past: Sequence[Summary]) -> None:
        self.about, self.history = about, list(past)
        # rich is only for terminals: a pipe needs neither its width nor its import
        if self.stream.isatty() and os.environ.get("TERM", "dumb") != "dumb":
            self._start_bar(about.tasks, self._done)
            self._show_control()
        if self.title:
            self._print(self.title)
        if past:
            self._print(f"resumed after task {self._done}/{about.tasks}")

    @property
    def _done(self) -> int:
        return self.history[-1].t + 1 if self.history else 0

    def progress(self, task: int, step: int, steps: int) -> None:
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, completed=task + step / max(steps, 1))
            self._show_control()

    def boundary(self, summary: Summary) -> None:
        self.history.append(summary)
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, completed=summary.t + 1, description=f"task {summary.t + 1}/{self.about.tasks}")
        if summary.t >= 0:
            self._print(line(summary, self.about.tasks, self.line))

    def finish(self, files: Sequence[Path], error: str = "") -> None:
        if self.bar is not None:
            self.bar.stop()
        if error or self._done == 0:
            return
        self._print("")
        for text in table(self.history, len(self.about.seeds), self.table):
            self._print(text)
        self._print("")
        self._matrix()
        self._print("")
        self._print(f"results in {self.about.path}")
        for text in self.closing:
            self._print(text)

    def _show_control(self) -> None:
        """A second bar for the control, as long as it is trained beside the run."""
        done = None if self.about.control is None else self.about.control()
        if self.bar is None or (done is None and self.control is None):
            return
        if done is None:
            assert self.control is not None
            self.bar.update(self.control, visible=False)
            return
        text = f"control {done}/{self.about.tasks}"
        if self.control is None:
            self.control = self.bar.add_task(text, total=self.about.tasks)
        self.bar.update(self.control, completed=done, description=text)

    def _print(self, text: str) -> None:
        if self.rich is None:
            print(text, file=self.stream, flush=True)
        else:
            wide = shutil.get_terminal_size().columns
            self.rich.print(wrapped(text, wide), markup=False, highlight=False, soft_wrap=True)

    def _start_bar(self, tasks: int, done: int) -> None:
        from rich import progress
        from rich.console import Console as RichConsole

        self.rich = RichConsole(file=self.stream)
        self.bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.TimeElapsedColumn(),
            progress.TextColumn("left"),
            progress.TimeRemainingColumn(),
            console=self.rich,
            transient=True,
            speed_estimate_period=600.0,  # measuring and training alternate: 30 s would see only one of them
            redirect_stderr=False,
            redirect_stdout=False,
        )
        self.task = self.bar.add_task(f"task {done}/{tasks}", total=tasks, completed=done)
        self.bar.start()

    def _matrix(self) -> None:
        width = shutil.get_terminal_size().columns if self.rich is not None else 10**6
        head, labels, cells = matrix(self.history, self.about.tasks, width)
        self._print(head)
        scale = np.concatenate([row for _, row in cells])
        low, high = np.fmin.reduce(scale), np.fmax.reduce(scale)  # NaN only if every cell is
        for label, (texts, values) in zip(labels, cells):
            if self.rich is None:
                self._print(label + "".join(texts))
                continue
            from rich.text import Text

            painted = Text(label)
            for text, value in zip(texts, values):
                painted.append(text, style=_style((value - low) / max(high - low, 1e-12)))
            self.rich.print(painted, soft_wrap=True)


def _style(share: float) -> str:
    """Background from dark (lowest) to bright, with text in a colour that is readable on it."""
    if math.isnan(share):
        return ""
    at = share * (len(_RAMP) - 1)
    i = min(int(at), len(_RAMP) - 2)
    r, g, b = (round(lo + (at - i) * (hi - lo)) for lo, hi in zip(_RAMP[i], _RAMP[i + 1]))
    ink = "black" if 0.299 * r + 0.587 * g + 0.114 * b > 140 else "white"
    return f"{ink} on rgb({r},{g},{b})"


def mark(key: str, values: Array, diverged: NDArray[np.bool_]) -> str:
    """Why a quantity has no mean, from its values [S] by `quantity`."""
    if np.isnan(values[~diverged]).all() and not diverged.all():
        return UNMEASURED if key in COMPARED else UNDEFINED
    return DIVERGED if np.isnan(values[diverged]).any() else UNDEFINED


def completed(history: Sequence[Summary]) -> list[Summary]:
    """The boundaries, with the scores that the accuracy matrix determines where they were not recorded."""
    trained = [s for s in history if s.t >= 0]
    total = 1 + max((s.t for s in trained), default=-1)
    if not total or all("average_accuracy" in s.values for s in trained):
        return list(history)
    r = np.full((len(trained[0].accuracy), total, total), math.nan)
    for s in trained:
        r[:, s.t] = s.accuracy[:, :total]
    known = {name: values for name, values in scores(r).items() if name != "learning_accuracy"}  # that is `new`
    return [
        replace(s, values={**{name: v[:, s.t] for name, v in known.items()}, **s.values}) if s.t >= 0 else s
        for s in history
    ]


def line(summary: Summary, tasks: int, shown: Sequence[Shown]) -> str:
    """`task  3/10  new 0.912  old 0.634 ...`: means over seeds (`stats.counted`), and how many diverged."""
    parts = [f"task {summary.t + 1:>{len(str(tasks))}}/{tasks}"]
    lowest = floor([summary])
    for title, key, form, _ in shown:
        values = quantity(summary, key, lowest)
        if values is None:
            continue
        average = float(values.mean())
        parts.append(
            f"{title} {mark(key, values, summary.diverged) if math.isnan(average) else format(average, form):>6}"
        )
    if lost := int(summary.diverged.sum()):
        parts.append(f"({lost} of {len(summary.new)} seeds diverged)")
    return "  ".join(parts)


def table(history: Sequence[Summary], seeds: int, shown: Sequence[Shown]) -> list[str]:
    """Mean ± 95 % interval over seeds of each quantity (`stats.counted`), aligned; and which seeds have no value."""
    trained = [s for s in completed(history) if s.t >= 0]
    empty = [s.t + 1 for s in trained if np.isnan(s.new[~s.diverged]).all() and not s.diverged.all()]
    lost, lowest = trained[-1].diverged, floor(trained)
    rows: list[tuple[str, str, str]] = []
    for title, key, form, over in shown:
        at = trained if over == "mean" else trained[-1:]
        values = [(s, v) for s in at if (v := quantity(s, key, lowest)) is not None]
        if empty and key in ("average_accuracy", "new") and any(np.isnan(v[~s.diverged]).all() for s, v in values):
            tasks = f"task{'s' * (len(empty) > 1)} {', '.join(map(str, empty))}"
            rows.append((title, UNDEFINED, f"undefined, because {tasks} had no test rows"))
            continue
        # boundaries at which the quantity is undefined (no old task yet) do not count
        found = [v for s, v in values if s.diverged.all() or not np.isnan(v).all()]
        if not found:
            continue
        means = np.mean(found, 0)
        average, half = map(float, student(means))
        n = int((~np.isnan(means)).sum())
        text = mean_text(average, half, n, seeds, form, mark(key, means, lost))
        note = f"{lost.sum()} diverged, counted as {lowest:g}" if lost.any() and n == seeds else ""
        word = title if fractions(trained) else title.replace("accuracy", "score")
        rows.append((word, text, note))
    wide = [max((len(row[i]) for row in rows), default=0) for i in (0, 1)]
    head = f"mean{' ± 95 % interval' if seeds > 1 else ''} over {seeds} seed{'s' if seeds > 1 else ''}"
    return [head, *(f"  {a:<{wide[0]}}  {b:<{wide[1]}}  {c}".rstrip() for a, b, c in rows)]


def fractions(history: Sequence[Summary]) -> bool:
    """Whether the scores can be accuracies: regression scores lie outside 0 ... 1."""
    return not any(bool(((s.accuracy < 0) | (s.accuracy > 1)).any()) for s in history)


def _spread(n: int, limit: int) -> list[int]:
    """At most `limit` of 0 ... n - 1, evenly spaced, including both ends."""
    return list(range(n)) if n <= limit else [round(i * (n - 1) / (limit - 1)) for i in range(limit)]


def _cell_mark(summary: Summary, task: int) -> str:
    """Why there is no accuracy on a task."""
    if summary.diverged.all():
        return DIVERGED if task <= summary.t else UNMEASURED
    return UNDEFINED if task == summary.t or not np.isnan(summary.accuracy[:, task]).all() else UNMEASURED


def matrix(history: Sequence[Summary], tasks: int, width: int) -> tuple[str, list[str], list[tuple[list[str], Array]]]:
    """Heading, row labels and cells (texts, values) of the mean accuracy on task j (column) after task i (row)."""
    trained = [s for s in history if s.t >= 0]
    lowest = floor(trained)
    means = np.array([s.means(lowest) for s in trained])  # [rows, T]
    percent = fractions(trained)
    cell = 4 if percent else 8
    margin = max(5, len(str(tasks)) + 1)
    columns = _spread(tasks, max(2, min(CELLS, (width - margin) // cell)))
    rows = _spread(len(trained), CELLS)
    unit = "accuracy, %" if percent else "score"
    head = f"{unit}, on task (across) after task (down), mean over seeds\n"
    head += " " * margin + "".join(f"{j + 1:>{cell}}" for j in columns)
    cells = []
    for i in rows:
        values = means[i, columns]
        why = [_cell_mark(trained[i], j) for j in columns]
        texts = [m if math.isnan(v) else f"{100 * v:.0f}" if percent else f"{v:.3g}" for m, v in zip(why, values)]
        cells.append(([f"{text:>{cell}}" for text in texts], values))
    return head, [f"{trained[i].t + 1:>{margin}}" for i in rows], cells
