"""Runs of methods that keep statistics of fixed features, and the rows they saw as numpy arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from harness.learner import Learner
from harness.loop import prepare, train
from harness.strategy import Chain, Strategy
from tests.observer import Blind
from tests.toy import go

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Seen:
    """One seed's rows: inputs of the training and test sets, and labels."""

    x: Array
    y: NDArray[np.int64]
    test: Array


def base(scenario: str = "class", seeds: Sequence[int] = (0, 1, 2)) -> Learner:
    """Three tasks of two digits' classes (18 rows each), or of permutations."""
    return go((), scenario, "mlp", "sgd", seeds=tuple(seeds), steps=1).learner


def finished(part: Strategy, scenario: str = "class") -> Learner:
    learner = base(scenario)
    chain = Chain([part])
    prepare(learner, chain)
    train(learner, chain, Blind())
    return learner


def in_order(part: Any, order: Sequence[int], scenario: str = "class") -> Learner:
    """The ends of the tasks alone, in any order: all that happens with features=input."""
    learner = base(scenario)
    prepare(learner, Chain([part]))
    for i in order:
        part.end(learner, learner.stream.tasks[i])
    return learner


def rows_of(learner: Learner, s: int) -> Seen:
    """All rows of seed s, task after task."""
    found = {}
    for split in ("train", "test"):
        parts = []
        for task in learner.stream.tasks:
            source = getattr(task, split)
            n = int(source.size[s])
            x, y, _ = source.take(torch.arange(n).expand(learner.S, n))
            parts.append((x[s].flatten(1).double().numpy(), y[s].numpy()))
        found[split] = [np.concatenate(column) for column in zip(*parts)]
    return Seen(found["train"][0], found["train"][1], found["test"][0])


def logits(part: Strategy, learner: Learner, x: Array, s: int) -> Array:
    """What the deployed net of seed s says about rows [n, D]."""
    given = torch.as_tensor(x, dtype=learner.dtype).view(1, len(x), *learner.stream.shape).expand(learner.S, *[-1] * 4)
    t = torch.zeros(learner.S, len(x), dtype=torch.int64)
    made: Array = part.deploy(learner, learner.net)(given, t).logits[s].double().numpy()
    return made
