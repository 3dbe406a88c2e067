"""The step benchmark runs from end to end; what it finds at this size means nothing.

That against Avalanche is run in test_avalanche_agrees.py, where Avalanche is imported already.
"""

import runpy
from pathlib import Path

import pytest
import torch


def test_the_step_benchmark_prints_a_ratio_for_every_contender(capsys: pytest.CaptureFixture[str]) -> None:
    state = torch.random.get_rng_state()
    script = Path(__file__).parent / "benchmarks" / "step.py"
    main = runpy.run_path(str(script))["main"]
    lines = main(["--rounds", "1", "--steps", "2", "--rows", "600", "--cpu-time"])
    torch.random.set_rng_state(state)
    names = ["naive, of 10", "naive", "naive, of 10", "naive", "naive, of 10", "ewc", "replay", "cbp", "double pass"]
    assert [line.what for line in lines] == names
    assert all(line.ratio > 0 and line.ours > 0 and line.by_hand > 0 for line in lines)
    assert len(capsys.readouterr().out.splitlines()) == 2 + len(names)
