"""A run with a diverged seed: console, leaderboard, report, card, W&B and a query of the tables say the same of it."""

from __future__ import annotations

import math
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats

from harness import store
from harness.finished.card import cell
from harness.leaderboard import cells, leaderboard
from harness.report import report
from harness.trackers.console import TABLE, line, table
from harness.trackers.sync import recorded
from harness.trackers.wandb import Record
from tests.harness.folders import write

NAN = math.nan
ACCURACY = [0.5, 0.8, 0.6]  # of the seeds at the end; the first has diverged before it
FORGETTING = [NAN, 0.2, 0.4]


@pytest.fixture
def run(tmp_path: Path) -> store.Run:
    values = {
        "learning_accuracy": [[0.9] * 3, [0.9] * 3, [NAN, 0.8, 0.6]],
        "forgetting": [[NAN] * 3, [0.1] * 3, FORGETTING],
        "lambda_max_joint": [[5.0] * 3, [5.0] * 3, [NAN, 7.0, 9.0]],
    }
    write(tmp_path, "sam", [NAN, *ACCURACY[1:]], metrics=values, diverged=[0])
    (found,) = store.find_runs(tmp_path)
    return found


def expected() -> tuple[float, float]:
    scores = [0.0, *ACCURACY[1:]]
    low, high = scipy.stats.t.interval(0.95, 2, np.mean(scores), scipy.stats.sem(scores))
    return float(np.mean(scores)), float(high - low) / 2


class Logged:
    """What a W&B run receives."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def log(self, row: dict[str, Any]) -> None:
        self.rows.append(row)


def test_every_place_says_the_same(run: store.Run) -> None:
    mean, half = expected()
    shown = f"{mean:.3f} ± {half:.3f}"
    (board,) = leaderboard([run.path]).boards
    (row,) = cells(board)
    assert (row["average accuracy"], row["forgetting"], row["sharpness"]) == (shown, "div 2/3", "div 2/3")
    assert row["seeds"] == "3, 1 diverged"

    about, history = recorded(run)
    console = {text.split("  ")[1]: text for text in table(history, 3, TABLE)[1:]}
    assert shown in console["average accuracy"] and "1 diverged, counted as 0" in console["average accuracy"]
    assert console["forgetting"].endswith("div 2/3")
    assert console["sharpness (top eigenvalue, seen tasks)"].endswith("div 2/3")

    record = object.__new__(Record)
    logged = Logged()
    record.about, record.history, record.run = about, [], logged  # type: ignore[assignment]
    for summary in history:
        record.log(summary)
    last = logged.rows[-1]
    assert last["average_accuracy"] == pytest.approx(mean)
    assert last["average_accuracy/hi"] - last["average_accuracy"] == pytest.approx(half)
    assert not {"forgetting", "forgetting/lo", "lambda_max_joint"} & last.keys() and last["forgetting/seed=1"] == 0.2
    assert logged.rows[1]["forgetting"] == pytest.approx(0.1)  # before it diverged

    frame = store.read_rows(run, "metrics").to_pandas()
    end = frame[frame.boundary == 2]
    for name in ("forgetting", "lambda_max_joint"):
        rows = end[end.metric == name]
        assert cell(rows.value.to_numpy(), bool(rows.diverged.any()), ".3f") == "div 2/3"
    assert set(frame[frame.diverged].seed) == {0} and set(frame[frame.diverged].boundary) == {2}

    page = unescape(report([run.path]))
    curve = page.split("<figcaption>Average accuracy over the tasks so far</figcaption>")[1].split("</table>")[0]
    assert f"{mean:.3g} ± {half:.3g}" in curve.replace("0.46667", "0.467"), curve[-400:]
    lost = page.split("<figcaption>Forgetting</figcaption>")[1].split("</table>")[0]
    assert "0.3 ±" not in lost  # the mean of the survivors


def test_the_accuracy_matrix_counts_it_too(run: store.Run) -> None:
    _, history = recorded(run)
    after = history[-1]
    assert after.diverged.tolist() == [True, False, False]
    np.testing.assert_allclose(after.means(0.0), np.array([0.7, 0.8, 0.9]) * 2 / 3)
    assert "(1 of 3 seeds diverged)" in line(after, 3, ()) and "new  0.600" in line(after, 3, TABLE_NEW)


TABLE_NEW = tuple(shown._replace(title="new") for shown in TABLE if shown.key == "new")
