"""W&B offline and online: what a record holds, and what becomes of it where there is no key or no server."""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.trackers import About, Summary
from harness.trackers.wandb import Record, Target, WandB
from tests.harness.wandb_stub import Server

NAN = math.nan
FILES = ("metrics.parquet", "manifest.json")
FIRST = Summary(0, {"forgetting": np.array([NAN, NAN])}, np.array([[0.9, NAN], [0.7, NAN]]))
SECOND = Summary(
    1,
    {"forgetting": np.array([0.4, 0.2]), "lambda_max_joint": np.array([10.0, 30.0])},
    np.array([[0.5, 0.8], [0.5, 0.6]]),
)


def run_id(path: Path) -> str:
    return hashlib.sha256(str(path).encode()).hexdigest()[:12]


def about(path: Path) -> About:
    # its own name in every test: after a failed start the service keeps one until the process ends
    manifest = {"run_id": run_id(path), "stream": "permuted", "strategy": "ewc", "source": "f00", "status": "running"}
    (path / "metrics.parquet").write_text("rows")
    (path / "manifest.json").write_text(json.dumps({**manifest, "status": "done"}))
    return About({"optimizer": {"lr": 0.1}}, manifest, path, (3, 4), 2)


def records(path: Path) -> Iterator[Any]:
    """Records of an offline file: protocol buffers in LevelDB's log format (blocks of 32 KiB, 7-byte headers)."""
    from wandb.proto import wandb_internal_pb2

    data, at, held = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + 7])
        if kind == 0:
            at += left
            continue
        held += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last piece
            yield wandb_internal_pb2.Record.FromString(held)  # type: ignore[attr-defined]
            held = b""


def recorded(folder: Path) -> dict[str, Any]:
    """The one record of a run that has ended; its service writes the last lines after `finish` returns."""
    until = time.monotonic() + 60.0
    while "exit" not in (found := read_record(folder)) and time.monotonic() < until:
        time.sleep(0.02)
    return found


def read_record(folder: Path) -> dict[str, Any]:
    (file,) = folder.glob("wandb/*run-*/*.wandb")
    found: dict[str, Any] = {
        "history": [],
        "config": {},
        "metrics": [],
        "artifacts": [],
        "kinds": set(),
    }
    for record in records(file):
        found["kinds"].add(record.WhichOneof("record_type"))
        match record.WhichOneof("record_type"):
            case "run":
                found["id"], found["group"], found["type"] = (
                    record.run.run_id,
                    record.run.run_group,
                    record.run.job_type,
                )
                found["host"] = record.run.host
                found["config"].update({u.key: json.loads(u.value_json) for u in record.run.config.update})
            case "config":
                found["config"].update({u.key: json.loads(u.value_json) for u in record.config.update})
            case "history":
                row = {(i.key or "/".join(i.nested_key)): json.loads(i.value_json) for i in record.history.item}
                found["history"].append({k: v for k, v in row.items() if not k.startswith("_")})
            case "metric":
                found["metrics"].append((record.metric.name or record.metric.glob_name, record.metric.step_metric))
            case "artifact":
                names = [e.path for e in record.artifact.manifest.contents]
                found["artifacts"].append((record.artifact.name, record.artifact.type, names))
            case "exit":
                found["exit"] = record.exit.exit_code
    return found


QUICK = Target(init_timeout=1.0, finish_timeout=2.0)


def mirrored(
    folder: Path, mode: str = "offline", past: Sequence[Summary] = (), error: str = "", target: Target | None = None
) -> list[str]:
    """Warnings of one run with W&B alone."""
    warnings: list[str] = []
    tracker = WandB(mode, target, warn=warnings.append)
    tracker.start(about(folder), past)
    slowest = 0.0
    for summary in [s for s in (FIRST, SECOND) if s not in past]:
        began = time.perf_counter()
        tracker.boundary(summary)
        slowest = max(slowest, time.perf_counter() - began)
    tracker.finish([] if error else [folder / name for name in FILES], error)
    assert slowest < 0.5  # the import and the start of the service are not waited for
    return warnings


