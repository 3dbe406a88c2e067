"""Takes the metrics of a boundary: times them, counts their work, and writes their rows."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from harness import counting, returns
from harness.boundary import Boundary, Metric
from harness.learner import Learner
from harness.record.clock import Clock
from harness.record.layout import reading_rows
from harness.record.sinks import Sink
from harness.types import Column, Reading


class Meter:
    """The metrics of a run, and where their rows go."""

    def __init__(self, learner: Learner, metrics: Mapping[str, Metric], sink: Sink, clock: Clock) -> None:
        self.learner, self.metrics, self.sink, self.clock = learner, metrics, sink, clock

    def measure(self, make: Callable[[], Boundary]) -> None:
        """Measure the boundary that `make` returns: write each metric's rows, and a row for each kind of work done."""
        if not self.metrics:
            return
        spent: dict[str, Counter[str]] = {}
        with self.counted():
            boundary = make()
            for name, metric in self.metrics.items():
                with self.clock.timed(f"metric/{name}"), counting.counting() as spent[name]:
                    readings = metric(boundary)
                returns.readings(name, readings, self.learner.S)
                columns = columns_of(metric)
                for column, value in readings.items():
                    self.emit(boundary.t, boundary.phase, column, value, columns.get(column))
        worked = {name: one for name, one in spent.items() if one}
        for kind, meaning in counting.COLUMNS.items() if worked else ():
            each = torch.tensor([[float(one[kind]) for one in worked.values()]]).expand(self.learner.S, -1)
            reading = Reading(each, axis="metric", coords=list(worked))
            self.emit(boundary.t, boundary.phase, kind, reading, meaning)

    def emit(self, t: int, phase: str, name: str, value: Tensor | Reading, column: Column | None) -> None:
        """Write the rows of one column."""
        learner = self.learner
        columns = reading_rows(
            learner.seeds, learner.alive, boundary=t, phase=phase, metric=name, value=value, column=column
        )
        self.sink.write("metrics", columns)

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Nets and copies of the learner that are made inside count their forward passes."""
        plain = self.learner.apply
        self.learner.apply = counting.counted(plain)
        try:
            yield
        finally:
            self.learner.apply = plain


def columns_of(metric: Metric) -> Mapping[str, Column]:
    """The meaning of a metric's columns, from its module's COLUMNS."""
    function = metric.func if isinstance(metric, partial) else metric
    module = sys.modules.get(getattr(function, "__module__", ""))
    columns: Mapping[str, Column] = getattr(module, "COLUMNS", {})
    return columns
