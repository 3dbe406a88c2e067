"""What the README shows runs as it stands there."""

import math
import re
from pathlib import Path

import pandas as pd
import pytest

import harness
from harness.leaderboard import cells, heading, leaderboard
from harness.pages import strategies
from tests.harness.folders import write

README = Path(harness.__file__).resolve().parent.parent / "README.md"
SNIPPETS = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder with two runs and the control they share, made in this process."""
    from hydra import compose, initialize_config_dir

    from harness.config.catalogue import CONF
    from harness.jobs.job import from_config

    folder = tmp_path_factory.mktemp("readme") / "results"
    small = ["tasks.n_tasks=3", "train.steps=3", "seeds=[0,1]", "metrics=fast", "tracker.mode=disabled", "threads=1"]
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        for name in ("naive", "replay"):
            from_config(compose("config", [*small, f"strategy={name}", f"results={folder}"]), progress=False)
    return folder


def said(snippet: str, capsys: pytest.CaptureFixture[str]) -> str:
    exec(compile(snippet, "README.md", "exec"), {})
    return capsys.readouterr().out


def answers(snippet: str, capsys: pytest.CaptureFixture[str]) -> dict[tuple[str, str], list[float]]:
    """Average accuracy and forgetting by setting and entry, as a query prints them."""
    with pd.option_context("display.width", 1000, "display.precision", 12, "display.multi_sparse", False):
        lines = said(snippet, capsys).replace("│", " ").splitlines()
    cells = [line.split() for line in lines if "@" in line]
    return {(line[1], line[2]): [*map(float, line[3:])] for line in cells}


def ranked(folder: Path) -> dict[tuple[str, str], list[float]]:
    """The same on the leaderboard."""
    return {
        (board.setting, row.entry.label): [row.means[score][0] for score in ("average_accuracy", "forgetting")]
        for board in leaderboard([folder]).boards
        for row in board.rows
    }


@pytest.mark.parametrize("snippet", SNIPPETS[:2], ids=["pandas", "duckdb"])
def test_a_query_of_real_runs_agrees_with_the_leaderboard(
    snippet: str, results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(results.parent)
    found, shown = answers(snippet, capsys), ranked(results)
    assert {entry for _, entry in shown} == {"naive", "replay"} and found.keys() == shown.keys()
    for key, values in shown.items():
        assert found[key] == pytest.approx(values, abs=1e-6)


@pytest.mark.parametrize("snippet", SNIPPETS[:2], ids=["pandas", "duckdb"])
def test_a_query_and_the_leaderboard_keep_the_same_things_apart(
    snippet: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Values of a strategy, settings, versions of the stream and of the code, seeds in two runs, diverged seeds."""
    folder = tmp_path / "results"
    write(folder, "naive", [0.5, 0.6])
    write(folder, "naive", [0.6], seeds=[1])
    write(folder, "naive", [0.55, 0.67], version=2)
    write(folder, "ewc", [0.7, 0.8], settings={"strength": 1.0})
    write(folder, "ewc", [0.2, 0.3], settings={"strength": 100.0})
    write(folder, "ewc", [0.1, 0.3], setting="b" * 12)
    write(folder, "ewc", [0.1, 0.2], setting="c" * 12, stream_version=2, stream="other_domain")
    gone = {"learning_accuracy": [[0.8, 0.8], [0.8, 0.8], [math.nan, 0.8]],
            "forgetting": [[math.nan] * 2, [0.1, 0.1], [math.nan, 0.2]]}  # fmt: skip
    write(folder, "sam", [math.nan, 0.9], metrics=gone, diverged=[0])
    write(folder, "si", [math.nan, 0.9])  # undefined, and not diverged
    monkeypatch.chdir(tmp_path)
    found, shown = answers(snippet, capsys), ranked(folder)
    assert len(shown) == 8 and found.keys() == shown.keys()
    for key, values in shown.items():
        assert found[key] == pytest.approx(values, abs=1e-9, nan_ok=True), key
    assert shown["a" * 12 + "@1", "sam"] == pytest.approx([0.45, math.nan], nan_ok=True)
    assert shown["a" * 12 + "@1", "ewc[strength=100]"][0] == pytest.approx(0.25)


def test_the_python_call_prints_the_accuracy_matrix(capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(SNIPPETS[2], "README.md", "exec"), {})
    assert capsys.readouterr().out.startswith("tensor([[")


def test_the_leaderboard_is_computed_from_the_tables(results: Path) -> None:
    (board,) = leaderboard([results]).boards
    assert "3 tasks, 3 steps a task in batches of 32, MLP 100-100, SGD with lr 0.2" in heading(board)
    shown = {line["strategy"]: line for line in cells(board)}
    assert set(shown) == {"naive", "replay"}  # the control is not an entry
    for path in results.glob("runs/*/naive/*/accuracy.parquet"):
        table = pd.read_parquet(path)
        last = table[table.boundary == 2].groupby("seed").accuracy.mean()
        assert float(shown["naive"]["average accuracy"].split()[0]) == pytest.approx(last.mean(), abs=5e-4)
    assert (shown["naive"]["step"], shown["naive"]["memory"]) == ("1.00", "0")
    held = (200 + 1) * (64 * 4 + 8 + 8) + 8  # rows of x, y and t with one to spare, and the key of its draws
    assert shown["replay"]["memory"] == f"{held / 1e3:.3g} kB"
    assert 0.5 < float(shown["replay"]["step"]) < 20


def test_one_control_serves_both_runs(results: Path) -> None:
    assert len(list(results.glob("runs/*/reset/*/DONE"))) == 1


def test_the_page_shows_the_runs_of_a_setting_best_first(results: Path) -> None:
    said, *tables = strategies.boards([results])
    assert "not tuned" in said
    (table,) = [t for t in tables if t.startswith("### permuted_digits_domain")]
    assert "3 tasks, 3 steps a task in batches of 32, MLP 100-100, SGD with lr 0.2." in table
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("| ")]
    assert {row[0] for row in rows[2:]} == {"naive", "replay"}
    means = [float(row[2].split()[0]) for row in rows[2:]]
    assert means == sorted(means, reverse=True)
    assert {row[0]: row[-1] for row in rows[2:]}["naive"] == "0"
    assert len(rows[0]) == len(rows[2])
    assert list(strategies.boards([])) == []
