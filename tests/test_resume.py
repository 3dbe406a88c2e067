"""A run that is killed and started again leaves the tables of one that was not."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from hydra import compose, initialize_config_dir

import harness
from harness import store
from harness.config.catalogue import CONF
from harness.jobs.job import from_config
from tasks.datasets import load

ROOT = Path(harness.__file__).resolve().parent.parent
RUN = [
    *(sys.executable, "-m", "harness", "strategy=[replay,ewc,cbp]", "tasks.n_tasks=4", "train.epochs=2", "threads=1"),
    *("seeds=[0,1]", "metrics=fast", "tracker.mode=disabled", "strategy.ewc.samples=50", "strategy.cbp.rate=0.01"),
]


def start(results: Path) -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [*RUN, f"results={results}"],
        cwd=results.parent,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # a shell starts background jobs with Ctrl-C ignored, and the tests' children inherit it
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def finished(results: Path) -> str:
    process = start(results)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return said


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> store.Run:
    """A run that nothing stopped."""
    results = tmp_path_factory.mktemp("resume") / "whole"
    finished(results)
    (run,) = store.find_runs(results, purpose="run")
    return run


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_run_cut_short_resumes_to_the_same_tables(tmp_path: Path, how: signal.Signals, whole: store.Run) -> None:
    cut = tmp_path / "cut"
    process = start(cut)
    deadline = time.monotonic() + 120
    while not list(cut.glob("runs/*/replay+ewc+cbp/*/nets/1.pt")):
        assert time.monotonic() < deadline and process.poll() is None, "it did not get to its second boundary"
        time.sleep(0.01)
    process.send_signal(how)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == {signal.SIGKILL: -9, signal.SIGINT: 130, signal.SIGTERM: 143}[how], said
    assert how == signal.SIGKILL or "repeat the command to resume" in said
    assert "resumed after task" in finished(cut)
    (again,) = store.find_runs(cut, purpose="run")
    assert again.manifest["attempts"] == 2
    for name in ("metrics", "accuracy", "curves"):
        tables = (pd.read_parquet(run.path / f"{name}.parquet") for run in (whole, again))
        pd.testing.assert_frame_equal(*tables, check_exact=True)
    assert "already finished" in finished(cut)


def test_the_same_names_for_other_data_are_refused(tmp_path: Path) -> None:
    """Of the sets that follow the first, the run's identity holds the names; their digests are in the stream's."""

    def run(*more: str) -> Path:
        with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
            few = ["tasks=sequence", "tasks.then=[other]", "train.steps=1", "seeds=[0]", "metrics=off", "gap=false"]
            cfg = compose("config", [*few, "tracker.mode=disabled", f"results={tmp_path}", *more])
        return from_config(cfg, progress=False)

    def other(value: float) -> None:
        digits = load("digits")
        made = replace(digits, name="other", x=digits.x * value, digest=f"of {value}")
        monkeypatch.setattr("tasks.sequence.load", lambda name, root: made)

    with pytest.MonkeyPatch.context() as monkeypatch:
        other(1.0)
        path = run("control=false")
        assert run("control=false") == path
        other(0.5)
        with pytest.raises(
            store.StoreError, match=r"this run was started on different data with the same name; .*force=true"
        ):
            run("control=false")
        assert run("control=false", "force=true") == path
        assert store.read_table(path, "accuracy").num_rows > 0
