"""What trackers show of a run, and that none of them can harm it."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import re
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats

from harness.store import RunFolder
from harness.trackers import About, Summary, Trackers, interval, mean, summaries
from harness.trackers.console import TABLE, Console, Shown, line, matrix, table
from harness.trackers.wandb import WandB

ROOT = Path(__file__).parents[2]
NAN = math.nan
FILES = ("metrics.parquet", "config.yaml")


def run_id(path: Path) -> str:
    return hashlib.sha256(str(path).encode()).hexdigest()[:12]


def about(path: Path, tasks: int = 2, seeds: tuple[int, ...] = (3, 4)) -> About:
    # its own name in every test: after a failed start the service keeps one until the process ends
    manifest = {"run_id": run_id(path), "stream": "permuted", "strategy": "ewc", "source": "f00"}
    for name in FILES:
        (path / name).write_text(name)
    return About({"optimizer": {"lr": 0.1}}, manifest, path, seeds, tasks)


FIRST = Summary(0, {"forgetting": np.array([NAN, NAN])}, np.array([[0.9, NAN], [0.7, NAN]]))
SECOND = Summary(
    1,
    {"forgetting": np.array([0.4, 0.2]), "lambda_max_joint": np.array([10.0, 30.0])},
    np.array([[0.5, 0.8], [0.5, 0.6]]),
)


# --- numbers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3, 5, 10])
def test_interval_is_students(n: int) -> None:
    values = np.random.default_rng(n).normal(size=n)
    low, high = scipy.stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    average, half, count = interval(np.append(values, [NAN, NAN]))
    assert count == n
    assert (average - half, average + half) == pytest.approx((low, high), rel=1e-9)


def test_interval_of_one_seed_or_none_is_undefined() -> None:
    assert interval(np.array([2.0, NAN]))[0] == 2.0 and math.isnan(interval(np.array([2.0]))[1])
    average, half, n = interval(np.array([NAN, NAN]))
    assert math.isnan(average) and math.isnan(half) and n == 0
    assert math.isnan(float(mean(np.array([]))))


def test_new_and_old_are_read_from_the_accuracy_matrix() -> None:
    assert FIRST.new.tolist() == [0.9, 0.7] and np.isnan(FIRST.old).all()
    assert SECOND.new.tolist() == [0.8, 0.6] and SECOND.old.tolist() == [0.5, 0.5]
    assert np.isnan(Summary(-1, {}, np.array([[0.1, 0.2]])).new).all()


def test_summaries_are_made_of_the_rows(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path, "permuted", "ewc", "abc") as run:
        run.append(-1, "init", {"accuracy": {"seed": [4, 3], "task": 0, "accuracy": [0.1, 0.2], "n": 9}})
        run.append(0, "start", {"metrics": {"seed": [3, 4], "metric": "dead_frac", "value": [0.5, 0.6]}})
        run.append(
            0,
            "end",
            {
                "metrics": [
                    {"seed": 4, "metric": "dead_frac", "value": 0.7},
                    {"seed": 3, "metric": "loss", "net": "deployed", "value": 1.0},
                    {"seed": 3, "metric": "loss", "net": "trained", "value": 2.0},
                    {"seed": 3, "metric": "ece", "net": "deployed", "value": 3.0},
                    {"seed": 3, "metric": "path", "axis": "alpha", "coord": 0.5, "value": 4.0},
                    {"seed": 3, "metric": "forgetting_task", "task": 0, "value": 5.0},
                ],
                "accuracy": {"seed": [3, 3, 4], "task": [0, 1, 0], "accuracy": [0.9, 0.3, 0.8], "n": 9},
            },
        )
        initial, after = summaries(run.table("metrics"), run.table("accuracy"), (3, 4), 2)
    assert (initial.t, after.t) == (-1, 0) and not initial.values
    np.testing.assert_array_equal(initial.accuracy, [[0.2, NAN], [0.1, NAN]])
    np.testing.assert_array_equal(after.accuracy, [[0.9, 0.3], [0.8, NAN]])
    assert set(after.values) == {"start/dead_frac", "dead_frac", "loss", "loss/deployed", "ece"}
    np.testing.assert_array_equal(after.values["dead_frac"], [NAN, 0.7])
    np.testing.assert_array_equal(after.values["start/dead_frac"], [0.5, 0.6])
    assert after.values["loss"][0] == 2.0 and after.values["loss/deployed"][0] == 1.0


# --- console ------------------------------------------------------------------------------------


def test_a_pipe_gets_plain_lines(tmp_path: Path) -> None:
    out = io.StringIO()
    console = Console("ewc on permuted digits", closing=["compare with: this"], stream=out)
    console.start(about(tmp_path), [])
    console.progress(0, 5, 10)
    console.boundary(FIRST)
    console.boundary(SECOND)
    console.finish([])
    # 95 % of two values: t(0.975, 1) = 12.706, half = 12.706 |a - b| / 2
    assert (
        out.getvalue()
        == f"""\
