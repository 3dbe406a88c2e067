"""The options of each group: the files of conf/<group>, described by the docstrings of their targets.

Docstrings are read through ast, and the files as plain YAML: listing imports neither torch, the methods nor omegaconf.
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from harness import ROOT

CONF = ROOT / "conf"
GROUPS = ("strategy", "tasks", "dataset", "model", "metrics", "optimizer", "tracker", "experiment")
LISTED = {  # what `ls` calls them
    "strategies": "strategy",
    "tasks": "tasks",
    "datasets": "dataset",
    "models": "model",
    "metrics": "metrics",
    "experiments": "experiment",
}
NESTED = ("experiment",)  # groups whose folders are listed too: experiment=published/NAME, but not strategy=avalanche/


def options(group: str, folders: Sequence[Path] = (CONF,)) -> dict[str, Path]:
    """Name -> YAML file of every option that `group=` accepts; an earlier folder wins."""
    found: dict[str, Path] = {}
    for base in (folder / group for folder in reversed(folders)):
        files = base.rglob("*.yaml") if group in NESTED else base.glob("*.yaml")
        found |= {f.relative_to(base).with_suffix("").as_posix(): f for f in files}
    return dict(sorted(found.items()))


def describe(group: str, folders: Sequence[Path] = (CONF,)) -> dict[str, str]:
    """Name -> one line: the file's opening comment, or the docstring of its target."""
    return {name: _line(file, folders) for name, file in options(group, folders).items()}


def families(folders: Sequence[Path] = (CONF,)) -> dict[str, str]:
    """Strategy -> its family; '' if its class has none."""
    found = {}
    for name, file in options("strategy", folders).items():
        named = targets(_loaded(file.read_text(encoding="utf-8")))
        found[name] = next((f for t in named if (f := attribute(t, "family", _roots(folders)))), "")
    return found


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that was probably meant, or None.

    >>> nearest("replya", ["ewc", "replay"])
    'replay'
    """
    lower = {k.lower(): k for k in known}
    close = difflib.get_close_matches(word.lower(), lower, 1, 0.6)
    return lower[close[0]] if close else None


def docstring(target: str, roots: Sequence[Path] = (ROOT,)) -> str:
    """First line of the docstring of a dotted name, or of its module; '' if there is none."""
    return next((d.partition("\n")[0] for node in _nodes(target, roots) if (d := ast.get_docstring(node))), "")


def attribute(target: str, name: str, roots: Sequence[Path] = (ROOT,)) -> str:
    """A string attribute of the class with this dotted name; '' if it has none.

    >>> attribute("strategies.ewc.EWC", "family")
    'parameter regularization'
    """
    for node in _nodes(target, roots):
        for line in node.body:
            if isinstance(line, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in line.targets):
                return str(ast.literal_eval(line.value))
    return ""


def _nodes(target: str, roots: Sequence[Path]) -> Iterator[ast.ClassDef | ast.FunctionDef | ast.Module]:
    """The definition with this dotted name in the first root that has its file, then its module."""
    module, _, name = target.rpartition(".")
    for root in roots:
        base = root.joinpath(*module.split("."))
        for file in (base.with_suffix(".py"), base / "__init__.py"):
            if file.is_file():
                tree = _parsed(file)
                for node in tree.body:
                    if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name == name:
                        yield node
                yield tree
                return


@cache
def _parsed(file: Path) -> ast.Module:
    """Cached: a listing needs both the docstring and the family."""
    return ast.parse(file.read_text(encoding="utf-8"))


def _line(file: Path, folders: Sequence[Path]) -> str:
    text = file.read_text(encoding="utf-8")
    opening = _opening(text)
    if opening:
        return opening
    found = (docstring(target, _roots(folders)) for target in targets(_loaded(text)))
    return next((line for line in found if line), "")


@cache
def _loaded(text: str) -> Any:
    """The values of a YAML text, read by libyaml where PyYAML has it, which takes a tenth of the time."""
    import yaml

    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def _roots(folders: Sequence[Path]) -> list[Path]:
    return [ROOT, *(Path.cwd() for folder in folders if folder != CONF)]


def _opening(text: str) -> str:
    """The comment in the first line, unless it is about the key below it."""
    lines = [line for line in text.splitlines() if not line.startswith("# @package")]
    below = next((line for line in lines if not line.startswith("#")), "")
    own = not below or below.startswith(("_target_", "{}"))
    return lines[0].lstrip("# ").rstrip() if own and lines and lines[0].startswith("#") else ""


def targets(node: Any) -> Iterator[str]:
    """Every `_target_` in a configuration.

    >>> list(targets({"a": {"_target_": "x.Y"}, "b": [{"_target_": "z"}]}))
    ['x.Y', 'z']
    """
    if isinstance(node, Mapping):
        if isinstance(node.get("_target_"), str):
            yield node["_target_"]
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for value in node:
            yield from targets(value)
