"""The page about all strategies, made from their docstrings, their tests' names and finished runs."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from harness import ROOT
from harness.config import catalogue
from harness.leaderboard import SCORES, Board, heading, leaderboard, piped, table
from harness.strategy import HOOKS, Strategy

HEAD = """\
# Strategies

Made by `python -m harness catalogue FOLDER... > strategies/README.md` from the docstrings, the names of the tests and
the finished runs in FOLDER; not edited by hand. Families are those of van de Ven, Soures & Kudithipudi (2024), and two
more: plasticity, and controls.
"""
REMARKS = ROOT / "strategies" / "REMARKS.md"  # written by hand, on the runs that the page shows
MEASURED = """\
## Measured

Means over seeds with 95 % Student intervals, at the values that `conf/strategy` gives: published where there are any,
and not tuned to these streams, so that a low rank says as much of the value as of the method. Average accuracy is over
all tasks at the end, new-task accuracy just after each task. A step's cost is its time over that of a plain step on
the same task, memory what is held between tasks for one seed.
"""


def text(folders: Sequence[Path]) -> str:
    """The whole page as Markdown."""
    return "\n".join([HEAD, overview(), *boards(folders), methods()]) + "\n"


def overview() -> str:
    """One row a strategy, by family."""
    rows = ["| strategy | family | scenarios | hooks | lines |", "| --- | --- | --- | --- | --- |"]
    for name, kind in _classes():
        hooks = " ".join(h for h in HOOKS if getattr(kind, h) is not getattr(Strategy, h))
        lines = len(Path(inspect.getfile(kind)).read_text(encoding="utf-8").splitlines())
        rows.append(f"| [{name}](#{name}) | {kind.family} | {', '.join(kind.scenarios)} | {hooks or '-'} | {lines} |")
    return "\n".join([*rows, ""])


def boards(folders: Sequence[Path]) -> Iterator[str]:
    """A table for every setting in which more than one strategy was run; nothing where there is none."""
    tables = [_table(board) for board in leaderboard(folders).boards if len(board.rows) > 1]
    if tables:
        yield MEASURED
        if REMARKS.exists():
            yield REMARKS.read_text(encoding="utf-8")
        yield from tables


def _table(board: Board) -> str:
    shown = table(board, (*(score.title for score in SCORES), "step", "memory"))
    return "\n".join([f"### {board.stream}", "", f"Setting {board.setting}: {heading(board)}", "", *piped(*shown), ""])


def methods() -> str:
    """What stands in the files: each method's text, its sources, and the tests behind it."""
    parts = ["## Methods", ""]
    for name, kind in _classes():
        source = inspect.getdoc(importlib.import_module(kind.__module__)) or ""
        parts += [f"### {name}", "", f"*{kind.family}*; {', '.join(kind.scenarios)}", ""]
        parts += [inspect.getdoc(kind) or "", ""]
        parts += [f"Source: {' '.join(source.split())}", ""] if re.search(r"\b(19|20)\d\d\b", source) else []
        checks = tests(name, kind)
        parts += ["Verified by:", "", *(f"* {check}" for check in checks), ""] if checks else []
    return "\n".join(parts)


def tests(name: str, kind: type[Strategy], folder: Path = ROOT / "tests" / "strategies") -> list[str]:
    """Names of the tests, as sentences: all of the file named for the strategy, elsewhere those that name it."""
    found = []
    for file in sorted(folder.glob("test_*.py")):
        own = file.stem == f"test_{kind.__module__.rpartition('.')[2]}"
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                words = {getattr(n, "id", getattr(n, "value", None)) for n in ast.walk(node) if _word(n)}
                if own or {name, kind.__name__} & words:
                    found.append(node.name.removeprefix("test_").replace("_", " "))
    return found


def _word(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def _classes() -> list[tuple[str, type[Strategy]]]:
    from hydra.utils import get_class
    from omegaconf import OmegaConf

    found = []
    for name, file in catalogue.options("strategy").items():
        node: Any = OmegaConf.load(file)
        found.append((name, get_class(node[name]["_target_"])))
    return sorted(found, key=lambda pair: (pair[1].family, pair[0]))
