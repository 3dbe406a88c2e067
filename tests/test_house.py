"""The import graph of the source: rooms in one order, no circles, light strategies, tasks and metrics, short files.

Imports within functions count as those on top do. Imports under `if TYPE_CHECKING:` do not: they name a type in an
annotation and never run.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path, PurePath

import pytest

import harness

ROOT = Path(harness.__file__).resolve().parent.parent
FOLDERS = ("harness", "strategies", "tasks")

# top to bottom, as in CONTRIBUTING.md: folders and files; a module belongs to the first room that lists it
ROOMS = (
    ("harness/__main__.py", "harness/cli/"),
    ("harness/pages/", "harness/report/"),
    ("harness/tuning/", "harness/geometry/", "harness/verify/"),
    ("harness/finished/",),
    ("harness/contract/",),
    ("harness/jobs/",),
    ("harness/leaderboard/",),
    ("harness/trackers/",),
    ("harness/run.py",),
    ("strategies/",),
    ("tasks/",),
    ("harness/record/",),
    ("harness/metrics/",),
    ("harness/merging/",),
    ("harness/landscape/",),
    ("harness/toolbox/",),
    ("harness/compiling/",),
    ("harness/store/",),
    ("harness/models/",),
    ("harness/boundary.py", "harness/loop.py", "harness/strategy.py", "harness/learner.py"),
    ("harness/config/",),
    ("harness/*.py",),
)
LIGHT = ("strategies/", "tasks/", "harness/metrics/")
HEAVY = ("hydra", "wandb", "pandas")
TOP, LINES = 18, 450
LONGER: dict[str, str] = {}  # file -> the reason for which it may have more lines


@cache
def modules() -> dict[str, Path]:
    """Dotted name -> file, relative to the root."""
    found = {}
    for file in sorted(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py")):
        path = file.relative_to(ROOT)
        found[".".join(path.with_suffix("").parts).removesuffix(".__init__")] = path
    return found


def imported(nodes: Iterable[ast.AST], package: str, known: frozenset[str]) -> Iterator[str]:
    """Names of the modules that run when the code does: `from a import b` is a.b if that is our module, else a."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: package.count(".") + 2 - node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                yield f"{base}.{alias.name}" if f"{base}.{alias.name}" in known else base
        elif isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            yield from imported(node.orelse, package, known)
        else:
            yield from imported(ast.iter_child_nodes(node), package, known)


@cache
def imports() -> dict[str, list[str]]:
    """What each module imports, in any function: our modules, and others by their dotted names."""
    names = frozenset(modules())
    found = {}
    for name, path in modules().items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        found[name] = sorted({*imported([ast.parse((ROOT / path).read_text("utf-8"))], package, names)} - {name})
    return found


def room_of(path: Path) -> int | None:
    """The place in ROOMS of the first that lists this file."""
    for i, names in enumerate(ROOMS):
        for name in names:
            if path.as_posix().startswith(name) if name.endswith("/") else PurePath(path).match(name):
                return i
    return None


def test_imports_are_read_as_they_run() -> None:
    code = """
import a.b, c
from ours import m, value
from . import sibling
if TYPE_CHECKING:
    from never import X
else:
    import otherwise
def f():
    from ..up import y
    class C:
        import deep
"""
    known = frozenset({"ours", "ours.m", "p.q.sibling", "p.up"})
    found = sorted(imported([ast.parse(code)], "p.q", known))
    assert found == ["a.b", "c", "deep", "otherwise", "ours", "ours.m", "p.q.sibling", "p.up"]


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {name: [n for n in names if n in modules()] for name, names in imports().items()}
    assert len(graph) > 150 and sum(map(len, graph.values())) > 500, "the walk found the source"
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' <- '.join(error.args[1])}")


def test_every_module_has_a_room_and_every_room_has_modules() -> None:
    homeless = [str(path) for path in modules().values() if room_of(path) is None]
    assert not homeless, f"{homeless}: list them in ROOMS and under Rooms in CONTRIBUTING.md"
    assert {room_of(path) for path in modules().values()} == set(range(len(ROOMS)))
    missing = [name for names in ROOMS for name in names if "*" not in name and not (ROOT / name).exists()]
    assert not missing, f"{missing}: not found, but listed in ROOMS"


def test_contributing_lists_these_rooms_in_this_order() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    (section,) = re.findall(r"^## Rooms\n(.*?)(?=^## )", text, re.MULTILINE | re.DOTALL)
    lines = re.findall(r"^- ((?:`[^`]+`, )*`[^`]+`): \S", section, re.MULTILINE)
    assert tuple(tuple(re.findall(r"`([^`]+)`", line)) for line in lines) == ROOMS


def test_imports_point_down() -> None:
    room = {name: room_of(path) for name, path in modules().items()}
    pairs = [(name, other) for name, others in imports().items() for other in others if other in room]
    up = [f"{name} imports {other}" for name, other in pairs if (room[other] or 0) < (room[name] or 0)]
    assert not up, "\n".join(["from a room to one above it in ROOMS:", *up])


def test_the_machine_names_no_strategy() -> None:
    names = [name for name in imports() if name.startswith("harness")]
    assert not [name for name in names for other in imports()[name] if other.split(".")[0] == "strategies"]


def light() -> list[str]:
    return [name for name, path in modules().items() if path.as_posix().startswith(LIGHT)]


def test_strategies_tasks_and_metrics_import_neither_hydra_nor_wandb_nor_pandas() -> None:
    found = [f"{name} imports {n}" for name in light() for n in imports()[name] if n.split(".")[0] in HEAVY]
    assert len(light()) > 80 and not found, found


def test_nothing_that_strategies_tasks_and_metrics_import_loads_them_either() -> None:
    code = f"import importlib, sys\nfor name in {light()}:\n    importlib.import_module(name)\n"
    code += f"print(sorted(set({HEAVY}) & set(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stdout + done.stderr


def test_the_top_of_the_harness_and_every_file_can_be_read_at_a_glance() -> None:
    top = sorted(path.name for path in (ROOT / "harness").glob("*.py"))
    assert len(top) <= TOP, f"{len(top)} files, at most {TOP}: {top}"
    lines = {path.as_posix(): len((ROOT / path).read_text("utf-8").splitlines()) for path in modules().values()}
    long = {path: n for path, n in lines.items() if n > LINES and path not in LONGER}
    assert not long, f"more than {LINES} lines: split them, or name the reason in LONGER"
    assert all(lines.get(path, 0) > LINES for path in LONGER), "an exception that is no longer needed"
