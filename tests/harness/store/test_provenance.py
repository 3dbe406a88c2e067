"""What the manifest says of a run's making."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest
import torch

from harness.store import provenance, sources


def tree(root: Path) -> Path:
    for name in ("harness/a.py", "harness/metrics/b.py", "strategies/c.py", "tasks/d.py"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return root


def test_digest_changes_with_every_source_file_and_with_nothing_else(tmp_path: Path) -> None:
    root = tree(tmp_path / "a")
    first = sources.whole_digest(root=root)
    assert first == sources.whole_digest(root=tree(tmp_path / "elsewhere"))
    (root / "harness/__pycache__").mkdir()
    (root / "harness/__pycache__/a.cpython-311.pyc").write_text("x")
    (root / "README.md").write_text("x")
    assert sources.whole_digest(root=root) == first
    seen = {first}
    for path in sorted(root.rglob("*.py")):
        before = path.read_text()
        path.write_text(before + " ")
        seen.add(sources.whole_digest(root=root))
        path.write_text(before)
    (root / "tasks/d.py").rename(root / "tasks/e.py")
    seen.add(sources.whole_digest(root=root))
    assert len(seen) == 6


def test_digest_does_not_confuse_where_a_file_ends(tmp_path: Path) -> None:
    one, two = tree(tmp_path / "one"), tree(tmp_path / "two")
    (one / "tasks/x.py").write_bytes(b"1tasks/y.py")
    (one / "tasks/y.py").write_bytes(b"2")
    (two / "tasks/x.py").write_bytes(b"1")
    (two / "tasks/y.py").write_bytes(b"tasks/y.py2")
    assert sources.whole_digest(root=one) != sources.whole_digest(root=two)


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    if shutil.which("git") is None:
        pytest.skip("needs git")
    for name in [n for n in os.environ if n.startswith("GIT_")]:
        monkeypatch.delenv(name)
    root = tree(tmp_path / "checkout")
    for command in (
        ["init", "-q"],
        ["add", "."],
        [
            "-c",
            "user.name=a",
            "-c",
            "user.email=a@b",
            "-c",
            "commit.gpgsign=false",
            "commit",
            "-q",
            "-m",
            "x",
        ],
    ):
        subprocess.run(["git", "-C", str(root), *command], check=True)
    return root


def test_git_names_the_commit_and_says_whether_our_folders_differ(checkout: Path) -> None:
    head = subprocess.run(["git", "-C", str(checkout), "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    assert provenance.git(checkout) == {"commit": head.stdout.strip(), "dirty": False}
    (checkout / "notes.txt").write_text("x")  # no part of what a run computes
    assert provenance.git(checkout)["dirty"] is False
    (checkout / "tasks/new.py").write_text("x")
    assert provenance.git(checkout)["dirty"] is True
    (checkout / "tasks/new.py").unlink()
    (checkout / "harness/a.py").write_text("changed")
    assert provenance.git(checkout)["dirty"] is True


def test_an_environment_inside_somebodys_repository_is_not_that_repository(checkout: Path) -> None:
    assert provenance.git(tree(checkout / "venv/site-packages")) == {}


def test_no_git_and_no_checkout_are_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    assert provenance.git(tree(tmp_path)) == {}
    monkeypatch.setenv("PATH", "")
    assert provenance.git(provenance.ROOT) == {}


def test_facts_are_json_name_no_host_and_say_the_threads() -> None:
    facts = provenance.facts()
    text = json.dumps(facts)
    assert socket.gethostname() not in text.replace(json.dumps(facts["argv"]), "")
    assert facts["hardware"]["threads"] == torch.get_num_threads()
    assert facts["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert len(facts["source"]) == 64 and facts["hardware"]["gpu"] is None
    assert facts["hardware"]["cpu"] and facts["hardware"]["blas"] != "unknown" and len(facts["hardware"]["blas"]) < 80


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_is_named_where_the_run_uses_one() -> None:
    found = provenance.hardware("cuda")
    assert found["gpu"] == torch.cuda.get_device_name() and found["cuda"]
