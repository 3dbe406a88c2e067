"""Which of a strategy's trials is chosen, and how far the choice can be trusted. Numpy alone."""

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
    scores: Array  # [seeds] higher is better, the lowest there is where a seed diverged; NaN: not recorded
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
    trials: tuple[Trial, ...]  # in order of their values
    fixed: Values  # what all trials share and is not the default
    missing: tuple[Values, ...] = ()  # points of the grid that were not tried

    @property
    def main(self) -> str:
        """The setting that matters most; "" where nothing was varied."""
        return next(iter(self.trials[0].values), "")

    @property
    def best(self) -> Trial:
        return self.trials[best([t.mean for t in self.trials], [t.default for t in self.trials])]

    @property
    def default(self) -> Trial | None:
        return next((t for t in self.trials if t.default), None)

    @property
    def lost(self) -> bool:
        """Whether no trial has a seed that did not diverge, so that nothing was chosen and the default stands."""
        return all(set(t.diverged) >= set(self.seeds) for t in self.trials)

    @property
    def edge(self) -> str:
        """Which value of the main setting did better than all others: its "largest", its "smallest", or "".

        Nothing then says that a value beyond it would not do better still.
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
        """Best less default, paired by seed: mean and half width of its 95 % interval; NaN without the default."""
        if self.default is None:
            return math.nan, math.nan
        mean, half = student(self.best.scores - self.default.scores)
        return float(mean), float(half)


def best(means: Sequence[float], default: Sequence[bool]) -> int:
    """Which mean is highest; of equal ones the default's, else the first; one that is not a number loses.

    >>> best([0.5, 0.7, 0.7], [True, False, False]), best([0.5, 0.7, 0.7], [False, False, True])
    (1, 2)
    >>> best([math.nan, -math.inf, 0.1], [True, False, False]), best([math.nan, math.nan], [False, True])
    (2, 1)
    """
    known = [-math.inf if math.isnan(mean) else mean for mean in means]
    return max(range(len(known)), key=lambda i: (known[i], default[i], -i))


def numeric(value: Any) -> TypeGuard[float]:
    """Whether a value can stand on an axis.

    >>> [numeric(v) for v in (1, 0.5, True, None, "sum")]
    [True, True, False, False, False]
    """
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def place(values: Values) -> list[tuple[int, float, str]]:
    """What trials are sorted by: null, then numbers, then words.

    >>> sorted([{"a": "sum"}, {"a": 2.0}, {"a": None}, {"a": 1}], key=place)
    [{'a': None}, {'a': 1}, {'a': 2.0}, {'a': 'sum'}]
    """
    return [
        (1, float(v), "") if isinstance(v, (int, float)) else (2 * (v is not None), 0.0, str(v))
        for v in values.values()
    ]
