"""The page about all strategies, made from their docstrings, their tests' names and finished runs."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from harness import catalogue, store
from harness.catalogue import ROOT
from harness.leaderboard import SCORES, cost, ranked, settings, shown, size, times
from harness.strategy import HOOKS, Strategy
from harness.trackers import interval

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


def page(folders: Sequence[Path]) -> str:
    """The whole page as Markdown."""
    return "\n".join([HEAD, overview(), *measured(folders), methods()])


def overview() -> str:
    """One row a strategy, by family."""
    rows = ["| strategy | family | scenarios | hooks | lines |", "| --- | --- | --- | --- | --- |"]
    for name, kind in _classes():
        hooks = " ".join(h for h in HOOKS if getattr(kind, h) is not getattr(Strategy, h))
        lines = len(Path(inspect.getfile(kind)).read_text(encoding="utf-8").splitlines())
        rows.append(f"| [{name}](#{name}) | {kind.family} | {', '.join(kind.scenarios)} | {hooks or '-'} | {lines} |")
    return "\n".join([*rows, ""])


def measured(folders: Sequence[Path]) -> Iterator[str]:
    """A table for every setting in which more than one strategy was run; nothing where there is none."""
    tables = [_table(runs) for runs in settings(folders).values() if len(runs) > 1]
    if tables:
        yield MEASURED
        if REMARKS.exists():
            yield REMARKS.read_text(encoding="utf-8")
        yield from tables


def _table(runs: Sequence[store.Run]) -> str:
    facts = runs[0].manifest
    cfg = facts["config"]
    steps, epochs = cfg["train"]["steps"], cfg["train"]["epochs"]
    budget = f"{steps} steps" if steps else f"{epochs} epoch{'s' * (epochs > 1)}"
    entries = ranked(runs)
    known = [i for i in range(len(SCORES)) if any(interval(values[i])[2] for values, _ in entries)]
    lines = [
        f"### {facts['stream']}",
        "",
        f"{cfg['tasks'].get('n_tasks', '?')} tasks, {budget} a task in batches of {cfg['train']['batch_size']},"
        f" {cfg['optimizer']['_target_'].rpartition('.')[2]} with lr {cfg['optimizer']['lr']},"
        f" seeds {', '.join(map(str, facts['seeds']))}, setting {facts['setting']}.",
        "",
        f"| strategy | {' | '.join(SCORES[i].title for i in known)} | step | memory |",
        f"| --- |{' ---: |' * (len(known) + 2)}",
    ]
    for values, run in entries:
        step, memory = cost(run)
        cells = [*(shown(values[i]) for i in known), times(step), size(memory)]
        lines.append(f"| {run.manifest['strategy']} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


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
