"""Global random generators: who moves them."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch

T = TypeVar("T")


def moved(call: Callable[[], T]) -> tuple[T, list[str]]:
    """The call's result, and the global generators that it moved.

    >>> moved(lambda: None), moved(lambda: random.random() < 2), moved(lambda: len(torch.rand(2)))
    ((None, []), (True, ['random']), (2, ['torch']))
    """
    before = torch.get_rng_state(), _numpy(), random.getstate()
    result = call()
    found = ["torch"] * (not torch.equal(before[0], torch.get_rng_state()))
    found += ["numpy"] * (before[1] != _numpy())
    return result, found + ["random"] * (before[2] != random.getstate())


def _numpy() -> tuple[object, ...]:
    state = np.random.get_state(legacy=True)
    return tuple(part.tobytes() if isinstance(part, np.ndarray) else part for part in state)
