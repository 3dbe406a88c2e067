"""The control and the plain copies, trained beside a run: the same numbers, whatever happens to their processes."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from harness import store
from harness.config.catalogue import CONF
from harness.jobs import job, plain
from harness.jobs.job import from_config
from harness.store import RunFolder
from tests.command import Command

SMALL = ("tasks.n_tasks=3", "train.steps=4", "seeds=[0,1]", "tracker.mode=disabled", "threads=1", "model.widths=[12]")
EQUAL = ("metrics", "accuracy", "curves")


def trained(results: Path, *overrides: str) -> Path:
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        cfg = compose("config", [*SMALL, "metrics=fast", "device=cpu", *overrides, f"results={results}"])
        return from_config(cfg, progress=False)


def tables(results: Path) -> dict[str, bytes]:
    """The tables of every finished run: equal rows are equal bytes."""
    return {
        f"{run.manifest['strategy']}/{name}": (run.path / f"{name}.parquet").read_bytes()
        for run in store.find_runs(results)
        for name in EQUAL
    }


def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """One core: all in this process, the control first."""
    monkeypatch.setattr(plain, "cores", lambda: 1)


def control_of(results: Path) -> dict[str, Any]:
    (path,) = results.glob("runs/*/reset/*/manifest.json")
    facts: dict[str, Any] = json.loads(path.read_text())
    return facts


def together(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two cores; returns what is trained beside the run."""
    begun: list[str] = []

    class Noted(plain.Child):
        def __init__(self, what: str, *how: Any, **more: Any) -> None:
            begun.append(what)
            super().__init__(what, *how, **more)

    monkeypatch.setattr(plain, "cores", lambda: 2)
    monkeypatch.setattr(plain, "Child", Noted)
    return begun


