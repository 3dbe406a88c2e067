"""One folder a run: a locked writer, four tables, two checkpoints, and readers that take no lock.

    results/runs/<stream>/<strategy>/<run_id>/
        config.yaml  manifest.json  metrics.parquet  accuracy.parquet  curves.parquet  timing.parquet
        checkpoint.pt  checkpoint.previous.pt  nets/initial.pt  nets/<t>.pt  lock  DONE

Order at a boundary: tables, then the net, then the checkpoint, each written under a temporary name,
flushed and renamed. A kill between any two leaves tables that are ahead of the checkpoint, never
behind it, and `resume` drops what is ahead. results/SCHEMA.md documents every column.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import re
import shutil
import socket
import time
import traceback
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

SCHEMA_VERSION = 1

# plain names, so that importing this module costs no pyarrow
SCHEMAS: dict[str, dict[str, str]] = {
    "metrics": {
        "run_id": "string", "stream": "string", "scenario": "string", "strategy": "string",
        "seed": "int64", "boundary": "int64", "phase": "string", "net": "string", "task": "int64",
        "metric": "string", "axis": "string", "coord": "string", "value": "float64",
        "stderr": "float64", "better": "string", "schema_version": "int64",
    },
    "accuracy": {
        "run_id": "string", "seed": "int64", "boundary": "int64", "task": "int64", "split": "string",
        "accuracy": "float64", "loss": "float64", "n": "int64",
    },
    "curves": {
        "run_id": "string", "seed": "int64", "boundary": "int64", "step": "int64",
        "online_accuracy": "float64", "loss": "float64",
    },
    "timing": {
        "run_id": "string", "boundary": "int64", "part": "string", "seconds": "float64",
        "peak_memory": "float64",
    },
}  # fmt: skip
DEFAULTS: dict[str, Any] = {  # of columns that a row may leave out; every float may, and is NaN
    "net": "trained", "task": -1, "axis": "", "coord": "", "better": "", "split": "test",
}  # fmt: skip

INITIAL = -1  # the boundary before the first task
_SMALL = 20_000  # rows below which a table is rewritten whole at every boundary (measured: under 10 ms)
_OWN = ("config.yaml", "manifest.json", "checkpoint.pt", "checkpoint.previous.pt", "nets", "parts")

Rows = Sequence[Mapping[str, Any]] | Mapping[str, Any]  # dicts, or columns (arrays; scalars broadcast)


class StoreError(ValueError):
    """The results folder cannot be written or read as asked: one line that names it."""


class RunLocked(StoreError):
    """Another process holds the run."""


class SchemaError(StoreError):
    """The run was written under another schema version."""


def identity(config: Mapping[str, Any]) -> str:
    """Name of a configuration: 12 hex digits of the sha256 of its canonical JSON.

    The caller passes exactly what determines the numbers (stream and its version, strategy, model,
    optimizer, budget, seeds, threads, device type, dtype), never tracker or metrics. The same function
    without strategy and seeds names the setting that runs are compared within. The order of keys does
    not matter, the order of lists does; 1 and 1.0 are the same number, True and 1 are not.

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
            raise ValueError(f"{key}: key {odd[0]!r} is no string, so that it has no place in a run's identity")
        return {k: _canonical(v, f"{key}.{k}") for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_canonical(v, f"{key}.{i}") for i, v in enumerate(value)]
    raise ValueError(f"{key}={value!r}: a {type(value).__name__} has no place in a run's identity")


