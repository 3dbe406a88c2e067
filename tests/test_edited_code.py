"""Finished is finished only for the code that made it: an edit is noticed, and both results can be kept."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from harness import cli, store

OWN = """
from harness.strategy import Strategy

class Mine(Strategy):
    def __init__(self, *, strength):
        self.strength = strength

    def loss(self, learner, params, batch, out):
        return {factor} * self.strength * sum(p.square().flatten(1).sum(1) for p in params.values())
"""
SMALL = ["tasks.n_tasks=2", "train.steps=2", "seeds=[0]", "metrics=off", "tracker.mode=disabled"]


@pytest.fixture
def harness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    """Run the command line in a folder with a strategy of the user's, whose code is written anew for each call."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    (tmp_path / "conf" / "strategy").mkdir(parents=True)
    (tmp_path / "conf" / "strategy" / "mine.yaml").write_text(
        "mine:\n  _target_: mine_edited.Mine\n  # how much\n  strength: 0.1\n"
    )

    def run(factor: int, *words: str, code: int = 0) -> str:
        (tmp_path / "mine_edited.py").write_text(OWN.format(factor=factor))
        sys.modules.pop("mine_edited", None)
        monkeypatch.setattr(sys, "argv", ["harness", "--config-dir", "conf", "strategy=mine", *SMALL, *words])
        assert cli.main() == code
        out, err = capfd.readouterr()
        return out + err

    yield run
    sys.modules.pop("mine_edited", None)


def test_an_edit_is_noticed_and_both_results_can_be_kept(harness) -> None:  # type: ignore[no-untyped-def]
    harness(1)
    assert "different code" not in harness(1)
    said = harness(2)
    assert "already finished" in said and "mine_edited has changed" in said and "force=beside keeps both" in said
    assert "training" not in said
    harness(2, "force=beside")
    first, second = (run for run in store.find_runs("results", strategy="mine"))
    assert second.path.name == f"{first.path.name}-2" == second.manifest["run_id"]
    assert first.manifest["files"]["mine_edited"] != second.manifest["files"]["mine_edited"]
    loss = [store.read_table(run, "curves")["loss"].to_pylist() for run in (first, second)]
    assert loss[0] != loss[1]
    for factor, run in ((1, first), (2, second)):  # each code finds its own run
        said = harness(factor)
        assert f"already finished: {run.path} " in said and "different code" not in said
    assert len(list(store.find_runs("results", strategy="reset"))) == 1, "the control does not use the strategy"


@pytest.mark.nightly
def test_force_replaces_the_result_of_the_old_code(harness) -> None:  # type: ignore[no-untyped-def]
    harness(1)
    harness(2, "force=true")
    (run,) = store.find_runs("results", strategy="mine")
    assert "different code" not in harness(2)
    assert "different code" in harness(3)
    assert json.loads((run.path / "manifest.json").read_text())["files"] == run.manifest["files"]


def test_a_run_that_was_interrupted_is_not_resumed_under_edited_code(harness) -> None:  # type: ignore[no-untyped-def]
    harness(1)
    (run,) = store.find_runs("results", strategy="mine")
    (run.path / "DONE").unlink()
    assert "mine_edited has changed" in harness(2, code=2)
    harness(1)
    assert (run.path / "DONE").exists()
