"""`new` writes a strategy, metric, stream or model that keeps the contract, passes its test and trains."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from harness import ROOT, cli
from harness.cli.help import program
from harness.cli.new import GROUPS, class_of, new

SMALL = ("tasks.n_tasks=2", "train.steps=2", "seeds=[0,1]", "control=false", "gap=false", "tracker.mode=disabled")
NAME = "first_try"


def go(folder: Path, *words: str) -> str:
    """What a command says, in a folder of the user's."""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.nightly
@pytest.mark.parametrize("kind", GROUPS)
def test_what_it_writes_passes_check_and_its_test_and_trains_by_the_commands_it_prints(
    kind: str, tmp_path: Path
) -> None:
    folder = tmp_path / "work here"
    out = go(tmp_path, sys.executable, "-m", "harness", "new", kind, NAME, "--to", "work here")
    written = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert written == {f"{NAME}.py", f"mine/{GROUPS[kind]}/{NAME}.yaml", f"test_{NAME}.py"}
    lines = [line.strip() for line in out.partition("next:")[2].splitlines() if line.strip()]
    assert lines[0] == "cd 'work here'" and len(lines) == 4
    checked, trained, tested = (line.split() for line in lines[1:])
    python = [sys.executable]
    assert go(folder, *python, *checked[1:]).splitlines()[-1].startswith("all ")
    assert "results in results/runs/" in go(folder, *python, *trained[1:], *SMALL)
    assert " passed" in go(folder, *python, *tested[1:], "-p", "no:cacheprovider", "-W", "error")


def test_a_stream_passes_check_and_its_test_and_is_composed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same in this process, for the kind that is quickest to check."""
    name = "own_portions"
    monkeypatch.chdir(tmp_path)
    code, out, err = said(capsys, monkeypatch, "new", "stream", name)
    assert (code, err) == (0, "")
    lines = [line.removeprefix(f"{program()} ") for line in out.partition("next:")[2].split("\n  ")[1:]]
    checked, trained, tested = (line.split() for line in lines)
    code, out, err = said(capsys, monkeypatch, *checked)
    assert (code, err) == (0, "") and out.splitlines()[-1] == "all 11 checks passed"
    code, out, _ = said(capsys, monkeypatch, *trained, "--cfg", "job")
    assert code == 0 and f"_target_: {name}.{name}" in out
    monkeypatch.syspath_prepend(tmp_path)
    module = runpy.run_path(tested[-1])
    tests = [value for key, value in module.items() if key.startswith("test_")]
    assert len(tests) == 2
    for test in tests:
        test()


@pytest.mark.parametrize("kind", GROUPS)
def test_what_it_writes_has_our_style(kind: str, tmp_path: Path) -> None:
    new(kind, NAME, tmp_path)
    config = ("--config", str(ROOT / "pyproject.toml"))
    ruff = Path(sys.executable).with_name("ruff")
    for words in (("check", "--no-cache"), ("format", "--check", "--no-cache")):
        go(tmp_path, str(ruff), *words, *config, ".")
    text = "".join(p.read_text("utf-8") for p in tmp_path.rglob("*") if p.is_file())
    assert "@" not in text and NAME in text and (class_of(NAME) in text or kind in ("metric", "stream"))


def said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *argv: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "path", list(sys.path))  # to which `main` adds the working directory
    monkeypatch.setattr(sys, "argv", ["harness", *argv])
    return cli.main(), *capsys.readouterr()


BAD = {
    "strategy 2x": "new strategy 2x: not a name for a module and an option; use letters, digits and _",
    "strategy a-b": "new strategy a-b: not a name",
    "strategy ../x": "new strategy ../x: not a name",
    "strategy class": "new strategy class: not a name",
    "metric null": "new metric null: not a name",
    "strategy é": "new strategy é: not a name",
    "strategy ewc": "new strategy ewc: exists already as strategy=ewc; choose another name",
    "metric spectrum": "new metric spectrum: exists already as metrics=spectrum; choose another name",
    "stream permuted": "new stream permuted: exists already as tasks=permuted; choose another name",
    "model mlp": "new model mlp: exists already as model=mlp; choose another name",
    "strategy torch": "new strategy torch: an installed module has this name",
    "strategy json": "new strategy json: an installed module has this name",
    "model tasks": "new model tasks: an installed module has this name",
    "dataset x": "argument kind: invalid choice: 'dataset'",
    "strategy": "the following arguments are required: NAME; see ",
}


@pytest.mark.parametrize("typed", BAD)
def test_a_name_that_cannot_be_used_is_one_line_and_nothing_is_written(
    typed: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = said(capsys, monkeypatch, "new", *typed.split())
    assert (code, out) == (2, "") and err.startswith(f"harness: {BAD[typed]}") and err.count("\n") == 1, err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("there", ["one.py", "mine/strategy/one.yaml", "test_one.py"])
def test_nothing_is_overwritten(
    there: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / there
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("mine")
    code, out, err = said(capsys, monkeypatch, "new", "strategy", "one")
    assert (code, out) == (2, "") and err.startswith("harness: new strategy one: ") and "exists already" in err
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [file] and file.read_text() == "mine"


def test_a_second_of_the_same_name_is_refused_and_other_kinds_share_the_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said(capsys, monkeypatch, "new", "strategy", "one")[0] == 0
    assert "exists already as strategy=one" in said(capsys, monkeypatch, "new", "strategy", "one")[2]
    assert said(capsys, monkeypatch, "new", "metric", "two")[0] == 0
    assert sorted(p.name for p in (tmp_path / "mine").iterdir()) == ["metrics", "strategy"]


def test_a_folder_that_cannot_be_written_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    code, out, err = said(capsys, monkeypatch, "new", "model", "one", "--to", str(tmp_path / "file"))
    assert (code, out) == (2, "") and err.count("\n") == 1 and "choose another path with --to FOLDER" in err
