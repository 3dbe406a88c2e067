"""Files on a disk that is full, fails, or is interrupted."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from harness import cli
from harness.store import StoreError, files, write_frame
from tests.harness.store.runs import advance, begin, tables

ROOT = Path(__file__).parents[3]


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


@pytest.mark.parametrize("kind", ["a folder", "a pipe", "a socket", "a device"])
def test_what_is_not_a_file_is_not_replaced(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "here" / "report.html"
    path.parent.mkdir()
    if kind == "a folder":
        path.mkdir()
    elif kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a socket":
        monkeypatch.chdir(path.parent)  # the name of a socket is short
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    else:
        path.symlink_to("/dev/null")  # as /dev/stdout is a link
    before = path.lstat()
    for write in (
        lambda: files.write_text(path, "x"),
        lambda: files.save(path, {}),
        lambda: files.save_figure(Figure(), path.with_name("report.html")),
        lambda: write_frame(path, {"a": [1]}, {}),
    ):
        with pytest.raises(StoreError, match=rf"report\.html: is {kind}, and only files are replaced; choose another"):
            write()
    (tmp_path / "results" / "runs").mkdir(parents=True)
    monkeypatch.setattr(sys, "argv", ["harness", "report", str(tmp_path / "results"), "--out", str(path)])
    assert cli.main() == 2
    assert capsys.readouterr().err == f"harness: {path}: is {kind}, and only files are replaced; choose another name\n"
    assert path.lstat() == before and list(path.parent.iterdir()) == [path]


def test_a_link_to_a_file_is_replaced_and_the_file_is_left(tmp_path: Path) -> None:
    """A link in somebody else's run folder must not lead a write out of it."""
    (tmp_path / "precious").write_text("keep")
    for name in ("precious", "missing"):
        link = tmp_path / f"to-{name}"
        link.symlink_to(tmp_path / name)
        files.write_text(link, "new")
        assert link.read_text() == "new" and not link.is_symlink()
    assert (tmp_path / "precious").read_text() == "keep" and not (tmp_path / "missing").exists()
