"""Checks of a strategy's arguments, for its `__init__`.

Each raises ValueError for the first argument out of range, one line with key, value and what it must be; the full key
(`strategy.ewc.strength`) is added later (`harness.strategy.full_key`). None passes if `null` says what it means.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def at_least(least: float, *, null: str = "", **given: Any) -> None:
    """value >= least.

    >>> at_least(1, capacity=200, batch_size=0)
    Traceback (most recent call last):
    ValueError: batch_size=0: must be at least 1
    >>> at_least(1, null="all training rows", samples=None)
    """
    for key, value in given.items():
        _hold(value is not None and value >= least, key, value, f"must be at least {least}", null)


def above(bound: float, *, null: str = "", **given: Any) -> None:
    """value > bound.

    >>> above(0, xi=0)
    Traceback (most recent call last):
    ValueError: xi=0: must be above 0
    """
    for key, value in given.items():
        _hold(value is not None and value > bound, key, value, f"must be above {bound}", null)


def within(interval: str, *, null: str = "", **given: Any) -> None:
    """value in an interval, written as [0, 1] or [0, 1) or (0, 1].

    >>> within("[0, 1)", decay=1)
    Traceback (most recent call last):
    ValueError: decay=1: must be in [0, 1)
    """
    low, high = (float(end) for end in interval[1:-1].split(","))
    for key, value in given.items():
        inside = value is not None and low <= value <= high
        open_end = (value == low and interval[0] == "(") or (value == high and interval[-1] == ")")
        _hold(inside and not open_end, key, value, f"must be in {interval}", null)


def one_of(known: Iterable[str], **given: Any) -> None:
    """value is one of the names.

    >>> one_of(("separate", "online"), mode="offline")
    Traceback (most recent call last):
    ValueError: mode=offline: choose one of separate, online
    """
    for key, value in given.items():
        _hold(value in known, key, value, f"choose one of {', '.join(known)}")


def _hold(holds: bool, key: str, value: Any, rule: str, null: str = "") -> None:
    if not holds and not (null and value is None):
        raise ValueError(f"{key}={value}: {rule}{f', or null for {null}' if null else ''}")
