"""The page about all streams says what stands in their files, and the committed one is up to date but for seconds."""

from __future__ import annotations

import re

import pytest

from harness.config import catalogue
from harness.config.catalogue import ROOT
from harness.pages import streams

NAMES = list(catalogue.options("tasks"))


def test_the_committed_page_is_what_the_files_say_but_for_the_seconds() -> None:
    committed = (ROOT / "tasks" / "README.md").read_text(encoding="utf-8").rstrip()
    row = r"^(\| \[\w+\]\(#\w+\) \|.*\| )\S+( \| \d+ \|)$"
    there = re.sub(row, r"\1?\2", committed, flags=re.M)
    made = streams.text(lambda name: "?").rstrip()
    assert there == made, "python -m harness catalogue tasks > tasks/README.md"


@pytest.mark.parametrize("name", NAMES)
def test_every_stream_says_what_it_is_where_it_is_from_what_it_needs_and_what_its_settings_mean(name: str) -> None:
    text = "\n".join(streams.section(name))
    assert f"## {name}" in text and "* Needs: " in text and "* Scenarios: " in text
    if name != "same":  # the control has no paper
        assert re.search(r"\b(19|20)\d\d\b", text) and "* Differs: " in text
    assert all(meaning for _, _, meaning in streams.settings_of(name))
    paragraphs = text.split("\n\n")
    assert len(set(paragraphs)) == len(paragraphs)


def test_a_tiny_run_has_a_time() -> None:
    assert re.fullmatch(r"\d+\.\d", streams.tiny("same"))
