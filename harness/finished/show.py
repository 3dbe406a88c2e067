"""One run on the terminal: results, folder, how to reproduce it, and costs."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from harness import store
from harness.leaderboard import setting_in_words, size
from harness.trackers import About, summaries
from harness.trackers.console import Console
from harness.wording import printable


def show(path: Path) -> None:
    """Print a run, finished or not, as `python -m harness strategy=...` does at its end, with its origin and costs."""
    facts = store.read_manifest(path)
    run, seeds = store.Run(path, facts), tuple(facts["seeds"])
    metrics, accuracy = store.read_rows(run, "metrics"), store.read_rows(run, "accuracy")
    tasks = 1 + max([*accuracy["task"].to_pylist(), *accuracy["boundary"].to_pylist(), 0])
    title = printable(f"{facts['strategy']} on {facts['stream']}: {setting_in_words(facts)}, seeds {list(seeds)}")
    if not (path / "DONE").exists():
        title += f"\n{printable(facts['status'])}: results so far"
    timing = store.read_rows(run, "timing").to_pylist()
    console = Console(title, closing=[printable(line) for line in (*origin(facts), *costs(timing, metrics))])
    console.start(About(facts["config"], facts, path, seeds, tasks), ())
    console.history.extend(summaries(metrics, accuracy, seeds, tasks))
    console.finish([])


def origin(facts: Mapping[str, Any]) -> Iterator[str]:
    """Command, source and machine."""
    git, machine = facts.get("git") or {}, facts.get("hardware") or {}
    yield f"command  {shlex.join(['python', '-m', 'harness', *map(str, facts.get('argv', [])[1:])])}"
    commit = f", commit {git['commit'][:12]}{' with changes' if git.get('dirty') else ''}" if git.get("commit") else ""
    yield f"source   {str(facts.get('source', ''))[:12]}{commit}, setting {facts['setting']}"
    yield f"versions {', '.join(f'{name} {version}' for name, version in (facts.get('versions') or {}).items())}"
    yield f"machine  {machine.get('gpu') or machine.get('cpu', 'unknown')}, threads: {facts.get('threads')}"
    if facts.get("diverged"):
        yield f"diverged seeds {facts['diverged']}"


def costs(timing: list[dict[str, Any]], metrics: Any) -> Iterator[str]:
    """Seconds by part, largest first; time of a step and of a plain step; memory."""
    total: dict[str, float] = {}
    steps: dict[str, list[float]] = {"step": [], "plain step": []}
    for row in timing:
        if row["part"] in steps:
            steps[row["part"]].append(row["seconds"])
        else:
            total[row["part"]] = total.get(row["part"], 0.0) + row["seconds"]
    parts = sorted(total.items(), key=lambda item: -item[1])
    yield f"time     {sum(total.values()):.1f} s: {', '.join(f'{name} {seconds:.1f}' for name, seconds in parts)}"
    if steps["step"]:
        plain = f", a plain step {1e3 * _mean(steps['plain step']):.2f} ms" if steps["plain step"] else ""
        yield f"step     {1e3 * _mean(steps['step']):.2f} ms for all seeds{plain}"
    held = [v for name, v in zip(metrics["metric"].to_pylist(), metrics["value"].to_pylist()) if name == "memory"]
    peak = max((row["peak_memory"] for row in timing), default=float("nan"))
    yield f"memory   {size(held[-1]) if held else '-'} held per seed, {size(peak)} peak of the process"


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
