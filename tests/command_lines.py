"""The command lines that our pages and help texts show, as words; and how each becomes small enough to run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from harness import ROOT
from harness.cli import help
from harness.cli.table import COMMANDS

PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "results/README.md", "results/SCHEMA.md", "tasks/README.md",
         "strategies/README.md", "harness/metrics/README.md")  # fmt: skip
START = "python -m harness"
# in pages, a word for something that a reader has
GENERAL = ("NAME", "KEY", "...", "COMMAND", "RUNS")


def _of_page(path: Path) -> Iterator[str]:
    """Lines of code blocks, and code within sentences, which may go on in the next line."""
    text = path.read_text("utf-8")
    for line in re.findall(r"^ {4}(\S.*)$", text, re.MULTILINE):
        for part in line.split("&&"):
            if START in part:
                yield part[part.index(START) :]
    prose = "\n".join(line for line in text.splitlines() if not line.startswith("    "))
    for code in re.findall(r"`([^`]+)`", prose):
        if code.startswith(START):
            yield " ".join(code.split()).partition(">")[0]  # a page that is written


def _of_help() -> Iterator[str]:
    text = help.HELP.replace("{run}", START)
    for line in text.splitlines():
        if line.strip().startswith(START):
            yield re.split(r"\s{2,}", line.strip())[0]
    for code in re.findall(r"`([^`]+)`", text + " ".join(command.about for command in COMMANDS.values())):
        if code.startswith(START):
            yield code


@cache
def documented() -> tuple[tuple[str, ...], ...]:
    """Every command line that is shown somewhere, without `python -m harness`; general forms are left out."""
    lines = [line for page in PAGES for line in _of_page(ROOT / page)] + list(_of_help())
    found = [tuple(shlex.split(line.replace("\\|", "|"), comments=True)[3:]) for line in lines]
    whole = [words for words in found if words and not any(mark in word for word in words for mark in GENERAL)]
    return tuple(dict.fromkeys(whole))


# what replaces a sweep's values, so that it has few jobs
FEW = {
    "experiment=geometry": ("tasks=permuted", "strategy=[sam]", "optimizer.lr=0.1,0.2", "train.batch_size=16",
                            "strategy.sam.rho=0.0,0.05", "model.dropout=0.0,0.25"),
    "experiment=versus_avalanche": ("strategy=naive,avalanche/Naive",),
    "experiment=leaderboard_fashion_permuted": ("strategy=naive,ewc",),
    "experiment=[tuned_permuted_domain_digits,leaderboard_digits]": ("strategy=naive,ewc",),
}  # fmt: skip
TINY = ("train.steps=2", "tasks.n_tasks=2", "seeds=[0,1]", "dataset=digits", "tracker.mode=disabled", "threads=1")
GLOB = "glob(n*"  # naive, ncm


def is_training(words: tuple[str, ...]) -> bool:
    """Whether a command line trains: it has a setting, and does not begin with a command."""
    return words[0] not in COMMANDS and any("=" in word for word in words)


def small(words: tuple[str, ...]) -> list[str]:
    """A training command line with few, short jobs; its data are digits, or the reader's own."""
    words = tuple(word.replace("glob(*", GLOB) for word in words)
    added = [*TINY, *(value for word in words for value in FEW.get(word, ()))]
    added += ["seeds=[100,101]"] * ("experiment=tune" in words)  # not those of reported runs
    kept = {"tracker.mode", *(["dataset"] if "dataset=folder" in words else [])} & {_key(word) for word in words}
    if "tasks=avalanche" in words:  # it brings its data and its tasks
        kept |= {"dataset", "tasks.n_tasks"}
        added += ["metrics=off", "eval.samples=50", "control=false", "gap=false"]
    more = {_key(word): word for word in added if _key(word) not in kept}
    return [*(word for word in words if _key(word) not in more), *more.values()]


def _key(word: str) -> str:
    return word.partition("=")[0]
