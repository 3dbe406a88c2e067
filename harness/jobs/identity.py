"""Which settings determine the numbers of a run, and the run that has them already. Imports no torch."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from harness import store
from harness.jobs.start import identified
from harness.store import sources
from harness.store.known import recall
from harness.store.provenance import versions
from harness.store.readers import run_paths

DRIVERS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")  # what a GPU's driver makes: NVIDIA, WSL, AMD
# older runs lack these keys: at its default, a key leaves ids alone
LATER = {"compile": "auto", "precision": None, "start": None}
LATER_IN: dict[str, dict[str, Any]] = {
    "model": {"init": "torch"},
    "tasks": {"interpolation": "linear"},
    "optimizer": {"floor": 0.0},
}
NUMBERS = ("torch", "numpy")  # packages that, with Python, draw the stream


def of_setting(cfg: Mapping[str, Any], data: tuple[str, str], threads: int, device: str) -> dict[str, Any]:
    """Exactly what determines the numbers, except strategy and seeds; of a configuration as `identified` gives it.

    `data` is the data set's name and digest.
    """
    budget = cfg["train"] if cfg["train"]["steps"] is None else {**cfg["train"], "epochs": None}
    later = {key: cfg[key] for key, default in LATER.items() if cfg.get(key, default) != default}
    groups = {group: _without(cfg[group], defaults) for group, defaults in LATER_IN.items()}
    return {
        **later,
        **{k: cfg[k] for k in ("scenario", "classes", "boundaries", "dtype", "pin")},
        **groups,
        "train": budget,
        "dataset": list(data),
        "samples": cfg["eval"]["samples"],
        "split": str(cfg["eval"]["split"]),
        "threads": threads,
        "device": device,
    }


def _without(node: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in node.items() if key not in defaults or value != defaults[key]}


def of_run(cfg: Mapping[str, Any], setting: Mapping[str, Any]) -> dict[str, Any]:
    """What determines the numbers of a run in this setting."""
    return {**setting, "strategy": cfg["strategy"], "seeds": list(cfg["seeds"]), "eval": cfg["eval"]["tasks"]}


def threads_of(cfg: Mapping[str, Any]) -> int:
    """CPU threads."""
    return int(cfg["threads"]) or os.cpu_count() or 1


def finished(cfg: Mapping[str, Any]) -> Path | None:
    """Say that the run of a configuration is finished, and return its folder; None if that is not certain.

    Certain without building anything: if its data set is known and unchanged (harness/store/known.py), its code too,
    and the device is the CPU. Otherwise harness/jobs/job.py builds all, and finds out.
    """
    if cfg["force"] is not False or not _on_cpu(str(cfg["device"])):
        return None
    data = recall(cfg["dataset"])
    if data is None:
        return None
    run_id = store.identity(of_run(cfg, of_setting(identified(cfg), data, threads_of(cfg), "cpu")))
    paths = [path for path in run_paths(Path(cfg["results"])) if path.name == run_id and (path / "DONE").exists()]
    if len(paths) != 1:
        return None
    stream, strategy = paths[0].parts[-3:-1]
    with store.RunFolder.open(cfg["results"], stream, strategy, run_id) as folder:
        now, then = versions(NUMBERS), folder.manifest.get("versions") or {}
        if not folder.done or sources.edited(folder.manifest) or any(now[k] != then.get(k) for k in now):
            return None
        told(folder, [name for name, one in cfg["metrics"].items() if one is not None])
        return folder.path


def told(folder: store.RunFolder, metrics: Collection[str]) -> None:
    """Print that a run is finished, and how it differs from what was asked for."""
    print(f"already finished: {folder.path} (force=true reruns it)")
    if changed := sources.edited(folder.manifest):
        print(f"it was made with different code ({sources.listed(changed)}): force=true replaces it,")
        print("force=beside keeps both")
    if more := sorted(set(metrics) - set(folder.manifest["metrics"])):
        taken = ", ".join(folder.manifest["metrics"]) or "off"
        print(f"it was measured with metrics {taken}; add the others with:")
        print(f"  python -m harness measure {shlex.quote(str(folder.path))} metrics=[{','.join(more)}]")


def _on_cpu(device: str) -> bool:
    """Whether a run would be on the CPU, as far as that is certain without torch."""
    return device == "cpu" or (device == "auto" and sys.platform == "linux" and not any(map(os.path.exists, DRIVERS)))
