"""The source files that determine a run's numbers, by their digests: an edit of any other file changes nothing."""

from __future__ import annotations

import ast
import hashlib
import sys
import sysconfig
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from harness import ROOT

OURS = ("harness", "strategies", "tasks")
PACKAGES = ("site-packages", "dist-packages")
CORE = ("harness.run",)  # every run uses it: the loop, the learner, the recorder, and what they import


def files(targets: Iterable[str]) -> dict[str, str]:
    """Module -> sha256 of its file, for the modules of these dotted names, CORE, and all that they import.

    Imports are followed within our packages, within the packages of the targets, and into files outside of the standard
    library and site-packages (a user's own code).

    >>> made = files(["strategies.ewc.EWC"])
    >>> "strategies.ewc" in made, "harness.loop" in made, "strategies.replay" in made, "torch" in made
    (True, True, False, False)
    """
    roots = [module for target in [*CORE, *targets] if (module := _module(target))]
    packages = {*OURS, *(module.partition(".")[0] for module in roots)}
    installed = cache(_installed)  # for this call: the search path may change after it
    found: dict[str, str] = {}
    seen, waiting = {""}, list(roots)
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        top = name.partition(".")[0]
        path = _file(name) if top in packages or not installed(top) else None
        if path is None:
            continue
        source, above = path.read_bytes(), name.rpartition(".")[0]
        found[name] = hashlib.sha256(source).hexdigest()
        waiting += [*_imports(source, name if path.name == "__init__.py" else above), above]  # a package runs as well
    return dict(sorted(found.items()))


def digest(found: Mapping[str, str]) -> str:
    """One sha256 over modules and their digests."""
    return hashlib.sha256("".join(f"{name}\0{sha}\0" for name, sha in sorted(found.items())).encode()).hexdigest()


def edited(manifest: Mapping[str, Any]) -> list[str]:
    """Modules of a run whose files were changed or removed since it started; older manifests know only of all files."""
    known = manifest.get("files")
    if known is None:
        return [] if manifest.get("source") in (None, "", whole_digest()) else ["the harness"]
    return [name for name, sha in known.items() if (path := _file(name)) is None or _sha(path) != sha]


def differing(*groups: Sequence[Mapping[str, Any]]) -> list[str]:
    """Modules whose files differ between the runs of one group, or, given several, between those of two groups.

    Runs are given by their manifests. Older ones know only of all files, and differ from the others as a whole.

    >>> old, new, other = {"files": {"a": "1", "b": "1"}}, {"files": {"a": "1", "b": "2"}}, {"files": {"a": "3"}}
    >>> differing([old, new]), differing([old, new], [other]), differing([old], [{"source": "4"}])
    (['b'], ['a'], ['the harness'])
    """
    parts = [[one] for one in groups[0]] if len(groups) == 1 else groups
    whole = "the harness"
    seen: dict[str, set[frozenset[str]]] = {}  # module -> its digests in each part that has it
    for part in parts:
        mine: dict[str, set[str]] = {}
        for facts in part:
            for name, sha in (facts.get("files") or {whole: facts.get("source", "")}).items():
                mine.setdefault(name, set()).add(sha)
        for name, found in mine.items():
            seen.setdefault(name, set()).add(frozenset(found))
    return sorted(name for name, found in seen.items() if len(found) > 1 or (name == whole and len(seen) > 1))


def listed(changed: Sequence[str], most: int = 3) -> str:
    """Changed modules in a message.

    >>> listed(["strategies.l2"]), listed(["a", "b", "c", "d", "e"])
    ('strategies.l2 has changed', 'a, b, c and 2 more have changed')
    """
    more = f" and {len(changed) - most} more" if len(changed) > most else ""
    return f"{', '.join(changed[:most])}{more} {'has' if len(changed) == 1 else 'have'} changed"


def whole_digest(root: Path = ROOT) -> str:
    """sha256 over the paths and bytes of every .py file of our packages: `source` in manifests without `files`."""
    paths = [(p.relative_to(root).as_posix(), p) for name in OURS for p in (root / name).rglob("*.py")]
    made = hashlib.sha256()
    for name, path in sorted(paths):
        content = path.read_bytes()
        made.update(f"{name}\0{len(content)}\0".encode())  # lengths: no two trees share one byte string
        made.update(content)
    return made.hexdigest()


def _module(target: str) -> str:
    """The module of a dotted name; '' if there is none."""
    name = target
    while name:
        if _file(name) is not None:
            return name
        name = name.rpartition(".")[0]
    return ""


def _file(name: str) -> Path | None:
    """The source file of a module, found without importing anything: a foreign manifest may name any module."""
    parts = name.split(".")
    path: Sequence[str] | None = [str(ROOT)] if parts[0] in OURS else sys.path
    origin = None
    for i in range(len(parts)):
        if path is None:  # a module has no submodules
            return None
        try:
            spec = PathFinder.find_spec(".".join(parts[: i + 1]), list(path))
        except (ImportError, KeyError, ValueError):  # a namespace within a package that is not imported
            return None
        if spec is None:
            return None
        origin, path = spec.origin, spec.submodule_search_locations
    return Path(origin) if origin and origin.endswith(".py") and Path(origin).is_file() else None


def _sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@cache
def _libraries() -> tuple[Path, ...]:
    return tuple(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "purelib", "platlib"))


def _installed(top: str) -> bool:
    """Whether a top-level module belongs to the standard library or to an installed package.

    Packages are installed below a folder with one of the names in PACKAGES, which need not be this environment's: a
    user's own site, the system's, or one that a .pth file adds. To follow imports into torch takes minutes.
    """
    try:
        spec = PathFinder.find_spec(top)
    except (ImportError, KeyError, ValueError):
        return True
    places = [*(spec.submodule_search_locations or ()), *([spec.origin] if spec.origin else [])] if spec else []
    above = [set(Path(p).resolve().parents) for p in places]
    return not places or any(
        not folders.isdisjoint(_libraries()) or any(f.name in PACKAGES for f in folders) for folders in above
    )


@cache
def _imports(source: bytes, package: str) -> tuple[str, ...]:
    r"""Names that a module of `package` imports, at any depth but under TYPE_CHECKING.

    `from a import b` gives both a and a.b. Cached: a sweep or a notebook asks for the same files in each run.

    >>> _imports(b"import a.b\nfrom . import c\nif TYPE_CHECKING:\n    import d", "p")
    ('p', 'p.c', 'a.b')
    """
    found: list[str] = []
    waiting: list[ast.AST] = [ast.parse(source)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: package.count(".") + 2 - node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            found += [base, *(f"{base}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            waiting += node.orelse
        elif not isinstance(node, ast.expr):  # which holds no statement
            waiting += ast.iter_child_nodes(node)
    return tuple(found)
