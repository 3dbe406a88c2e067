"""A damaged run is named, left as it is, and stops no other."""

from __future__ import annotations

import json
import math
import os
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from harness import cli, store
from harness.leaderboard import leaderboard, text
from harness.report import report
from harness.store import Damaged, RunFolder, files
from harness.store.manifest import ALWAYS, CONFIG, STARTED, read_manifest
from harness.store.readers import unfinished
from tests.harness import folders

Damage = Callable[[Path], Any]


def manifest(change: Callable[[dict[str, Any]], Any]) -> Damage:
    def damage(run: Path) -> None:
        facts = json.loads((run / "manifest.json").read_text())
        changed = change(facts)
        (run / "manifest.json").write_text(json.dumps(facts if changed is None else changed))

    return damage


def written(content: str | bytes, name: str = "manifest.json") -> Damage:
    return lambda run: (run / name).write_bytes(content.encode() if isinstance(content, str) else content)


def without(key: str) -> Damage:
    def change(facts: dict[str, Any]) -> None:
        *path, last = key.split(".")
        for part in path:
            facts = facts[part]
        del facts[last]

    return manifest(change)


def having(key: str, value: Any) -> Damage:
    def change(facts: dict[str, Any]) -> None:
        *path, last = key.split(".")
        for part in path:
            facts = facts[part]
        facts[last] = value

    return manifest(change)


def pipe(run: Path) -> None:
    (run / "manifest.json").unlink()
    os.mkfifo(run / "manifest.json")


MANIFESTS: dict[str, tuple[Damage, str]] = {
    "truncated": (lambda run: os.truncate(run / "manifest.json", 100), "not JSON"),
    "empty": (written(""), "not JSON"),
    "bytes": (written(b"\xff\xfe\x00"), "not JSON"),
    "a list": (written("[]"), "not a mapping"),
    "null": (written("null"), "not a mapping"),
    "nested": (written("[" * 100_000 + "]" * 100_000), "nested more than 40 levels deep"),
    "nested config": (
        having("config.pin", json.loads("[" * 60 + "]" * 60)),
        "nested more than 40 levels deep",
    ),
    "a pipe": (pipe, "a pipe, not a file"),
    "digits": (written('{"schema_version": ' + "1" * 10_000 + "}"), "not JSON"),
    **{f"no {key}": (without(key), f"{key}: missing") for key in {**ALWAYS, **STARTED}},
    **{f"no config.{key}": (without(f"config.{key}"), f"config.{key}: missing") for key in CONFIG},
    **{f"{key}=1.5": (having(key, 1.5), f"{key}=1.5: must be") for key in {**ALWAYS, **STARTED}},
    **{f"config.{key}=true": (having(f"config.{key}", True), f"config.{key}=True: must be") for key in CONFIG},
    "seeds twice": (having("seeds", [0, 0]), "seeds=[0, 0]: must be a list of different whole numbers"),
    "no seeds": (having("seeds", []), "seeds=[]: must be"),
    "threads": (having("threads", 100_000), "threads=100000: must be a whole number of 1 to 4096"),
    "diverged": (having("diverged", [7]), "diverged: names seeds that the run does not have"),
    "hardware": (having("hardware", ["gpu"]), "hardware=['gpu']: must be a mapping"),
    "widths": (having("config.model.widths", "ab"), "config.model.widths=ab: must be"),
    "dataset": (having("config.dataset", "digits"), "config.dataset=digits: must be a mapping with a _target_"),
    "dtype": (having("config.dtype", "hub"), "config.dtype=hub: must be float32 or float64"),
}


# all readers ask `read_manifest`
BY_DAY = ("truncated", "null", "nested config", "a pipe", "no seeds", "widths", "no config.dataset")


def content(run: Path) -> dict[str, bytes]:
    return {str(p.relative_to(run)): p.read_bytes() for p in sorted(run.rglob("*")) if p.is_file()}


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """A run to be damaged, and another."""
    return folders.write(tmp_path, "ewc", [0.5, 0.6]), folders.write(tmp_path, "naive", [0.4, 0.5])


