"""`verify` from a protocol file to the page: rows are run once, found again, and rerun if their method has changed."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from harness import cli
from harness.verify import protocol, results, run, trace
from harness.verify.protocol import Protocol, Row, chosen, protocols, read
from harness.verify.results import Result
from harness.verify.texts import figure, line, markdown
from tests.compositions import composed, plain

TOY = """\
title: Toy
source: a test
read: here
seen: true
score: average_accuracy
spread: sd
n: 5
margin: [50.0, 60.0]
seeds: 2
settings: [tasks.n_tasks=2, train.steps=4, "model.widths=[8]", eval.samples=40]
open: []
rows:
  naive: {published: [10.0, 9.0], settings: [strategy=naive]}
  l2: {published: [99.9, 0.1], settings: [strategy=l2], seen: false, note: the toy is too short}
"""


OTHER = TOY.replace("title: Toy", "title: Another").partition("  l2:")[0].replace("steps=4", "steps=3")


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one protocol, in which the commands of a test run."""
    (tmp_path / "protocols").mkdir()
    (tmp_path / "protocols" / "toy.yaml").write_text(TOY)
    (tmp_path / "protocols" / "other.yaml").write_text(OTHER)
    monkeypatch.setattr(protocol, "FOLDER", tmp_path / "protocols")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def verify(command: Callable[..., tuple[int, str]]) -> Callable[..., tuple[int, str]]:
    def called(*words: str) -> tuple[int, str]:
        return command("verify", *words)

    return called


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    def called(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["harness", *words])
        code = cli.main()
        out, err = capfd.readouterr()
        return code, out + err

    return called


def test_rows_are_run_once_and_compared(toy: Path, verify: Callable[..., tuple[int, str]]) -> None:
    code, said = verify("toy/naive")
    assert code == 0 and "1 rows, 1 to run" in said
    (only,) = results.load(toy / "results" / results.NAME)
    assert (only.row, only.seeds) == ("toy/naive", (0, 1)) and all(0 <= score <= 100 for score in only.scores)
    assert verify("other")[0] == 0
    code, said = verify("toy")
    assert code == 0 and "2 rows, 1 to run" in said
    assert "1 of 2 rows reproduced (1 of the 1 whose number was read at its source); 1 differs" in said
    code, said = verify("hydra.launcher.n_jobs=1")
    assert code == 0 and "3 rows, none to run" in said
    code, said = verify("--plan", "--out", "deep/er")
    assert code == 0 and "3 rows, none to run" in said, "the runs are found again for another folder"
    assert verify("toy")[0] == 0
    page = (toy / "results" / "verified.md").read_text()
    assert "2 of 3 rows reproduced" in page, "the page is of all protocols, whichever were run last"
    assert "99.90 ± 0.10 (5)†" in page and "the toy is too short" in page and "results=" not in page
    assert (toy / "results" / "verified.svg").stat().st_size > 5000


def test_a_row_whose_code_has_changed_is_run_again(toy: Path, verify: Callable[..., tuple[int, str]]) -> None:
    assert verify("toy/naive")[0] == 0
    (path,) = (toy / "results" / "verify" / "runs").glob("*/naive/*/manifest.json")
    about = json.loads(path.read_text())
    about["files"]["strategies.naive"] = "0" * 64
    path.write_text(json.dumps(about))
    (toy / "results" / results.NAME).unlink()
    code, said = verify("toy/naive")
    assert code == 0 and "1 rows, 1 to run" in said and "1 of 1 rows" in said
    assert json.loads(path.read_text())["files"]["strategies.naive"] != "0" * 64


def test_a_result_outlives_an_edit_that_changes_no_number(toy: Path, verify: Callable[..., tuple[int, str]]) -> None:
    assert verify("toy/naive")[0] == 0
    table = toy / "results" / results.NAME
    (made,) = results.load(table)
    assert len(made.trace) == 2 * 3 and all(0 < loss < 10 for loss in made.trace), "two seeds, three boundaries"

    shutil.rmtree(toy / "results" / "verify")
    results.save([replace(made, method="other")], table)
    code, said = verify("toy/naive", "--plan")
    assert code == 0 and "1 rows, 1 to run" in said and "1 of them were run with other code" in said
    code, said = verify("toy/naive")
    assert code == 0 and "1 of 1 rows reproduced" in said
    assert {*results.load(table)} == {replace(made, method="other"), made}
    assert verify("toy/naive")[1].startswith("1 rows, none to run")

    results.save([replace(made, method="other", trace=(*made.trace[:-1], made.trace[-1] * (1 + 1e-5)))], table)
    assert verify("toy/naive")[0] == 0
    first, again = results.load(table)
    assert first.trace != again.trace == made.trace and first.ended_at < again.ended_at, "it was run again"


@pytest.mark.parametrize(
    "words", [["strategy.ewc.strength=1.001"], ["strategy.ewc.samples=50"], ["optimizer.lr=0.2001"]]
)
def test_a_trace_sees_a_small_change_of_method(
    words: list[str], tmp_path: Path, command: Callable[..., tuple[int, str]]
) -> None:
    toy = ["strategy=ewc", "optimizer.lr=0.2", "tasks.n_tasks=3", "metrics=off", "gap=false", "control=false"]
    rest = ["tracker.mode=disabled", f"results={tmp_path}", *trace.WORDS]
    for more in ([], words):
        assert command(*toy, *more, *rest)[0] == 0
    one, other = trace.traces(tmp_path, []).values()
    assert len(one) == 2 * 4 and trace.same(one, one) and not trace.same(one, other)


