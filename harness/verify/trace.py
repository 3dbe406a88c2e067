"""The first steps of a row's run: a result outlives an edit of its code that leaves them as they were.

Full runs take hours, and most edits of shared code change no number. A trace is what a row's settings give in float64
after STEPS steps of every task, for two seeds: the test loss of each boundary, averaged over the tasks tested there.
Two traces are the same if all losses are, to a relative TOLERANCE: far above what another order of summation does in
so few steps, far below what another method does. An edit that acts only after STEPS steps of a task is not noticed.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from harness.store.readers import finished, read
from harness.verify.results import key_of, method_of

STEPS = 25
TOLERANCE = 1e-6
SETTINGS = {"seeds": [0, 1], "dtype": "float64", "train.steps": STEPS, "eval.samples": 500}
WORDS = tuple(f"{key}={value}".replace(" ", "") for key, value in SETTINGS.items())

Traces = Mapping[tuple[str, str], tuple[float, ...]]  # by key of a trace's settings, and method


def key_of_trace(cfg: Mapping[str, Any]) -> str:
    """The key of the settings of a row's trace."""
    changed: dict[str, Any] = copy.deepcopy(dict(cfg))
    for path, value in SETTINGS.items():
        *above, key = path.split(".")
        node = changed
        for name in above:
            node = node[name]
        node[key] = value
    return key_of(changed)


def traces(folder: Path, notes: list[str]) -> Traces:
    """The losses of all traces in a results folder."""
    found = {}
    for run in finished([folder], {"split": "test"}, notes):
        about = run.manifest
        table = read([run], "accuracy", ("seed", "boundary", "loss"))
        losses = table.groupby(["seed", "boundary"]).loss.mean()
        found[key_of(about["config"]), method_of(about["config"], about["files"])] = tuple(losses.tolist())
    return found


def same(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether two traces are the same; a loss that is not finite equals only itself.

    >>> same([1.0, 2.0], [1.0, 2.0 + 1e-7]), same([1.0, 2.0], [1.0, 2.00001]), same([1.0], [1.0, 2.0])
    (True, False, False)
    """
    return len(one) == len(other) and np.allclose(one, other, rtol=TOLERANCE, atol=0.0, equal_nan=True)
