"""The one reader of manifest.json: what every other reader uses from it has the right type, or the run is damaged."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from harness.store.errors import Damaged, check_version, regular
from harness.wording import first_line, printable

LARGEST = 16_000_000  # bytes
DEEPEST = 40  # levels
THREADS = 4096

Kind = tuple[str, Callable[[Any], bool]]  # in words, and the test


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


def _list_of(test: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(test, value))


def _is(*kinds: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, kinds)


WHOLE: Kind = ("a whole number", _whole)
TEXT: Kind = ("a text", _is(str))
MAPPING: Kind = ("a mapping", _is(dict))
NAMES: Kind = ("a list of names", _list_of(_is(str)))
OPTIONAL_MAPPING: Kind = ("a mapping", _is(dict, type(None)))
OPTIONAL_TEXT: Kind = ("a text", _is(str, type(None)))
COUNT: Kind = ("a whole number or null", lambda value: value is None or _whole(value))
SEEDS: Kind = (
    "a list of different whole numbers",
    lambda value: _list_of(_whole)(value) and 0 < len(value) == len(set(value)),
)

ALWAYS = {  # from the first moment of a run
    "schema_version": WHOLE, "run_id": TEXT, "stream": TEXT, "scenario": TEXT, "strategy": TEXT, "status": TEXT,
}  # fmt: skip
STARTED = {  # once its configuration is written
    "purpose": TEXT, "setting": TEXT, "seeds": SEEDS, "stream_version": WHOLE, "stream_hash": TEXT, "split": TEXT,
    "metrics": NAMES, "source": TEXT, "config": MAPPING,
    "threads": (f"a whole number of 1 to {THREADS}", lambda value: _whole(value) and 1 <= value <= THREADS),
}  # fmt: skip
PERHAPS = {
    "entry": TEXT, "attempts": WHOLE, "error": OPTIONAL_TEXT, "traceback": OPTIONAL_TEXT, "started_at": OPTIONAL_TEXT,
    "ended_at": OPTIONAL_TEXT, "git": OPTIONAL_MAPPING, "versions": OPTIONAL_MAPPING, "hardware": OPTIONAL_MAPPING,
    "argv": ("a list of words", _list_of(_is(str, int, float))),
    "diverged": ("a list of whole numbers", _list_of(_whole)),
    "measured": ("a list of mappings", _list_of(_is(dict))), "data": OPTIONAL_MAPPING,
    "files": ("a mapping of texts", lambda value: _is(dict)(value) and all(map(_is(str), value.values()))),
}  # fmt: skip
WHOLE_RUN = {**ALWAYS, **STARTED}
CONFIG = {
    "train": MAPPING, "train.epochs": COUNT, "train.steps": COUNT, "train.batch_size": WHOLE,
    "tasks": MAPPING, "tasks._target_": TEXT, "model": MAPPING, "model._target_": TEXT,
    "optimizer": MAPPING, "optimizer._target_": TEXT, "optimizer.lr": ("a number", _number),
    "strategy": ("a mapping of mappings", lambda value: _is(dict)(value) and all(map(_is(dict), value.values()))),
}  # fmt: skip
CONFIG_PERHAPS = {
    "dataset": ("a mapping with a _target_", lambda value: _is(dict)(value) and _is(str)(value.get("_target_"))),
    "model.widths": ("a list of whole numbers or null", lambda value: value is None or _list_of(_whole)(value)),
    "model.dropout": ("a number", _number),
    "strategy.sam.rho": ("a number", _number),
    "tracker": OPTIONAL_MAPPING,
    "tuned": MAPPING,
    "dtype": ("float32 or float64", lambda value: value in ("float32", "float64")),
}


def read_manifest(run: Path, *, whole: bool = True) -> dict[str, Any]:
    """The manifest of the run in this folder, with all keys that other readers use (`whole`), or those of its start.

    Raises FileNotFoundError without a manifest, SchemaError under another schema version, and Damaged.
    """
    path = run / "manifest.json"
    regular(path)
    try:
        if path.stat().st_size > LARGEST:
            raise Damaged(path, f"larger than {LARGEST / 1e6:.0f} MB")
        facts = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise
    except RecursionError as error:
        raise Damaged(path, f"nested more than {DEEPEST} levels deep") from error
    except OSError as error:
        raise Damaged(path, error.strerror or first_line(error, 200)) from error
    except ValueError as error:
        raise Damaged(path, f"not JSON: {first_line(error, 200)}") from error
    if not isinstance(facts, dict):
        raise Damaged(path, "not a mapping")
    if "schema_version" in facts and _whole(facts["schema_version"]):
        check_version(run, facts["schema_version"])
    if wrong := _too_deep(facts) or _wrong(
        facts, WHOLE_RUN if whole else ALWAYS, PERHAPS if whole else {**STARTED, **PERHAPS}
    ):
        raise Damaged(path, wrong)
    if "config" in facts and (wrong := _wrong(facts["config"], CONFIG if whole else {}, CONFIG_PERHAPS, "config.")):
        raise Damaged(path, wrong)
    if "seeds" in facts and not {*facts.get("diverged", [])} <= {*facts["seeds"]}:
        raise Damaged(path, "diverged: names seeds that the run does not have")
    return facts


def _wrong(node: Mapping[str, Any], needed: Mapping[str, Kind], perhaps: Mapping[str, Kind], prefix: str = "") -> str:
    """What is wrong with the first key that lacks or has another type; empty if nothing is."""
    for kinds in (perhaps, needed):
        for key, (words, test) in kinds.items():
            value: Any = node.get(key, ...) if "." not in key else _at(node, key)
            if value is ...:
                if kinds is needed:
                    return f"{prefix}{key}: missing"
            elif not test(value):
                return f"{prefix}{key}={printable(str(value), 60)}: must be {words}"
    return ""


def _at(node: Any, key: str) -> Any:
    for part in key.split("."):
        node = node.get(part, ...) if isinstance(node, dict) else ...
    return node


def _too_deep(node: Any, levels: int = DEEPEST) -> str:
    if levels == 0:
        return f"nested more than {DEEPEST} levels deep"
    for value in node.values() if isinstance(node, dict) else node:
        if isinstance(value, (dict, list)) and (wrong := _too_deep(value, levels - 1)):
            return wrong
    return ""
