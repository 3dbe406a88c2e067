"""Mirrors of a run: a tracker receives summaries of the tables, which remain the truth."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from harness.stats import Array, counted, finite_mean
from harness.store import SCHEMAS
from harness.store.scores import SCORES, lowest
from harness.wording import first_line, warn


@dataclass(frozen=True)
class About:
    """What a tracker knows of a run before it starts."""

    config: Mapping[str, Any]  # resolved
    manifest: Mapping[str, Any]
    path: Path  # the run's folder
    seeds: tuple[int, ...]
    tasks: int
    control: Callable[[], int | None] | None = None  # tasks of a control that is trained beside the run; None: no more


@dataclass(frozen=True)
class Summary:
    """One boundary, summarised from its rows."""

    t: int  # task just trained; -1: the initialisation
    values: Mapping[str, Array]  # metric -> [S]; those of phase start are named start/<metric>
    accuracy: Array  # [S, T] on each task at this boundary, NaN where not measured

    @property
    def new(self) -> Array:
        """Accuracy on the task just trained: [S]; NaN at the initialisation."""
        return self.accuracy[:, self.t] if self.t >= 0 else np.full(len(self.accuracy), math.nan)

    @property
    def old(self) -> Array:
        """Mean accuracy on the earlier tasks that were measured: [S]; NaN where there are none."""
        return finite_mean(self.accuracy[:, : max(self.t, 0)])

    @property
    def diverged(self) -> NDArray[np.bool_]:
        """Seeds that have no value at this boundary: [S]. A task without test rows leaves them other values."""
        there = ~np.isnan(self.accuracy).all(1)
        for values in self.values.values():
            there = there | ~np.isnan(values)
        return np.asarray(~there)

    def means(self, lowest: float) -> Array:
        """Mean accuracy over seeds on each task, as `counted` says: [T]; NaN where no seed was measured."""
        tested = ~np.isnan(self.accuracy).all(0)
        values = counted(self.accuracy.T, self.diverged, lowest)
        return np.where(tested, values.mean(1), math.nan)


def floor(history: Sequence[Summary]) -> float:
    """The score as which a diverged seed counts in this run."""
    return lowest(np.concatenate([s.accuracy.ravel() for s in history])) if history else 0.0


def quantity(summary: Summary, key: str, floor: float) -> Array | None:
    """Values [S] of `new`, `old` or a metric, with `floor` for diverged seeds if it is a score; None: not recorded."""
    values = {"new": summary.new, "old": summary.old, **summary.values}.get(key)
    if values is None:
        return None
    defined = key in (*SCORES, "new") or (key == "old" and summary.t > 0)
    return counted(values, summary.diverged, floor if defined else None)


class Tracker(Protocol):
    """Mirrors a run. Boundaries arrive in order; `past` holds those of an earlier attempt."""

    def start(self, about: About, past: Sequence[Summary]) -> None: ...
    def progress(self, task: int, step: int, steps: int) -> None: ...
    def boundary(self, summary: Summary) -> None: ...
    def finish(self, files: Sequence[Path], error: str = "") -> None:
        """Close: with the `files` of a finished run, or the `error` that stopped it."""


class Trackers:
    """Several trackers as one. A tracker that raises is dropped with a warning."""

    def __init__(self, trackers: Sequence[Tracker], warn: Callable[[str], None] = warn) -> None:
        self.trackers, self.warn = list(trackers), warn

    def start(self, about: About, past: Sequence[Summary] = ()) -> None:
        self._each(lambda tracker: tracker.start(about, past))

    def progress(self, task: int, step: int, steps: int) -> None:
        self._each(lambda tracker: tracker.progress(task, step, steps))

    def boundary(self, summary: Summary) -> None:
        self._each(lambda tracker: tracker.boundary(summary))

    def finish(self, files: Sequence[Path], error: str = "") -> None:
        self._each(lambda tracker: tracker.finish(files, error))

    def _each(self, call: Callable[[Tracker], None]) -> None:
        for tracker in list(self.trackers):
            try:
                call(tracker)
            except Exception as error:
                self.trackers.remove(tracker)
                said = f"{type(error).__name__}: {first_line(error, 200)}"
                self.warn(f"{type(tracker).__name__} stopped ({said}); the run continues")


def summaries(metrics: Any, accuracy: Any, seeds: Sequence[int], tasks: int) -> list[Summary]:
    """One Summary a boundary from the pyarrow tables `metrics` and `accuracy`, in order of boundaries.

    Only rows about the whole boundary count (no axis, no evaluated task). If a metric was taken of both nets, that of
    the deployed one is named <metric>/deployed.
    """
    row = {seed: s for s, seed in enumerate(seeds)}
    scores: dict[int, Array] = {}
    cells = (accuracy[c].to_pylist() for c in ("boundary", "seed", "task", "accuracy"))
    for t, seed, task, score in zip(*cells):
        scores.setdefault(t, np.full((len(seeds), tasks), math.nan))[row[seed], task] = score
    values: dict[int, dict[tuple[str, str, str], Array]] = {t: {} for t in scores}
    # not with pyarrow.compute, which imports pandas for the constants
    whole = [axis == "" and task == -1 for axis, task in zip(metrics["axis"].to_pylist(), metrics["task"].to_pylist())]
    cells = (compress(metrics[c].to_pylist(), whole) for c in ("boundary", "phase", "metric", "net", "seed", "value"))
    for t, phase, metric, net, seed, value in zip(*cells):
        found = values.setdefault(t, {}).setdefault((phase, metric, net), np.full(len(seeds), math.nan))
        found[row[seed]] = value
    blank = np.full((len(seeds), tasks), math.nan)
    return [Summary(t, _named(values[t]), scores.get(t, blank)) for t in sorted(values)]


def published(path: Path) -> list[Path]:
    """The files that describe a finished run completely: its tables and its manifest."""
    return [*(path / f"{name}.parquet" for name in SCHEMAS), path / "manifest.json"]


def _named(values: Mapping[tuple[str, str, str], Array]) -> dict[str, Array]:
    named = {}
    for (phase, metric, net), value in values.items():
        both = net == "deployed" and (phase, metric, "trained") in values
        named[("" if phase == "end" else f"{phase}/") + metric + ("/deployed" if both else "")] = value
    return named
