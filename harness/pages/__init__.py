"""The generated README pages: strategies, tasks and metrics."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

PAGES = ("strategies", "tasks", "metrics")


def page(what: str, folders: Sequence[Path] = ()) -> str:
    """One of the `PAGES` as Markdown; the strategies' page has tables of the finished runs in `folders`."""
    if what == "strategies":
        from harness.pages import strategies

        return strategies.text(folders)
    if what == "tasks":
        from harness.pages import streams

        return streams.text()
    if what == "metrics":
        from harness.pages import metrics

        return metrics.text()
    raise ValueError(f"{what}: no such page; choose from {', '.join(PAGES)}")
