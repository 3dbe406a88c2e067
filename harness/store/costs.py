"""What runs cost, from their tables: time of a step, memory, seconds of training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.stats import Array

if TYPE_CHECKING:
    import pandas as pd


def costs_of(tables: Mapping[str, pd.DataFrame]) -> dict[str, Array]:
    """By run id: time of a step over that of a plain step on the same task (median over tasks), bytes, seconds."""
    import pandas as pd

    timing, metrics = tables["timing"], tables["metrics"]
    # seeds that are trained in groups have a row for each: a step of all seeds takes the sum
    parts = {part: rows.groupby(["run_id", "boundary"]).seconds.sum() for part, rows in timing.groupby("part")}
    step = parts.get("step", pd.Series(dtype=float))
    plain = parts.get("plain step", step)
    plain = plain.reindex(step.index)
    known = plain.notna().groupby(level=0).transform("any") if len(step) else plain.astype(bool)
    ratio = step / plain.where(known, step)  # plain training is not timed against itself: 1
    held = metrics[metrics.metric == "memory"]
    last = held[held.boundary == held.groupby("run_id").boundary.transform("max")]
    return by_key(
        pd.DataFrame(
            {
                "step": ratio.groupby(level=0).median() if len(ratio) else ratio,
                "memory": last.groupby("run_id").value.mean(),
                "seconds": timing[timing.part == "train"].groupby("run_id").seconds.sum(),
            }
        )
    )


def by_key(frame: pd.DataFrame) -> dict[Any, Array]:
    """The rows of a frame by their index: looking up thousands of them in the frame takes a hundred times as long."""
    return dict(zip(frame.index, frame.to_numpy(dtype=np.float64)))
