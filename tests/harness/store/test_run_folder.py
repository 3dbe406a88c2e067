"""The run folder: what is on the disk after a kill, a fault, a second process, another version."""

from __future__ import annotations

import errno
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from harness import store
from harness.store import RunFolder, RunLocked, SchemaError, StoreError, files, run_folder

ROOT = Path(__file__).parents[3]
SEEDS = (3, 4)


def rows(t: int) -> dict[str, Any]:
    """Deterministic rows of boundary t, as a repeat of the run would make them."""
    draw = np.random.default_rng(t + 10)
    return {
        "metrics": {"seed": list(SEEDS), "metric": "forgetting", "value": draw.random(2), "better": "lower"},
        "accuracy": {"seed": [3, 3, 4, 4], "task": [0, 1, 0, 1], "accuracy": draw.random(4), "n": 50},
        "curves": [{"seed": s, "step": 10 * k, "loss": 1.0 / (k + 1)} for s in SEEDS for k in range(3)],
        "timing": [{"part": "train", "seconds": 0.5}],
    }


def state(t: int) -> dict[str, Any]:
    return {"w": torch.full((2, 3), float(t)), "count": t, "nested": [(1, "a", None)]}


def advance(run: RunFolder, *boundaries: int) -> None:
    for t in boundaries:
        run.append(t, "end", rows(t))
        run.commit(t, state(t), {"params": {"w": torch.full((2,), float(t))}, "buffers": {}})


def begin(root: Path, **options: Any) -> RunFolder:
    return RunFolder.open(root, "permuted", "ewc", "abc", **options)


def tables(path: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(path.glob("*.parquet"))}


