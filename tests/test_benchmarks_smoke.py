"""The benchmarks run from end to end; what they find at this size means nothing.

That against Avalanche is run in test_avalanche_agrees.py, where Avalanche is imported already.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.benchmarks import __main__ as entry
from tests.benchmarks import curvature, first, growth, leaderboard, step, streams


@pytest.fixture(autouse=True)
def _draws() -> Iterator[None]:
    state = torch.random.get_rng_state()
    yield
    torch.random.set_rng_state(state)


def test_the_entry_lists_every_benchmark_with_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.main(["--help"]) == 0
    listed = capsys.readouterr().out
    for name, line in entry.names().items():
        assert line and f"{name} " in listed and line in listed
    assert {"step", "versus_avalanche", "curvature", "streams", "leaderboard"} <= entry.names().keys()
    assert entry.main([]) == 2


def test_the_entry_writes_rows_with_the_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rows.json"
    arguments = ["--nets", "64-100-100", "--methods", "--seeds", "2", "--eager", "--rounds", "1", "--steps", "2"]
    assert entry.main(["step", *arguments, "--json", str(file)]) == 0
    found = json.loads(file.read_text())
    assert (found["benchmark"], found["arguments"]) == ("step", arguments)
    assert found["machine"].keys() >= {"cpu", "cores", "torch", "threads", "load"}
    assert found["machine"]["torch"] == torch.__version__
    vmap, ours = found["rows"]
    assert (vmap["what"], vmap["budget"]) == ("vmap", None)  # no budget: not a number that JSON lacks
    assert ours["what"] == "ours" and ours["seeds"] == 2 and ours["ratio"] > 0


def test_the_step_benchmark_prints_a_ratio_for_every_contender(capsys: pytest.CaptureFixture[str]) -> None:
    nets = ["64-100-100", "784-100-100"]
    lines = step.main(["--eager", "--rounds", "1", "--steps", "2", "--rows", "600", "--cpu-time", "--nets", *nets])
    of_net = [(what, seeds) for what in ("vmap", "ours") for seeds in (1, 5, 10, 30)]
    methods = [(f"{name}, ours", 1) for name in ("ewc", "replay", "cbp", "sam")]
    assert [(line.what, line.seeds) for line in lines] == [*of_net, *of_net, *methods]
    assert all(line.ratio > 0 and line.time > 0 and line.beside > 0 for line in lines)
    assert capsys.readouterr().out.count("batch") == len(lines)


def test_compiled_ours_is_held_against_its_budgets() -> None:
    """A net's compiled step beside the eager loop by hand, a method's beside the compiled loop by hand."""
    budgets = {}
    for name in ("64-100-100", "784-100-100", "784-400-400"):
        contenders = [*step.of_net(step.CASES[name], 600, [1, 10], compiles=True)]
        assert len({id(c.beside) for c in contenders}) == 1 and type(contenders[0].beside) is step.by_hand.Bare
        budgets[name] = {c.seeds: c.budget for c in contenders if c.what == "ours, compiled"}
    assert budgets["64-100-100"] == {1: 0.4, 10: 0.2}
    assert (budgets["784-100-100"][1], budgets["784-400-400"][1]) == (0.75, 0.85)
    for name in ("ewc", "replay", "sam"):
        eager, hand, ours = step.of_method(name, 600, compiles=True)
        assert (eager.beside, ours.beside) == (hand.beside, hand.run)
        assert (ours.what, ours.budget) == (f"{name}, ours, compiled", 1.25)
    assert all("compiled" not in c.what for c in step.of_net(step.MIDDLE, 600, [1], compiles=False))


def test_a_net_by_hand_has_as_many_parameters_as_ours() -> None:
    from harness import rng

    for case in step.CASES.values():
        params, _ = case.ours().init(rng.keys([0], "init"))
        assert sum(p.numel() for p in params.values()) == sum(p.numel() for p in case.plain().parameters()), case


def test_a_turn_divides_the_time_by_the_nets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that take a known time: 3 s for 6 nets beside 1 s for one."""
    lines = step.compare("toy", [step.Contender("six", lambda n: 3.0 * n, lambda n: 1.0 * n, seeds=6)], 4, 3)
    assert [(line.time, line.beside, line.ratio) for line in lines] == [(0.5e6, 1e6, 0.5)]


def test_by_hand_vmap_trains_each_net_as_the_loop_trains_it() -> None:
    """Two nets by vmap take the steps of two plain loops, over the same rows in the same order."""
    case = step.CASES["64-100-100"]
    many = step.by_hand.Vectorised(case, 200, 2)
    alone = [step.by_hand.Bare(case, 200) for _ in range(2)]
    many.order = torch.stack([torch.randperm(200) for _ in range(2)])
    many.position = 0
    for s, bare in enumerate(alone):
        bare.net.load_state_dict({k: v[s] for k, v in many.params.items()})
        bare.order, bare.position = many.order[s], 0
        bare(5)
    many(5)
    for s, bare in enumerate(alone):
        for name, value in bare.net.named_parameters():
            torch.testing.assert_close(many.params[name][s], value)


