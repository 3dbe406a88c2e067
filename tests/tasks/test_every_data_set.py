"""What every data set keeps, whatever it is read from: the contract of harness/contract/datasets.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from harness.contract.datasets import CHECKS, Case
from tasks.datasets import csv, folder, function, load, npz, parquet
from tests.tasks import test_datasets


def numbers(n: int = 90) -> tuple[Any, Any]:
    return np.random.default_rng(0).normal(3.0, 2.0, (n, 4)), np.arange(n) % 3


def pictures(path: Path) -> None:
    draw = np.random.default_rng(0)
    for part, n in (("train", 12), ("test", 4)):
        for name in ("cat", "dog"):
            (path / part / name).mkdir(parents=True)
            for i in range(n):
                Image.fromarray(draw.integers(0, 256, (6, 6, 3)).astype(np.uint8)).save(path / part / name / f"{i}.png")


def table(path: Path) -> pd.DataFrame:
    x, y = numbers()
    return pd.DataFrame(x, columns=list("abcd")).assign(kind=[("red", "green", "blue")[label] for label in y])


def read(kind: str, path: Path) -> Callable[..., Any]:
    """A loader of some small data of this kind."""
    x, y = numbers()
    if kind == "npz":
        np.savez(path / "d.npz", x=x, y=y)
        return lambda **how: npz(path / "d.npz", **how)
    if kind == "csv":
        table(path).to_csv(path / "d.csv", index=False)
        return lambda **how: csv(path / "d.csv", label="kind", **how)
    if kind == "parquet":
        table(path).to_parquet(path / "d.parquet")
        return lambda **how: parquet(path / "d.parquet", label="kind", **how)
    if kind == "folder":
        pictures(path / "photos")
        return lambda **how: folder(path / "photos", **how)
    if kind == "function":
        return lambda **how: function((x, y), **how)
    if kind == "idx":
        test_datasets.write(path / "KMNIST" / "raw", test_datasets.arrays(60, 20))
        return lambda **how: load("kmnist", path, **how)
    return lambda **how: load("digits", **how)


@pytest.mark.parametrize("normalise", ["standard", "unit"])
@pytest.mark.parametrize("kind", ["digits", "idx", "npz", "csv", "parquet", "folder", "function"])
def test_it_keeps_the_contract(kind: str, normalise: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    make = read(kind, tmp_path)
    # a published constant is not that of a few random pictures
    said = "none" if (kind, normalise) == ("idx", "standard") else normalise
    case = Case(lambda **changes: make(**{"normalise": normalise, **changes}), said, ("val", "normalise"))
    for check in CHECKS.values():
        check(case)