@pytest.fixture(autouse=True)
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was flushed to the disk, by name; not really, so that the tests do not wait for a disk."""
    names: list[str] = []
    monkeypatch.setattr(files, "flush", lambda path: names.append(Path(path).name))
    return names


@pytest.fixture
def whole(tmp_path: Path) -> dict[str, bytes]:
    """Bytes of the tables of a run that nothing disturbed."""
    with begin(tmp_path / "undisturbed") as run:
        advance(run, -1, 0, 1, 2)
        run.finish()
    return tables(run.path)


# --- round trips --------------------------------------------------------------------------------


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    with begin(tmp_path, scenario="domain") as run:
        run.append(
            0,
            "end",
            {
                "metrics": {
                    "seed": torch.tensor([3, 3, 4, 4]),
                    "metric": "curvature",
                    "axis": "alpha",
                    "coord": [0.0, 0.1, 0.0, 0.1],
                    "value": torch.tensor([1.5, math.nan, math.inf, -2.0]),
                    "better": ["lower"] * 4,
                }
            },
        )
        run.commit(0, {})
        run.finish()
    (first, second, third, fourth) = store.read_table(run.path, "metrics").to_pylist()
    assert first == {
        "run_id": "abc", "stream": "permuted", "scenario": "domain", "strategy": "ewc", "seed": 3,
        "boundary": 0, "phase": "end", "net": "trained", "task": -1, "metric": "curvature",
        "axis": "alpha", "coord": "0.0", "value": 1.5, "stderr": pytest.approx(math.nan, nan_ok=True),
        "better": "lower", "schema_version": 1,
    }  # fmt: skip
    assert math.isnan(second["value"]) and third["value"] == math.inf and fourth["value"] == -2.0
    assert float(second["coord"]) == 0.1 and fourth["seed"] == 4


def test_dicts_and_columns_make_the_same_table(tmp_path: Path) -> None:
    made = []
    forms: dict[str, store.Rows] = {
        "columns": {"seed": np.arange(3), "step": [1, 2, 3], "loss": np.array([1.0, np.nan, 3.0])},
        "dicts": [
            {"seed": 0, "step": 1, "loss": 1.0},
            {"seed": 1, "step": 2},
            {"seed": 2, "step": 3, "loss": 3},
        ],
    }
    for name, given in forms.items():
        with begin(tmp_path / name) as run:
            run.append(0, "end", {"curves": given})
            run.commit(0, {})
            made.append(tables(run.path)["curves.parquet"])
    assert made[0] == made[1]


def test_appended_arrays_may_be_reused_by_the_caller(tmp_path: Path) -> None:
    values = np.array([1.0, 2.0])
    with begin(tmp_path) as run:
        run.append(0, "end", {"curves": {"seed": [0, 1], "step": 1, "loss": values}})
        values[:] = 9.0
        assert run.table("curves")["loss"].to_pylist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"metric": {"seed": 1}}, "metric"),
        ({"curves": {"seed": [1], "step": 1, "acc": 1.0}}, "curves.acc: unknown column"),
        ({"curves": {"seed": [1, 2], "step": [1]}}, "1 values for 2 rows"),
        ({"curves": {"seed": [1, 2]}}, "curves.step: missing"),
        ({"curves": {"seed": [1.5], "step": 1}}, "curves.seed: .*1.5.* is not an integer"),
        ({"curves": [{"seed": 1, "step": 1}, {"seed": 1}]}, "curves.step: missing in row 1"),
    ],
)
def test_wrong_rows_are_refused_whole(tmp_path: Path, given: dict[str, Any], message: str) -> None:
    with begin(tmp_path) as run, pytest.raises(ValueError, match=message):
        run.append(0, "end", {"timing": [{"part": "train", "seconds": 1.0}], **given})
    assert len(run.table("timing")) == 0


def test_no_rows_are_no_rows(tmp_path: Path) -> None:
    with begin(tmp_path) as run:
        run.append(0, "end", {"timing": {"part": [], "seconds": [], "peak_memory": []}, "curves": []})
        run.commit(0, {})
        run.finish()
    assert [len(store.read_table(run.path, name)) for name in store.SCHEMAS] == [0, 0, 0, 0]


def test_checkpoint_and_nets_come_back(tmp_path: Path) -> None:
    with begin(tmp_path) as run:
        advance(run, -1, 0)
    with begin(tmp_path) as run:
        found = run.resume()
        assert found is not None and found[0] == 0
        assert found[1]["count"] == 0 and found[1]["nested"] == [(1, "a", None)]
        assert torch.equal(found[1]["w"], torch.zeros(2, 3))
        assert run.net(-1)["params"]["w"].tolist() == [-1.0, -1.0] and run.net(0)["params"]["w"].tolist() == [
            0.0,
            0.0,
        ]
        assert (run.path / "nets" / "initial.pt").exists() and not run.has_net(1)
        with pytest.raises(StoreError, match="keep=all"):
            run.net(1)


def test_a_view_does_not_drag_its_storage_into_the_checkpoint(tmp_path: Path) -> None:
    data = torch.zeros(1_000_000)
    with begin(tmp_path) as run:
        run.append(0, "end", {})
        run.commit(0, {"rows": data[:5], "grad": torch.ones(2, requires_grad=True)})
    assert (run.path / "checkpoint.pt").stat().st_size < 10_000


@pytest.mark.parametrize(
    ("value", "where"),
    [({"a": [np.float64(1)]}, r"checkpoint.a.0: a float64"), ({"p": Path("x")}, "checkpoint.p")],
)
def test_what_could_not_be_read_back_is_refused_before_anything_is_written(
    tmp_path: Path, value: dict[str, Any], where: str
) -> None:
    with begin(tmp_path) as run:
        run.append(0, "end", rows(0))
        with pytest.raises(ValueError, match=where):
            run.commit(0, value)
    assert not tables(run.path)


def test_keep_last_keeps_the_initial_and_the_last_net(tmp_path: Path) -> None:
    with begin(tmp_path, keep="last") as run:
        advance(run, -1, 0, 1, 2)
        # the checkpoint before the last one may be resumed from, and measures start from its net
        assert sorted(p.stem for p in (run.path / "nets").iterdir()) == ["1", "2", "initial"]
        run.finish()
    assert sorted(p.stem for p in (run.path / "nets").iterdir()) == ["2", "initial"]


# --- bytes --------------------------------------------------------------------------------------


def test_equal_rows_are_equal_bytes(tmp_path: Path, whole: dict[str, bytes]) -> None:
    with begin(tmp_path / "again") as run:
        advance(run, -1, 0, 1, 2)
        run.finish()
    assert tables(run.path) == whole and len(whole) == 4


@pytest.mark.parametrize("small", [0, 20_000])
@pytest.mark.parametrize("killed", ["before anything", "after metrics", "after the tables", "after the net", "between"])
def test_a_kill_anywhere_in_a_commit_costs_one_task_and_no_bit(
    tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, killed: str, small: int
) -> None:
    class Kill(BaseException):
        pass

    # what os.replace must not live to do: the first file of the commit that follows
    last = {
        "before anything": "metrics",
        "after metrics": "accuracy",
        "after the tables": "1.pt",
        "after the net": "checkpoint.previous.pt",
        "between": "checkpoint.pt",
    }[killed]
    replace = os.replace

    def deadly(a: Path, b: Path) -> None:
        if Path(b).name.startswith(last):
            raise Kill
        replace(a, b)

    monkeypatch.setattr(run_folder, "_SMALL", small)  # 0: by parts, as in a long run
    with pytest.raises(Kill), begin(tmp_path) as run:
        assert run.resume() is None
        advance(run, -1, 0)
        monkeypatch.setattr(os, "replace", deadly)
        advance(run, 1)
    monkeypatch.setattr(os, "replace", replace)
    with begin(tmp_path) as run:
        found = run.resume()
        assert found is not None and (found[0], found[1]["count"]) == (0, 0)
        assert set(run.table("accuracy")["boundary"].to_pylist()) == {-1, 0}
        assert not run.notes and not list(run.path.rglob("*.tmp"))
        advance(run, 1, 2)
        run.finish()
    assert tables(run.path) == whole
    assert not (run.path / "parts").exists()


@pytest.mark.parametrize("small", [0, 20_000])
@pytest.mark.parametrize("damage", ["truncated", "one bit", "empty"])
def test_a_damaged_checkpoint_is_set_aside_for_the_one_before(
    tmp_path: Path, whole: dict[str, bytes], damage: str, small: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_folder, "_SMALL", small)
    with begin(tmp_path) as run:
        advance(run, -1, 0, 1, 2)
    path = run.path / "checkpoint.pt"
    content = bytearray(path.read_bytes())
    if damage == "one bit":
        # inside the values of w, where torch.load sees nothing wrong
        content[content.index(np.full(6, 2.0, np.float32).tobytes())] ^= 1
    damaged: dict[str, bytes] = {"truncated": bytes(content[:-100]), "one bit": bytes(content), "empty": b""}
    path.write_bytes(damaged[damage])
    with begin(tmp_path) as run:
        found = run.resume()
        assert found is not None and (found[0], found[1]["count"]) == (1, 1)
        assert len(run.notes) == 1 and "checkpoint.pt" in run.notes[0]
        assert (run.path / "checkpoint.pt.corrupt").exists()
        advance(run, 2)
        run.finish()
    assert tables(run.path) == whole


def test_two_damaged_checkpoints_start_from_the_beginning(tmp_path: Path, whole: dict[str, bytes]) -> None:
    with begin(tmp_path) as run:
        advance(run, -1, 0, 1)
    for path in run.path.glob("checkpoint*.pt"):
        path.write_bytes(b"nothing")
    with begin(tmp_path) as run:
        assert run.resume() is None and len(run.notes) == 2
        assert not list(run.path.glob("*.parquet")) and not run.has_net(0)
        advance(run, -1, 0, 1, 2)
        run.finish()
    assert tables(run.path) == whole


@pytest.mark.parametrize("name", ["accuracy", "timing"])
def test_a_damaged_table_starts_from_the_beginning(tmp_path: Path, whole: dict[str, bytes], name: str) -> None:
    with begin(tmp_path) as run:
        advance(run, -1, 0, 1)
    path = run.path / f"{name}.parquet"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(StoreError, match=f"{name}.parquet: not readable"):
        store.read_table(run.path, name)
    with begin(tmp_path) as run:
        assert run.resume() is None
        assert len(run.notes) == 1 and (run.path / f"{name}.parquet.corrupt").exists()
        assert not list(run.path.glob("checkpoint*"))  # of rows that are no more
        advance(run, -1, 0, 1, 2)
        run.finish()
    assert tables(run.path) == whole


def test_a_flipped_bit_in_a_table_is_seen(tmp_path: Path) -> None:
    with begin(tmp_path) as run:
        run.append(0, "end", {"curves": {"seed": np.arange(5000), "step": 1, "loss": np.random.rand(5000)}})
        run.commit(0, {})
    path = run.path / "curves.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    with pytest.raises(StoreError, match="not readable"):
        store.read_table(run.path, "curves")


@pytest.mark.parametrize("gone", ["damaged", "removed"])
def test_a_lost_part_falls_back_to_what_is_complete(
    tmp_path: Path, whole: dict[str, bytes], gone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_folder, "_SMALL", 0)
    many = {"curves": {"seed": np.arange(100), "step": 1}}
    with begin(tmp_path) as run:
        run.append(0, "end", many)
        run.commit(0, state(0))
        advance(run, 1, 2)
    parts = run.path / "parts"
    assert (parts / "curves.1").exists() and (parts / "curves.2").exists()
    assert len(store.read_table(run.path, "curves")) == 112  # a reader sees the parts of a run under way
    # without the rows of 1, neither of the two checkpoints (1, 2) has its rows
    if gone == "removed":
        (parts / "curves.1").unlink()
    else:
        (parts / "curves.1").write_bytes(b"PAR1")
    with begin(tmp_path) as run:
        assert run.resume() is None


def test_a_damaged_last_part_costs_one_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder, "_SMALL", 0)
    many = {"curves": {"seed": np.arange(100), "step": 1}}
    made = []
    for damaged in (False, True):
        with begin(tmp_path / str(damaged)) as run:
            run.append(0, "end", many)
            run.commit(0, state(0))
            advance(run, 1, 2)
        if damaged:
            part = run.path / "parts" / "curves.2"
            part.write_bytes(part.read_bytes()[:-9])
            with begin(tmp_path / str(damaged)) as run:  # cut short again before it writes anything
                assert (run.resume() or [None])[0] == 1 and len(run.notes) == 1
        with begin(tmp_path / str(damaged)) as run:
            found = run.resume()
            assert found is not None
            advance(run, *range(found[0] + 1, 4))
            run.finish()
        made.append(tables(run.path))
    assert made[0] == made[1] and (run.path / "curves.2.corrupt").exists()


def test_rows_of_a_dropped_attempt_never_come_back(tmp_path: Path) -> None:
    with begin(tmp_path) as run:
        advance(run, 0, 1)
    (run.path / "checkpoint.pt").unlink()
    with begin(tmp_path) as run:
        assert (run.resume() or [None])[0] == 0
        run.append(1, "end", {"timing": [{"part": "train", "seconds": 9.0}]})
        run.commit(1, {})
        run.finish()
    assert store.read_table(run.path, "timing")["seconds"].to_pylist() == [0.5, 9.0]
    assert set(store.read_table(run.path, "metrics")["boundary"].to_pylist()) == {0}


def test_bytes_do_not_depend_on_how_the_rows_arrived(tmp_path: Path) -> None:
    loss = np.random.default_rng(0).random(60_000)
    made = []
    for pieces in (1, 37):
        with begin(tmp_path / str(pieces)) as run:
            for part in np.array_split(np.arange(60_000), pieces):
                run.append(0, "end", {"curves": {"seed": part, "step": part % 7, "loss": loss[part]}})
            run.commit(0, {})
        made.append(tables(run.path))
    assert made[0] == made[1]


def test_parts_merge_into_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    for small in (0, 20_000):
        monkeypatch.setattr(run_folder, "_SMALL", small)
        with begin(tmp_path / str(small)) as run:
            advance(run, *range(-1, 12))
            assert (run.path / "parts").exists() == (small == 0)
            run.finish()
        made.append(tables(run.path))
    assert made[0] == made[1]


def test_a_long_run_writes_in_proportion_to_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = 0
    write = run_folder.write_table

    def counting(path: Path, table: pa.Table, *rest: Any, **named: Any) -> None:
        nonlocal written
        written += len(table)
        write(path, table, *rest, **named)

    monkeypatch.setattr(run_folder, "write_table", counting)
    monkeypatch.setattr(run_folder, "_SMALL", 0)
    with begin(tmp_path) as run:
        for t in range(100):
            run.append(t, "end", {"curves": {"seed": np.arange(10), "step": 1}})
            run.commit(t, {})
    # whole each time: 10 (1 + ... + 100) = 50,500
    assert 1000 <= written < 7_000


# --- resume -------------------------------------------------------------------------------------


def test_an_empty_folder_starts_from_the_beginning(tmp_path: Path) -> None:
    with begin(tmp_path) as run:
        assert run.resume() is None and run.manifest["attempts"] == 1 and run.manifest["status"] == "running"


def test_rows_before_resume_are_refused_where_a_checkpoint_stands(tmp_path: Path) -> None:
    with begin(tmp_path) as run:
        advance(run, 0)
    with begin(tmp_path) as run:
        with pytest.raises(StoreError, match="resume"):
            run.append(0, "end", rows(0))
        with pytest.raises(StoreError, match="resume"):
            run.commit(0, {})


def test_boundaries_go_up(tmp_path: Path) -> None:
    with begin(tmp_path) as run:
        advance(run, 1)
        with pytest.raises(ValueError, match="boundary 1: boundary 1 is already committed"):
            run.commit(1, {})


def test_other_source_is_refused_with_one_line(tmp_path: Path) -> None:
    with begin(tmp_path) as run:
        run.update_manifest(source="a" * 64)
        advance(run, 0)
    with (
        begin(tmp_path) as run,
        pytest.raises(StoreError, match=r"source code .a{12}, now b{12}.*force=true"),
    ):
        run.resume(source="b" * 64)
    with begin(tmp_path) as run:
        assert run.resume(source="a" * 64) is not None


@pytest.mark.parametrize(
    ("error", "status"),
    [(ValueError("bad\nworse"), "failed"), (KeyboardInterrupt(), "interrupted"), (None, "interrupted")],
)
def test_the_manifest_says_how_it_ended(tmp_path: Path, error: BaseException | None, status: str) -> None:
    try:
        with begin(tmp_path):
            if error is not None:
                raise error
    except (ValueError, KeyboardInterrupt):
        pass
    manifest = json.loads((tmp_path / "runs/permuted/ewc/abc/manifest.json").read_text())
    assert manifest["status"] == status and "\n" not in manifest["error"]
    with begin(tmp_path) as run:
        assert (run.manifest["status"], run.manifest["attempts"]) == ("running", 2)


def test_done_runs_take_nothing_more(tmp_path: Path) -> None:
    with begin(tmp_path) as run:
        advance(run, 0)
        run.finish(diverged=[4])
    before = {p: p.read_bytes() for p in run.path.iterdir() if p.is_file() and p.name != "lock"}
    with begin(tmp_path) as run:
        assert run.done and run.manifest["status"] == "done" and run.manifest["diverged"] == [4]
        assert len(run.table("accuracy")) == 4
        with pytest.raises(StoreError, match="done"):
            run.append(1, "end", rows(1))
    assert before == {p: p.read_bytes() for p in run.path.iterdir() if p.is_file() and p.name != "lock"}


def test_force_removes_what_the_run_wrote_and_nothing_else(tmp_path: Path) -> None:
    with begin(tmp_path) as run:
        advance(run, 0)
        run.write_config("a: 1\n")
        run.finish()
    (run.path / "note.txt").write_text("mine")
    with begin(tmp_path, force=True) as run:
        assert not run.done and run.resume() is None and run.manifest["attempts"] == 1
        assert sorted(p.name for p in run.path.iterdir()) == ["lock", "manifest.json", "note.txt"]


def test_finish_needs_something_to_finish(tmp_path: Path) -> None:
    with begin(tmp_path) as run, pytest.raises(StoreError, match="nothing was committed"):
        run.finish()
    assert not run.done


def test_table_shows_one_boundary_committed_or_not(tmp_path: Path) -> None:
    with begin(tmp_path) as run:
        advance(run, 0)
        run.append(1, "end", rows(1))
        assert run.table("metrics", 1)["value"].to_pylist() == rows(1)["metrics"]["value"].tolist()
        assert len(run.table("metrics")) == 4


# --- locks --------------------------------------------------------------------------------------

HOLD = """
import sys, time
from harness.store import RunFolder
with RunFolder.open(sys.argv[1], "permuted", "ewc", "abc"):
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_a_second_process_is_told_who_holds_the_run(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        cwd=ROOT,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(RunLocked, match=rf"in use by process {holder.pid} on \S+; wait") as caught:
            begin(tmp_path, force=True)
        assert "\n" not in str(caught.value)
        holder.kill()  # the kernel gives the lock back
        holder.wait()
        with begin(tmp_path, wait=5.0) as run:
            assert run.manifest["attempts"] == 2
    finally:
        holder.kill()
        holder.communicate()


def test_one_process_cannot_open_a_run_twice(tmp_path: Path) -> None:
    with begin(tmp_path) as run, pytest.raises(RunLocked, match=str(os.getpid())):
        begin(tmp_path, wait=0.2)
    with pytest.raises(StoreError, match="closed"):
        run.append(0, "end", {})
    begin(tmp_path).close()


# --- paths and faults ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["../../x", "/etc/x", "..", ".", "", "a/../../../b", ".hidden", "-\n;rm", "x" * 500, "é ü"]
)
def test_no_name_leaves_the_results_folder(tmp_path: Path, name: str) -> None:
    root = tmp_path / "results"
    for names in ((name, "s", "r"), ("t", name, "r"), ("t", "s", name)):
        with RunFolder.open(root, *names) as run:
            parts = run.path.relative_to(root).parts
            assert len(parts) == 4 and parts[0] == "runs"
            assert all(p and not p.startswith(".") and len(p) <= 80 for p in parts)
            assert run.path.resolve().is_relative_to(root.resolve())
            # the tables still hold the name as it was given
            run.append(0, "end", {"metrics": {"seed": 0, "metric": "m", "value": 1.0}})
            assert run.table("metrics")["stream"].to_pylist() == [names[0]]
    assert [p.name for p in tmp_path.iterdir()] == ["results"]


