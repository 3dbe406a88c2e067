"""What has been run: rows of protocols found among finished runs, and kept in verified.parquet.

A result counts for a row while two things are as they were: the settings that determine its numbers, and the code of
its method: the strategy, the stream, the model, and what they import of METHOD beyond what every run imports. The
loaders of data sets are left out: every stream imports all of them, whichever it loads. After an edit of that code, a
result still counts if its trace is the same (harness/verify/trace.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from harness import store
from harness.config.catalogue import targets
from harness.jobs.identity import of_run, of_setting
from harness.leaderboard.determined import COLUMNS, matrix
from harness.stats import Array, counted
from harness.store import sources
from harness.store.readers import finished, read
from harness.store.scores import lowest, scores
from harness.verify.protocol import Row

NAME = "verified.parquet"
GROUPS = ("strategy", "tasks", "model")  # whose code is the row's own
METHOD = ("harness.toolbox.", "harness.landscape.", "harness.models.")  # rooms in which an edit may change a method
DATA = "tasks.datasets"


@dataclass(frozen=True)
class Result:
    """A finished run of a row."""

    row: str  # protocol/row
    key: str  # of its settings
    method: str  # digest of its code
    score: str  # of protocol.SCORES
    seeds: tuple[int, ...]
    scores: tuple[float, ...]  # percent, of each seed; a diverged seed has the lowest possible score
    diverged: tuple[int, ...]
    commit: str
    clean: bool  # whether the code was that of the commit
    command: str
    run_id: str
    seconds: float  # of training and evaluation
    ended_at: str
    machine: str
    trace: tuple[float, ...] = ()  # losses; empty if not yet made

    @property
    def values(self) -> Array:
        return np.array(self.scores)


def key_of(cfg: Mapping[str, Any]) -> str:
    """A hash of what determines the numbers: all settings of a run but its machine's and the place of its data."""
    data = json.dumps({k: v for k, v in cfg["dataset"].items() if k != "root"}, sort_keys=True)
    return store.identity(of_run(cfg, of_setting(cfg, (data, ""), 0, "")))


def method_of(cfg: Mapping[str, Any], files: Mapping[str, str] | None = None) -> str:
    """Digest of the code of a run's strategy, stream and model, as it is, or as the files of its manifest were."""
    found = sources.files(targets([cfg[group] for group in GROUPS])) if files is None else files
    rooms = {name: sha for name, sha in found.items() if not name.startswith("harness") or name.startswith(METHOD)}
    own = {name: sha for name, sha in rooms.items() if name not in _core() and not name.startswith(DATA)}
    return sources.digest(own)[:12]


@cache
def _core() -> frozenset[str]:
    """Modules that every run imports; cached, as each row and run asks for them."""
    return frozenset(sources.files([]))


def collect(rows: Iterable[tuple[str, Row]], folder: Path, notes: list[str]) -> list[Result]:
    """The finished runs of a results folder that are of these rows, each with its key, as results.

    A run that is of several rows is one result for each score.
    """
    wanted = {(key, row.score): row for key, row in rows}
    found = []
    for run in finished([folder], {"split": "test"}, notes):
        key = key_of(run.manifest["config"])
        found += [_result(row, key, run) for (of, _), row in wanted.items() if of == key]
    return found


def current(found: Iterable[Result], key: str, method: str, score: str) -> Result | None:
    """The latest result with these settings, this code and this score; None if there is none."""
    return _latest(result for result in found if (result.key, result.method, result.score) == (key, method, score))


def traced(found: Iterable[Result], key: str, score: str) -> Result | None:
    """The latest result with these settings and this score that has a trace, of whatever code."""
    return _latest(result for result in found if (result.key, result.score) == (key, score) and result.trace)


def _latest(found: Iterable[Result]) -> Result | None:
    return max(found, key=lambda result: result.ended_at, default=None)


def load(path: Path) -> list[Result]:
    """The results in a file; none if it does not exist. ValueError if it is not a file of `save`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.exists():
        return []
    try:
        records = pq.read_table(path, schema=_schema()).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: not a table of results; remove it, or name another folder with --out") from error
    fields_of: list[dict[str, Any]] = [
        {key: tuple(value) if isinstance(value, list) else value for key, value in record.items()} for record in records
    ]
    return [Result(**values) for values in fields_of]


def save(found: Sequence[Result], path: Path) -> None:
    """Write results, one row each, atomically."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    ordered = sorted(found, key=lambda result: (result.row, result.ended_at))
    table = pa.Table.from_pylist([asdict(result) for result in ordered], schema=_schema())
    path.parent.mkdir(parents=True, exist_ok=True)
    with store.replacing(path) as tmp:
        pq.write_table(table, tmp)


def _schema() -> Any:
    import pyarrow as pa

    kinds = {
        "str": pa.string(),
        "bool": pa.bool_(),
        "float": pa.float64(),
        "tuple[int, ...]": pa.list_(pa.int64()),
        "tuple[float, ...]": pa.list_(pa.float64()),
    }
    return pa.schema([(field.name, kinds[str(field.type)]) for field in fields(Result)])


def _result(row: Row, key: str, run: store.Run) -> Result:
    about = run.manifest
    seeds, diverged = about["seeds"], about.get("diverged", [])
    found = MEANS[row.score](run)
    value = 100 * counted(found, np.isin(seeds, diverged), lowest(found))
    git = about.get("git") or {}
    return Result(
        row.name, key, method_of(about["config"], about["files"]), row.score, tuple(seeds), tuple(value.tolist()),
        tuple(diverged), str(git.get("commit", "")), not git.get("dirty", True), _command(about["argv"]),
        about["run_id"], _seconds(run), about["ended_at"], _machine(about["hardware"]),
    )  # fmt: skip


def _average(run: store.Run) -> Array:
    """Average accuracy after the last task: [seeds]."""
    table = read([run], "accuracy", COLUMNS)
    r, _ = matrix(table, run.manifest["seeds"], 1 + int(table.boundary.max()))
    return scores(r)["average_accuracy"][:, -1]


def _online(run: store.Run) -> Array:
    """Mean over all steps of the accuracy before the update: [seeds]. A row of the curves is the mean of several."""
    table = read([run], "curves", ("seed", "boundary", "step", "online_accuracy"))
    table = table.sort_values(["seed", "boundary", "step"])
    steps = table.step - table.groupby(["seed", "boundary"]).step.shift(1, fill_value=0)
    sums = (steps * table.online_accuracy).groupby(table.seed).sum() / steps.groupby(table.seed).sum()
    return sums.reindex(run.manifest["seeds"]).to_numpy(dtype=float)


MEANS: dict[str, Callable[[store.Run], Array]] = {"average_accuracy": _average, "online_accuracy": _online}


def _seconds(run: store.Run) -> float:
    timing = read([run], "timing", ("part", "seconds"))
    return float(timing.seconds[~timing.part.isin(("step", "plain step"))].sum())  # those are of one step


def _machine(found: Mapping[str, Any]) -> str:
    return f"{found['cpu']}, {found['threads']} thread{'s' * (found['threads'] != 1)}"


def _command(argv: Sequence[str]) -> str:
    """What was typed, with the place of the data left out."""
    words = [word for word in argv[1:] if not word.startswith(("results=", "tracker."))]
    return " ".join(
        ["python -m harness", *("dataset.root=DATA" if w.startswith("dataset.root=") else w for w in words)]
    )
