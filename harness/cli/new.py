"""`new`: a strategy, metric, stream or model of a user's own to begin with, as two files and a test."""

from __future__ import annotations

import re
import shlex
from importlib.machinery import PathFinder
from keyword import iskeyword
from pathlib import Path

from harness import ROOT
from harness.cli.help import program
from harness.config.catalogue import CONF, options
from harness.store import reporting

GROUPS = {"strategy": "strategy", "metric": "metrics", "stream": "tasks", "model": "model"}
TEMPLATES = Path(__file__).parent / "templates"
MINE = "mine"  # the folder for --config-dir
WORDS = ("true", "false", "null", "none", "nan", "inf", "on", "off", "yes", "no", "y", "n")  # values, not names


def new(kind: str, name: str, folder: Path) -> list[Path]:
    """Write the files; returns their paths.

    ValueError if the name cannot be used, or if one of the files exists: nothing is overwritten.
    """
    _check(kind, name, folder)
    group = GROUPS[kind]
    files = {
        folder / f"{name}.py": "py",
        folder / MINE / group / f"{name}.yaml": "yaml",
        folder / f"test_{name}.py": "test",
    }
    for path in files:
        if path.exists() or path.is_symlink():
            raise ValueError(f"new {kind} {name}: {path} exists already; choose another name, or --to FOLDER")
    for path, part in files.items():
        with reporting(path, "--to FOLDER"):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("x", encoding="utf-8") as file:
                file.write(_filled(kind, part, name))
    return list(files)


def commands(kind: str, name: str, folder: Path) -> list[str]:
    """What to type next, in the folder."""
    typed = f"{GROUPS[kind]}={'[fast,' + name + ']' if kind == 'metric' else name} --config-dir {MINE}"
    lines = [
        f"{program()} check {GROUPS[kind]}={name} --config-dir {MINE}",
        f"{program()} {typed}",
        f"python -m pytest test_{name}.py",
    ]
    return lines if folder.resolve() == Path.cwd() else [f"cd {shlex.quote(str(folder))}", *lines]


def _filled(kind: str, part: str, name: str) -> str:
    text = (TEMPLATES / f"{kind}.{part}.txt").read_text("utf-8")
    return text.replace("@name@", name).replace("@Class@", class_of(name))


def class_of(name: str) -> str:
    """A class name for a module name.

    >>> class_of("my_method"), class_of("ewc2"), class_of("SAM")
    ('MyMethod', 'Ewc2', 'SAM')
    """
    return "".join(part[:1].upper() + part[1:] for part in name.split("_"))


def _check(kind: str, name: str, folder: Path) -> None:
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name) or iskeyword(name) or name.lower() in WORDS:
        raise ValueError(f"new {kind} {name}: not a name for a module and an option; use letters, digits and _")
    if name in options(GROUPS[kind], [folder / MINE, CONF]):
        raise ValueError(f"new {kind} {name}: exists already as {GROUPS[kind]}={name}; choose another name")
    if name in ("harness", "strategies", "tasks", "conf") or _taken(name, folder):
        raise ValueError(f"new {kind} {name}: an installed module has this name, and would be hidden; choose another")


def _taken(name: str, folder: Path) -> bool:
    """Whether a module outside the folder has this name."""
    import sys

    if name in sys.stdlib_module_names:
        return True
    path = [entry for entry in sys.path if Path(entry or ".").resolve() not in (folder.resolve(), ROOT)]
    return PathFinder.find_spec(name, path) is not None
