"""How wide the good range of a setting is: where a method keeps half of what it gains. Numpy only."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from harness.stats import Array
from harness.tuning.choice import Tried, numeric
from harness.tuning.preset import worded


@dataclass(frozen=True)
class Curve:
    """The scores of a strategy against its main setting, the others fixed."""

    label: str  # the strategy, with the values of its other settings if these were varied too
    main: str
    values: Array  # [n] positive, ascending
    means: Array  # [n]
    halves: Array  # [n] half widths of the 95 % intervals


@dataclass(frozen=True)
class Range:
    """Values of a setting between two ends; an open end lies at or beyond the last value tried."""

    low: float
    high: float
    open_low: bool
    open_high: bool

    @property
    def decades(self) -> float:
        """Its width in powers of ten, at least this much if an end is open."""
        return math.log10(self.high / self.low)


def curves(one: Tried) -> Iterator[Curve]:
    """A curve for each combination of a strategy's other settings; none with fewer than three positive values."""
    others: dict[str, list[int]] = {}
    for number, trial in enumerate(one.trials):
        value = trial.values.get(one.main)
        if numeric(value) and value > 0:
            rest = worded({key: v for key, v in trial.values.items() if key != one.main})
            others.setdefault(rest, []).append(number)
    for rest, numbers in others.items():
        if len(numbers) >= 3:
            found = [one.trials[number] for number in numbers]
            yield Curve(
                ", ".join([one.label, *[rest] * bool(rest)]),
                one.main,
                np.array([float(trial.values[one.main]) for trial in found]),
                np.array([trial.mean for trial in found]),
                np.array([0.0 if math.isnan(trial.half) else trial.half for trial in found]),
            )


def good_range(values: Sequence[float] | Array, means: Sequence[float] | Array, floor: float) -> Range | None:
    """The values around the best between which the score is at least half way from `floor` to the best.

    Between two values the score is taken as linear in the logarithm of the value. None where the best is not above
    the floor, or the floor is unknown.

    values: positive and ascending; floor: the score without the method.

    >>> found = good_range([0.1, 1, 10, 100], [0.4, 0.8, 0.7, 0.3], 0.4)  # half way is 0.6
    >>> round(found.low, 3), round(found.high, 3), round(found.decades, 3), found.open_low, found.open_high
    (0.316, 17.783, 1.75, False, False)
    >>> good_range([0.1, 1, 10], [0.7, 0.8, 0.7], 0.4)
    Range(low=0.1, high=10.0, open_low=True, open_high=True)
    >>> good_range([0.1, 1, 10], [0.2, 0.3, 0.2], 0.4) is None
    True
    """
    scores = [-math.inf if math.isnan(mean) else float(mean) for mean in means]
    at = max(range(len(scores)), key=scores.__getitem__)
    if math.isnan(floor) or not scores[at] > floor:
        return None
    level = (floor + scores[at]) / 2
    places = np.log10(np.asarray(values, dtype=float))
    ends = []
    for step, last in ((-1, 0), (1, len(scores) - 1)):
        i = at
        while i != last and scores[i + step] >= level:
            i += step
        if i == last:
            ends.append((places[i], True))
            continue
        share = (scores[i] - level) / (scores[i] - scores[i + step]) if math.isfinite(scores[i + step]) else 0.0
        ends.append((places[i] + share * (places[i + step] - places[i]), False))
    (low, open_low), (high, open_high) = ends
    return Range(float(10**low), float(10**high), open_low, open_high)
