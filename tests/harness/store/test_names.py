"""Run ids and folder names."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness import store
from harness.store import RunFolder


@pytest.mark.parametrize(
    "name", ["../../x", "/etc/x", "..", ".", "", "a/../../../b", ".hidden", "-\n;rm", "x" * 500, "é ü"]
)
def test_no_name_leaves_the_results_folder(tmp_path: Path, name: str) -> None:
    root = tmp_path / "results"
    for names in ((name, "s", "r"), ("t", name, "r"), ("t", "s", name)):
        with RunFolder.open(root, *names) as run:
            parts = run.path.relative_to(root).parts
            assert len(parts) == 4 and parts[0] == "runs"
            assert all(p and not p.startswith(".") and len(p) <= 80 for p in parts)
            assert run.path.resolve().is_relative_to(root.resolve())
            # the tables still hold the name as it was given
            run.append(0, "end", {"metrics": {"seed": 0, "metric": "m", "value": 1.0}})
            assert run.table("metrics")["stream"].to_pylist() == [names[0]]
    assert [p.name for p in tmp_path.iterdir()] == ["results"]


def test_long_names_stay_apart() -> None:
    a, b = store.slug("x" * 100 + "a"), store.slug("x" * 100 + "b")
    assert a != b and len(a) == len(b) == 80


def test_identity_is_pinned() -> None:
    # a change of this value orphans every result that anybody has
    assert store.identity({"strategy": {"ewc": {"lam": 1.0}}, "seeds": [0, 1], "dtype": "float32"}) == "2dfc3a7e6cdc"


def test_identity_tells_apart_what_differs() -> None:
    configs = [{"a": v} for v in (1, 2, True, "1", None, [1], [[1]], {"b": 1}, 1.5, 1e-3, math.nan, [1, 2], [2, 1])]
    assert len({store.identity(c) for c in configs}) == len(configs)
    assert store.identity({"a": 1, "b": 2}) == store.identity({"b": 2.0, "a": 1})


@pytest.mark.parametrize("value", [np.float64(2), Path("x"), {1: 2}, {2, 3}])
def test_identity_refuses_what_has_no_canonical_text(value: Any) -> None:
    if isinstance(value, np.float64):
        assert store.identity({"a": value}) == store.identity({"a": 2})  # a float like any other
        return
    with pytest.raises(ValueError, match=r"config\.a"):
        store.identity({"a": value})