@pytest.mark.parametrize(("damage", "why"), MANIFESTS.values(), ids=list(MANIFESTS))
def test_a_damaged_manifest_is_one_line_and_stays_as_it_is(two: tuple[Path, Path], damage: Damage, why: str) -> None:
    bad, _ = two
    damage(bad)
    before = content(bad)
    with pytest.raises(Damaged) as caught:
        read_manifest(bad)
    assert str(caught.value).startswith(f"{bad}/manifest.json: damaged ({why}") and "\n" not in str(caught.value)
    assert content(bad) == before


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        pytest.param(*case, id=name, marks=[] if name in BY_DAY else [pytest.mark.nightly])
        for name, case in MANIFESTS.items()
    ],
)
def test_a_damaged_manifest_is_the_same_line_for_every_reader(
    two: tuple[Path, Path], tmp_path: Path, damage: Damage, why: str
) -> None:
    bad, good = two
    damage(bad)
    before = content(bad)
    line = f"{bad}/manifest.json: damaged ({why}"
    board = leaderboard([tmp_path])
    (note,) = [note for note in board.notes if note.startswith(line)]
    assert note.endswith("; rerun with force=true, or delete the run") and "\n" not in note
    assert [row.entry.label for one in board.boards for row in one.rows] == ["naive"]
    assert f"note: {note}" in text(board)
    assert [run.path for run in store.find_runs(tmp_path, strategy="naive")] == [good]
    for read in (
        lambda: RunFolder.reopen(bad),
        lambda: RunFolder.open(tmp_path, "toy_domain", "ewc", bad.name),
        lambda: read_manifest(bad),
    ):
        with pytest.raises(Damaged) as caught:
            read()
        assert str(caught.value) == note
    after = content(bad)
    after.pop("lock", None), before.pop("lock", None)
    assert after == before
    with RunFolder.open(tmp_path, "toy_domain", "ewc", bad.name, force=True) as run:
        assert not run.done and run.manifest["attempts"] == 1


def test_report_show_and_the_leaderboard_command_name_what_is_damaged_and_show_the_rest(
    two: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bad, good = two
    (bad / "manifest.json").write_text("[]")
    line = f"{bad}/manifest.json: damaged (not a mapping); rerun with force=true, or delete the run"
    assert line in report([tmp_path]).replace("&#39;", "'")

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["harness", *words])
        return (cli.main(), *capsys.readouterr())

    code, out, err = run("leaderboard", str(tmp_path), "--out", str(tmp_path / "out"))
    assert (code, err) == (0, "") and f"note: {line}\n" in out and "naive" in out
    for name in ("leaderboard.md", "leaderboard.html"):
        assert line in (tmp_path / "out" / name).read_text()
    code, out, err = run("show", str(bad), str(good))
    assert (code, err) == (0, f"harness: {line}\n") and "naive on toy_domain" in out
    assert run("show", str(bad)) == (2, "", f"harness: {line}\n")
    for command in ("measure", "atlas", "merge", "card"):
        assert run(command, str(bad)) == (2, "", f"harness: {line}\n")
    (good / "manifest.json").write_text("null")
    code, out, err = run("leaderboard", str(tmp_path))
    assert out.count("note: ") == 2 and "no finished run in" in out and err == ""


def test_an_unfinished_run_with_a_damaged_manifest_is_named(tmp_path: Path) -> None:
    folders.write(tmp_path, "naive", [0.4, 0.5])
    bad = folders.write(tmp_path, "ewc", [0.4, 0.5], done=False)
    assert [run.path for run in unfinished([tmp_path])] == [bad]
    without("config.train")(bad)
    notes: list[str] = []
    assert unfinished([tmp_path], notes) == [] and "config.train: missing" in notes[0]
    assert any("config.train: missing" in note for note in leaderboard([tmp_path]).notes)
    RunFolder.open(tmp_path, "s", "m", "fresh").close()  # nothing is recorded yet: not damaged
    assert len(leaderboard([tmp_path]).notes) == 1


def column(name: str, change: Callable[[pa.Table], pa.Table]) -> Damage:
    def damage(run: Path) -> None:
        table = pq.ParquetFile(run / f"{name}.parquet").read()
        pq.write_table(change(table).replace_schema_metadata(table.schema.metadata), run / f"{name}.parquet")

    return damage


TABLES: dict[str, tuple[Damage, str]] = {
    "truncated": (lambda run: os.truncate(run / "metrics.parquet", 500), "metrics"),
    "empty": (written("", "metrics.parquet"), "metrics"),
    "missing": (lambda run: (run / "timing.parquet").unlink(), "timing"),
    "a flipped page": (lambda run: flipped(run / "metrics.parquet"), "metrics"),
    "no value": (column("metrics", lambda t: t.drop(["value"])), "metrics"),
    "no phase": (column("metrics", lambda t: t.drop(["phase"])), "metrics"),
    "words": (column("metrics", lambda t: t.set_column(12, "value", pa.array(["x"] * len(t)))), "metrics"),
    "a missing value": (column("metrics", lambda t: nulled(t, "value")), "metrics"),
    "a flipped bit": (lambda run: bit(run / "metrics.parquet"), "metrics"),
    "of another run": (column("metrics", lambda t: t.set_column(0, "run_id", pa.array(["x"] * len(t)))), "metrics"),
}


def nulled(table: pa.Table, name: str) -> pa.Table:
    values = [None, *table[name].to_pylist()[1:]]
    return table.set_column(table.column_names.index(name), name, pa.array(values, table.schema.field(name).type))


