"""Which trial of a strategy is chosen, and how certain the choice is. Numpy only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from harness.stats import Array, student

Values = Mapping[str, Any]  # setting of a strategy, as in ewc.strength -> value


@dataclass(frozen=True)
class Trial:
    """A strategy at some values, scored on validation rows."""

    values: Values
    scores: Array  # [seeds] higher is better; lowest possible score for a diverged seed; NaN: not recorded
    default: bool = False
    diverged: tuple[int, ...] = ()
    runs: tuple[str, ...] = ()

    @property
    def mean(self) -> float:
        return float(self.scores.mean())

    @property
    def half(self) -> float:
        """Half width of the mean's 95 % interval."""
        return float(student(self.scores)[1])


@dataclass(frozen=True)
class Tried:
    """All trials of a strategy in one setting."""

    label: str
    parts: tuple[str, ...]  # its names in the configuration: several for a list of strategies
    seeds: tuple[int, ...]
    trials: tuple[Trial, ...]  # sorted by their values
    fixed: Values  # non-default values that all trials share
    missing: tuple[Values, ...] = ()  # points of the grid that were not tried

    @property
    def main(self) -> str:
        """The most important setting; "" if nothing was varied."""
        return next(iter(self.trials[0].values), "")

    @property
    def best(self) -> Trial:
        return self.trials[highest([t.mean for t in self.trials], [t.default for t in self.trials])]

    @property
    def default(self) -> Trial | None:
        return next((t for t in self.trials if t.default), None)

    @property
    def lost(self) -> bool:
        """Whether every seed of every trial diverged; then nothing is chosen and the default remains."""
        return all(set(t.diverged) >= set(self.seeds) for t in self.trials)

    @property
    def edge(self) -> str:
        """Whether the best value of the main setting is the "largest" or "smallest" tried; "" if neither.

        Values beyond it may do even better.
        """
        if not self.main:
            return ""
        at = self.best.values[self.main]
        numbers = {v for t in self.trials if numeric(v := t.values[self.main])}
        elsewhere = [t.mean for t in self.trials if t.values[self.main] != at]
        if len(numbers) < 2 or any(mean >= self.best.mean for mean in elsewhere):
            return ""
        return {max(numbers): "largest", min(numbers): "smallest"}.get(at, "")

    @property
    def gain(self) -> tuple[float, float]:
        """Best minus default, paired by seed: mean and half width of its 95 % interval; NaN without the default."""
        if self.default is None:
            return math.nan, math.nan
        mean, half = student(self.best.scores - self.default.scores)
        return float(mean), float(half)


def highest(means: Sequence[float], default: Sequence[bool]) -> int:
    """Index of the highest mean; ties go to the default, then to the first; NaN loses.

    >>> highest([0.5, 0.7, 0.7], [True, False, False]), highest([0.5, 0.7, 0.7], [False, False, True])
    (1, 2)
    >>> highest([math.nan, -math.inf, 0.1], [True, False, False]), highest([math.nan, math.nan], [False, True])
    (2, 1)
    """
    known = [-math.inf if math.isnan(mean) else mean for mean in means]
    return max(range(len(known)), key=lambda i: (known[i], default[i], -i))


def numeric(value: Any) -> TypeGuard[float]:
    """Whether a value is a number, which can be drawn on an axis.

    >>> [numeric(v) for v in (1, 0.5, True, None, "sum")]
    [True, True, False, False, False]
    """
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def place(values: Values) -> list[tuple[int, float, str]]:
    """The key that sorts trials: null, then numbers, then words.

    >>> sorted([{"a": "sum"}, {"a": 2.0}, {"a": None}, {"a": 1}], key=place)
    [{'a': None}, {'a': 1}, {'a': 2.0}, {'a': 'sum'}]
    """
    return [
        (1, float(v), "") if isinstance(v, (int, float)) else (2 * (v is not None), 0.0, str(v))
        for v in values.values()
    ]
