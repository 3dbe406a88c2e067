"""What is blamed after seeds have diverged."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from harness.jobs.job import remedy
from harness.strategy import Strategy
from strategies.l2 import L2
from strategies.l2_init import L2Init


def blamed(strategies: dict[str, Strategy], *unstable: dict[str, str]) -> str:
    result: Any = SimpleNamespace(parts=[SimpleNamespace(unstable=names) for names in unstable])
    return remedy(strategies, result)


def test_a_penalty_that_was_too_stiff_comes_before_the_learning_rate() -> None:
    both: dict[str, Strategy] = {"l2": L2(strength=1.0), "l2_init": L2Init(strength=1.0), "naive": Strategy()}
    assert blamed(both, {}, {"l2": "said"}) == "strategy.l2.strength, whose penalty was too stiff"
    found = (
        "strategy.l2.strength, whose penalty was too stiff and strategy.l2_init.strength, whose penalty was too stiff"
    )
    assert blamed(both, {"l2_init": "said"}, {"l2": "said"}) == found
    assert blamed(both, {}) == "optimizer.lr or lower the strength of l2 or lower the strength of l2_init"
    assert blamed({"naive": Strategy()}, {}) == "optimizer.lr"
