"""A small run that is written, killed and read in the tests of the store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from harness.store import RunFolder
from tests.harness.folders import CONFIG

SEEDS = (3, 4)


def rows(t: int) -> dict[str, Any]:
    """Deterministic rows of boundary t, as a repeat of the run would make them."""
    draw = np.random.default_rng(t + 10)
    return {
        "metrics": {"seed": list(SEEDS), "metric": "forgetting", "value": draw.random(2), "better": "lower"},
        "accuracy": {"seed": [3, 3, 4, 4], "task": [0, 1, 0, 1], "accuracy": draw.random(4), "n": 50},
        "curves": [{"seed": s, "step": 10 * k, "loss": 1.0 / (k + 1)} for s in SEEDS for k in range(3)],
        "timing": [{"part": "train", "seconds": 0.5}],
    }


def state(t: int) -> dict[str, Any]:
    return {"w": torch.full((2, 3), float(t)), "count": t, "nested": [(1, "a", None)]}


FACTS: dict[str, Any] = {
    "purpose": "run", "setting": "s", "seeds": SEEDS, "stream_version": 1, "stream_hash": "h", "split": "test",
    "metrics": [], "source": "", "threads": 1, "config": CONFIG | {"strategy": {}},
}  # fmt: skip


def advance(run: RunFolder, *boundaries: int) -> None:
    if "config" not in run.manifest:
        run.update_manifest(**{key: value for key, value in FACTS.items() if key not in run.manifest})
    for t in boundaries:
        run.append(t, "end", rows(t))
        run.commit(t, state(t), {"params": {"w": torch.full((2,), float(t))}, "buffers": {}})


def begin(root: Path, **options: Any) -> RunFolder:
    return RunFolder.open(root, "permuted", "ewc", "abc", **options)


def tables(path: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(path.glob("*.parquet"))}
