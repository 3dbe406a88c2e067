"""What can be chosen: the files of conf/<group>, described by the docstrings of what they name.

Docstrings are read through ast, so that listing imports neither torch nor the methods themselves.
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CONF = ROOT / "conf"
GROUPS = ("strategy", "tasks", "dataset", "model", "metrics", "optimizer", "tracker", "experiment")


def options(group: str, folders: Sequence[Path] = (CONF,)) -> dict[str, Path]:
    """Name -> YAML file of everything that `group=` accepts; an earlier folder wins."""
    found = {f.stem: f for folder in reversed(folders) for f in (folder / group).glob("*.yaml")}
    return dict(sorted(found.items()))


def describe(group: str, folders: Sequence[Path] = (CONF,)) -> dict[str, str]:
    """Name -> one line: the file's opening comment, or the docstring of its target."""
    return {name: _line(file, folders) for name, file in options(group, folders).items()}


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that was probably meant.

    >>> nearest("replya", ["ewc", "replay"])
    'replay'
    """
    lower = {k.lower(): k for k in known}
    close = difflib.get_close_matches(word.lower(), lower, 1, 0.6)
    return lower[close[0]] if close else None


def docstring(target: str, roots: Sequence[Path] = (ROOT,)) -> str:
    """First line of the docstring of a dotted name, or of its module; '' if there is none."""
    module, _, name = target.rpartition(".")
    for root in roots:
        base = root.joinpath(*module.split("."))
        for file in (base.with_suffix(".py"), base / "__init__.py"):
            if file.is_file():
                tree = ast.parse(file.read_text(encoding="utf-8"))
                kinds = (ast.ClassDef, ast.FunctionDef)
                named = [n for n in tree.body if isinstance(n, kinds) and n.name == name]
                return next((d.partition("\n")[0] for n in (*named, tree) if (d := ast.get_docstring(n))), "")
    return ""


def _line(file: Path, folders: Sequence[Path]) -> str:
    from omegaconf import OmegaConf

    text = file.read_text(encoding="utf-8")
    opening = _opening(text)
    if opening:
        return opening
    roots = [ROOT, *(Path.cwd() for folder in folders if folder != CONF)]
    found = (docstring(target, roots) for target in _targets(OmegaConf.to_container(OmegaConf.create(text))))
    return next((line for line in found if line), "")


def _opening(text: str) -> str:
    """The comment in the first line, unless it belongs to the key below it."""
    lines = [line for line in text.splitlines() if not line.startswith("# @package")]
    below = next((line for line in lines if not line.startswith("#")), "")
    own = not below or below.startswith(("_target_", "{}"))
    return lines[0].lstrip("# ").rstrip() if own and lines and lines[0].startswith("#") else ""


def _targets(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("_target_"), str):
            yield node["_target_"]
        for value in node.values():
            yield from _targets(value)