def slug(name: str, limit: int = 80) -> str:
    """A folder name: letters, digits and ._+- only, no leading dot, at most `limit` characters.

    >>> slug("../../x"), slug("replay+ewc"), slug("a b/c")
    ('-..-x', 'replay+ewc', 'a-b-c')
    """
    text = re.sub(r"[^A-Za-z0-9._+-]+", "-", name).lstrip(".") or "unnamed"
    if len(text) <= limit:
        return text
    return f"{text[: limit - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def now() -> str:
    """UTC time, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


# --- tables -------------------------------------------------------------------------------------


def schema(name: str, boundary: int | None = None, after: int | None = None) -> Any:
    """The pyarrow schema of a table; its metadata say up to which boundary the file is complete."""
    import pyarrow as pa

    state = {"schema_version": SCHEMA_VERSION, "boundary": boundary, "after": after}
    types = {"string": pa.string(), "int64": pa.int64(), "float64": pa.float64()}
    return pa.schema(
        [pa.field(column, types[kind], nullable=False) for column, kind in SCHEMAS[name].items()],
        metadata={"harness": json.dumps(state)},
    )


def _table(name: str, rows: Rows, fill: Mapping[str, Any]) -> Any:
    """Rows or columns as a pyarrow table; a copy, so that the caller may reuse its arrays."""
    import numpy as np
    import pyarrow as pa

    if name not in SCHEMAS:
        raise ValueError(f"table {name!r}: no such table; tables are {', '.join(SCHEMAS)}")
    if not len(rows):
        return schema(name).empty_table()
    kinds = SCHEMAS[name]
    given: dict[str, Any]
    if isinstance(rows, Mapping):
        given = {k: v.detach().cpu().numpy() if hasattr(v, "detach") else v for k, v in rows.items()}
    else:
        names = {k for row in rows for k in row}
        given = {k: [row.get(k, _default(k, kinds.get(k, ""), fill)) for row in rows] for k in names}
    if unknown := sorted(given.keys() - kinds.keys()):
        raise ValueError(f"{name}.{unknown[0]}: no such column; columns are {', '.join(kinds)}")
    sizes = {k: len(v) for k, v in given.items() if not isinstance(v, str) and np.ndim(v) > 0}
    n = max(sizes.values(), default=1)
    if wrong := [k for k, size in sizes.items() if size != n]:
        raise ValueError(f"{name}.{wrong[0]}: {sizes[wrong[0]]} values for {n} rows; columns must be equally long")
    arrays = []
    for column, kind in kinds.items():
        value = given[column] if column in given else _default(column, kind, fill)
        if value is None and kind != "float64":
            raise ValueError(f"{name}.{column}: missing; every row needs it")
        if kind == "string":
            if column in sizes:
                arrays.append(pa.array([_text(v) for v in _plain_list(value)], pa.string()))
            else:
                arrays.append(pa.repeat(_text(value), n))
            continue
        if kind == "int64" and isinstance(value, list) and None in value:
            raise ValueError(f"{name}.{column}: missing in row {value.index(None)}; every row needs it")
        array = np.asarray([math.nan if v is None else v for v in value] if isinstance(value, list) else value)
        if kind == "int64" and array.size and array.dtype.kind not in "iub":
            raise ValueError(f"{name}.{column}: {array.flat[0]!r} is no integer")
        dtype = np.int64 if kind == "int64" else np.float64
        arrays.append(pa.array(np.broadcast_to(array.astype(dtype), n).copy()))
    return pa.Table.from_arrays(arrays, schema=schema(name))


def _default(column: str, kind: str, fill: Mapping[str, Any]) -> Any:
    return fill.get(column, DEFAULTS.get(column, math.nan if kind == "float64" else None))


def _plain_list(values: Any) -> list[Any]:
    return values.tolist() if hasattr(values, "tolist") else list(values)


def _text(value: Any) -> str:
    """Text of a coordinate: numbers as Python writes them, so that float() and int() read them back."""
    value = value.item() if hasattr(value, "item") else value
    return value if isinstance(value, str) else "" if value is None else repr(value)


def _concat(name: str, tables: Sequence[Any]) -> Any:
    """One table of one chunk a column: hundreds of boundaries would leave hundreds of crumbs."""
    import pyarrow as pa

    return pa.concat_tables([schema(name).empty_table(), *tables]).combine_chunks()


def _write_table(path: Path, table: Any, name: str, boundary: int, after: int | None = None) -> None:
    import pyarrow.parquet as pq

    floats = [c for c, kind in SCHEMAS[name].items() if kind == "float64"]
    with replacing(path) as tmp:
        pq.write_table(
            table.cast(schema(name, boundary, after)),
            tmp,
            compression="zstd",
            use_dictionary=[c for c in SCHEMAS[name] if c not in floats],
            use_byte_stream_split=floats,  # half the time of a dictionary of distinct floats, and smaller
            write_page_checksum=True,
        )


def _read(path: Path, name: str) -> tuple[Any, dict[str, Any]]:
    """A table with the state in its metadata. SchemaError under another version."""
    import pyarrow.parquet as pq

    # not pq.read_table: it reads "key=value" folders above the file as columns
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        state = json.loads((file.schema_arrow.metadata or {}).get(b"harness", b"{}"))
        check_version(path.parent, state.get("schema_version"))
        return file.read().cast(schema(name)), state


def check_version(folder: Path, version: object) -> None:
    if version != SCHEMA_VERSION:
        raise SchemaError(
            f"{folder}: written under schema version {version}, this program reads version {SCHEMA_VERSION};"
            " use the program that wrote it, or run again with force=true"
        )


def _read_all(folder: Path, name: str, broken: list[Path] | None = None) -> tuple[Any, int | None]:
    """The table with its parts, and the boundary up to which it is complete."""
    main = folder / f"{name}.parquet"
    paths = [main, *sorted((folder / "parts").glob(f"{name}.*"), key=lambda p: int(p.suffix[1:]))]
    tables: list[Any] = []
    complete: int | None = None
    for path in paths:
        try:
            if path != main and complete is not None and int(path.suffix[1:]) <= complete:
                continue  # merged into the main file already
            table, state = _read(path, name)
        except FileNotFoundError:
            break
        except SchemaError:
            raise
        except (OSError, ValueError, KeyError) as error:  # pyarrow's errors are these
            if broken is None:
                raise StoreError(f"{path}: not readable ({_first_line(error)}); run again with force=true") from error
            broken.append(path)
            break
        if path != main and state["after"] != complete:
            break  # a part is missing in between
        tables.append(table)
        complete = state["boundary"]
    return _concat(name, tables), complete


def read_table(run: Run | RunFolder | Path | str, name: str) -> Any:
    """A table of one run, finished or not, as a pyarrow table. StoreError, SchemaError."""
    folder = Path(run) if isinstance(run, (str, Path)) else run.path
    if name not in SCHEMAS:
        raise ValueError(f"table {name!r}: no such table; tables are {', '.join(SCHEMAS)}")
    table, complete = _read_all(folder, name)
    if complete is None:
        raise StoreError(f"{folder}: holds no {name}.parquet; is it the folder of a run?")
    return table


def read_all(root: Path | str, name: str = "metrics", **filters: object) -> Any:
    """One table of every finished run under `root` whose manifest matches, as a pyarrow table.

    `read_all("results").to_pandas()` is the long frame of everything; reading the files by a wildcard
    instead would take the columns of the first file found and lose later ones.
    """
    import pyarrow as pa

    tables = [read_table(run, name) for run in find_runs(root, **filters)]
    return pa.concat_tables([schema(name).empty_table(), *tables])


def write_frame(path: Path, columns: Mapping[str, Sequence[Any]], about: Mapping[str, Any]) -> None:
    """A table of a form of its own, beside a run: written whole or not at all; `about` says how it was made."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({k: pa.array(v, from_pandas=False) for k, v in columns.items()})
    with reporting(path.parent), replacing(path) as tmp:
        pq.write_table(table.replace_schema_metadata({"about": json.dumps(_jsonable(about))}), tmp, compression="zstd")


