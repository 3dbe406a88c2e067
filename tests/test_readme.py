"""What the README shows runs as it stands there."""

import re
from pathlib import Path

import pandas as pd
import pytest

import harness
from harness.leaderboard import cells, heading, leaderboard
from harness.pages import strategies

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


def test_the_queries_are_three_lines_each_and_answer_alike(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(results.parent)
    assert [snippet.count("\n") for snippet in SNIPPETS[:2]] == [3, 3]
    (path,) = results.glob("runs/*/replay/*/metrics.parquet")
    rows = pd.read_parquet(path)
    known = rows[(rows.metric == "forgetting") & (rows.boundary == 2)].value.mean()
    for snippet in SNIPPETS[:2]:
        out = said(snippet, capsys)
        (line,) = [line for line in out.splitlines() if "replay" in line]
        assert "permuted_digits_domain" in out and "naive" in out
        numbers = [float(word) for word in re.findall(r"-?\d+\.\d+(?:e-?\d+)?", line)]
        assert numbers[0] == pytest.approx(known, abs=1e-6)


def test_the_python_call_prints_the_accuracy_matrix(capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(SNIPPETS[2], "README.md", "exec"), {})
    assert capsys.readouterr().out.startswith("tensor([[")


def test_the_leaderboard_is_computed_from_the_tables(results: Path) -> None:
    (board,) = leaderboard([results]).boards
    assert "3 tasks, 3 steps a task in batches of 32, MLP 100-100, SGD with lr 0.1" in heading(board)
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
    assert "3 tasks, 3 steps a task in batches of 32, MLP 100-100, SGD with lr 0.1." in table
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("| ")]
    assert {row[0] for row in rows[2:]} == {"naive", "replay"}
    means = [float(row[2].split()[0]) for row in rows[2:]]
    assert means == sorted(means, reverse=True)
    assert {row[0]: row[-1] for row in rows[2:]}["naive"] == "0"
    assert len(rows[0]) == len(rows[2])
    assert list(strategies.boards([])) == []
