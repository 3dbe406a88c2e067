"""The run folder: what is on the disk after a kill, a fault, a second process, another version."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from harness import store
from harness.store import RunLocked, SchemaError, StoreError, run_folder, sources
from harness.store.files import load
from tests.harness.store.runs import advance, begin, rows, state, tables

ROOT = Path(__file__).parents[3]


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
        assert load(run.path / "checkpoint.pt")["boundary"] == 0, "others read the newest one"
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
        assert load(run.path / "checkpoint.pt")["boundary"] == 1
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
    with pytest.raises(StoreError, match=f"{name}.parquet: damaged"):
        store.read_table(run.path, name)
    with begin(tmp_path) as run:
        assert run.resume() is None
        assert len(run.notes) == 1 and (run.path / f"{name}.parquet.corrupt").exists()
        assert not list(run.path.glob("checkpoint*"))  # of rows that are no more
        advance(run, -1, 0, 1, 2)
        run.finish()
    assert tables(run.path) == whole


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


def test_other_code_is_refused_with_one_line(tmp_path: Path) -> None:
    now = sources.files(["strategies.l2.L2"])
    with begin(tmp_path) as run:
        run.update_manifest(files={**now, "strategies.l2": "a" * 64})
        advance(run, 0)
    with (
        begin(tmp_path) as run,
        pytest.raises(StoreError, match=r"strategies\.l2 has changed.*force=true.*beside"),
    ):
        run.resume()
    with begin(tmp_path) as run:
        run.update_manifest(files=now)
        assert run.resume() is not None


def wrapped(stop: BaseException) -> ValueError:
    """As a library raises it that fails while it cleans up."""
    error = ValueError("cannot be closed")
    error.__cause__ = OSError("cannot be written")
    error.__cause__.__context__ = stop
    return error


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("bad\nworse"), "failed"),
        (KeyboardInterrupt(), "interrupted"),
        (wrapped(KeyboardInterrupt()), "interrupted"),
        (None, "interrupted"),
    ],
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


def test_a_file_system_without_locks_is_refused_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", none)
    with pytest.raises(StoreError, match=r"its file system has no locks, .* results=FOLDER"), begin(tmp_path):
        pass


def test_one_process_cannot_open_a_run_twice(tmp_path: Path) -> None:
    with begin(tmp_path) as run, pytest.raises(RunLocked, match=str(os.getpid())):
        begin(tmp_path, wait=0.2)
    with pytest.raises(StoreError, match="closed"):
        run.append(0, "end", {})
    begin(tmp_path).close()


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


def spoil(path: Path, what: str) -> None:
    """Give a run the version 3."""
    if what == "manifest":
        manifest = json.loads((path / "manifest.json").read_text())
        (path / "manifest.json").write_text(json.dumps({**manifest, "schema_version": 3}))
    elif what == "table":
        table = pq.ParquetFile(path / "metrics.parquet").read()
        table = table.replace_schema_metadata({"harness": json.dumps({"schema_version": 3, "boundary": 0})})
        pq.write_table(table, path / "metrics.parquet")
    else:
        loaded = torch.load(path / "checkpoint.pt", weights_only=True)
        torch.save({**loaded, "schema_version": 3}, path / "checkpoint.pt")


@pytest.mark.parametrize("what", ["manifest", "table", "checkpoint"])
def test_another_schema_version_is_refused(tmp_path: Path, what: str) -> None:
    with begin(tmp_path) as run:
        advance(run, 0)
    spoil(run.path, what)
    with (
        pytest.raises(
            SchemaError, match=r"abc: written under schema version 3, but this program reads versions 1 and 2"
        ),
        begin(tmp_path) as run,
    ):
        run.resume()
    with begin(tmp_path, force=True) as run:  # and the lock was given back
        assert run.resume() is None


def test_schema_md_lists_the_keys_of_the_manifest(tmp_path: Path) -> None:
    from harness.store import provenance

    text = (ROOT / "results" / "SCHEMA.md").read_text("utf-8").split("\n## manifest.json\n")[1].split("\n## ")[0]
    documented = {
        k.strip() for line in text.splitlines() if line.startswith("|") for k in line.split("|")[1].split(",")
    }
    with begin(tmp_path) as run:
        run.update_manifest(**provenance.facts())
    assert set(run.manifest) <= documented
    own = "entry setting seeds stream_version stream_hash data split purpose metrics measured config threads diverged"
    assert documented - set(run.manifest) == {"key", "---", *own.split()}
