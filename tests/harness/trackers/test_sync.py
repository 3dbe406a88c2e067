"""What arrives at a server is what the tables hold, whether a run was online or was sent afterwards."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import scipy.stats
from hydra import compose, initialize_config_dir

from harness import cli, store
from harness.config.catalogue import CONF
from harness.jobs.job import from_config
from tests.harness.folders import write
from tests.harness.wandb_stub import Kept, Server

ROOT = Path(__file__).parents[3]
SMALL = ("tasks.n_tasks=3", "train.steps=8", "seeds=[3,4]", "threads=1", "model.widths=[12]", "metrics=fast")
OFF = ("control=false", "gap=false")
QUICK = ("tracker.init_timeout=1", "tracker.finish_timeout=2")


def trained(results: Path, *overrides: str) -> Path:
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return from_config(compose("config", [*SMALL, *overrides, f"results={results}"]), progress=False)


def said(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *argv: object) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["harness", "sync", *map(str, argv)])
    code = cli.main()
    return code, *capfd.readouterr()


def matrix(server: Server, run: str) -> Any:
    return json.loads(server.files("run_table")[f"run-{run}-accuracy_matrix"]["accuracy_matrix.table.json"])


def agrees(kept: Kept, server: Server, path: Path) -> None:
    """Every number of the tables about a whole boundary is there, and nothing else is."""
    metrics, accuracy = (store.read_table(path, name).to_pandas() for name in ("metrics", "accuracy"))
    whole = metrics[(metrics.axis == "") & (metrics.task == -1) & (metrics.boundary >= 0)]
    nets = whole.groupby(["phase", "metric"]).net.nunique()
    rows = {row["task"]: row for row in kept.history if "accuracy_matrix" not in row}
    assert sorted(rows) == sorted(whole.boundary.unique()) and len(kept.history) == len(rows) + 1
    for t, row in rows.items():
        expected: dict[str, dict[int, float]] = {}
        for r in whole[whole.boundary == t].itertuples():
            both = r.net == "deployed" and nets[r.phase, r.metric] > 1
            name = ("" if r.phase == "end" else "start/") + r.metric + ("/deployed" if both else "")
            expected.setdefault(name, {})[r.seed] = r.value
        after = accuracy[accuracy.boundary == t]
        expected["accuracy/new"] = after[after.task == t].set_index("seed").accuracy.to_dict()
        expected["accuracy/old"] = after[after.task < t].groupby("seed").accuracy.mean().to_dict()
        flat: dict[str, float] = {"task": t}
        for name, values in expected.items():
            there = pd.Series(values).dropna()
            flat |= {f"{name}/seed={seed}": value for seed, value in there.items()}
            if len(there):
                flat[name] = there.mean()
            if len(there) > 1:
                low, high = scipy.stats.ttest_1samp(there, 0.0).confidence_interval(0.95) if there.std() else there
                flat |= {f"{name}/lo": low, f"{name}/hi": high}
        assert row == pytest.approx({k: v for k, v in flat.items() if math.isfinite(v)}, rel=1e-9, abs=1e-12)
    last = max(rows)
    assert {k: v for k, v in kept.summary.items() if k in rows[last]} == rows[last]
    held = {int(r[0]): r[1:] for r in matrix(server, path.name)["data"]}
    mean = accuracy.groupby(["boundary", "task"]).accuracy.mean()
    for t, cells in held.items():
        assert cells == [pytest.approx(mean[t, j]) if (t, j) in mean.index else None for j in range(len(cells))]
    assert len(held) == len(rows) + 1  # and the initialisation
    facts = json.loads((path / "manifest.json").read_text())
    config, _ = facts.pop("config"), facts.pop("files")
    assert kept.config == {**{k: v for k, v in config.items() if v != {}}, "manifest": facts}  # W&B drops {}
    assert {m.get("1", m.get("2")): m.get("5") for m in kept.metrics} == {"task": None, "*": 1}  # by the task
    names = [*(f"{name}.parquet" for name in store.SCHEMAS), "manifest.json"]
    assert server.files("results")[f"run-{path.name}"] == {name: (path / name).read_bytes() for name in names}
    assert server.unknown == [] and kept.exit == 0


def test_online_sync_and_sync_again_are_the_same(
    tmp_path: Path, server: Server, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    where = ("strategy=ewc", "tracker.project=cl", "tracker.tags=[a,b]", "tracker.group=g")
    path = trained(tmp_path / "results", "tracker.mode=online", *where, *OFF)
    live = server.runs[path.name]
    agrees(live, server, path)
    assert (live.facts["project"], live.facts["groupName"], live.facts["tags"]) == ("cl", "g", ["a", "b"])
    assert "W&B" not in capfd.readouterr().err
    uploads, versions = dict(server.uploads), len(server.artifacts)
    for _ in range(2):
        server.runs.pop(path.name)
        code, out, err = said(capfd, monkeypatch, path)
        assert (code, err) == (0, "") and out == f"sent    {path}  {server.url}/team/cl/runs/{path.name}\n"
        sent = server.runs[path.name]
        agrees(sent, server, path)
        assert {k: v for k, v in sent.facts.items() if k != "config"} == {
            k: v for k, v in live.facts.items() if k != "config"
        }
        assert sent.config == live.config and len(server.artifacts) == versions
    code, _, _ = said(capfd, monkeypatch, path)  # onto what is there: nothing is doubled
    agrees(server.runs[path.name], server, path)
    assert (code, len(server.artifacts)) == (0, versions)
    assert {k: v for k, v in server.uploads.items() if k.startswith("/up/")} == {
        k: v for k, v in uploads.items() if k.startswith("/up/")
    }
    assert not (path / "wandb" / "latest-run").exists() or len(list(path.glob("wandb/*run-2*"))) == 1


def test_a_run_that_was_never_tracked_is_sent_elsewhere_and_its_control_is_not(
    tmp_path: Path, server: Server, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = trained(tmp_path / "results", "tracker.mode=disabled", "strategy=naive")
    assert len(list(tmp_path.glob("results/runs/*/*/*/DONE"))) == 2  # with the control
    code, out, err = said(capfd, monkeypatch, tmp_path / "results", "tracker.project=mine", "tracker.tags=[x]")
    assert (code, err, list(server.runs)) == (0, "", [path.name]) and out.count("\n") == 1
    agrees(server.runs[path.name], server, path)
    facts = server.runs[path.name].facts
    assert (facts["project"], facts["groupName"], facts["tags"]) == ("mine", "permuted_digits_domain", ["x"])
    assert not (path / "wandb").exists()  # nor anything else that was not there
    control = next(tmp_path.glob("results/runs/*/reset/*"))
    assert said(capfd, monkeypatch, control)[0] == 0 and control.name in server.runs  # but where it is named


@pytest.mark.parametrize("state", ["hang", *(pytest.param(s, marks=pytest.mark.nightly) for s in ("refuse", "down"))])
def test_a_run_whose_server_dies_is_done_and_sent_later(
    tmp_path: Path, server: Server, state: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server.then = ("UpsertBucket", state)
    path = trained(tmp_path / "results", "tracker.mode=online", "strategy=naive", *OFF, *QUICK)
    assert (path / "DONE").exists() and capfd.readouterr().err.count("warning") == 1
    server.state, server.then = "up", None
    server.runs.clear()
    assert said(capfd, monkeypatch, path)[0] == 0
    agrees(server.runs[path.name], server, path)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    root = tmp_path / "results"
    for name in ("naive", "replay", "ewc"):
        write(root, name, [0.5, 0.6])
    return root


def test_what_is_not_finished_is_left_out_of_a_folder_and_refused_by_name(
    results: Path, server: Server, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = write(results, "si", [0.5, 0.6], done=False)
    code, out, _ = said(capfd, monkeypatch, results)
    kinds = [line.split()[0] for line in out.splitlines()]
    assert code == 0 and kinds == ["sent", "sent", "sent", "skipped"] and cut.name not in server.runs
    assert out.splitlines()[-1].startswith(f"skipped {cut}  not finished (")
    code, out, err = said(capfd, monkeypatch, cut)
    assert (code, out) == (2, "") and err.startswith(f"harness: sync {cut}: not finished (") and err.count("\n") == 1


def test_one_that_cannot_be_read_or_is_refused_takes_no_other_along(
    results: Path, server: Server, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = next(results.glob("runs/*/naive/*"))
    (broken / "metrics.parquet").write_bytes(b"no")
    other = next(results.glob("runs/*/replay/*"))
    server.refused.add(other.name)
    code, out, err = said(capfd, monkeypatch, results)
    lines = {line.split()[1]: line for line in out.splitlines()}
    assert (code, err, len(lines)) == (1, "", 3)
    assert lines[str(broken)].startswith("FAILED") and "metrics.parquet: damaged (" in lines[str(broken)]
    assert lines[str(other)].startswith("FAILED")
    assert len(server.runs) == 1


@pytest.mark.nightly
def test_a_server_that_dies_in_the_middle_of_sync_is_one_line(
    results: Path, server: Server, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server.then = ("CreateRunFiles", "down")
    code, out, err = said(capfd, monkeypatch, results, *QUICK)
    assert code == 2 and out == "" and err.count("\n") == 1
    assert err.startswith("harness: W&B does not answer (") and "0 of 3 runs were sent" in err
    server.state, server.then = "up", None


@pytest.mark.parametrize(
    "state, line", [("refuse", "answered 503"), ("hang", "no answer"), ("down", "no connection"), ("", "no key for")]
)
def test_without_key_or_server_there_is_one_line(
    results: Path,
    server: Server,
    state: str,
    line: str,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server.state = state or "up"
    if not state:
        monkeypatch.delenv("WANDB_API_KEY")
    code, out, err = said(capfd, monkeypatch, results, "tracker.init_timeout=1")
    assert (code, out) == (2, "") and line in err and err.count("\n") == 1
    assert ("WANDB_BASE_URL" if state else "wandb login") in err and server.url in err


BAD = {
    "tracker.mode=offline": "sync tracker.mode=offline: cannot be changed here; the settings are tracker.project=",
    "strategy=ewc": "sync strategy=ewc: cannot be changed here; the settings are tracker.project=",
    "tracker.projekt=x": "sync tracker.projekt=x: cannot be changed here; the settings are tracker.project=",
    "tracker.tags=a": "tracker.tags=a: must be a list",
    "tracker.init_timeout=0": "tracker.init_timeout=0: must be above 0",
    "tracker.project=": "tracker.project=: must name a project",
    "--all": "unrecognized arguments: --all; see ",
    "nowhere": "sync nowhere: neither a run folder nor the beginning of a run id in results/runs",
}


@pytest.mark.parametrize("typed", BAD)
def test_what_is_mistyped_is_named(
    typed: str, results: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(results.parent)
    code, out, err = said(capfd, monkeypatch, typed)
    assert (code, out) == (2, "") and err.startswith(f"harness: {BAD[typed]}") and err.count("\n") == 1, err


def test_an_id_is_enough_and_an_empty_folder_is_said(
    results: Path, server: Server, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(results.parent)
    path = next(results.glob("runs/*/ewc/*"))
    code, out, _ = said(capfd, monkeypatch, path.name[:6], path)  # twice the same is once
    assert code == 0 and out.count("sent ") == 1 and list(server.runs) == [path.name]
    shutil.rmtree(results)
    (results / "runs").mkdir(parents=True)
    assert said(capfd, monkeypatch)[:2] == (0, "no finished run in results\n")


def test_ctrl_c_says_how_far_it_came_and_ends_at_once(results: Path, server: Server) -> None:
    server.then = ("CommitArtifact", "hang")
    command = [sys.executable, "-m", "harness", "sync", str(results)]
    temporary = results.parent / "t"
    temporary.mkdir()
    process = subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, "TMPDIR": str(temporary)}, text=True, stderr=subprocess.PIPE,
        # a shell starts background jobs with Ctrl-C ignored, and the tests' children inherit it
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while server.state != "hang":
        assert process.poll() is None and time.monotonic() < deadline, "it sent nothing"
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    _, err = process.communicate(timeout=30)
    assert err == "harness: interrupted: 0 of 3 runs were sent; repeat the command to send all of them\n"
    assert process.returncode == 130 and time.monotonic() - began < 5.0
    assert list(temporary.iterdir()) == []


def test_nothing_stays_in_the_temporary_folder(
    results: Path, server: Server, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = results.parent / "t"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    assert said(capfd, monkeypatch, results)[0] == 0 and len(server.runs) == 3
    time.sleep(0.5)  # a service that still ran would write into its cache
    assert list(folder.glob("harness-sync-*")) == []
