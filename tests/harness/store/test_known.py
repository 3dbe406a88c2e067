"""What is remembered of a data set counts only as long as its files are as they were."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.store import known
from harness.store.known import recall, remember

SPEC: dict[str, Any] = {"_target_": "tasks.datasets.load", "name": "mnist", "val": 0.1}


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Two files of an hour ago, and one that is missing."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = [tmp_path / name for name in ("images", "labels", "images.gz")]
    for file in made[:2]:
        file.write_bytes(b"12345678")
        os.utime(file, (1e9, 1e9))
    remember(SPEC, SimpleNamespace(name="mnist", digest="abc", sources=tuple(made)))
    return made


def test_a_data_set_is_recalled_by_its_configuration(files: list[Path]) -> None:
    assert recall(SPEC) == recall(dict(reversed(SPEC.items()))) == ("mnist", "abc")
    assert recall({**SPEC, "val": 0.2}) is None


def test_any_change_of_a_file_makes_it_unknown(files: list[Path]) -> None:
    os.utime(files[1], (1e9, 1e9 + 1))
    assert recall(SPEC) is None
    os.utime(files[1], (1e9, 1e9))
    assert recall(SPEC) is not None
    files[0].write_bytes(b"123456789")
    os.utime(files[0], (1e9, 1e9))
    assert recall(SPEC) is None


def test_so_does_a_file_that_appears_or_vanishes(files: list[Path]) -> None:
    shutil.copy2(files[0], files[2])
    assert recall(SPEC) is None
    files[2].unlink()
    assert recall(SPEC) is not None
    files[0].unlink()
    assert recall(SPEC) is None


def test_nothing_is_remembered_without_sources_of_a_folder_or_of_a_file_that_still_changes(
    files: list[Path], tmp_path: Path
) -> None:
    fresh = tmp_path / "fresh"
    fresh.touch()
    for number, sources in enumerate([(), (tmp_path,), (files[0], fresh), (files[0] / "below",)]):
        spec = {**SPEC, "val": number}
        remember(spec, SimpleNamespace(name="mnist", digest="abc", sources=sources))
        assert recall(spec) is None, sources
    remember(SPEC, SimpleNamespace(name="own", digest="abc"))  # a data set of a user's own class
    assert recall(SPEC) == ("mnist", "abc")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"name": "x", "digest": "y", "state": []}', b'{"name": "x"}'])
def test_a_damaged_note_is_no_note(files: list[Path], content: bytes) -> None:
    known._file(SPEC).write_bytes(content)
    assert recall(SPEC) is None


def test_a_cache_folder_that_cannot_be_written_is_no_error(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    remember(SPEC, SimpleNamespace(name="mnist", digest="abc", sources=(files[0],)))
    assert recall(SPEC) is None