def described(path: Path) -> dict[str, Any] | None:
    """What `write_frame` was told of the table at `path`; None if there is none that can be read."""
    import pyarrow.parquet as pq

    try:
        made: dict[str, Any] = json.loads((pq.read_schema(path).metadata or {})[b"about"])
    except (OSError, ValueError, KeyError):  # pyarrow's errors are these
        return None
    return made


@dataclass(frozen=True)
class Run:
    """A finished run: where it is and what its manifest says."""

    path: Path
    manifest: dict[str, Any]


def find_runs(root: Path | str, **filters: object) -> Iterator[Run]:
    """Finished runs under `root`, in order of their paths, whose manifest has these values.

    >>> list(find_runs("no/such/folder", strategy="reset"))
    []
    """
    wanted = _jsonable(filters)
    for done in sorted(Path(root).glob("runs/*/*/*/DONE")):
        try:
            manifest = json.loads((done.parent / "manifest.json").read_text("utf-8"))
        except FileNotFoundError:
            continue  # being started again by force=true
        except (OSError, ValueError) as error:
            raise StoreError(f"{done.parent}: manifest.json is not readable ({_first_line(error)})") from error
        if all(key in manifest and manifest[key] == value for key, value in wanted.items()):
            yield Run(done.parent, manifest)


