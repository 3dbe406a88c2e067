"""compile=auto|true|false: part of a run's id if typed, decided once, and recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness import store
from harness.config.ranges import check
from harness.jobs import setting
from harness.jobs.identity import of_setting
from harness.jobs.job import from_config
from tests.compositions import composed, plain

SMALL = ("tasks.n_tasks=2", "train.steps=6", "metrics=off", "gap=false", "seeds=[0]", "tracker.mode=disabled")


@pytest.fixture(autouse=True)
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph replays its operations: nothing waits for C++."""
    monkeypatch.setattr("harness.compiling.step.inductor", lambda graph, inputs: graph)


def run(results: Path, *words: str) -> dict[str, Any]:
    """The manifest of a run."""
    folder = from_config(composed(*SMALL, f"results={results}", *words), progress=False)
    (found,) = store.find_runs(results, purpose="run", run_id=folder.name)
    return found.manifest


def test_the_key_is_part_of_the_id_only_if_it_is_typed() -> None:
    ids = {
        words: store.identity(of_setting(plain(composed(*words)), ("digits", "x"), 1, "cpu"))
        for words in ((), ("compile=auto",), ("compile=true",), ("compile=false",))
    }
    assert ids[()] == ids["compile=auto",] and len(set(ids.values())) == 3
    older = plain(composed())
    del older["compile"]
    assert store.identity(of_setting(older, ("digits", "x"), 1, "cpu")) == ids[()]


def test_precision_is_part_of_the_id_only_if_it_is_typed() -> None:
    none, typed, mixed = (
        store.identity(of_setting(plain(composed(*words)), ("digits", "x"), 1, "cpu"))
        for words in ((), ("precision=null",), ("precision=bf16",))
    )
    assert none == typed != mixed


def test_precision_is_that_of_the_run(tmp_path: Path) -> None:
    assert run(tmp_path, "precision=bf16", "control=false")["config"]["precision"] == "bf16"
    with pytest.raises(ValueError, match="precision=bf16: needs dtype=float32, not float64"):
        check(plain(composed("precision=bf16", "dtype=float64")))


def test_a_run_and_its_control_are_compiled_and_say_so(tmp_path: Path) -> None:
    manifest = run(tmp_path, "compile=true", "strategy=ewc")
    (control,) = store.find_runs(tmp_path, purpose="control")
    assert [(m["compiled"], m["graphs"]) for m in (manifest, control.manifest)] == [(True, 1), (True, 1)]


@pytest.mark.parametrize("pays", [True, False])
def test_auto_is_decided_by_the_planned_steps_and_kept(
    pays: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[int] = []

    def decide(steps: int, *rest: Any) -> tuple[bool, str]:
        asked.append(steps)
        return pays, "" if pays else "no compiler here"

    monkeypatch.setattr(setting, "pays", decide)
    manifest = run(tmp_path, "control=false")
    assert (manifest["compiled"], manifest["graphs"]) == (pays, int(pays)) and asked == [12]
    said = capsys.readouterr().err
    assert ("compile=auto: steps are not compiled: no compiler here" in said) is not pays


def test_an_interrupted_run_goes_on_as_it_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setting, "pays", lambda *_: (True, ""))
    stop = store.RunFolder.commit

    def killed(self: store.RunFolder, boundary: int, *rest: Any) -> None:
        stop(self, boundary, *rest)
        if boundary == 0:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store.RunFolder, "commit", killed)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, "control=false")
    monkeypatch.setattr(setting, "pays", lambda *_: pytest.fail("decided again"))
    manifest = run(tmp_path, "control=false")
    assert manifest["attempts"] == 2 and manifest["compiled"] and manifest["graphs"] == 1
