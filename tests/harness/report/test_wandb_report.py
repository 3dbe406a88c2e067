"""The report on a server: the leaderboard's numbers as text, and panels over what runs have sent."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from harness import cli
from harness.leaderboard import leaderboard, table
from harness.wording import markdown
from tests.harness.folders import write
from tests.harness.wandb_stub import Server

# of the import of wandb-workspaces itself
pytestmark = pytest.mark.filterwarnings("ignore:Pydantic V1 style:DeprecationWarning")
METRICS = {"trainability_gap": [[0.0, 0.1]] * 3, "lambda_max_joint": [[5.0, 6.0]] * 3}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    root = tmp_path / "results"
    for name, accuracy in (("naive", 0.3), ("replay", 0.7)):
        write(root, name, [accuracy, accuracy + 0.1], metrics=METRICS)
    for strength in (1, 30):
        write(root, "ewc", [0.5, 0.6], metrics=METRICS, settings={"strength": strength, "mode": "a|b<script>"})
    return root


def said(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *argv: object) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["harness", *map(str, argv)])
    code = cli.main()
    return code, *capfd.readouterr()


def blocks(server: Server, kind: str) -> list[dict[str, Any]]:
    (view,) = server.reports
    return [block for block in json.loads(view["spec"])["blocks"] if block["type"] == kind]


def test_text_is_the_leaderboard_and_panels_are_of_what_sync_sent(
    results: Path, server: Server, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert said(capfd, monkeypatch, "sync", results)[0] == 0
    code, out, err = said(capfd, monkeypatch, "report", results, "--wandb")
    assert (code, err) == (0, "") and out.startswith(f"{server.url}/team/harness/reports/") and out.count("\n") == 1
    assert server.unknown == []
    (board,) = leaderboard([results]).boards
    text = "\n".join(block["content"] for block in blocks(server, "markdown-block"))
    lines = [[c.strip() for c in line.strip("| ").split(" | ")] for line in text.splitlines() if line.startswith("|")]
    heads, rows = table(board)
    assert lines[0] == heads and lines[2:] == [[markdown(cell) for cell in row] for row in rows]
    assert "<script" not in text and "mean ± 95 % interval over seeds" in text
    (grid,) = blocks(server, "panel-grid")
    (runs,) = grid["metadata"]["runSets"]
    (only,) = runs["filters"]["filters"]
    assert (only["key"], only["op"]) == ({"section": "run", "name": "name"}, "IN")
    assert set(only["value"]) == set(server.runs)  # W&B calls a run's id its name
    keys = [(g["section"], g["name"]) for g in runs["grouping"]]
    assert keys == [("config", "manifest.value.strategy"), ("config", "strategy.value.ewc.strength")]
    panels = grid["metadata"]["panelBankSectionConfig"]["panels"]
    drawn: dict[str, set[str]] = {}
    for panel in panels:
        config, names = panel["config"], drawn.setdefault(panel["viewType"], set())
        names.update(config.get("metrics", ()))
        names.update(config[axis].removeprefix("summary:") for axis in ("xAxis", "yAxis") if axis in config)
    assert drawn["Run History Line Plot"] == {"task", "average_accuracy", "learning_accuracy", "forgetting", *METRICS}
    assert drawn["Bar Chart"] == {"average_accuracy", "forgetting", "lambda_max_joint"}
    assert drawn["Scatter Plot"] == {"cost/step", "forgetting", "average_accuracy", "memory"} and "Weave" in drawn
    for kept in server.runs.values():
        assert set.union(*drawn.values()) <= set(kept.summary)
        assert (kept.summary["cost/step"], kept.summary["cost/seconds"]) == (2.0, 4.5)  # 3 tasks of 3 s, 2 seeds
    places = [tuple(panel["layout"].values()) for panel in panels]
    assert len(set(places)) == len(places)


def test_the_project_is_that_of_the_runs_or_the_one_that_is_said(
    results: Path, server: Server, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert said(capfd, monkeypatch, "report", results, "--wandb", "tracker.project=mine", "tracker.entity=us")[0] == 0
    (view,) = server.reports
    assert (view["projectName"], view["entityName"]) == ("mine", "us")
    config = {"tracker": {"project": "other"}, "strategy": {"si": {}}}
    from tests.harness.folders import CONFIG

    write(results, "si", [0.5, 0.6], config={**CONFIG, **config})
    code, _, err = said(capfd, monkeypatch, "report", results, "--wandb")
    assert code == 2 and "the runs went to harness, other; choose one with tracker.project=NAME" in err


def test_what_is_missing_is_one_line(
    results: Path, server: Server, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def line(*argv: object) -> str:
        code, out, err = said(capfd, monkeypatch, "report", *argv, "--wandb")
        assert (code, out) == (2, "") and err.count("\n") == 1
        return err

    assert "tracker.mode=online: cannot be changed here" in line(results, "tracker.mode=online")
    assert "report --out x.html: --wandb writes no file" in line(results, "--out", "x.html")
    server.refused.add("upsertView")
    assert "report --wandb: W&B failed" in line(results)
    server.state = "refuse"
    assert "answered 503" in line(results)
    monkeypatch.delenv("WANDB_API_KEY")
    import wandb

    wandb.teardown()  # it remembers the key
    assert "no key for" in line(results)
    monkeypatch.setitem(sys.modules, "wandb_workspaces.reports.v2", None)
    assert "needs wandb-workspaces; install it with pip install 'harness[reports]'" in line(results)