@pytest.mark.parametrize("every", [19, pytest.param(1, marks=pytest.mark.nightly)])
def test_every_protocol_is_read_and_its_rows_compose(every: int) -> None:
    rows = [row for one in protocols().values() for row in one.rows]
    assert len({row.name for row in rows}) == len(rows) > 20
    assert all(0 < row.margin <= 5 and len(row.settings) > 2 for row in rows)
    wanted = run.wanted(rows[::every])
    assert len({(one.row.name.partition("/")[0], one.key) for one in wanted}) == len(wanted), "two rows are one run"


@pytest.mark.parametrize(
    "before, after, said",
    [
        ("margin: [50.0, 60.0]\n", "", "toy.yaml: margin is missing"),
        ("spread: sd", "spread: var", "spread: var: must be sd or sem or ci95"),
        ("strategy=naive]}", "strategy=naive], marign: 2}", "marign: unknown key"),
        ("seen: true", "seen: 1", "seen: must be bool"),
        ("n: 5", "n: true", "n: must be int"),
    ],
)
def test_a_mistake_in_a_file_is_named(toy: Path, before: str, after: str, said: str) -> None:
    file = toy / "protocols" / "toy.yaml"
    file.write_text(TOY.replace(before, after, 1))
    with pytest.raises(ValueError, match=said):
        read(file)


def test_online_accuracy_is_the_mean_over_all_steps(toy: Path, verify: Callable[..., tuple[int, str]]) -> None:
    file = toy / "protocols" / "toy.yaml"
    file.write_text(TOY.replace("average_accuracy", "online_accuracy").replace("train.steps=4", "train.steps=130"))
    assert verify("toy/naive")[0] == 0
    (made,) = results.load(toy / "results" / results.NAME)
    (path,) = (toy / "results" / "verify" / "runs").glob("*/naive/*")
    curves = pd.read_parquet(path / "curves.parquet").query("seed == 1")
    assert len(curves) == 2 * 50, "130 steps in 50 spans, of two or three steps"
    spans = np.diff(curves.step.to_numpy().reshape(2, 50), prepend=0)
    assert {*spans.ravel()} == {2, 3} and spans.sum() == 2 * 130
    assert made.scores[1] == pytest.approx(100 * (spans.ravel() * curves.online_accuracy).sum() / 260)
    assert made.scores[1] != pytest.approx(100 * curves.online_accuracy.mean())
    assert "online accuracy: over all steps" in (toy / "results" / "verified.md").read_text()


def test_what_cannot_be_chosen_is_refused(toy: Path, verify: Callable[..., tuple[int, str]]) -> None:
    code, said = verify("toy/nave")
    assert code == 2 and "did you mean toy/naive?" in said
    code, said = verify("optimizer.lr=0.2")
    assert code == 2 and "optimizer.lr=0.2: cannot be changed here" in said
    (toy / "results").mkdir()
    (toy / "results" / results.NAME).write_bytes(b"no table")
    code, said = verify("--plan")
    assert code == 2 and "not a table of results" in said


def test_settings_and_code_decide_what_counts() -> None:
    cfg = plain(composed("strategy=ewc", "tracker.mode=disabled"))
    key, method = results.key_of(cfg), results.method_of(cfg)
    moved = {**cfg, "dataset": {**cfg["dataset"], "root": "elsewhere"}, "results": "x", "threads": 2, "device": "cpu"}
    assert results.key_of(moved) == key, "where and on what it runs changes no published number"
    for group, change in (("dataset", {"val": 0.2}), ("optimizer", {"lr": 0.3}), ("tasks", {"n_tasks": 3})):
        assert results.key_of({**cfg, group: {**cfg[group], **change}}) != key
    assert results.method_of(plain(composed("strategy=si"))) != method
    files = {"strategies.ewc": "an older file"}
    files |= dict.fromkeys(("harness.loop", "harness.store.files", "tasks.datasets.idx"), "older")
    assert results.method_of(cfg, files) == results.method_of(cfg, {"strategies.ewc": "an older file"}) != method
    assert results.method_of(cfg, {**files, "harness.landscape.fisher": "older"}) != results.method_of(cfg, files)

    score = "average_accuracy"
    made = Result("p/ewc", key, method, score, (0, 1), (50.0, 60.0), (), "abc", True, "", "r", 1.0, "2026-01-01", "cpu")
    later = replace(made, ended_at="2026-02-01")
    assert results.current([later, made], key, method, score) == later
    for other in ((key, "other", score), ("other", method, score), (key, method, "online_accuracy")):
        assert results.current([made], *other) is None


def test_a_row_says_what_it_cannot_know() -> None:
    row = Row("p/x", (), 90.0, float("nan"), 5, 1.0, float("nan"), "", False)
    assert line(row, {}) == ("x", "90.00 (5)†", "", "", "", "1.0", "not run")
    made = Result(
        "p/x",
        "k",
        "m",
        "average_accuracy",
        (0,),
        (80.0,),
        (),
        "abc",
        False,
        "python -m harness a",
        "r",
        1.0,
        "2026",
        "cpu",
    )
    shown = line(row, {"p/x": made})
    assert shown[2].endswith("*") and shown[3] == "-10.00 ± ?" and shown[-1] == "undecided"
    one = Protocol("p", "T", "S", "here", "average_accuracy", (), (), (row,))
    assert "the code had been edited" in markdown([one], {"p/x": made})
    assert (
        len(figure([one], {"p/x": made}).axes) == 1 and figure([one], {}).get_suptitle() == "Nothing has been run yet"
    )
    assert [r.name for r in chosen({"p": one}, ["p/x"])] == ["p/x"]
