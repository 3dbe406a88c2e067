"""Takes the metrics of a boundary: times them, counts their work, and writes their rows."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from harness import counting, returns
from harness.boundary import Boundary, Metric
from harness.learner import Learner
from harness.record.clock import Clock
from harness.record.layout import reading_rows
from harness.record.sinks import Columns, Sink
from harness.types import Column, Reading

A = TypeVar("A")
B = TypeVar("B")


class Meter:
    """The metrics of a run, and where their rows go.

    Metrics are pure, so several can be taken at once, in as many threads as `workers`: torch works without Python's
    lock. Their rows have the same order, and their seconds are those of each alone.
    """

    def __init__(
        self, learner: Learner, metrics: Mapping[str, Metric], sink: Sink, clock: Clock, workers: int = 1
    ) -> None:
        self.learner, self.metrics, self.sink, self.clock, self.workers = learner, metrics, sink, clock, workers

    def measure(self, make: Callable[[], Boundary]) -> None:
        """Measure the boundary that `make` returns: write each metric's rows, and a row for each kind of work done."""
        if not self.metrics:
            return
        spent: dict[str, Counter[str]] = {}
        rows: list[Columns] = []
        with self.counted():
            boundary = make()

            def take(metric: Metric) -> tuple[dict[str, Tensor | Reading], Counter[str], float]:
                began = self.clock.now()
                with counting.counting() as work:
                    readings = metric(boundary)
                return readings, work, self.clock.now() - began

            for (name, metric), taken in zip(self.metrics.items(), mapped(take, self.metrics.values(), self.workers)):
                readings, spent[name], seconds = taken
                self.clock.add(f"metric/{name}", seconds)
                returns.readings(name, readings, self.learner.S)
                columns = columns_of(metric)
                rows += [self.rows(boundary.t, boundary.phase, c, v, columns.get(c)) for c, v in readings.items()]
        worked = {name: one for name, one in spent.items() if one}
        for kind, meaning in counting.COLUMNS.items() if worked else ():
            each = torch.tensor([[float(one[kind]) for one in worked.values()]]).expand(self.learner.S, -1)
            reading = Reading(each, axis="metric", coords=list(worked))
            rows.append(self.rows(boundary.t, boundary.phase, kind, reading, meaning))
        if rows:  # at once: a table of each would take longer than some metrics
            self.sink.write("metrics", {k: [v for one in rows for v in one[k]] for k in rows[0]})

    def emit(self, t: int, phase: str, name: str, value: Tensor | Reading, column: Column | None) -> None:
        """Write the rows of one column."""
        self.sink.write("metrics", self.rows(t, phase, name, value, column))

    def rows(self, t: int, phase: str, name: str, value: Tensor | Reading, column: Column | None) -> Columns:
        """The rows of one column."""
        about: Any = {"boundary": t, "phase": phase, "metric": name, "value": value, "column": column}
        return reading_rows(self.learner.seeds, self.learner.alive, **about)

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Nets and copies of the learner that are made inside count their forward passes."""
        plain = self.learner.apply
        self.learner.apply = counting.counted(plain)
        try:
            yield
        finally:
            self.learner.apply = plain


def mapped(call: Callable[[A], B], values: Iterable[A], workers: int) -> Iterator[B]:
    """`map` in threads; the first error in the order of the values is raised, and what has not begun is left out.

    >>> list(mapped(abs, [-1, 2], 1)), list(mapped(abs, [-1, 2], 2))
    ([1, 2], [1, 2])
    """
    if workers == 1:
        yield from map(call, values)
        return
    pool = ThreadPoolExecutor(workers)
    try:
        yield from pool.map(call, values)
    finally:
        pool.shutdown(cancel_futures=True)


def columns_of(metric: Metric) -> Mapping[str, Column]:
    """The meaning of a metric's columns, from its module's COLUMNS."""
    function = metric.func if isinstance(metric, partial) else metric
    module = sys.modules.get(getattr(function, "__module__", ""))
    columns: Mapping[str, Column] = getattr(module, "COLUMNS", {})
    return columns