ewc on permuted digits
task 1/2  new  0.800  old      -  forgetting      -
task 2/2  new  0.700  old  0.500  forgetting  0.300  sharpness     20

mean ± 95 % interval over 2 seeds
  {"accuracy on the new task, mean":38}  0.750 ± 1.271
  {"accuracy on old tasks":38}  0.500 ± 0.000
  {"forgetting":38}  0.300 ± 1.271
  sharpness (top eigenvalue, seen tasks)  20 ± 127.1

accuracy, %, on task (across) after task (down), mean over seeds
        1   2
    1  80   ·
    2  50  70

results in {tmp_path}
compare with: this
"""
    )


def test_a_resumed_run_says_so_and_shows_all_of_it(tmp_path: Path) -> None:
    out = io.StringIO()
    console = Console(stream=out)
    console.start(about(tmp_path), [FIRST])
    console.boundary(SECOND)
    console.finish([])
    text = out.getvalue()
    assert text.startswith("resumed after task 1/2\ntask 2/2") and "    1  80   ·\n    2  50  70\n" in text


def test_a_failed_run_prints_no_table(tmp_path: Path) -> None:
    out = io.StringIO()
    console = Console(stream=out)
    console.start(about(tmp_path), [])
    console.boundary(FIRST)
    console.finish([], error="ValueError: no")
    assert out.getvalue().count("\n") == 1


def test_a_diverged_seed_is_counted_not_hidden() -> None:
    gone = Summary(1, {"forgetting": np.array([0.4, NAN])}, np.array([[0.5, 0.8], [NAN, NAN]]))
    shown = (Shown("new", "new", over="mean"), Shown("forgetting", "forgetting"))
    assert line(gone, 2, shown).endswith("(1 of 2 seeds)")
    _, new, forgetting = table([FIRST, gone], 2, shown)
    # seed 3 alone: (0.9 + 0.8) / 2; never seed 4's first task beside seed 3's two
    assert re.fullmatch(r"  new +0\.850  n = 1 of 2", new) and forgetting.endswith("0.400  n = 1 of 2")
    dead = Summary(1, {}, np.full((2, 2), NAN))
    assert "task 2/2  new      -" in line(dead, 2, shown)


def test_one_seed_has_no_interval() -> None:
    one = Summary(0, {}, np.array([[0.5]]))
    assert table([one], 1, (Shown("new", "new"),)) == ["mean over 1 seed", "  new  0.500"]


def test_long_streams_show_an_even_choice_of_tasks() -> None:
    tasks = 75
    history = [Summary(t, {}, np.full((2, tasks), t / 100)) for t in range(-1, tasks)]
    head, labels, cells = matrix(history, tasks, 10**6)
    shown = [int(x) for x in head.splitlines()[1].split()]
    assert len(shown) == len(labels) == len(cells) == 20 and (shown[0], shown[-1]) == (1, 75)
    assert set(np.diff(shown)) <= {3, 4} and cells[-1][0][0] == "  74"
    narrow, _, _ = matrix(history, tasks, 50)
    assert max(map(len, narrow.splitlines()[1:])) <= 50


def test_scores_that_are_no_fractions_are_not_percentages() -> None:
    head, _, cells = matrix([Summary(0, {}, np.array([[-1.25, NAN]]))], 2, 80)
    assert head.startswith("score") and [t.strip() for t in cells[0][0]] == ["-1.25", "·"]
    errors = [Summary(t, {}, np.array([[-1.25, NAN], [-0.5, -2.0]])) for t in (0, 1)]
    assert [row.split("  ")[1] for row in table(errors, 2, TABLE)[1:]] == [
        "score on the new task, mean",
        "score on old tasks",
    ]


def test_a_matrix_of_nothing_but_nan_is_drawn(tmp_path: Path) -> None:
    out = io.StringIO()
    console = Console(stream=out)
    console.start(about(tmp_path), [])
    console.boundary(Summary(0, {}, np.full((2, 2), NAN)))
    console.finish([])
    assert "    1   ·   ·\n" in out.getvalue()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar_and_colours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("NO_COLOR", raising=False)
    out = Terminal()
    console = Console("[bold]title[/bold]", stream=out)
    console.start(about(tmp_path), [])
    console.progress(0, 5, 10)
    assert console.bar is not None and console.bar.tasks[0].completed == 0.5
    console.boundary(FIRST)
    assert console.bar.tasks[0].description == "task 1/2"
    console.boundary(SECOND)
    console.finish([])
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())
    assert "━" in plain and "left" in plain and "\x1b[" in out.getvalue()
    assert "[bold]title[/bold]" in plain  # what users name is no markup
    assert "task 2/2  new  0.700  old  0.500" in plain and "    2  50  70" in plain
    # light text on the dark end of the ramp for the worst cell, dark text on its bright end for the best
    cells = re.findall(r"\x1b\[([0-9;]+)m +(50|80)\x1b", out.getvalue())
    assert len(cells) == 2 and cells[0][0] != cells[1][0]


def test_importing_trackers_costs_neither_rich_nor_wandb(tmp_path: Path) -> None:
    code = (
        "import sys, io; from pathlib import Path\n"
        "import harness.trackers.console as c, harness.trackers.wandb as w\n"
        "from harness.trackers import About\n"
        "a = About({}, {}, Path('.'), (0,), 1)\n"
        "c.Console(stream=io.StringIO()).start(a, []); w.WandB('disabled').start(a, [])\n"
        "print([m for m in ('rich', 'wandb', 'torch', 'scipy', 'pandas', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True, check=True)
    assert done.stdout == "[]\n"


def test_a_tracker_that_raises_is_left_out_after_one_warning(tmp_path: Path) -> None:
    class Broken:
        calls = 0

        def start(self, about: About, past: Sequence[Summary]) -> None: ...
        def progress(self, task: int, step: int, steps: int) -> None: ...

        def boundary(self, summary: Summary) -> None:
            Broken.calls += 1
            raise OSError("pipe\nclosed")

        def finish(self, files: Sequence[Path], error: str = "") -> None: ...

    warnings: list[str] = []
    out = io.StringIO()
    all_ = Trackers([Broken(), Console(stream=out)], warn=warnings.append)
    all_.start(about(tmp_path))
    all_.boundary(FIRST)
    all_.boundary(SECOND)
    all_.finish([])
    assert warnings == ["Broken stopped (OSError: pipe); the run goes on"] and Broken.calls == 1
    assert out.getvalue().count("task ") >= 2


# --- W&B ----------------------------------------------------------------------------------------


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
    until = time.monotonic() + 10.0
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


@pytest.fixture
def clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without W&B credentials, and a run folder."""
    for name in [n for n in os.environ if n.startswith("WANDB_") and n != "WANDB_SERVICE"]:
        monkeypatch.delenv(name)
    home, folder = tmp_path / "home", tmp_path / "run"
    home.mkdir()
    folder.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("NETRC", str(home / "none"))
    return folder


