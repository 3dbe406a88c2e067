"""Wrong command lines and damaged results folders get one line in time, and nothing that they name is changed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from harness import ROOT
from tests import fuzz


def tried(what: str, count: int) -> list[dict[str, Any]]:
    """What was found, in a process of its own: it limits its memory and leaves training out."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    typed = [sys.executable, "-m", "tests.fuzz", what, str(count)]
    done = subprocess.run(typed, cwd=ROOT, env=env, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"typed"')]


@pytest.mark.parametrize(
    ("what", "count"),
    [
        ("lines", 8),
        *(pytest.param(what, 300, marks=pytest.mark.nightly) for what in ("lines", "folders")),
    ],
)
def test_every_answer_is_a_line_in_time_and_nothing_else_happens(what: str, count: int) -> None:
    found = tried(what, count)
    assert len(found) >= count
    assert [f for f in found if f["wrong"]] == []
    refused = [f for f in found if f["code"] == 2]
    assert len(refused) > len(found) / 4  # most are wrong enough to be refused


def test_an_answer_that_is_late_or_a_traceback_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang() -> int:
        while True:
            pass

    monkeypatch.setattr(fuzz.cli, "main", hang)
    assert fuzz.answer("x", patience=0.1)["wrong"] == "slow"
    monkeypatch.setattr(fuzz.cli, "main", lambda: {}["key"])
    assert fuzz.answer("x")["wrong"].startswith("traceback: KeyError: 'key'")
    monkeypatch.setattr(fuzz.cli, "main", lambda: 2)
    assert fuzz.answer("x")["wrong"].startswith("no reason")
