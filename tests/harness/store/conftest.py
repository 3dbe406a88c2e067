"""A store that waits for no disk, and a run that nothing disturbed."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.store import files
from tests.harness.store.runs import advance, begin, tables


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
