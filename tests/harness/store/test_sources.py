"""The files that a run depends on: its own code and all that it imports, and nothing else."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from harness.store import sources


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's module in the working directory that imports another, and a third that nobody imports."""
    (tmp_path / "mine_a.py").write_text("import json\nfrom mine_b import helper\nclass Mine: ...\n")
    (tmp_path / "mine_b.py").write_text("def helper(): ...\n")
    (tmp_path / "mine_c.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in ("mine_a", "mine_b", "mine_c"):
        sys.modules.pop(name, None)


def test_a_target_brings_what_it_imports_and_nothing_else(mine: Path) -> None:
    found = sources.files(["mine_a.Mine", "strategies.online_ewc_is_in_ewc", "strategies.ewc.OnlineEWC"])
    assert {"mine_a", "mine_b", "strategies.ewc", "strategies", "harness.toolbox.penalty"} <= set(found)
    assert {"harness", "harness.run", "harness.loop", "harness.learner", "harness.optim"} <= set(found)
    assert not {"mine_c", "json", "torch", "strategies.l2", "harness.leaderboard", "harness.cli"} & set(found)
    assert not [name for name in found if name.startswith(("harness.trackers", "harness.report", "harness.jobs"))]


@pytest.mark.parametrize("name", ["site-packages", "dist-packages"])
def test_packages_are_not_followed_wherever_they_are_installed(
    mine: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user's own site, the system's, one that a .pth file adds: none is below this environment's folders."""
    (mine / name / "big").mkdir(parents=True)
    (mine / name / "big" / "__init__.py").write_text("")
    (mine / name / "small.py").write_text("")
    (mine / "mine_b.py").write_text("import big, small\n")
    monkeypatch.syspath_prepend(str(mine / name))
    assert {"mine_a", "mine_b"} <= (found := set(sources.files(["mine_a.Mine"]))) and not {"big", "small"} & found


def test_only_an_edit_of_a_used_file_counts(mine: Path) -> None:
    manifest = {"files": sources.files(["mine_a.Mine"])}
    assert sources.edited(manifest) == []
    (mine / "mine_c.py").write_text("x = 1\n")
    assert sources.edited(manifest) == []
    (mine / "mine_b.py").write_text("def helper(): return 1\n")
    assert sources.edited(manifest) == ["mine_b"]
    assert sources.digest(manifest["files"]) != sources.digest(sources.files(["mine_a.Mine"]))
    (mine / "mine_a.py").unlink()
    assert sources.edited(manifest) == ["mine_a", "mine_b"]


def test_an_older_manifest_knows_only_of_all_files() -> None:
    assert sources.edited({"source": sources.whole_digest()}) == []
    assert sources.edited({"source": "0" * 64}) == ["the harness"]
    assert sources.edited({}) == []


def test_looking_for_a_module_imports_nothing(mine: Path) -> None:
    (mine / "hostile").mkdir()
    (mine / "hostile" / "__init__.py").write_text("raise SystemExit('code of a foreign manifest ran')\n")
    (mine / "hostile" / "sub.py").write_text("")
    assert sources.edited({"files": {"hostile.sub": "0", "hostile.none": "0", "": "0", "a..b": "0"}}) == [
        "hostile.sub", "hostile.none", "", "a..b",
    ]  # fmt: skip
    assert "hostile" not in sys.modules


def test_imports_for_annotations_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "typed_only.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import strategies.l2\n"
        "def f():\n    import strategies.l2_init\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    found = sources.files(["typed_only"])
    assert "strategies.l2_init" in found and "strategies.l2" not in found
