"""Undefined, not measured and diverged are three marks; what accuracy.parquet determines is always shown."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from harness.leaderboard import Entry, cells, leaderboard, text
from harness.metrics import transfer
from harness.report import report
from harness.store.run_folder import RunFolder
from harness.store.scores import scores
from harness.trackers import About, Summary
from harness.trackers.console import Console
from harness.wording import DIVERGED, UNDEFINED, UNMEASURED
from tests.harness import folders

NAN = math.nan
NONE: dict[str, Any] = {name: [[]] * 3 for name in ("average_accuracy", "learning_accuracy", "forgetting")}


@pytest.mark.parametrize("hole", [None, (0, 1, 0), (1, 2, 2), (0, 3, 1)])
def test_the_scores_are_those_of_the_metrics(hole: tuple[int, int, int] | None) -> None:
    r = np.random.default_rng(3).random((2, 4, 4))
    if hole:
        r[hole] = NAN
    full = torch.full((2, 5, 4), NAN, dtype=torch.float64)
    full[:, 1:] = torch.from_numpy(r)
    found = scores(r)
    for t in range(4):
        per_task = transfer.forgetting_of_tasks(full, t).mean(1)
        for name, values in (
            ("average_accuracy", transfer.average_accuracy(full, t)),
            ("learning_accuracy", transfer.learning_accuracy(full, t)),
            ("forgetting", per_task),
        ):
            np.testing.assert_allclose(found[name][:, t], values.numpy(), rtol=1e-12, err_msg=f"{name} {t}")


def cut(path: Path, keep: Any, **change: Any) -> Path:
    """Keep rows of a finished run's accuracy table, and change columns of them."""
    with RunFolder.reopen(path) as run:
        frame = run.table("accuracy").to_pandas()
        frame = frame[[bool(keep(row)) for row in frame.itertuples()]].assign(**change)
        run.replace("accuracy", {column: frame[column].tolist() for column in frame})
    return path


def entry(root: Path, label: str) -> tuple[Entry, dict[str, str], list[str]]:
    """An entry of the only board, its cells, and the notes about it."""
    (board,) = leaderboard([root]).boards
    ((row, line),) = [(row, line) for row, line in zip(board.rows, cells(board)) if row.entry.label == label]
    return row.entry, line, [note for note in board.notes if note.startswith(f"{label}:")]


def test_after_metrics_off_the_leaderboard_has_the_scores_of_the_accuracy_table(tmp_path: Path) -> None:
    folders.write(tmp_path, "naive", [0.5, 0.6], metrics=NONE)
    found, line, notes = entry(tmp_path, "naive")
    # 0.9 - 0.1 (t - j): 0.7, 0.8, 0.9 at the end
    assert found.scores["average_accuracy"] == pytest.approx([0.8, 0.8])
    assert found.scores["learning_accuracy"] == pytest.approx([0.9, 0.9])
    assert found.scores["forgetting"] == pytest.approx([0.15, 0.15])
    assert line["average accuracy"] == "0.800 ± 0.000" and not notes and line["rank"].startswith("1")
    page = report([tmp_path])
    assert "Average accuracy over the tasks so far" in page and "0.800 ± 0.000" in page
    folders.write(tmp_path, "ewc", [0.5, 0.6])  # what a run recorded is not replaced
    assert entry(tmp_path, "ewc")[0].scores["average_accuracy"] == pytest.approx([0.5, 0.6])


def test_a_seed_that_diverged_counts_as_0_whatever_was_measured(tmp_path: Path) -> None:
    path = folders.write(tmp_path, "sam", [0.5, 0.6], metrics=NONE, diverged=[0, 1])
    cut(path, lambda row: row.boundary < 1)  # no row of a boundary at which all seeds had diverged
    found, line, _ = entry(tmp_path, "sam")
    assert found.scores["average_accuracy"].tolist() == [0, 0] and line["seeds"] == "2, 2 diverged"
    assert found.marks["forgetting"] == (DIVERGED, DIVERGED) and found.marks["average_accuracy"] == ("", "")
    assert found.scores["learning_accuracy"] == pytest.approx([0.3, 0.3])  # 0.9, 0, 0


