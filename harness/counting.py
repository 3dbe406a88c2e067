"""How much work a measure was, counted where it is done: passes of the net, gradients, Hessian products.

Seconds depend on the machine and on who else uses it; these do not. All seeds together are one pass.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from harness.types import Apply, Column, Out

COLUMNS = {
    "hessian_products": Column("lower", "", "Hessian products that a metric took"),
    "gradients": Column("lower", "", "backward passes that a metric took, those that Hessian products start from too"),
    "forward_passes": Column("lower", "", "forward passes of the net that a metric took, those of gradients too"),
    "forward_rows": Column("lower", "rows", "rows of one seed in these forward passes"),
}

_counter: ContextVar[Counter[str] | None] = ContextVar("work", default=None)


@contextmanager
def counting() -> Iterator[Counter[str]]:
    """What is done inside, by the names of `COLUMNS`.

    >>> with counting() as outer:
    ...     done("gradients")
    >>> done("gradients")  # nobody counts
    >>> outer
    Counter({'gradients': 1})
    """
    counter: Counter[str] = Counter()
    token = _counter.set(counter)
    try:
        yield counter
    finally:
        _counter.reset(token)


def done(kind: str, times: int = 1) -> None:
    """Say that something was done, to whoever counts."""
    counter = _counter.get()
    if counter is not None:
        counter[kind] += times


def counted(apply: Apply) -> Apply:
    """A forward pass that says so."""

    def call(params: Any, buffers: Any, x: Any, t: Any, **how: Any) -> Out:
        done("forward_passes")
        done("forward_rows", x.shape[1])
        return apply(params, buffers, x, t, **how)

    return call