def holds_everything(folder: Path) -> dict[str, Any]:
    """The one record of `mirrored`, which must hold both boundaries, the matrix and the files."""
    found = recorded(folder)
    assert (found["id"], found["group"], found["type"], found["exit"]) == (run_id(folder), "permuted", "ewc", 0)
    assert found["config"]["optimizer"] == {"lr": 0.1} and found["config"]["manifest"]["source"] == "f00"
    assert found["config"]["manifest"]["status"] == "done"  # as it is at the end
    assert ("task", "") in found["metrics"] and ("*", "task") in found["metrics"]
    first, second, last = found["history"]
    assert first["task"] == 0 and "forgetting" not in first and first["accuracy/new"] == pytest.approx(0.8)
    half = 12.7062047 * 0.1  # t(0.975, 1) s / sqrt(2) with values 0.4, 0.2
    assert second["forgetting"] == pytest.approx(0.3)
    assert second["forgetting/lo"] == pytest.approx(0.3 - half) and second["forgetting/hi"] == pytest.approx(0.3 + half)
    assert second["forgetting/seed=3"] == 0.4 and second["forgetting/seed=4"] == 0.2
    assert second["accuracy/old"] == 0.5 and second["lambda_max_joint"] == 20.0
    assert last["task"] == 1 and any("accuracy_matrix" in key for key in last)
    (table_file,) = folder.glob("wandb/*run-*/files/media/table/*.json")
    held = json.loads(table_file.read_text())
    assert held["columns"] == ["after task", "task 0", "task 1"]
    assert held["data"] == [[0, pytest.approx(0.8), None], [1, 0.5, pytest.approx(0.7)]]
    assert (f"run-{run_id(folder)}", "results", sorted(FILES)) in [(a, b, sorted(c)) for a, b, c in found["artifacts"]]
    # staged beside the run, not under the home folder
    staged = [p.read_text() for p in (folder / "wandb/data/artifacts/staging").iterdir() if p.is_file()]
    assert {(folder / name).read_text() for name in FILES} <= set(staged)
    assert not list((folder.parent / "home").rglob("*artifacts*"))
    return found


# --- offline --------------------------------------------------------------------------------------------


