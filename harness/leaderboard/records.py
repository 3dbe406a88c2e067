"""The parts of a leaderboard: scores, entries, rows, boards."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from harness import store
from harness.stats import Array
from harness.wording import DIVERGED, UNMEASURED


class Score(NamedTuple):
    """A column of the leaderboard: a metric at the last boundary, or its mean over all that have it."""

    name: str
    title: str
    metric: str
    last: bool
    better: str  # higher, lower, or "" if neither
    form: str = ".3f"

    @property
    def sign(self) -> float:
        """Factor that makes higher values better."""
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
FRONTS = ("step", "memory", "forgetting")  # what average accuracy is traded against
BASELINE = "naive"
UNKNOWN = (math.nan, math.nan)


class Place(NamedTuple):
    """What runs must share to be compared."""

    stream: str
    scenario: str
    setting: str
    version: int
    split: str
    data: str = ""  # hash of the data if the same seeds saw different data


@dataclass(frozen=True)
class Entry:
    """A strategy with its values, in one setting."""

    label: str
    strategy: str
    runs: tuple[store.Run, ...]
    seeds: tuple[int, ...]  # of the values below, in this order
    scores: Mapping[str, Array]  # name of a score -> [seeds]
    marks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # name -> why a seed has no value; "" if it has
    diverged: tuple[int, ...] = ()
    empty: tuple[int, ...] = ()  # tasks without test rows
    step: float = math.nan  # time of a step over that of a plain step
    memory: float = math.nan  # bytes for one seed
    seconds: float = math.nan  # of training, for one seed
    state: str = "done"  # or why there are no results

    def mark(self, score: str) -> str:
        """Why no seed has a value of this score: divergence, if it is a reason at all, else the first reason."""
        found = [mark for mark in self.marks.get(score, ()) if mark]
        return DIVERGED if DIVERGED in found else found[0] if found else UNMEASURED


@dataclass(frozen=True)
class Row:
    """An entry with the statistics of its comparison; NaN if undefined."""

    entry: Entry
    found: int  # number of the board's seeds with a value of the sort key
    means: Mapping[str, tuple[float, float, int]]  # score -> mean, half width, number of values
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
    """One setting: rows in order of rank, unranked rows last."""

    stream: str
    scenario: str
    setting: str
    version: int
    split: str
    about: str
    by: Score
    seeds: tuple[int, ...]
    baseline: str  # "" if it is not among the entries
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
    """All boards, and the statistics over them."""

    boards: tuple[Board, ...]
    overall: tuple[Standing, ...] = ()  # empty if fewer than two boards compare anything
    notes: tuple[str, ...] = ()
    baseline: str = BASELINE
