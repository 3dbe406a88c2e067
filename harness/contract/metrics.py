"""What a metric promises. Each check raises Broken, with what is wrong and the remedy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from harness import returns
from harness.boundary import Boundary, Metric
from harness.contract.generators import moved
from harness.contract.strategies import Broken
from harness.contract.toy import MODELS, OPTIMIZERS, SEEDS, STEPS, TASKS, copy_of, differing, same, stream
from harness.learner import Budget
from harness.run import run
from harness.types import Reading

Look = Callable[[Boundary], None]


def visit(look: Look, seeds: Sequence[int] = SEEDS, model: str = "residual") -> None:
    """Look at every boundary of a toy run, in which each field of a boundary has a value."""
    source = stream("domain", seeds)

    def metric(b: Boundary) -> dict[str, Tensor | Reading]:
        look(b)
        return {}

    run(
        source,
        [],
        model=MODELS[model](source),
        optimizer=OPTIMIZERS["momentum"](),
        budget=Budget(steps=STEPS, batch_size=8),
        metrics={"look": metric},
        control=torch.full((len(seeds), TASKS), 0.5, dtype=torch.float64),
        dtype=torch.float64,
    )


def values(metric: Metric, b: Boundary) -> dict[str, Tensor]:
    """What a metric says; the boundary's own draws start where they did."""
    count = b.random.count
    found = metric(b)
    b.random.count = count
    return {k: v.value if isinstance(v, Reading) else v for k, v in found.items()}


def fits(metric: Metric) -> None:
    """It returns columns with one row for each seed, and one column at least."""
    found: set[str] = set()

    def look(b: Boundary) -> None:
        answer = metric(b)
        try:
            returns.readings("it", answer, len(SEEDS))
        except ValueError as error:
            raise Broken(str(error).removeprefix("metrics.it: ")) from error
        found.update(answer)

    visit(look)
    if not found:
        raise Broken("it returned no column at any boundary of three tasks")


def changes_nothing(metric: Metric) -> None:
    """It leaves parameters, buffers, modes and random streams as it found them, and global generators too."""

    def look(b: Boundary) -> None:
        before = copy_of(_seen(b))
        _, names = moved(lambda: values(metric, b))
        if names:
            raise Broken(f"it draws from {names[0]}'s global generator; draw from b.random, as in b.random.key()")
        if where := differing(before, copy_of(_seen(b))):
            raise Broken(f"it changes {where}; a boundary is read-only: work on a copy")

    visit(look)


def _seen(b: Boundary) -> dict[str, Any]:
    nets = {k: [net.params, net.buffers] for k, net in (("trained", b.trained), ("deployed", b.deployed))}
    return {**b.learner.state_dict(), **nets, "accuracy": b.accuracy, "online": b.online, "now": b.learner.now}


def repeats(metric: Metric) -> None:
    """It says the same when asked again."""

    def look(b: Boundary) -> None:
        if not same(values(metric, b), values(metric, b)):
            raise Broken("it answers differently when asked again; draw from b.random, and keep nothing between calls")

    visit(look)


def alone(metric: Metric) -> None:
    """Row s of three seeds is what it says of seed s alone."""
    together: list[dict[str, Tensor]] = []
    single: list[dict[str, Tensor]] = []
    visit(lambda b: together.append(values(metric, b)))
    visit(lambda b: single.append(values(metric, b)), SEEDS[-1:])
    for whole, one in zip(together, single, strict=True):
        if list(whole) != list(one):
            raise Broken("its columns depend on the number of seeds; a value that is undefined is NaN")
        for k, v in one.items():
            if not torch.allclose(whole[k][-1].double(), v[0].double(), rtol=1e-5, atol=1e-7, equal_nan=True):
                raise Broken(
                    f"{k} of seed {SEEDS[-1]} depends on the other seeds; reduce over every axis but the first"
                )


CHECKS: dict[str, Callable[[Metric], None]] = {
    "columns have one row for each seed": fits,
    "it changes nothing": changes_nothing,
    "it answers twice alike": repeats,
    "row s of three seeds equals seed s alone": alone,
}
