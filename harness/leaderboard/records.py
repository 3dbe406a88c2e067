"""What a leaderboard is made of: scores, entries, rows, boards."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from harness import store
from harness.stats import Array


class Score(NamedTuple):
    """A column of the leaderboard: a metric at the last boundary, or its mean over all that have it."""

    name: str
    title: str
    metric: str
    last: bool
    better: str  # higher, lower, or "" where neither is
    form: str = ".3f"

    @property
    def sign(self) -> float:
        """What turns its values so that higher is better."""
        return -1.0 if self.better == "lower" else 1.0


SCORES = (
    Score("average_accuracy", "average accuracy", "average_accuracy", True, "higher"),
    Score("learning_accuracy", "new-task accuracy", "learning_accuracy", False, "higher"),
    Score("forgetting", "forgetting", "forgetting", True, "lower"),
    Score("plasticity_lost", "plasticity lost", "trainability_gap", False, "lower"),
    Score("sharpness", "sharpness", "lambda_max_joint", True, "", ".3g"),
    Score("barrier", "barrier", "barrier_entezari_loss_joint", False, "lower", ".3g"),
)
BY_NAME = {score.name: score for score in SCORES}
ACCURACIES = ("average_accuracy", "learning_accuracy")  # what a diverged seed has the lowest value of
FRONTS = ("step", "memory", "forgetting")  # what average accuracy is weighed against
BASELINE = "naive"
UNKNOWN = (math.nan, math.nan)


class Place(NamedTuple):
    """What runs must share to be compared."""

    stream: str
    scenario: str
    setting: str
    version: int
    split: str
    data: str = ""  # the hash of it, where the same seeds saw different data


@dataclass(frozen=True)
class Entry:
    """A strategy with its values, in one setting."""

    label: str
    strategy: str
    runs: tuple[store.Run, ...]
    seeds: tuple[int, ...]  # of the values below, in this order
    scores: Mapping[str, Array]  # name of a score -> [seeds]
    diverged: tuple[int, ...] = ()
    step: float = math.nan  # time of a step over that of a plain one
    memory: float = math.nan  # bytes for one seed
    seconds: float = math.nan  # of training, for one seed
    state: str = "done"  # or why there is nothing of it


@dataclass(frozen=True)
class Row:
    """An entry with what the comparison says of it; NaN where it says nothing."""

    entry: Entry
    found: int  # of the board's seeds, those with a value of the sort key
    means: Mapping[str, tuple[float, float, int]]  # score -> mean, half width of the interval, values there are
    rank: float = math.nan
    rank_interval: tuple[float, float] = UNKNOWN
    iqm: float = math.nan
    iqm_interval: tuple[float, float] = UNKNOWN
    difference: tuple[float, float] = UNKNOWN  # from the baseline: mean, half width
    improvement: float = math.nan
    improvement_interval: tuple[float, float] = UNKNOWN
    detectable: float = math.nan
    fronts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Board:
    """One setting: rows in order of rank, those that have none behind."""

    stream: str
    scenario: str
    setting: str
    version: int
    split: str
    about: str
    by: Score
    seeds: tuple[int, ...]
    baseline: str  # "" where it is not among the entries
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Standing:
    """An entry over all boards."""

    label: str
    found: int  # boards on which it is complete
    diverged: int = 0  # seeds on these
    rank: float = math.nan
    rank_interval: tuple[float, float] = UNKNOWN
    iqm: float = math.nan
    iqm_interval: tuple[float, float] = UNKNOWN
    improvement: float = math.nan  # over all pairs of seeds
    improvement_interval: tuple[float, float] = UNKNOWN


@dataclass(frozen=True)
class Leaderboard:
    """All boards, and what is said of them together."""

    boards: tuple[Board, ...]
    overall: tuple[Standing, ...] = ()  # empty where fewer than two boards compare anything
    notes: tuple[str, ...] = ()
    baseline: str = BASELINE
