"""The benchmarks of a step and of long streams run from end to end; what they find at this size means nothing.

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


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")  # by a dependency of curvlinops
def test_the_curvature_benchmark_prints_time_and_error_of_both(capsys: pytest.CaptureFixture[str]) -> None:
    state = torch.random.get_rng_state()
    script = Path(__file__).parent / "benchmarks" / "curvature.py"
    main = runpy.run_path(str(script))["main"]
    tiny = ["--nets", "64-4", "--rounds", "1", "--training", "3", "--rows", "40", "--seeds", "2", "--steps", "10"]
    lines = main(tiny)
    torch.random.set_rng_state(state)
    assert [line.who for line in lines] == [
        *("curvlinops, tol 0", "curvlinops, tol 1e-4", "ours, 20 products", "ours, 30 products"),
        *("curvlinops", "ours", "curvlinops", "ours", "ours, a seed of 2"),
    ]
    assert all(line.seconds > 0 and line.ratio > 0 for line in lines)
    assert all(line.error < 1e-4 for line in (*lines[:2], lines[3]))  # relative, of the worst of five eigenvalues
    assert all(abs(line.error) < 0.5 for line in lines[4:8])
    assert len(capsys.readouterr().out.splitlines()) == 4 + len(lines)


def test_the_stream_benchmark_prints_the_updates_of_every_number_of_seeds(capsys: pytest.CaptureFixture[str]) -> None:
    from tests.benchmarks import step, streams

    state, clock = torch.random.get_rng_state(), step.clock
    lines = streams.main(["--rounds", "1", "--steps", "2", "--rows", "64", "--cpu-time"])
    torch.random.set_rng_state(state)
    step.clock = clock
    assert [line.what for line in lines] == ["1", "30", "150", "1", "30", "1", "30"]
    assert all(line.ratio > 0 and line.ours > 0 and line.by_hand > 0 for line in lines)
    assert len(capsys.readouterr().out.splitlines()) == 2 + len(lines)


@pytest.mark.nightly
def test_the_benchmark_of_first_commands_times_each_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    from tests.benchmarks import first

    lines = first.main(["--rounds", "1", "tasks.n_tasks=2", "train.steps=1", "metrics=off"])
    assert [line.what for line in lines] == ["the run", "again", "show", "ls", "--help"]
    assert all(line.seconds > 0 and line.processor > 0 for line in lines)
    assert len(capsys.readouterr().out.splitlines()) == 2 + len(lines)


def test_a_command_that_fails_has_no_time() -> None:
    """Its twin by day."""
    from tests.benchmarks import first

    with pytest.raises(RuntimeError, match=r"python -m harness ls x: exit code 2\nharness: ls x: cannot be listed"):
        first.timed(["ls", "x"])
    seconds, processor = first.timed(["--version"])
    assert seconds > 0 and processor > 0
