"""Names on disk: the identity of a configuration, and folder names that are safe."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any


def identity(config: Mapping[str, Any]) -> str:
    """Name of a configuration: 12 hex digits of the sha256 of its canonical JSON.

    The caller passes exactly what determines the numbers (stream and its version, strategy, model, optimizer, budget,
    seeds, threads, device type, dtype), never tracker or metrics. Without strategy and seeds, the result names the
    setting within which runs are compared. The order of keys does not matter, the order of lists does; 1 and 1.0 are
    the same number, True and 1 are not. ValueError for a value that JSON cannot hold.

    >>> identity({"lr": 1.0, "seeds": (0, 1)}) == identity({"seeds": [0, 1], "lr": 1})
    True
    >>> identity({"strategy": ["ewc", "replay"]}) == identity({"strategy": ["replay", "ewc"]})
    False
    """
    text = json.dumps(_canonical(config, "config"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _canonical(value: Any, key: str) -> Any:
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return int(value) if value.is_integer() else value
    if isinstance(value, Mapping):
        if odd := [k for k in value if not isinstance(k, str)]:
            raise ValueError(f"{key}: key {odd[0]!r} is not a string; a run's identity needs string keys")
        return {k: _canonical(v, f"{key}.{k}") for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_canonical(v, f"{key}.{i}") for i, v in enumerate(value)]
    raise ValueError(
        f"{key}={value!r}: a {type(value).__name__} cannot be part of a run's identity; use numbers, strings, lists"
        " and mappings"
    )


def slug(name: str, limit: int = 80) -> str:
    """A folder name: letters, digits and ._+- only, no leading dot, at most `limit` characters.

    >>> slug("../../x"), slug("replay+ewc"), slug("a b/c")
    ('-..-x', 'replay+ewc', 'a-b-c')
    """
    text = re.sub(r"[^A-Za-z0-9._+-]+", "-", name).lstrip(".") or "unnamed"
    if len(text) <= limit:
        return text
    return f"{text[: limit - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
