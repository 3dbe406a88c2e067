"""What runs cost, from their tables."""

from __future__ import annotations

import pandas as pd
import pytest

from harness.store.costs import costs_of


def test_a_step_of_seeds_that_are_trained_in_groups_is_the_sum_over_the_groups() -> None:
    """Split streams train seeds in groups where their tasks differ in size, each with rows of its own."""
    rows = [
        ("apart", 0, "step", 1.0), ("apart", 0, "plain step", 1.0), ("apart", 0, "train", 10.0),
        ("apart", 0, "step", 5.0), ("apart", 0, "plain step", 2.0), ("apart", 0, "train", 20.0),
        ("whole", 0, "step", 1.5), ("whole", 0, "plain step", 1.0), ("whole", 0, "train", 5.0),
        ("naive", 0, "step", 1.0), ("naive", 0, "step", 2.0), ("naive", 0, "train", 5.0),
    ]  # fmt: skip
    timing = pd.DataFrame(rows, columns=["run_id", "boundary", "part", "seconds"])
    metrics = pd.DataFrame(
        {"run_id": ["apart", "whole", "naive"], "boundary": 0, "metric": "memory", "value": [7.0, 8.0, 0.0]}
    )
    found = costs_of({"timing": timing, "metrics": metrics})
    assert found["apart"] == pytest.approx([2.0, 7.0, 30.0]) and found["whole"] == pytest.approx([1.5, 8.0, 5.0])
    assert found["naive"] == pytest.approx([1.0, 0.0, 5.0])