def test_long_names_stay_apart() -> None:
    a, b = store.slug("x" * 100 + "a"), store.slug("x" * 100 + "b")
    assert a != b and len(a) == len(b) == 80


@pytest.mark.parametrize("link", ["runs", "runs/permuted", "runs/permuted/ewc/abc", "runs/permuted/ewc/abc/nets"])
def test_a_link_out_of_the_results_folder_is_refused(tmp_path: Path, link: str) -> None:
    root, outside = tmp_path / "results", tmp_path / "outside"
    outside.mkdir()
    (root / link).parent.mkdir(parents=True)
    (root / link).symlink_to(outside)
    with pytest.raises(StoreError, match="link leads out"):
        begin(root)
    assert not list(outside.iterdir())


def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("keep")
    path = tmp_path / "results/runs/permuted/ewc/abc"
    path.mkdir(parents=True)
    (path / "lock").symlink_to(precious)
    with pytest.raises(StoreError):
        begin(tmp_path / "results")
    assert precious.read_text() == "keep"


def test_an_unwritable_folder_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "results"
    file.write_text("a file")
    with pytest.raises(StoreError, match=r"results.*: not a directory; .*results=FOLDER") as caught:
        begin(file)
    assert "\n" not in str(caught.value)


FILL = """
import resource, sys, numpy as np, torch
from harness.store import RunFolder, StoreError
with RunFolder.open(sys.argv[1], "permuted", "ewc", "abc") as run:
    run.append(0, "end", {"curves": {"seed": np.arange(10), "step": 1}})
    run.commit(0, {"w": torch.zeros(10)})
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
    try:
        run.commit(1, {"w": torch.rand(99_999)})
    except StoreError as error:
        print(error)
    run.append(1, "end", {"curves": {"seed": np.arange(99_999), "step": 1, "loss": np.random.rand(99_999)}})
    try:
        run.commit(1, {"w": torch.zeros(10)})
    except StoreError as error:
        print(error)
"""


