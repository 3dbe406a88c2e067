"""Results folders written without training: one run a call, with the values it is to have."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from harness import store
from harness.store.entries import defaults

CONFIG: dict[str, Any] = {
    "train": {"epochs": 2, "steps": None, "batch_size": 32},
    "tasks": {"_target_": "tasks.permuted.permuted", "n_tasks": 3},
    "model": {"_target_": "harness.models.mlp.MLP", "widths": [10]},
    "optimizer": {"_target_": "harness.optim.SGD", "lr": 0.1},
}


def write(
    root: Path,
    strategy: str,
    accuracy: Sequence[float],  # average accuracy at the end, of each seed
    *,
    seeds: Sequence[int] = (),
    stream: str = "toy_domain",
    settings: Mapping[str, Any] | None = None,  # of the strategy
    metrics: Mapping[str, Sequence[Sequence[float]]] | None = None,  # name -> [boundary][seed]
    step: float = 2.0,
    plain: bool = True,  # a plain step was timed beside it
    tasks: int = 3,
    done: bool = True,
    force: bool = False,
    version: int = 1,  # 2: kept beside the first
    **manifest: Any,
) -> Path:
    """The folder of one finished run (`done=False`: cut short)."""
    seeds = list(seeds or range(len(accuracy)))
    spec = {strategy: {**(defaults(strategy) or {"_target_": f"strategies.{strategy}.X"}), **(settings or {})}}
    facts = {
        "setting": "a" * 12, "stream_version": 1, "stream_hash": "h", "split": "test", "purpose": "run",
        "source": "s" * 64, "config": {**CONFIG, "strategy": spec}, "argv": ["harness", f"strategy={strategy}"],
        "metrics": [], "threads": 1, "diverged": [], **manifest,
    }  # fmt: skip
    given = {
        "average_accuracy": [[0.9] * len(seeds)] * (tasks - 1) + [list(accuracy)],
        "learning_accuracy": [[0.8] * len(seeds)] * tasks,
        "forgetting": [[math.nan] * len(seeds)] + [[0.1] * len(seeds)] * (tasks - 1),
        "memory": [[100.0] * len(seeds)] * tasks,
        **(metrics or {}),
    }

    def lost(t: int, i: int) -> bool:  # a diverged seed has no value at all from some boundary on
        known = [values[t][i] for name, values in given.items() if values[t] and name != "memory"]
        return seeds[i] in facts["diverged"] and bool(known) and all(map(math.isnan, known))

    gone = {(t, i): lost(t, i) for t in range(tasks) for i in range(len(seeds))}
    run_id = store.identity({"s": stream, "spec": spec, "seeds": seeds, "to": facts["setting"], "d": done})
    run_id += f"-{version}" if version > 1 else ""
    with store.RunFolder.open(root, stream, strategy, run_id, scenario="domain", force=force) as run:
        run.update_manifest(seeds=seeds, **facts)
        for t in range(tasks):
            rows = [
                {
                    "seed": s,
                    "metric": name,
                    "value": math.nan if gone[t, i] else values[t][i],
                    "diverged": gone[t, i],
                }
                for name, values in given.items()
                if values[t]
                for i, s in enumerate(seeds)
            ]
            parts = {"step": step, "train": 3.0} | ({"plain step": 1.0} if plain else {})
            cells = [
                {
                    "seed": s,
                    "task": j,
                    "accuracy": math.nan if gone[t, i] else 0.9 - 0.1 * (t - j),
                    "loss": 0.5,
                    "n": 10,
                }
                for i, s in enumerate(seeds)
                for j in range(t + 1)
            ]
            tables = {
                "metrics": rows,
                "accuracy": cells,
                "timing": [{"part": p, "seconds": v, "peak_memory": 1e8} for p, v in parts.items()],
                "curves": [{"seed": s, "step": 1, "online_accuracy": 0.5, "loss": 1.0} for s in seeds],
            }
            run.append(t, "end", tables)
            run.commit(t, {})
        if done:
            run.finish(diverged=facts["diverged"])
    return run.path


def edit(path: Path, **changes: Any) -> None:
    """Change the manifest of a finished run behind its back."""
    file = path / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def copies(source: Path, root: Path, count: int) -> None:
    """Many run folders out of one, with all its tables: other streams, strategies and run_ids."""
    facts = json.loads((source / "manifest.json").read_text())
    tables = {name: pq.ParquetFile(source / f"{name}.parquet").read() for name in store.SCHEMAS}
    for i in range(count):
        stream, strategy, run_id = f"s{i % 40}_domain", f"m{i // 40}", store.identity({"i": i})
        path = root / "runs" / stream / strategy / run_id
        os.makedirs(path)
        named: dict[str, Any] = {"stream": stream, "strategy": strategy, "run_id": run_id, "entry": strategy}
        named["setting"] = store.identity({"s": stream})
        texts = {**named, "setting": f"{named['setting']}@{facts['stream_version']}"}
        for name, rows in tables.items():
            for column in texts.keys() & {*rows.column_names}:
                at, value = rows.schema.get_field_index(column), pa.array([texts[column]] * len(rows))
                rows = rows.set_column(at, rows.schema.field(at), value)
            pq.write_table(rows, path / f"{name}.parquet", compression="zstd")
        named["config"] = {**facts["config"], "strategy": {strategy: {}}}
        (path / "manifest.json").write_text(json.dumps({**facts, **named}))
        (path / "DONE").touch()