@pytest.mark.parametrize(
    "overrides",
    [
        # draws, memory, units replaced, an optimizer with state; begin changes the weights
        ("strategy=[replay,cbp,shrink_perturb]", "strategy.cbp.rate=0.1", "optimizer=adam", "metrics=[fast,sharpness]"),
        ("strategy=frozen", "train.steps=20"),  # begin puts weights back that only its own state has
        # seeds in two groups
        ("strategy=ewc", "tasks=split", "tasks.n_tasks=2", "scenario=class", "seeds=[0,1,2]", "metrics_every=2"),
        # all seeds diverge, the control's too
        pytest.param(("strategy=ewc", "optimizer.lr=1e30"), marks=pytest.mark.nightly),
    ],
    ids=["draws", "state", "groups", "diverged"],
)
def test_the_numbers_are_those_of_a_run_that_trains_all_itself(
    overrides: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone(monkeypatch)
    trained(tmp_path / "alone", *overrides)
    begun = together(monkeypatch)
    trained(tmp_path / "beside", *overrides)
    assert begun == ["trains the control", "trains copies of the learner"]
    expected = tables(tmp_path / "alone")
    assert len(expected) == 6 and tables(tmp_path / "beside") == expected


@pytest.mark.nightly
def test_a_control_that_was_cut_is_resumed_and_tells_what_it_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone(monkeypatch)
    trained(tmp_path / "whole", "strategy=ewc")
    told = plain.Control.add

    def cut(self: plain.Control, task: int, scores: dict[int, float]) -> None:
        if task == 1:
            raise KeyboardInterrupt
        told(self, task, scores)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(plain.Control, "add", cut)
        trained(tmp_path / "cut", "strategy=ewc")
    assert control_of(tmp_path / "cut")["status"] == "interrupted"
    assert together(monkeypatch) == []
    trained(tmp_path / "cut", "strategy=ewc")
    facts = control_of(tmp_path / "cut")
    assert (facts["attempts"], facts["status"]) == (2, "done")
    assert tables(tmp_path / "cut") == tables(tmp_path / "whole")
    begun = together(monkeypatch)
    trained(tmp_path / "cut", "strategy=naive")  # finds the control; its copy is itself
    assert begun == []


def test_a_control_that_fails_fails_the_run_with_its_line_and_a_repeat_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone(monkeypatch)
    trained(tmp_path / "whole", "strategy=ewc")
    together(monkeypatch)
    commit = plain.Telling.commit

    def full(self: plain.Telling, boundary: int, *how: Any) -> None:
        if boundary == 1:
            raise store.StoreError("No space left on device")
        commit(self, boundary, *how)

    with monkeypatch.context() as patch, pytest.raises(ValueError, match="No space left on device"):
        patch.setattr(plain.Telling, "commit", full)
        trained(tmp_path / "full", "strategy=ewc")
    assert control_of(tmp_path / "full")["status"] == "failed"
    trained(tmp_path / "full", "strategy=ewc")
    assert tables(tmp_path / "full") == tables(tmp_path / "whole")


@pytest.mark.nightly
def test_a_control_that_another_process_trains_is_waited_for(tmp_path: Path) -> None:
    """Two runs at once need one control."""
    words = (*SMALL, "metrics=off", "device=cpu", f"results={tmp_path}")
    runs = [Command(f"strategy={name}", *words, cwd=tmp_path) for name in ("ewc", "naive")]
    ended = [run.wait() for run in runs]
    assert [end.returncode for end in ended] == [0, 0], [end.stderr for end in ended]
    assert control_of(tmp_path)["attempts"] == 1
    (control,) = store.find_runs(tmp_path, strategy="reset")
    expected = plain.by_task(store.read_rows(control, "accuracy"))
    for name in ("ewc", "naive"):
        (found,) = store.find_runs(tmp_path, strategy=name)
        rows = [row for row in store.read_rows(found, "metrics").to_pylist() if row["metric"] == "fresh_score"]
        assert len(rows) == 6 and all(row["value"] == expected[row["boundary"]][row["seed"]] for row in rows)


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.fixture
def running(tmp_path: Path) -> tuple[Command, list[int], Path]:
    """A command whose control is trained, its two processes beside it, and its results."""
    if len(os.sched_getaffinity(0)) < 2 or not Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").exists():
        pytest.skip("needs two cores, and Linux")
    results = tmp_path / "results"
    words = [word for word in SMALL if not word.startswith("train")]
    run = Command(
        "strategy=ewc", *words, "train.steps=400", "metrics=off", "device=cpu", f"results={results}", cwd=tmp_path
    )
    assert run.pid is not None
    until = time.monotonic() + 60
    while not list(results.glob("runs/*/reset/*/nets/0.pt")) and time.monotonic() < until and run.poll() is None:
        time.sleep(0.01)
    return run, children(run.pid), results


def gone(pids: list[int]) -> bool:
    until = time.monotonic() + 30
    while (left := [pid for pid in pids if Path(f"/proc/{pid}").exists()]) and time.monotonic() < until:
        time.sleep(0.02)
    return not left


def test_if_the_control_s_process_is_killed_the_run_says_so_and_its_repeat_resumes(
    running: tuple[Command, list[int], Path], tmp_path: Path
) -> None:
    run, (control, copies), results = running
    os.kill(control, signal.SIGKILL)
    ended = run.wait()
    line = "harness: the process that trains the control was killed; repeat the command to resume\n"
    assert (ended.returncode, ended.stderr) == (2, line)
    assert gone([control, copies])
    (manifest,) = results.glob("runs/*/ewc/*/manifest.json")
    assert json.loads(manifest.read_text())["status"] == "failed"


def test_ctrl_c_stops_all_of_them_and_each_saves_its_work(running: tuple[Command, list[int], Path]) -> None:
    run, beside, results = running
    assert run.pid is not None and len(beside) == 2
    os.killpg(run.pid, signal.SIGINT)
    ended = run.wait()
    assert ended.returncode == 130 and ended.stderr.startswith("harness: interrupted: repeat the command to resume")
    assert ended.stderr.count("\n") == 1 and gone(beside)
    found = [json.loads(path.read_text())["status"] for path in results.glob("runs/*/*/*/manifest.json")]
    assert found == ["interrupted", "interrupted"]


def test_they_end_with_a_run_that_is_killed_and_leave_its_lock_free(
    running: tuple[Command, list[int], Path],
) -> None:
    run, beside, results = running
    (path,) = results.glob("runs/*/ewc/*")
    run.send_signal(signal.SIGSTOP)  # with its processes at work
    run.send_signal(signal.SIGKILL)
    assert run.wait().returncode == -signal.SIGKILL
    stream, strategy, run_id = path.parts[-3:]
    RunFolder.open(results, stream, strategy, run_id).close()  # no process beside it holds its lock
    assert gone(beside)


@pytest.mark.parametrize(
    ("change", "expected"),
    [({}, True), ({"threads": 2}, False), ({"device": "cuda"}, False), ({"cores": 1}, False)],
)
def test_nothing_is_trained_beside_without_a_core_or_with_threads_or_a_gpu(
    change: dict[str, Any], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from harness.jobs.setting import Setting

    setting = Setting({}, None, torch.device(change.get("device", "cpu")), change.get("threads", 1))
    monkeypatch.setattr(plain, "cores", lambda: change.get("cores", 2))
    assert plain.beside(setting) == expected


def test_a_progress_line_of_the_control_neither_waits_nor_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    def tells(link: plain.Link) -> None:
        link.send((0, {7: 0.5}))
        link.receive()
        raise ValueError("no")

    with plain.Child("tells", tells) as child:
        control = plain.Control({}, [7], child)
        while not child.ready:
            time.sleep(0.01)
        assert control.so_far() == 1 and control(0).tolist() == [0.5]
        child.send("on")
        while not child.ready:
            time.sleep(0.01)
        assert control.so_far() == 1
        for _ in range(2):
            with pytest.raises(ValueError, match="no"):
                control(1)
        assert control.so_far() == 1


def test_the_job_takes_two_metrics_at_a_time_only_beside_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[int] = []
    run = job.run

    def noted(*given: Any, **how: Any) -> Any:
        seen.append(how["workers"])
        return run(*given, **how)

    monkeypatch.setattr(job, "run", noted)
    alone(monkeypatch)
    trained(tmp_path, "strategy=naive", "metrics=off", "control=false")
    together(monkeypatch)
    monkeypatch.setattr(plain, "cores", lambda: 2)
    trained(tmp_path, "strategy=naive", "metrics=off", "control=false", "force=true")
    assert seen == [1, 2]