def mirrored(
    folder: Path, mode: str = "offline", past: Sequence[Summary] = (), error: str = "", **options: Any
) -> list[str]:
    """Warnings of one run with W&B alone."""
    warnings: list[str] = []
    tracker = WandB(mode, warn=warnings.append, **options)
    tracker.start(about(folder), past)
    slowest = 0.0
    for summary in [s for s in (FIRST, SECOND) if s not in past]:
        began = time.perf_counter()
        tracker.boundary(summary)
        slowest = max(slowest, time.perf_counter() - began)
    tracker.finish([] if error else [folder / name for name in FILES], error)
    assert slowest < 0.5  # the import and the start of the service are not waited for
    return warnings


def test_wandb_offline_holds_everything(clean: Path) -> None:
    before = dict(os.environ)
    assert mirrored(clean) == []
    found = recorded(clean)
    assert (found["id"], found["group"], found["type"], found["exit"]) == (
        run_id(clean),
        "permuted",
        "ewc",
        0,
    )
    assert found["config"]["optimizer"] == {"lr": 0.1} and found["config"]["manifest"]["source"] == "f00"
    assert ("task", "") in found["metrics"] and ("*", "task") in found["metrics"]
    first, second, last = found["history"]
    assert first["task"] == 0 and "forgetting" not in first and first["accuracy/new"] == pytest.approx(0.8)
    half = 12.7062047 * 0.1  # t(0.975, 1) s / sqrt(2) with values 0.4, 0.2
    assert second["forgetting"] == pytest.approx(0.3)
    assert second["forgetting/lo"] == pytest.approx(0.3 - half) and second["forgetting/hi"] == pytest.approx(0.3 + half)
    assert second["forgetting/seed=3"] == 0.4 and second["forgetting/seed=4"] == 0.2
    assert second["accuracy/old"] == 0.5 and second["lambda_max_joint"] == 20.0
    assert last["task"] == 1 and any("accuracy_matrix" in key for key in last)
    (table_file,) = clean.glob("wandb/*run-*/files/media/table/*.json")
    held = json.loads(table_file.read_text())
    assert held["columns"] == ["after task", "task 0", "task 1"]
    assert held["data"] == [[0, pytest.approx(0.8), None], [1, 0.5, pytest.approx(0.7)]]
    assert (f"run-{run_id(clean)}", "results", sorted(FILES)) in [(a, b, sorted(c)) for a, b, c in found["artifacts"]]
    # staged beside the run, not under the home folder
    staged = [p.read_text() for p in (clean / "wandb/data/artifacts/staging").iterdir() if p.is_file()]
    assert set(FILES) <= set(staged) and not list((clean.parent / "home").rglob("*artifacts*"))
    # nothing of the machine: no environment, no list of packages, no host
    assert found["host"] == "hidden" and not list(clean.rglob("requirements.txt"))
    assert found["kinds"] <= {"header", "run", "telemetry", "metric", "summary", "history", "artifact", "files", "exit"}
    after = dict(os.environ)
    after.pop("WANDB_SERVICE", None), before.pop("WANDB_SERVICE", None)
    assert after == before


