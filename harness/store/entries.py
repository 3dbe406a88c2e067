"""What tables and leaderboard call a run: its setting and its entry, which depend on the run alone.

A name that said only in what a run differs from the others in its folder would change with the folder, so a table could
not hold it. An entry therefore says what differs from the defaults in conf/strategy: `ewc[strength=100]`. Strategies
that are not there have no defaults that others know, and show all their values.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from harness.config.catalogue import options

WORD = re.compile(r"[A-Za-z_][\w./-]*")


def columns(facts: Mapping[str, Any]) -> dict[str, str]:
    """The columns `setting` and `entry` of a run, from its manifest; both are as far as known if it has just begun."""
    return {"setting": setting_of(facts), "entry": entry_of(facts)}


def setting_of(facts: Mapping[str, Any]) -> str:
    """A run's setting with the version of its stream, which is not part of the hash."""
    return f"{facts['setting']}@{facts['stream_version']}" if "stream_version" in facts else ""


def entry_of(facts: Mapping[str, Any]) -> str:
    """A run's entry: as it was recorded, or from its configuration (schema version 1)."""
    known = facts.get("entry")
    return known or named(facts["strategy"], facts.get("config", {}).get("strategy", {}), facts["run_id"])


def named(strategy: str, spec: Mapping[str, Any], run_id: str = "") -> str:
    """The entry of a strategy with this configuration; `strategy` has the labels of its parts, joined by +.

    `@2` is the second version of a run: other code made the first, and force=beside kept both.

    >>> named("ewc", {"ewc": {"_target_": "strategies.ewc.EWC", **defaults("ewc"), "strength": 100.0}})
    'ewc[strength=100]'
    >>> named("naive", {"naive": {"_target_": "strategies.naive.Naive"}}, "c14b0e72a0b5-2")
    'naive@2'
    """
    labels = strategy.split("+")
    if len(labels) != len(spec):
        labels = list(spec) or [strategy]
    parts = [label + _values(label, key, spec.get(key, {})) for label, key in zip(labels, spec or labels)]
    again = re.fullmatch(r"[0-9a-f]{12}-(\d+)", run_id)
    return "+".join(parts) + (f"@{again[1]}" if again else "")


def base(entry: str) -> str:
    """An entry without its version.

    >>> base("ewc[strength=100]@2"), base("ewc")
    ('ewc[strength=100]', 'ewc')
    """
    return re.sub(r"@\d+$", "", entry)


def _values(label: str, key: str, node: Mapping[str, Any]) -> str:
    plain, mine = defaults(key), dict(leaves(node))
    if plain.get("_target_", ...) != mine.get("_target_"):
        mine = mine if plain else {k: v for k, v in mine.items() if k != "_target_"}
        plain = {}
    said = [
        f"{k}={word(v)}"
        for k, v in mine.items()
        if (k not in plain or word(v) != word(plain[k])) and label != f"{key}_{v}"  # a label may name a value
    ]
    said += [f"no {k}" for k in plain if k not in mine]
    return f"[{','.join(said)}]" if said else ""


@cache
def defaults(key: str) -> dict[str, Any]:
    """The values in conf/strategy/KEY.yaml by dotted key, without any preset; {} if there is no such file."""
    from omegaconf import OmegaConf

    file = options("strategy").get(key)
    node: Any = OmegaConf.to_container(OmegaConf.load(file), resolve=True) if file else {}
    return dict(leaves(node.get(key, {})))


def leaves(node: Any, prefix: str = "") -> Iterable[tuple[str, Any]]:
    """The values of a configuration by dotted key.

    >>> dict(leaves({"ewc": {"strength": 1.0, "options": {"mode": None}}}))
    {'ewc.strength': 1.0, 'ewc.options.mode': None}
    """
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from leaves(value, f"{prefix}.{key}" if prefix else str(key))
    elif prefix:
        yield prefix, node


def word(value: Any) -> str:
    """A value as a user may type it; equal numbers have equal words, and different values different ones.

    >>> [word(v) for v in (100.0, 1e-6, None, True, "sum", "1", "null", [85, 0.5])]
    ['100', '1e-06', 'null', 'true', 'sum', '"1"', '"null"', '[85,0.5]']
    """
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e16:
        return str(int(value))
    if isinstance(value, str):
        return value if WORD.fullmatch(value) and value not in ("null", "true", "false") else json.dumps(value)
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(word, value))}]"
    return json.dumps(value)