# --- files --------------------------------------------------------------------------------------


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path that takes the place of `path` once it is written and on the disk."""
    # never ends in .parquet: DuckDB's wildcard reads dot files too
    tmp = path.parent / f".{path.name}.{os.getpid()}.tmp"
    try:
        yield tmp
        _sync(tmp)
        os.replace(tmp, path)
    finally:
        tmp.unlink(missing_ok=True)
    _sync(path.parent)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_text(path: Path, text: str) -> None:
    """Replace a file by another, whole or not at all."""
    with replacing(path) as tmp:
        tmp.write_text(text, "utf-8")


def _save(path: Path, value: Mapping[str, Any], previous: Path | None = None) -> None:
    """Write tensors and primitives; the file that stood there becomes `previous`."""
    import torch

    with replacing(path) as tmp:
        with tmp.open("wb") as file:
            try:
                torch.save(value, file)
            except RuntimeError as error:  # torch closes its archive after what stopped it, and fails again
                if isinstance(error.__context__, (OSError, KeyboardInterrupt)):
                    raise error.__context__ from None
                raise
        if previous is not None and path.exists():
            _sync(tmp)  # never leave the disk without a whole checkpoint
            os.replace(path, previous)


def _load(path: Path) -> dict[str, Any]:
    """A file of tensors and primitives, on the CPU; runs no code of the file."""
    import torch

    with zipfile.ZipFile(path) as file:  # torch.load compares no checksums: a flipped bit would load
        if damaged := file.testzip():
            raise ValueError(f"{damaged} is damaged")
    loaded: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    check_version(path.parent, loaded["schema_version"])
    return loaded


def _portable(value: Any, key: str) -> Any:
    """A copy that `torch.load(weights_only=True)` reads anywhere: CPU tensors and primitives."""
    import torch

    if isinstance(value, torch.Tensor):
        tensor = value.detach().cpu()
        # a view would take the whole storage along, e.g. one task's rows the whole data set
        return tensor.clone() if tensor.untyped_storage().nbytes() > tensor.numel() * tensor.element_size() else tensor
    if value is None or type(value) in (bool, int, float, str, bytes, torch.dtype, torch.device):
        return value
    if isinstance(value, Mapping):
        return {_portable(k, f"{key} key"): _portable(v, f"{key}.{k}") for k, v in value.items()}
    if type(value) in (list, tuple, torch.Size):
        return type(value)(_portable(v, f"{key}.{i}") for i, v in enumerate(value))
    raise ValueError(
        f"{key}: a {type(value).__name__} cannot be kept in a checkpoint; keep tensors, numbers and strings"
        " (array -> tensor, scalar -> .item(), config -> dict)"
    )


def _jsonable(value: Any) -> Any:
    """What JSON can hold: NaN and infinity become null, paths and other objects their text."""
    if isinstance(value, Mapping):
        return {str(k): _jsonable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_jsonable(v) for v in value]
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str, list)) else str(value)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


class RunFolder:
    """The folder of one run, locked for this process until it is closed."""

    def __init__(self, path: Path, lock: int, names: Mapping[str, str], keep: str) -> None:
        self.path = path
        self.notes: list[str] = []  # one line for everything that was set aside
        self.manifest: dict[str, Any] = {}
        self._lock: int | None = lock
        self._names = dict(names)  # constant columns
        self._keep = keep
        self._begin()

    @classmethod
    def open(
        cls,
        root: Path | str,
        stream: str,
        strategy: str,
        run_id: str,
        *,
        scenario: str = "",
        force: bool = False,
        keep: str = "all",
        wait: float = 0.0,
    ) -> Self:
        """Create or reopen a run and lock it, waiting up to `wait` seconds for its holder.

        `force` deletes what the run has written. Raises RunLocked, SchemaError, StoreError.
        """
        if keep not in ("all", "last"):
            raise ValueError(f"keep={keep!r}: all boundary nets or only the last ones; use all or last")
        top = Path(root)
        path = top / "runs" / slug(stream) / slug(strategy) / slug(run_id)
        with reporting(path):
            for folder in (path, path / "nets", path / "parts"):
                if not folder.resolve().is_relative_to(top.resolve()):
                    raise StoreError(f"{folder}: a link leads out of the results folder {top}; remove the link")
            path.mkdir(parents=True, exist_ok=True)
            lock = _acquire(path, wait)
        names = {"run_id": run_id, "stream": stream, "scenario": scenario, "strategy": strategy}
        try:
            with reporting(path):
                if force:
                    _wipe(path)
                return cls(path, lock, names, keep)
        except BaseException:
            os.close(lock)
            raise

    @classmethod
    def reopen(cls, path: Path, *, wait: float = 0.0) -> Self:
        """A finished run, locked so that what is computed from it can be put beside it. StoreError if it is none."""
        manifest = path / "manifest.json"
        if not manifest.is_file():
            raise StoreError(f"{path}: no run; name the folder that a run said its results are in")
        if not (path / "DONE").exists():
            raise StoreError(f"{path}: the run is not finished; the command that began it goes on with it")
        with reporting(path):
            lock = _acquire(path, wait)
        try:
            with reporting(path):
                folder = cls(path, lock, {}, "all")
            names = ("run_id", "stream", "scenario", "strategy")
            folder._names = {name: folder.manifest[name] for name in names}
            return folder
        except BaseException:
            os.close(lock)
            raise

    def filled(self, name: str, rows: Rows) -> Any:
        """Rows as `append` takes them, with the columns that it fills in, as a pyarrow table."""
        return _table(name, rows, {**self._names, "schema_version": SCHEMA_VERSION})

    def replace(self, name: str, rows: Rows) -> None:
        """Give a table of a finished run other rows, all of them or none."""
        if self._lock is None or not self.done:
            raise StoreError(f"{self.path}: only a finished run that is open has its tables replaced")
        with reporting(self.path):
            _, state = _read(self.path / f"{name}.parquet", name)
            _write_table(self.path / f"{name}.parquet", self.filled(name, rows), name, state["boundary"])

    def needs_nets(self) -> None:
        """StoreError unless the net of every boundary was kept."""
        boundaries = set(read_table(self.path, "accuracy")["boundary"].to_pylist()) | {INITIAL}
        kept = sum(self.has_net(t) for t in boundaries)
        if kept < len(boundaries):
            raise StoreError(
                f"{self.path}: keeps {kept} of {len(boundaries)} nets, and all of them are needed;"
                " run it again with keep=all force=true"
            )

    def checkpoint(self) -> dict[str, Any]:
        """The state that a finished run left at its last boundary."""
        with reporting(self.path):
            state: dict[str, Any] = _load(self.path / "checkpoint.pt")["state"]
        return state

    def _begin(self) -> None:
        self._kept: dict[str, list[Any]] = {name: [] for name in SCHEMAS}  # committed rows
        self._fresh: dict[str, list[Any]] = {name: [] for name in SCHEMAS}  # rows since the last commit
        self._saved: dict[str, tuple[int, int | None]] = dict.fromkeys(SCHEMAS, (0, None))  # of <name>.parquet
        self._at: int | None = None  # the last boundary committed
        self._ready = not any(self.path.glob("checkpoint*.pt"))  # else `resume` comes before new rows
        for stale in [*self.path.glob(".*.tmp"), *self.path.glob("*/.*.tmp")]:
            stale.unlink(missing_ok=True)
        manifest = self.path / "manifest.json"
        if manifest.exists():
            try:
                self.manifest = json.loads(manifest.read_text("utf-8"))
            except ValueError:
                self._set_aside(manifest)
            else:
                check_version(self.path, self.manifest.get("schema_version"))
        if self.done:
            return
        self.update_manifest(
            schema_version=SCHEMA_VERSION,
            **self._names,
            status="running",
            error="",
            traceback="",
            attempts=self.manifest.get("attempts", 0) + 1,
        )

    @property
    def done(self) -> bool:
        return (self.path / "DONE").exists()

    def write_config(self, text: str) -> None:
        with reporting(self.path):
            write_text(self.path / "config.yaml", text)

    def update_manifest(self, **changes: Any) -> None:
        """Change keys of manifest.json, all of them or none."""
        if self._lock is None:
            raise StoreError(f"{self.path}: the run is closed and takes no more changes")
        changed = {**self.manifest, **_jsonable(changes)}
        with reporting(self.path):
            text = json.dumps(changed, indent=1, ensure_ascii=False, allow_nan=False)
            write_text(self.path / "manifest.json", text + "\n")
        self.manifest = changed

    def append(self, t: int, phase: str, tables: Mapping[str, Rows]) -> None:
        """Hold rows of boundary `t` in memory until `commit`.

        Rows are dicts, or columns by name (arrays, tensors, lists; a scalar stands for every row).
        Columns left out: run_id, stream, scenario, strategy, boundary, phase and schema_version are
        filled in, DEFAULTS and NaN for floats; ValueError for any other.
        """
        self._writable()
        if not self._ready:
            raise StoreError(f"{self.path}: holds a checkpoint; call resume() before adding rows")
        fill = {**self._names, "boundary": t, "phase": phase, "schema_version": SCHEMA_VERSION}
        made = {name: _table(name, rows, fill) for name, rows in tables.items()}
        for name, table in made.items():
            self._fresh[name].append(table)

    def commit(self, t: int, checkpoint: Mapping[str, Any], net: Any = None) -> None:
        """Put the rows held, the net and the checkpoint of boundary `t` on the disk, in this order.

        `net` has `params` and `buffers` (a Net, or a mapping of what is to be kept).
        """
        self._writable()
        if not self._ready:
            raise StoreError(f"{self.path}: holds a checkpoint; call resume() before adding rows")
        if self._at is not None and t <= self._at:
            raise ValueError(f"boundary {t}: boundary {self._at} is committed already; boundaries go up")
        kept = net if net is None or isinstance(net, Mapping) else {"params": net.params, "buffers": net.buffers}
        stamp = {"schema_version": SCHEMA_VERSION, "boundary": t}
        state = {**stamp, "state": _portable(checkpoint, "checkpoint")}
        kept = None if kept is None else {**stamp, "net": _portable(kept, "net")}
        with reporting(self.path):
            for name in SCHEMAS:
                self._write(name, t)
            if kept is not None:
                (self.path / "nets").mkdir(exist_ok=True)
                _save(self._net_path(t), kept)
            _save(self.path / "checkpoint.pt", state, previous=self.path / "checkpoint.previous.pt")
            if self._keep == "last":
                self._drop_nets(before=t - 1)  # t - 1: the previous checkpoint may still be needed
        self._at = t

    def _write(self, name: str, t: int, last: bool = False) -> None:
        """Rewrite a table whole, or only append a part while the file is large and the part small.

        Parts keep hundreds of boundaries linear: whole rewrites come at geometric intervals.
        """
        fresh = _concat(name, self._fresh[name])
        total = sum(map(len, self._kept[name])) + len(fresh)
        if last or total <= _SMALL or total - self._saved[name][0] > total // 4:
            whole = _concat(name, [*self._kept[name], fresh])
            _write_table(self.path / f"{name}.parquet", whole, name, t)
            self._kept[name], self._saved[name] = [whole], (total, t)
            for part in (self.path / "parts").glob(f"{name}.*"):
                part.unlink()
        else:
            (self.path / "parts").mkdir(exist_ok=True)
            _write_table(self.path / "parts" / f"{name}.{t}", fresh, name, t, self._at)
            self._kept[name].append(fresh)
        self._fresh[name] = []

    def table(self, name: str, boundary: int | None = None) -> Any:
        """The rows so far, committed or not, as a pyarrow table; those of one boundary if it is named."""
        import pyarrow.compute as pc

        tables = [read_table(self.path, name)] if self.done else [*self._kept[name], *self._fresh[name]]
        if boundary is not None:  # before joining: asked at every boundary, which must not copy all rows
            tables = [rows.filter(pc.equal(rows["boundary"], boundary)) for rows in tables]
        return _concat(name, tables)

    def net(self, t: int) -> dict[str, Any]:
        """What `commit` kept at boundary `t` (INITIAL: the initialisation), on the CPU."""
        path = self._net_path(t)
        if not path.exists():
            raise StoreError(f"{path}: this net was not kept; train again with keep=all")
        with reporting(self.path):
            net: dict[str, Any] = _load(path)["net"]
        return net

    def has_net(self, t: int) -> bool:
        return self._net_path(t).exists()

    def resume(self, *, source: str = "") -> tuple[int, dict[str, Any]] | None:
        """The newest checkpoint that loads and whose rows are there: (t, state); None: from the start.

        Rows after its boundary are dropped, so that the run writes them again. What does not load is
        renamed to *.corrupt with a line in `notes`. StoreError if the run was begun by source code with
        another digest than `source` (compared with the manifest's, so call this before updating it),
        SchemaError under another schema version.
        """
        self._writable()
        with reporting(self.path):
            complete = self._read_tables()
            found = None
            for path in (self.path / "checkpoint.pt", self.path / "checkpoint.previous.pt"):
                loaded = self._try(path)
                if loaded is not None and complete is not None and loaded["boundary"] <= complete:
                    found = loaded
                    break
            if found is None:
                self._restart()
                self._ready = True
                return None
            begun = self.manifest.get("source", "")
            if source and begun and begun != source:
                raise StoreError(
                    f"{self.path}: begun by other source code ({begun[:12]}, now {source[:12]});"
                    " go back to it, or start again with force=true"
                )
            self._truncate(found["boundary"])
        self._ready = True
        return found["boundary"], found["state"]

    def _read_tables(self) -> int | None:
        """Fill memory from the disk; the boundary up to which every table is complete."""
        complete: list[int | None] = []
        for name in SCHEMAS:
            broken: list[Path] = []
            table, upto = _read_all(self.path, name, broken)
            for path in broken:
                self._set_aside(path)
            self._kept[name], self._fresh[name] = [table], []
            complete.append(upto)
        known = [upto for upto in complete if upto is not None]
        return min(known) if len(known) == len(SCHEMAS) else None

    def _truncate(self, t: int) -> None:
        """Forget rows after boundary `t`; files may be ahead until the next commit, which writes them whole."""
        import pyarrow.compute as pc

        for name in SCHEMAS:
            (table,) = self._kept[name]
            self._kept[name] = [_concat(name, [table.filter(pc.less_equal(table["boundary"], t))])]
        self._at = t

    def _restart(self) -> None:
        """Forget what is on the disk, so that nothing of it is mistaken for this attempt's."""
        for old in (*self.path.glob("checkpoint*.pt"), *self.path.glob("*.parquet")):
            old.unlink()
        shutil.rmtree(self.path / "parts", ignore_errors=True)
        shutil.rmtree(self.path / "nets", ignore_errors=True)
        self._kept = {name: [] for name in SCHEMAS}
        self._fresh = {name: [] for name in SCHEMAS}
        self._saved = dict.fromkeys(SCHEMAS, (0, None))
        self._at = None

    def _try(self, path: Path) -> dict[str, Any] | None:
        if not path.exists():
            return None
        try:
            return _load(path)
        except SchemaError:
            raise
        except Exception:  # a damaged file may fail anywhere in zip, pickle or torch
            self._set_aside(path)
            return None

    def _set_aside(self, path: Path) -> None:
        os.replace(path, self.path / f"{path.name}.corrupt")
        self.notes.append(f"{path}: damaged, set aside as {path.name}.corrupt")

    def _net_path(self, t: int) -> Path:
        return self.path / "nets" / ("initial.pt" if t == INITIAL else f"{t}.pt")

    def _drop_nets(self, before: int) -> None:
        for path in (self.path / "nets").glob("*.pt"):
            if path.stem != "initial" and int(path.stem) < before:
                path.unlink()

    def finish(self, **changes: Any) -> None:
        """Merge the tables, mark the run done (with `changes` to the manifest) and then write DONE."""
        self._writable()
        if self._at is None:
            raise StoreError(f"{self.path}: nothing was committed, so that there is nothing to finish")
        with reporting(self.path):
            for name in SCHEMAS:
                if self._saved[name][1] != self._at or self._fresh[name]:
                    self._write(name, self._at, last=True)
            shutil.rmtree(self.path / "parts", ignore_errors=True)
            (self.path / "checkpoint.previous.pt").unlink(missing_ok=True)
            if self._keep == "last":
                self._drop_nets(before=self._at)
        self.update_manifest(**{"status": "done", "ended_at": now(), **changes})
        with reporting(self.path):
            write_text(self.path / "DONE", now() + "\n")

    def _writable(self) -> None:
        if self._lock is None or self.done:
            raise StoreError(
                f"{self.path}: the run is {'closed' if self._lock is None else 'done'} and takes no more rows"
            )

    def close(self) -> None:
        """Release the lock. The lock file stays: removing it would let two processes hold it."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            error.add_note(f"run folder: {self.path}")
        try:
            if self._lock is not None and not self.done:
                failed = isinstance(error, Exception)
                told = "".join(traceback.format_exception(error)) if failed else ""
                with suppress(StoreError):  # the disk may be what failed
                    self.update_manifest(
                        status="failed" if failed else "interrupted",
                        error=f"{type(error).__name__}: {_first_line(error)}" if error is not None else "",
                        traceback=told,
                        ended_at=now(),
                    )
        finally:
            self.close()


def _acquire(path: Path, wait: float) -> int:
    fd = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    until = time.monotonic() + wait
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= until:
                    holder = os.pread(fd, 200, 0).decode(errors="replace").strip() or "another process"
                    raise RunLocked(f"{path}: in use by {holder}; wait for it to end, or stop it") from None
                time.sleep(0.1)
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _wipe(path: Path) -> None:
    """Remove what a run writes, DONE first; not the lock, nor what others put beside it."""
    (path / "DONE").unlink(missing_ok=True)
    for name in (*_OWN, *(f"{name}.parquet" for name in SCHEMAS)):
        entry = path / name
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink(missing_ok=True)
    for entry in path.glob("*.corrupt"):
        entry.unlink()


@contextmanager
def reporting(path: Path, remedy: str = "results=FOLDER") -> Iterator[None]:
    """OSError (disk full, no permission) as one line that names the place and how to choose another."""
    try:
        yield
    except OSError as error:
        what = error.strerror or _first_line(error)
        raise StoreError(
            f"{path}: {what[0].lower()}{what[1:]}; check permission and free space, or choose another with {remedy}"
        ) from error