def test_wandb_is_quiet(clean: Path, capfd: pytest.CaptureFixture[str]) -> None:
    mirrored(clean)
    assert capfd.readouterr() == ("", "")


def test_a_resumed_run_logs_everything_again_in_the_place_of_the_first_record(clean: Path) -> None:
    tracker = WandB()
    tracker.start(about(clean), [])
    tracker.boundary(FIRST)
    tracker.finish([], error="killed")
    assert recorded(clean)["exit"] == 1
    time.sleep(1.0)  # folders are named by the second
    assert mirrored(clean, past=[FIRST]) == []
    found = recorded(clean)  # and there is exactly one
    assert [row["task"] for row in found["history"]] == [0, 1, 1] and found["exit"] == 0


def test_without_wandb_there_is_one_warning(clean: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    (warning,) = mirrored(clean)
    assert "W&B is off for this run (ModuleNotFoundError" in warning and "\n" not in warning


def test_online_without_a_key_goes_offline_with_one_warning(clean: Path) -> None:
    (warning,) = mirrored(clean, "online")
    assert "no key" in warning and "wandb sync" in warning and "\n" not in warning
    assert len(recorded(clean)["history"]) == 3


def test_online_without_a_server_goes_offline_with_one_warning(clean: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    (warning,) = mirrored(clean, "online", init_timeout=1.0)
    assert "W&B cannot be reached" in warning and "\n" not in warning
    assert len(recorded(clean)["history"]) == 3


def test_a_call_that_fails_half_way_costs_one_warning(clean: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: WandB, summary: Summary) -> None:
        raise SystemExit(3)

    monkeypatch.setattr(WandB, "_log", fail)
    (warning,) = mirrored(clean)
    assert "SystemExit: 3" in warning


def test_disabled_touches_nothing(clean: Path) -> None:
    assert mirrored(clean, "disabled") == [] and not (clean / "wandb").exists()


def test_an_unknown_mode_is_named() -> None:
    with pytest.raises(ValueError, match=r"tracker.mode=ofline: no such mode; use offline, online, disabled"):
        WandB("ofline")
