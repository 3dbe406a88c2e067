"""A results folder is data: which classes and functions its configuration may name.

A run may come from anybody. Its configuration is built only from targets that conf/ names, that the user's own
configuration folder names, or that are defined in a module that the user allows (`--trust MODULE`). Nothing in it is
interpolated.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from harness.config import aliases
from harness.config.catalogue import CONF, GROUPS, targets
from harness.wording import printable

NEVER = ("metrics", "tracker", "hydra", "start")  # parts of a run's configuration from which nothing is built
TARGET = "_target_"


def safe(
    run: Path, config: Mapping[str, Any], trust: Sequence[str] = (), config_dir: str | Path | None = None
) -> dict[str, Any]:
    """The configuration of the run at `run`, without `NEVER`. ValueError if it names anything that is not allowed."""
    allowed = named_in([CONF, *([Path(config_dir)] if config_dir else [])])
    for module in trust:
        if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", module):
            raise ValueError(f"--trust {printable(module)}: must be the name of a module, as in my_package.models")
    kept = {key: value for key, value in config.items() if key not in NEVER}
    for key, value in entries(kept):
        if reason := _refused(key.rpartition(".")[2], value, allowed, trust):
            raise ValueError(f"{run}: {printable(key)}={printable(str(value), 80)}: {reason}")
    return kept


def named_in(folders: Sequence[Path]) -> frozenset[str]:
    """Every `_target_` in the groups of these configuration folders."""
    for folder in folders:
        aliases.check(folder, GROUPS)
    files = (file for folder in folders for group in GROUPS for file in (folder / group).rglob("*.yaml"))
    return frozenset(target for file in files for target in _named(file.read_text("utf-8")))


@cache
def _named(text: str) -> tuple[str, ...]:
    """The targets in a file; cached, since every run of a results folder is checked against the same files."""
    import yaml

    return tuple(targets(yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))))


def entries(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of a configuration by dotted key, also in lists; mappings and lists come before their contents.

    >>> [key for key, _ in entries({"a": {"_target_": "x"}, "b": [{"c": 1}]})]
    ['a', 'a._target_', 'b', 'b.0', 'b.0.c']
    """
    inside = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, (list, tuple)) else ()
    for name, value in inside:
        full = f"{key}.{name}" if key else str(name)
        yield full, value
        yield from entries(value, full)


def _refused(name: str, value: Any, allowed: Collection[str], trust: Sequence[str]) -> str:
    """Why an entry of a run's configuration is refused; empty if it is not."""
    if isinstance(value, str) and "${" in value:
        return "interpolations in a results folder are not evaluated; replace it by its value"
    if name != TARGET:
        special = name.startswith("_") and name.endswith("_") and len(name) > 2
        return "only _target_ may say how objects are built from a results folder; remove this key" if special else ""
    if not isinstance(value, str):
        return "must be the name of a class or function"
    if value in allowed:
        return ""
    module = next((m for m in sorted(trust, key=len, reverse=True) if value.startswith(f"{m}.")), None)
    if module is None:
        return (
            "not part of this program, so it is not run; if it is code of yours, allow it with"
            f" --trust {printable(value.rpartition('.')[0] or value, 80)}"
        )
    return _foreign(value, module, allowed)


def _foreign(target: str, module: str, allowed: Collection[str]) -> str:
    """Why a target is refused although its module is trusted: what a module imports is not its own."""
    from hydra._internal.utils import _locate

    try:
        found = _locate(target)
    except Exception as error:
        return f"not found ({printable(type(error).__name__)}); check that {module} can be imported from here"
    home = getattr(found, "__module__", None) or getattr(found, "__name__", None) or ""
    own = f"{home}.".startswith(f"{module}.") or f"{home}.{getattr(found, '__qualname__', '')}" in allowed
    return "" if own else f"defined in {home or 'no module'}, not in {module}; allow only what you know to be safe"
