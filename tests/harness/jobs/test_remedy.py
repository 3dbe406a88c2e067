"""What is said before a run that is not as meant, and what is blamed after seeds have diverged."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.jobs.job import from_config, remedy
from harness.strategy import Strategy
from strategies.l2 import L2
from strategies.l2_init import L2Init
from tests.compositions import composed


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


def test_remarks_and_a_penalty_that_is_too_stiff_are_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["tasks.n_tasks=2", "train.steps=40", "train.batch_size=4", "model.widths=[6]", "eval.samples=20"]
    fast = ["metrics=off", "gap=false", "control=false", "tracker.mode=disabled", "threads=1", "device=cpu"]
    words = ["strategy=[l2,der]", "tasks=split", "tasks.fixed=true", "scenario=class", "seeds=[0]", *small, *fast]
    from_config(composed(*words, "strategy.l2.strength=500", f"results={tmp_path}"), progress=False)
    remark, stiff, blame = capsys.readouterr().err.splitlines()
    assert remark.startswith("warning: der: classes=seen: ")
    assert stiff.startswith("warning: task 1: l2: ") and "lower strategy.l2.strength below 10 (it is 500)" in stiff
    assert blame.endswith("lower strategy.l2.strength, whose penalty was too stiff")