def test_offline_holds_everything_and_nothing_of_the_machine(clean: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = dict(os.environ)
    assert mirrored(clean) == []
    found = holds_everything(clean)
    assert found["host"] == "hidden" and not list(clean.rglob("requirements.txt"))
    assert found["kinds"] <= {
        *("header", "run", "telemetry", "metric", "summary", "history", "artifact", "files", "exit", "config"),
    }
    after = dict(os.environ)
    after.pop("WANDB_SERVICE", None), before.pop("WANDB_SERVICE", None)
    assert after == before
    assert capfd.readouterr() == ("", "")


def test_a_resumed_run_logs_everything_again_in_the_place_of_the_first_record(clean: Path) -> None:
    tracker = WandB()
    tracker.start(about(clean), [])
    tracker.boundary(FIRST)
    tracker.finish([], error="killed")
    assert recorded(clean)["exit"] == 1
    taken = {path.name.split("-")[2] for path in clean.rglob("offline-run-*") if path.is_dir()}
    assert taken, "folders are named by the second"
    while time.strftime("%Y%m%d_%H%M%S") in taken:
        time.sleep(0.02)
    assert mirrored(clean, past=[FIRST]) == []
    found = recorded(clean)  # and there is exactly one
    assert [row["task"] for row in found["history"]] == [0, 1, 1] and found["exit"] == 0


def test_without_wandb_there_is_one_warning(clean: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    (warning,) = mirrored(clean)
    assert "W&B is off for this run (ModuleNotFoundError" in warning and "\n" not in warning


def test_a_call_that_fails_half_way_costs_one_warning(clean: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Record, summary: Summary) -> None:
        raise SystemExit(3)

    monkeypatch.setattr(Record, "log", fail)
    (warning,) = mirrored(clean)
    assert "SystemExit: 3" in warning and f"harness sync {clean}" in warning


def test_disabled_touches_nothing(clean: Path) -> None:
    assert mirrored(clean, "disabled") == [] and not (clean / "wandb").exists()


def test_an_unknown_mode_is_named() -> None:
    with pytest.raises(ValueError, match=r"tracker.mode=ofline: unknown mode; use offline, online, disabled"):
        WandB("ofline")


# --- online ---------------------------------------------------------------------------------------------


def test_online_sends_what_offline_records(clean: Path, server: Server, capfd: pytest.CaptureFixture[str]) -> None:
    assert mirrored(clean, "online") == []
    sent, kept = server.runs[run_id(clean)], recorded(clean)
    assert server.unknown == [] and sent.exit == 0
    assert (sent.facts["groupName"], sent.facts["jobType"], sent.facts["displayName"]) == (
        *("permuted", "ewc"),
        "ewc permuted",
    )
    assert sent.config["optimizer"] == {"lr": 0.1} and sent.config["manifest"]["status"] == "done"
    local = [{k: v for k, v in row.items() if "accuracy_matrix" not in k} for row in kept["history"]]
    assert [{k: v for k, v in row.items() if k != "accuracy_matrix"} for row in sent.history] == local
    assert {k: v for k, v in sent.summary.items() if k in local[1]} == {**local[0], **local[1]}
    assert server.files("results") == {f"run-{run_id(clean)}": {n: (clean / n).read_bytes() for n in FILES}}
    (matrix,) = server.files("run_table").values()
    assert json.loads(matrix["accuracy_matrix.table.json"])["data"][1] == [1, 0.5, pytest.approx(0.7)]
    assert capfd.readouterr() == ("", "")


def test_a_run_that_failed_is_sent_as_failed(clean: Path, server: Server) -> None:
    assert mirrored(clean, "online", error="ValueError: no") == []
    sent = server.runs[run_id(clean)]
    assert sent.exit == 1 and [row["task"] for row in sent.history] == [0, 1] and server.files("results") == {}


def test_online_without_a_key_goes_offline_with_one_warning(
    clean: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_API_KEY")
    (warning,) = mirrored(clean, "online")
    assert f"no key for {server.url}" in warning and "wandb login" in warning and "\n" not in warning
    assert f"`python -m harness sync {clean}` sends the run" in warning
    holds_everything(clean)


@pytest.mark.parametrize("state", ["refuse", "hang", "down"])
def test_online_without_a_server_goes_offline_with_one_warning(
    clean: Path, server: Server, state: str, capfd: pytest.CaptureFixture[str]
) -> None:
    server.state = state
    began = time.monotonic()
    (warning,) = mirrored(clean, "online", target=QUICK)
    assert time.monotonic() - began < 20.0
    said = {"refuse": "answered 503 Service Unavailable", "hang": "no answer", "down": "no connection"}[state]
    assert f"{server.url}: {said}; check the network and WANDB_BASE_URL" in warning.replace("server and", "network and")
    assert f"`python -m harness sync {clean}` sends the run" in warning and "\n" not in warning
    holds_everything(clean)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("state", ["refuse", "hang", "down"])
def test_a_server_that_dies_in_the_middle_costs_one_warning_and_nothing_else(
    clean: Path, server: Server, state: str, capfd: pytest.CaptureFixture[str]
) -> None:
    server.then = ("UpsertBucket", state)
    (warning,) = mirrored(clean, "online", target=QUICK)
    said = {"refuse": "answered 503 Service Unavailable", "hang": "no answer", "down": "no connection"}[state]
    assert f"W&B failed online ({server.url}: {said}" in warning and "\n" not in warning
    assert f"`python -m harness sync {clean}` sends the run" in warning
    holds_everything(clean)
    assert capfd.readouterr() == ("", "")


def test_a_server_that_refuses_the_run_costs_one_warning(clean: Path, server: Server) -> None:
    server.refused.add("UpsertBucket")
    (warning,) = mirrored(clean, "online", target=QUICK)
    assert "W&B failed online" in warning and "\n" not in warning
    found = recorded(clean)
    assert len(found["history"]) == 3 and found["exit"] == 0
