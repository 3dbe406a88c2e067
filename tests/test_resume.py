"""A run that is killed and started again leaves the tables of one that was not."""

import signal
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from hydra import compose, initialize_config_dir

from harness import store
from harness.config.catalogue import CONF
from harness.jobs.job import from_config
from tasks.datasets import load
from tests.command import Command

RUN = (
    *("strategy=[replay,ewc,cbp]", "tasks.n_tasks=4", "train.epochs=1", "threads=1", "seeds=[0,1]", "metrics=fast"),
    *("tracker.mode=disabled", "strategy.ewc.samples=50", "strategy.cbp.rate=0.01"),
)


def start(results: Path) -> Command:
    return Command(*RUN, f"results={results}", cwd=results.parent)


def finished(results: Path) -> str:
    done = start(results).wait()
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> store.Run:
    """A run that nothing stopped."""
    results = tmp_path_factory.mktemp("resume") / "whole"
    finished(results)
    (run,) = store.find_runs(results, purpose="run")
    return run


@pytest.mark.parametrize(
    "how", [signal.SIGKILL, *(pytest.param(s, marks=pytest.mark.nightly) for s in (signal.SIGINT, signal.SIGTERM))]
)
def test_a_run_cut_short_resumes_to_the_same_tables(tmp_path: Path, how: signal.Signals, whole: store.Run) -> None:
    cut = tmp_path / "cut"
    command = start(cut)
    deadline = time.monotonic() + 120
    while not list(cut.glob("runs/*/replay+ewc+cbp/*/nets/1.pt")):
        assert time.monotonic() < deadline and command.poll() is None, "it did not get to its second boundary"
        time.sleep(0.01)
    command.send_signal(how)
    done = command.wait(60)
    said = done.stdout + done.stderr
    assert done.returncode == {signal.SIGKILL: -9, signal.SIGINT: 130, signal.SIGTERM: 143}[how], said
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