@pytest.mark.nightly  # compiles for a minute
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")  # torch's own
@pytest.mark.parametrize("name", ["ewc", "replay", "sam"])
def test_by_hand_a_compiled_step_is_the_eager_step(name: str) -> None:
    method, case = step.METHODS[name], step.MIDDLE
    assert method.compiled is not None
    eager, compiled = method.eager(case, 600), method.compiled(case, 600)
    compiled.net.load_state_dict(eager.net.state_dict())
    for one in (eager, compiled):
        if isinstance(one, step.by_hand.BareEWC):
            one.anchor = [p.detach() + 0.1 for p in one.parameters]
            one.fisher = [torch.ones_like(p) for p in one.parameters]
        torch.manual_seed(1)
        one(3)
    for a, b in zip(eager.parameters, compiled.parameters):
        torch.testing.assert_close(a, b)


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")  # by a dependency of curvlinops
def test_the_curvature_benchmark_prints_time_and_error_of_both(capsys: pytest.CaptureFixture[str]) -> None:
    tiny = ["--nets", "64-4", "--rounds", "1", "--training", "3", "--rows", "40", "--seeds", "2", "--steps", "10"]
    lines = curvature.main(tiny)
    assert [line.who for line in lines] == [
        *("curvlinops, tol 0", "curvlinops, tol 1e-4", "ours, 20 products", "ours, 30 products"),
        *("curvlinops", "ours", "curvlinops", "ours", "ours, a seed of 2"),
    ]
    assert all(line.seconds > 0 and line.ratio > 0 for line in lines)
    assert all(line.error < 1e-4 for line in (*lines[:2], lines[3]))  # relative, of the worst of five eigenvalues
    assert all(abs(line.error) < 0.5 for line in lines[4:8])
    assert len(capsys.readouterr().out.splitlines()) == 4 + len(lines)


def test_the_stream_benchmark_prints_the_updates_of_every_number_of_seeds(capsys: pytest.CaptureFixture[str]) -> None:
    lines = streams.main(["--rounds", "1", "--steps", "2", "--rows", "64", "--cpu-time"])
    assert [line.seeds for line in lines] == [1, 30, 150, 1, 30, 1, 30]
    assert all(line.ratio > 0 and line.time > 0 and line.beside > 0 for line in lines)
    assert len(capsys.readouterr().out.splitlines()) == 2 + len(lines)


def test_the_leaderboard_benchmark_reads_the_runs_it_made(capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = leaderboard.main(["--runs", "3", "--rounds", "1"])
    assert line.runs == 3 and line.lines > 3 and line.cpu > 0 and line.peak > 10


def test_growth_fits_the_law_that_the_points_follow() -> None:
    x = [10, 30, 100, 300, 1000]
    square = growth.growth(x, [7.0 + 1e-3 * v**2 for v in x], 7.0, 2.0)
    assert square.slope == pytest.approx(2.0, abs=1e-3)
    assert (square.fixed, square.steeper) == (30, 100)  # 10 and 30 add 0.1 and 0.9 to 7, below what counts
    linear = growth.growth(x, [7.0 + 0.5 * v for v in x], 7.0, 2.0)
    assert linear.slope == pytest.approx(1.0, abs=1e-3) and linear.steeper is None
    flat = growth.growth(x, [7.0] * 5, 7.0, 2.0)
    assert math.isnan(flat.slope) and flat.fixed == 1000


def test_growth_keeps_the_points_it_has_and_writes_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run: list[tuple[str, int]] = []

    def measured(axis: str, value: int) -> growth.Line:
        if len(run) == 3:
            raise RuntimeError("stopped")
        run.append((axis, value))
        return growth.Line(
            axis,
            value,
            6.0 + 0.1 * value,
            500.0 + value,
            {"metric": 1.0, "checkpoint": 2.0, "evaluate": 1.0, "train": 4.0},
        )

    monkeypatch.setattr(growth, "measured", measured)
    command = ["--axes", "tasks", "--most", "100", "--out", str(tmp_path / "scaling.md")]
    with pytest.raises(RuntimeError, match="stopped"):
        growth.main(command)
    first = [*run]
    run.clear()
    lines = growth.main(command)
    points = [("start", 1), *(("tasks", value) for value, about in growth.AXES["tasks"].items() if about <= 100)]
    assert first + run == points and first == points[:3]  # none is run twice
    assert [(line.axis, line.value) for line in lines] == points
    page = (tmp_path / "scaling.md").read_text()
    assert "](scaling.svg)" in page and (tmp_path / "scaling.svg").stat().st_size > 1000
    assert "rows 1,000;" in page and "tasks 1,000;" in page and "tasks 100;" not in page  # not run
    assert "| tasks | 100 | 0.75 | 0.25 |" in page  # parts of a boundary over training


@pytest.mark.nightly
def test_growth_measures_a_run() -> None:
    line = growth.measured("start", 1)
    assert line.cpu > 0.5 and line.memory > 100 and line.boundary.keys() >= {"metric", "checkpoint", "evaluate"}


@pytest.mark.nightly
def test_the_benchmark_of_first_commands_times_each_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    lines = first.main(["--rounds", "1", "tasks.n_tasks=2", "train.steps=1", "metrics=off"])
    assert [line.what for line in lines] == ["the run", "again", "show", "ls", "--help"]
    assert all(line.seconds > 0 and line.processor > 0 for line in lines)
    assert len(capsys.readouterr().out.splitlines()) == 2 + len(lines)


def test_a_command_that_fails_has_no_time() -> None:
    """Its twin by day."""
    with pytest.raises(RuntimeError, match=r"python -m harness ls x: exit code 2\nharness: ls x: cannot be listed"):
        first.timed(["ls", "x"])
    seconds, processor = first.timed(["--version"])
    assert seconds > 0 and processor > 0