def test_a_full_disk_is_one_line_and_nothing_is_half_written(tmp_path: Path) -> None:
    # a limit on the size of files fails the very write calls that a full disk fails
    done = subprocess.run(
        [sys.executable, "-c", FILL, str(tmp_path)], cwd=ROOT, text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2 and all("file too large" in x.lower() and str(tmp_path) in x for x in lines)
    path = tmp_path / "runs/permuted/ewc/abc"
    assert not list(path.rglob("*.tmp"))
    with begin(tmp_path) as run:
        found = run.resume()
        assert found is not None and found[0] == 0 and not run.notes
        assert len(run.table("curves")) == 10


def test_content_is_flushed_before_its_name_and_the_name_after(
    tmp_path: Path, synced: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace

    def recorded(a: Path, b: Path) -> None:
        synced.append(f"{Path(a).name} -> {Path(b).name}")
        replace(a, b)

    monkeypatch.setattr(os, "replace", recorded)
    with begin(tmp_path) as run:
        advance(run, 0)
        synced.clear()
        advance(run, 1)
        done = list(synced)
    names = ["metrics.parquet", "accuracy.parquet", "curves.parquet", "timing.parquet", "1.pt"]
    expected = []
    for name in names:
        tmp = f".{name}.{os.getpid()}.tmp"
        expected += [tmp, f"{tmp} -> {name}", "nets" if name == "1.pt" else "abc"]
    tmp = f".checkpoint.pt.{os.getpid()}.tmp"
    expected += [tmp, "checkpoint.pt -> checkpoint.previous.pt", tmp, f"{tmp} -> checkpoint.pt", "abc"]
    assert done == expected


def test_a_fault_of_the_disk_leaves_the_last_boundary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with begin(tmp_path) as run:
        advance(run, 0)
        before = tables(run.path)

        def fail(path: Path) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(files, "flush", fail)
            with pytest.raises(StoreError, match="abc: no space left on device; check permissions and free space"):
                advance(run, 1)
            with pytest.raises(StoreError):
                run.update_manifest(status="done")
        assert run.manifest["status"] == "running"
        assert tables(run.path) == before and not list(run.path.rglob("*.tmp"))


# --- schema and reading -------------------------------------------------------------------------


def spoil(path: Path, what: str) -> None:
    """Give a run the version 2."""
    if what == "manifest":
        manifest = json.loads((path / "manifest.json").read_text())
        (path / "manifest.json").write_text(json.dumps({**manifest, "schema_version": 2}))
    elif what == "table":
        table = pq.ParquetFile(path / "metrics.parquet").read()
        table = table.replace_schema_metadata({"harness": json.dumps({"schema_version": 2, "boundary": 0})})
        pq.write_table(table, path / "metrics.parquet")
    else:
        loaded = torch.load(path / "checkpoint.pt", weights_only=True)
        torch.save({**loaded, "schema_version": 2}, path / "checkpoint.pt")


@pytest.mark.parametrize("what", ["manifest", "table", "checkpoint"])
def test_another_schema_version_is_refused(tmp_path: Path, what: str) -> None:
    with begin(tmp_path) as run:
        advance(run, 0)
    spoil(run.path, what)
    with (
        pytest.raises(SchemaError, match=r"abc: written under schema version 2, but this program reads version 1"),
        begin(tmp_path) as run,
    ):
        run.resume()
    with begin(tmp_path, force=True) as run:  # and the lock was given back
        assert run.resume() is None


def test_find_runs_sees_finished_runs_that_match(tmp_path: Path) -> None:
    for strategy, setting, finished in (("ewc", "s1", True), ("reset", "s1", True), ("reset", "s2", False)):
        with RunFolder.open(tmp_path, "permuted", strategy, f"r{strategy}{setting}") as run:
            run.update_manifest(setting_id=setting, seeds=(0, 1))
            advance(run, 0)
            if finished:
                run.finish()
    found = list(store.find_runs(tmp_path, strategy="reset"))
    assert [r.manifest["setting_id"] for r in found] == ["s1"] and found[0].path.name == "rresets1"
    assert len(list(store.find_runs(tmp_path, setting_id="s1", seeds=(0, 1)))) == 2
    assert not list(store.find_runs(tmp_path, nonsense=None))
    (found[0].path / "manifest.json").write_text("{")
    with pytest.raises(StoreError, match=r"rresets1/manifest.json: not readable"):
        list(store.find_runs(tmp_path))


def test_read_all_joins_finished_runs_even_below_a_folder_named_like_a_partition(tmp_path: Path) -> None:
    root = tmp_path / "lr=0.1"
    assert len(store.read_all(root, "accuracy")) == 0
    for strategy in ("ewc", "naive"):
        with RunFolder.open(root, "permuted", strategy, f"id-{strategy}") as run:
            advance(run, 0, 1)
            run.finish()
    table = store.read_all(root, "metrics")
    assert table.column_names == list(store.SCHEMAS["metrics"])  # pq.read_table would add lr
    assert table["run_id"].to_pylist() == ["id-ewc"] * 4 + ["id-naive"] * 4
    assert len(store.read_all(root, "metrics", strategy="naive")) == 4
    frame = table.to_pandas()
    assert frame.groupby("strategy")["value"].mean().index.tolist() == ["ewc", "naive"]
    with pytest.raises(ValueError, match="unknown table"):
        store.read_all(root, "metric")
    with pytest.raises(StoreError, match="is this the folder of a run"):
        store.read_table(tmp_path, "metrics")


def test_schema_md_lists_exactly_the_columns() -> None:
    text = (ROOT / "results" / "SCHEMA.md").read_text("utf-8")
    for name, columns in store.SCHEMAS.items():
        section = text.split(f"\n## {name}\n")[1].split("\n## ")[0]
        cells = [
            [c.strip() for c in line.strip("|").split("|")] for line in section.splitlines() if line.startswith("|")
        ]
        assert cells[0] == ["column", "type", "unit", "meaning"]
        assert {c[0]: c[1] for c in cells[2:]} == columns and all(len(c) == 4 and c[3] for c in cells)
        assert {f.name: str(f.type) for f in store.schema(name)} == {
            k: v.replace("float64", "double") for k, v in columns.items()
        }
    version = text.split("\n## Version\n")[1].split()[0]
    assert int(version) == store.SCHEMA_VERSION


def test_schema_md_lists_the_keys_of_the_manifest(tmp_path: Path) -> None:
    from harness.store import provenance

    text = (ROOT / "results" / "SCHEMA.md").read_text("utf-8").split("\n## manifest.json\n")[1].split("\n## ")[0]
    documented = {
        k.strip() for line in text.splitlines() if line.startswith("|") for k in line.split("|")[1].split(",")
    }
    with begin(tmp_path) as run:
        run.update_manifest(**provenance.facts())
    assert set(run.manifest) <= documented
    own = "setting seeds stream_version stream_hash split purpose metrics measured config threads diverged"
    assert documented - set(run.manifest) == {"key", "---", *own.split()}


# --- identity -----------------------------------------------------------------------------------


def test_identity_is_pinned() -> None:
    # a change of this value orphans every result that anybody has
    assert store.identity({"strategy": {"ewc": {"lam": 1.0}}, "seeds": [0, 1], "dtype": "float32"}) == "2dfc3a7e6cdc"


def test_identity_tells_apart_what_differs() -> None:
    configs = [{"a": v} for v in (1, 2, True, "1", None, [1], [[1]], {"b": 1}, 1.5, 1e-3, math.nan, [1, 2], [2, 1])]
    assert len({store.identity(c) for c in configs}) == len(configs)
    assert store.identity({"a": 1, "b": 2}) == store.identity({"b": 2.0, "a": 1})


@pytest.mark.parametrize("value", [np.float64(2), Path("x"), {1: 2}, {2, 3}])
def test_identity_refuses_what_has_no_canonical_text(value: Any) -> None:
    if isinstance(value, np.float64):
        assert store.identity({"a": value}) == store.identity({"a": 2})  # a float like any other
        return
    with pytest.raises(ValueError, match=r"config\.a"):
        store.identity({"a": value})


def test_importing_the_store_costs_neither_torch_nor_pyarrow() -> None:
    code = "import sys, harness.store; print([m for m in ('torch', 'pyarrow', 'numpy', 'pandas') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True, check=True)
    assert done.stdout == "[]\n"


def test_an_interruption_within_a_checkpoint_stays_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's archive, closed half-way, raises an error of its own in the place of Ctrl-C."""

    def half_way(value: Any, file: Any) -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise RuntimeError("unexpected pos")  # noqa: B904  as torch does

    monkeypatch.setattr("torch.save", half_way)
    with pytest.raises(KeyboardInterrupt):
        files.save(tmp_path / "checkpoint.pt", {})
    assert list(tmp_path.iterdir()) == []
