"""Ranges of a strategy's settings, checked where it is made.

Each raises ValueError for the first setting out of range, one line with key, value and what it must be. `of` is the
name that stands before the key in the configuration; None passes where `null` says what it means.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def at_least(least: float, of: str, *, null: str = "", **given: Any) -> None:
    """value >= least.

    >>> at_least(1, "replay", capacity=200, batch_size=0)
    Traceback (most recent call last):
    ValueError: replay.batch_size=0: must be at least 1
    >>> at_least(1, "ewc", null="all training rows", samples=None)
    """
    for key, value in given.items():
        _hold(value is not None and value >= least, of, key, value, f"must be at least {least}", null)


def above(bound: float, of: str, *, null: str = "", **given: Any) -> None:
    """value > bound.

    >>> above(0, "si", xi=0)
    Traceback (most recent call last):
    ValueError: si.xi=0: must be above 0
    """
    for key, value in given.items():
        _hold(value is not None and value > bound, of, key, value, f"must be above {bound}", null)


def within(interval: str, of: str, *, null: str = "", **given: Any) -> None:
    """value in an interval that is written as such, [0, 1] or [0, 1) or (0, 1].

    >>> within("[0, 1)", "cbp", decay=1)
    Traceback (most recent call last):
    ValueError: cbp.decay=1: must be in [0, 1)
    """
    low, high = (float(end) for end in interval[1:-1].split(","))
    for key, value in given.items():
        inside = value is not None and low <= value <= high
        open_end = (value == low and interval[0] == "(") or (value == high and interval[-1] == ")")
        _hold(inside and not open_end, of, key, value, f"must be in {interval}", null)


def one_of(known: Iterable[str], of: str, **given: Any) -> None:
    """value is one of the names.

    >>> one_of(("separate", "online"), "ewc", mode="offline")
    Traceback (most recent call last):
    ValueError: ewc.mode=offline: choose one of separate, online
    """
    for key, value in given.items():
        _hold(value in known, of, key, value, f"choose one of {', '.join(known)}")


def _hold(holds: bool, of: str, key: str, value: Any, rule: str, null: str = "") -> None:
    if not holds and not (null and value is None):
        raise ValueError(f"{of}.{key}={value}: {rule}{f', or null for {null}' if null else ''}")