@pytest.mark.parametrize("how", ["no row", "no test rows"])
@pytest.mark.parametrize("measured", [True, False])
def test_a_task_without_test_rows_is_undefined_and_named(tmp_path: Path, how: str, measured: bool) -> None:
    given = {"average_accuracy": [[0.9, 0.9], [NAN, NAN], [NAN, NAN]]} if measured else NONE
    path = folders.write(tmp_path, "naive", [0.5, 0.6], metrics=given)
    if how == "no row":
        cut(path, lambda row: row.task != 1)
    else:
        with RunFolder.reopen(path) as run:
            frame = run.table("accuracy").to_pandas()
            frame.loc[frame.task == 1, ["accuracy", "n"]] = [NAN, 0]
            run.replace("accuracy", {column: frame[column].tolist() for column in frame})
    folders.write(tmp_path, "ewc", [0.5, 0.6])
    found, line, notes = entry(tmp_path, "naive")
    assert found.empty == (1,) and found.marks["average_accuracy"] == (UNDEFINED, UNDEFINED)
    assert line["average accuracy"] == "n/a" and line["seeds"] == "0/2, undefined" and line["rank"] == "-"
    assert notes == ["naive: average accuracy is undefined, because task 2 had no test rows"]
    assert "measure" not in "\n".join(text(leaderboard([tmp_path]))[:8])


def test_tasks_that_were_not_tested_are_not_called_undefined(tmp_path: Path) -> None:
    """As eval.tasks=1 leaves them: each task is tested just after it alone."""
    given = {"average_accuracy": [[0.9, 0.9], [NAN, NAN], [NAN, NAN]], "forgetting": [[NAN, NAN]] * 3}
    path = folders.write(tmp_path, "naive", [0.5, 0.6], metrics=given)
    cut(path, lambda row: row.task == row.boundary)
    found, line, notes = entry(tmp_path, "naive")
    assert found.empty == () and found.marks["average_accuracy"] == found.marks["forgetting"] == (UNMEASURED,) * 2
    assert line["average accuracy"] == "-" and line["seeds"] == "0/2" and line["new-task accuracy"] == "0.800 ± 0.000"
    assert notes[0].endswith("was not measured, because not all tasks were tested; rerun with eval.tasks=seen")


def test_every_score_says_why_it_is_missing(tmp_path: Path) -> None:
    gap = {"trainability_gap": [[NAN, NAN]] * 3, "lambda_max_joint": [[1.0, 2.0]] * 2 + [[1.0, NAN]]}
    cfg = {**folders.CONFIG, "strategy": {"naive": {}}}
    folders.write(tmp_path, "naive", [0.5, NAN], metrics=gap, diverged=[1], config=cfg)
    found, *_ = entry(tmp_path, "naive")
    assert found.marks["sharpness"] == ("", DIVERGED) and found.marks["barrier"] == (UNMEASURED, UNMEASURED)
    assert found.marks["plasticity_lost"] == (UNDEFINED, DIVERGED)
    folders.write(tmp_path, "naive", [0.5, NAN], metrics=gap, diverged=[1], config={**cfg, "gap": False}, force=True)
    assert entry(tmp_path, "naive")[0].marks["plasticity_lost"] == (UNMEASURED, UNMEASURED)


def console(*history: Summary) -> str:
    out = io.StringIO()
    shown = Console(stream=out)
    shown.start(About({}, {"run_id": "abc"}, Path("run"), (3, 4), 2), [])
    for summary in history:
        shown.boundary(summary)
    shown.finish([])
    return out.getvalue()


def test_the_console_shows_the_same_three_marks() -> None:
    held = {"memory": np.array([1.0, 1.0])}
    first = Summary(0, held, np.array([[0.9, NAN], [0.7, NAN]]))
    whole = console(first, Summary(1, held, np.array([[0.5, 0.8], [0.5, 0.6]])))
    assert (
        "average accuracy                0.600 ± 0.635\n" in whole and "forgetting                      0.300" in whole
    )
    empty = console(first, Summary(1, held, np.array([[0.5, NAN], [0.5, NAN]])))
    assert "task 2/2  new    n/a  old  0.500" in empty and "seeds diverged" not in empty and "    2  50 n/a\n" in empty
    for title in ("average accuracy", "accuracy on the new task, mean"):
        assert f"  {title:30}  n/a" in empty
    assert empty.count("undefined, because task 2 had no test rows") == 2
    lost = console(first, Summary(1, {"memory": np.array([NAN, NAN])}, np.full((2, 2), NAN)))
    assert "task 2/2  new  0.000  old  0.000  (2 of 2 seeds diverged)" in lost and "    2 div div\n" in lost
    one = console(first, Summary(1, {"memory": np.array([1.0, NAN])}, np.array([[0.5, NAN], [NAN, NAN]])))
    assert "new    n/a  old  0.250  (1 of 2 seeds diverged)" in one


def test_the_report_of_an_undefined_score_says_so(tmp_path: Path) -> None:
    path = folders.write(tmp_path, "naive", [0.5, 0.6], metrics=NONE)
    cut(path, lambda row: row.task != 1)
    page = report([tmp_path])
    assert "is undefined, because task 2 had no test rows" in page and "n/a: undefined" in page and "div: div" in page
    assert pd.isna(leaderboard([tmp_path]).boards[0].rows[0].rank)
