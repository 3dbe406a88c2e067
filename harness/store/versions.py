"""Tables of schema version 1 as tables of version 2; results/SCHEMA.md lists the changes."""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

from harness.store.entries import columns
from harness.store.manifest import read_manifest

# version 1 named one net for all columns of a metric
NETS = {
    "online_accuracy": "trained", "readout_gap_task": "both", "forgetting_shallow": "both",
    "forgetting_shallow_task": "both", "intransigence": "deployed",
    **dict.fromkeys(("trainability_gap", "fresh_score", "plain_score", "memory", "extra_parameters"), ""),
    **dict.fromkeys(("hessian_products", "gradients", "forward_passes", "forward_rows"), ""),
}  # fmt: skip
RENAMED = {"intransigence": "intransigence_deployed"}
ADDED = ("setting", "entry", "diverged")  # columns that version 1 does not have


def upgraded(name: str, table: Any, folder: Path) -> Any:
    """A table of version 1 in the form of this one; `folder` has the run's manifest."""
    import pyarrow as pa

    facts = read_manifest(folder, whole=False)
    added: dict[str, list[Any]] = {column: [value] * len(table) for column, value in columns(facts).items()}
    if name == "metrics":
        metric, net = (table[column].to_pylist() for column in ("metric", "net"))
        added["diverged"] = _diverged(table, facts.get("diverged", []))
        added["net"] = [NETS.get(m, n) for m, n in zip(metric, net)]
        added["metric"] = [RENAMED.get(m, m) for m in metric]
        added["schema_version"] = [2] * len(table)
        table = table.drop_columns(["net", "metric", "schema_version"])
    for column, values in added.items():
        table = table.append_column(column, pa.array(values, pa.string() if column in ("setting", "entry") else None))
    return table


def _diverged(table: Any, lost: Collection[int]) -> list[bool]:
    """Whether the row's seed had diverged: it has no value there, in any row."""
    rows = [table[column].to_pylist() for column in ("seed", "boundary", "phase")]
    places = list(zip(*rows))
    alive = {place for place, value in zip(places, table["value"].to_pylist()) if not math.isnan(value)}
    return [place[0] in lost and place not in alive for place in places]
