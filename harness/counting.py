"""Counts the work of a metric: forward passes, gradients, Hessian products.

Seconds depend on the machine and its load; counts do not. One pass of all seeds counts once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from harness.types import Apply, Column, Out

COLUMNS = {
    "hessian_products": Column("lower", "", "Hessian products of a metric", net=""),
    "gradients": Column(
        "lower", "", "backward passes of a metric, including those from which Hessian products start", net=""
    ),
    "forward_passes": Column("lower", "", "forward passes of a metric, including those of gradients", net=""),
    "forward_rows": Column("lower", "rows", "rows of one seed in these forward passes", net=""),
}

_counter: ContextVar[Counter[str] | None] = ContextVar("work", default=None)


@contextmanager
def counting() -> Iterator[Counter[str]]:
    """Counts the work done inside, by the names of `COLUMNS`.

    >>> with counting() as outer:
    ...     count("gradients")
    >>> count("gradients")  # no counter is active
    >>> outer
    Counter({'gradients': 1})
    """
    counter: Counter[str] = Counter()
    token = _counter.set(counter)
    try:
        yield counter
    finally:
        _counter.reset(token)


def count(kind: str, times: int = 1) -> None:
    """Add to the active counter, if there is one."""
    counter = _counter.get()
    if counter is not None:
        counter[kind] += times


def counted(apply: Apply) -> Apply:
    """A forward pass that is counted."""

    def call(params: Any, buffers: Any, x: Any, t: Any, **how: Any) -> Out:
        count("forward_passes")
        count("forward_rows", x.shape[1])
        return apply(params, buffers, x, t, **how)

    return call