def bit(path: Path) -> None:
    """One bit of one value, in a page that is not compressed: only its checksum can tell."""
    table = pq.ParquetFile(path).read()
    pq.write_table(table, path, compression="none", use_dictionary=["metric"], write_page_checksum=True)
    whole = bytearray(path.read_bytes())
    at = whole.index(struct.pack("<d", 0.8))
    whole[at] ^= 1
    path.write_bytes(whole)


def flipped(path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[:10] + bytes(60) + whole[70:])


@pytest.mark.parametrize(("damage", "name"), TABLES.values(), ids=list(TABLES))
def test_a_damaged_table_is_named_and_the_others_are_shown(
    two: tuple[Path, Path], tmp_path: Path, damage: Damage, name: str
) -> None:
    bad, _ = two
    damage(bad)
    before = content(bad)
    board = leaderboard([tmp_path])
    (note,) = [note for note in board.notes if "damaged" in note]
    assert note.startswith(f"{bad}/{name}.parquet: damaged (") and "\n" not in note
    assert [row.entry.label for one in board.boards for row in one.rows] == ["naive"]
    assert content(bad) == before


@pytest.mark.parametrize("kind", ["truncated", "empty", "missing", "no value", "words"])
def test_a_finished_run_with_a_damaged_table_is_not_called_finished(
    two: tuple[Path, Path], tmp_path: Path, kind: str
) -> None:
    bad, _ = two
    TABLES[kind][0](bad)
    for read in (lambda: RunFolder.reopen(bad), lambda: RunFolder.open(tmp_path, "toy_domain", "ewc", bad.name)):
        with pytest.raises(Damaged, match=r"\.parquet: damaged .*; rerun with force=true, or delete the run$"):
            read()


@pytest.mark.parametrize("name", ["checkpoint.pt", "nets/0.pt"])
def test_a_truncated_net_or_checkpoint_is_named(two: tuple[Path, Path], name: str) -> None:
    bad, _ = two
    path = bad / name
    path.parent.mkdir(exist_ok=True)
    files.save(path, {"schema_version": 1, "boundary": 0, "net": {"params": {"w": torch.ones(5000)}, "buffers": {}}})
    RunFolder.reopen(bad).close()
    whole = path.read_bytes()
    disks = len(whole) - 26  # the number of disks in its second last record
    for broken in (
        b"",
        whole[:10],
        whole[: len(whole) // 2],
        whole[:-30],
        whole[:disks] + b"\x07" + whole[disks + 1 :],
    ):
        path.write_bytes(broken)
        with pytest.raises(Damaged, match=rf"{name}: damaged \("):
            files.load(path)
        with pytest.raises(Damaged, match=rf"{name}: damaged \(incomplete\)"):
            RunFolder.reopen(bad)
        assert path.read_bytes() == broken


def test_a_file_of_tensors_takes_no_more_memory_than_its_size(tmp_path: Path) -> None:
    path = tmp_path / "0.pt"
    files.save(path, {"schema_version": 1, "w": torch.zeros(1).expand(10**12)})
    with pytest.raises(Damaged, match="a tensor is larger than what is stored of it"):
        files.load(path)
    files.save(path, {"schema_version": 1, "w": torch.zeros(10**6)})
    with zipfile.ZipFile(path) as stored, zipfile.ZipFile(tmp_path / "1.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        for member in stored.namelist():
            packed.writestr(member, stored.read(member))
    with pytest.raises(Damaged, match="its contents are larger than the file"):
        files.load(tmp_path / "1.pt")
    assert files.load(path)["w"].shape == (10**6,)


@pytest.mark.parametrize("value", [torch.zeros(3), [torch.zeros(3)], "text"])
def test_a_file_of_something_else_than_a_mapping_is_damaged(tmp_path: Path, value: Any) -> None:
    torch.save(value, tmp_path / "0.pt")
    with pytest.raises(Damaged, match=f"holds a {type(value).__name__}, not a mapping"):
        files.load(tmp_path / "0.pt")


def test_rows_that_cannot_be_of_the_run_are_refused(two: tuple[Path, Path]) -> None:
    bad, _ = two
    run = store.Run(bad, read_manifest(bad))
    assert len(store.read_rows(run, "accuracy")) == 12
    whole = (bad / "accuracy.parquet").read_bytes()
    for name, value, why in (
        ("seed", 9, "seeds that"),
        ("task", 10**9, "task outside"),
        ("boundary", -7, "boundary ou"),
    ):
        at = list(store.SCHEMAS["accuracy"]).index(name)
        column("accuracy", lambda t, a=at, n=name, v=value: t.set_column(a, n, pa.array([v] * len(t))))(bad)
        with pytest.raises(Damaged, match=why):
            store.read_rows(run, "accuracy")
        (bad / "accuracy.parquet").write_bytes(whole)
    assert math.isclose(store.read_rows(run, "accuracy")["accuracy"][0].as_py(), 0.9)
