"""The net of a finished run as the start of another: pretrain, then learn continually. Imports no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import store

if TYPE_CHECKING:
    from harness.learner import Initial
    from harness.types import Buffers, Model, Params


def identified(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with a digest of the net that it starts from in place of the run's folder."""
    if cfg.get("start") is None:
        return dict(cfg)
    with store.RunFolder.reopen(Path(cfg["start"])) as folder:
        own = (folder.path / "nets" / f"{_last(folder)}.pt").read_bytes() + str(folder.manifest["seeds"]).encode()
    return {**cfg, "start": hashlib.sha256(own).hexdigest()[:12]}


def initial(model: Model, cfg: Mapping[str, Any]) -> Initial | None:
    """The weights and running statistics of the net that a run starts from, without its read-out; None if it has none.

    A run of one seed gives its net to every seed, another gives each seed its own. ValueError if its model is another,
    or if it lacks a seed; StoreError if it is not a finished run, or damaged.
    """
    run = cfg.get("start")
    if run is None:
        return None
    with store.RunFolder.reopen(Path(run)) as folder:
        kept, manifest = folder.net(_last(folder)), folder.manifest
    theirs, ours = manifest["config"]["model"], cfg["model"]
    if other := [key for key in {**theirs, **ours} if theirs.get(key) != ours.get(key)]:
        key = other[0]
        raise ValueError(f"start={run}: has model.{key}={theirs.get(key)}, and this run {ours.get(key)}; use the same")
    own = list(manifest["seeds"])
    if missing := [seed for seed in cfg["seeds"] if seed not in own and len(own) > 1]:
        raise ValueError(f"start={run}: has the seeds {own}, and not {missing}; use seeds={str(own).replace(' ', '')}")

    def chosen(seeds: Sequence[int]) -> tuple[Params, Buffers]:
        places = [0 if len(own) == 1 else own.index(seed) for seed in seeds]
        params = {k: v[places] for k, v in kept["params"].items() if k not in model.head}
        return params, {k: v[places] for k, v in kept["buffers"].items()}

    return chosen


def _last(folder: store.RunFolder) -> int:
    """The last boundary whose net a finished run has."""
    kept = [int(path.stem) for path in (folder.path / "nets").glob("*.pt") if path.stem.isdigit()]
    if not kept:
        raise store.StoreError(f"{folder.path}: has no net after its last task; rerun it with force=true")
    return max(kept)
