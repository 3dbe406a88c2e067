"""The folder of one run: a locked writer of four tables, nets and checkpoints.

    results/runs/<stream>/<strategy>/<run_id>/
        config.yaml  manifest.json  metrics.parquet  accuracy.parquet  curves.parquet  timing.parquet
        checkpoint.pt  checkpoint.previous.pt  nets/initial.pt  nets/<t>.pt  lock  DONE

Order at a boundary: tables, then the net, then the checkpoint, each written under a temporary name, flushed and
renamed. A kill between any two leaves tables that are ahead of the checkpoint, never behind it; `resume` drops the
rows that are ahead.
"""

from __future__ import annotations

import json
import os
import shutil
import traceback
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from harness.store import sources
from harness.store.checks import check_finished
from harness.store.entries import columns
from harness.store.errors import SCHEMA_VERSION, Damaged, StoreError, reporting
from harness.store.files import jsonable, load, now, portable, save, write_text
from harness.store.locks import acquire
from harness.store.manifest import read_manifest
from harness.store.names import slug
from harness.store.tables import (
    SCHEMAS,
    TableRows,
    as_table,
    concat,
    read_file,
    read_parts,
    read_table,
    write_table,
)
from harness.wording import first_line, interruption

INITIAL = -1  # the boundary before the first task
NOTE = "run folder: "  # on an exception that leaves a run
_SMALL = 20_000  # rows below which a table is rewritten whole at every boundary (measured: under 10 ms)
_OWN = ("config.yaml", "manifest.json", "checkpoint.pt", "checkpoint.previous.pt", "nets", "parts")


def run_path(root: Path | str, stream: str, strategy: str, run_id: str) -> Path:
    """Where a run is."""
    return Path(root) / "runs" / slug(stream) / slug(strategy) / slug(run_id)


class RunFolder:
    """The folder of one run, locked for this process until it is closed."""

    def __init__(self, path: Path, lock: int, names: Mapping[str, str], keep: str) -> None:
        self.path = path
        self.notes: list[str] = []  # one line for everything that was set aside
        self.manifest: dict[str, Any] = {}
        self._lock: int | None = lock
        self._names = dict(names)  # of the run
        self._constant: dict[str, Any] | None = None  # columns
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
            raise ValueError(f"keep={keep!r}: must be all (keep the net of every boundary) or last")
        top, path = Path(root), run_path(root, stream, strategy, run_id)
        with reporting(path):
            for folder in (path, path / "nets", path / "parts"):
                if not folder.resolve().is_relative_to(top.resolve()):
                    raise StoreError(f"{folder}: a link leads out of the results folder {top}; remove it")
            path.mkdir(parents=True, exist_ok=True)
            lock = acquire(path, wait)
        names = {"run_id": run_id, "stream": stream, "scenario": scenario, "strategy": strategy}
        try:
            with reporting(path):
                if force:
                    _wipe(path)
                elif (path / "DONE").exists():
                    check_finished(path)
                return cls(path, lock, names, keep)
        except BaseException:
            os.close(lock)
            raise

    @classmethod
    def reopen(cls, path: Path, *, wait: float = 0.0) -> Self:
        """Lock a finished run, to add files computed from it. StoreError if it is not a finished run, or damaged."""
        if not (path / "manifest.json").exists():
            raise StoreError(f"{path}: not a run; name a run folder, as printed at the end of a run")
        if not (path / "DONE").exists():
            raise StoreError(f"{path}: the run is not finished; repeat its command to resume it")
        check_finished(path)
        with reporting(path):
            lock = acquire(path, wait)
        try:
            with reporting(path):
                folder = cls(path, lock, {}, "all")
            names = ("run_id", "stream", "scenario", "strategy")
            folder._names = {name: folder.manifest[name] for name in names}
            return folder
        except BaseException:
            os.close(lock)
            raise

    def filled(self, name: str, rows: TableRows) -> Any:
        """Rows in the form that `append` takes, with the constant columns filled in, as a pyarrow table."""
        return as_table(name, rows, self._filled())

    def replace(self, name: str, rows: TableRows) -> None:
        """Replace all rows of a finished run's table, atomically."""
        if self._lock is None or not self.done:
            raise StoreError(f"{self.path}: tables can be replaced only in a finished run that is open")
        with reporting(self.path):
            _, state = read_file(self.path / f"{name}.parquet", name)
            write_table(self.path / f"{name}.parquet", self.filled(name, rows), name, state["boundary"])

    def needs_nets(self) -> None:
        """StoreError unless the net of every boundary was kept."""
        boundaries = set(read_table(self.path, "accuracy")["boundary"].to_pylist()) | {INITIAL}
        kept = sum(self.has_net(t) for t in boundaries)
        if kept < len(boundaries):
            raise StoreError(
                f"{self.path}: has the nets of {kept} of {len(boundaries)} boundaries, and all are needed;"
                " rerun with keep=all force=true"
            )

    def checkpoint(self) -> dict[str, Any]:
        """The state of a finished run at its last boundary."""
        with reporting(self.path):
            return _part(self.path / "checkpoint.pt", "state")

    def _begin(self) -> None:
        self._kept: dict[str, list[Any]] = {name: [] for name in SCHEMAS}  # committed rows
        self._fresh: dict[str, list[Any]] = {name: [] for name in SCHEMAS}  # rows since the last commit
        self._saved: dict[str, tuple[int, int | None]] = dict.fromkeys(SCHEMAS, (0, None))  # of <name>.parquet
        self._at: int | None = None  # the last boundary committed
        self._ready = not any(self.path.glob("checkpoint*.pt"))  # else `resume` comes before new rows
        for stale in [*self.path.glob(".*.tmp"), *self.path.glob("*/.*.tmp")]:
            stale.unlink(missing_ok=True)
        if self.done:
            self.manifest = read_manifest(self.path)
            return
        try:
            self.manifest = read_manifest(self.path, whole=False)
        except FileNotFoundError:
            pass
        except Damaged as error:
            self._set_aside(error.path)
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
        """Change keys of manifest.json, atomically."""
        if self._lock is None:
            raise StoreError(f"{self.path}: the run is closed and cannot be changed")
        changed = {**self.manifest, **jsonable(changes)}
        with reporting(self.path):
            text = json.dumps(changed, indent=1, ensure_ascii=False, allow_nan=False)
            write_text(self.path / "manifest.json", text + "\n")
        self.manifest, self._constant = changed, None

    def _filled(self) -> dict[str, Any]:
        """The columns that are the same in all rows of the run."""
        if self._constant is None:
            about = {**self.manifest, **self._names}
            self._constant = {**self._names, **columns(about), "schema_version": SCHEMA_VERSION}
        return self._constant

    def append(self, t: int, phase: str, tables: Mapping[str, TableRows]) -> None:
        """Keep rows of boundary `t` in memory until `commit`.

        Rows are dicts, or columns by name (arrays, tensors, lists; a scalar is repeated in every row). Columns that
        are left out: run_id, stream, scenario, strategy, setting, entry, boundary, phase and schema_version are filled
        in, others take their DEFAULTS, floats NaN; ValueError for any other.
        """
        self._writable()
        if not self._ready:
            raise StoreError(f"{self.path}: has a checkpoint; call resume() before adding rows")
        fill = {**self._filled(), "boundary": t, "phase": phase}
        made = {name: as_table(name, rows, fill) for name, rows in tables.items()}
        for name, table in made.items():
            self._fresh[name].append(table)

    def commit(self, t: int, checkpoint: Mapping[str, Any], net: Any = None) -> None:
        """Write the pending rows, then the net, then the checkpoint of boundary `t`.

        `net` has `params` and `buffers` (a Net), or is a mapping to save.
        """
        self._writable()
        if not self._ready:
            raise StoreError(f"{self.path}: has a checkpoint; call resume() before adding rows")
        if self._at is not None and t <= self._at:
            raise ValueError(f"boundary {t}: boundary {self._at} is already committed; boundaries must increase")
        kept = net if net is None or isinstance(net, Mapping) else {"params": net.params, "buffers": net.buffers}
        stamp = {"schema_version": SCHEMA_VERSION, "boundary": t}
        state = {**stamp, "state": portable(checkpoint, "checkpoint")}
        kept = None if kept is None else {**stamp, "net": portable(kept, "net")}
        with reporting(self.path):
            for name in SCHEMAS:
                self._write(name, t)
            if kept is not None:
                (self.path / "nets").mkdir(exist_ok=True)
                save(self._net_path(t), kept)
            save(self.path / "checkpoint.pt", state, previous=self.path / "checkpoint.previous.pt")
            if self._keep == "last":
                self._drop_nets(before=t - 1)  # t - 1: the previous checkpoint may still be needed
        self._at = t

    def _write(self, name: str, t: int, last: bool = False) -> None:
        """Rewrite the whole table, or append a part if the file is large and the part small.

        Whole rewrites come at geometric intervals: hundreds of boundaries take linear time.
        """
        fresh = concat(name, self._fresh[name])
        total = sum(map(len, self._kept[name])) + len(fresh)
        if last or total <= _SMALL or total - self._saved[name][0] > total // 4:
            whole = concat(name, [*self._kept[name], fresh])
            write_table(self.path / f"{name}.parquet", whole, name, t)
            self._kept[name], self._saved[name] = [whole], (total, t)
            for part in (self.path / "parts").glob(f"{name}.*"):
                part.unlink()
        else:
            (self.path / "parts").mkdir(exist_ok=True)
            write_table(self.path / "parts" / f"{name}.{t}", fresh, name, t, self._at)
            self._kept[name].append(fresh)
        self._fresh[name] = []

    def table(self, name: str, boundary: int | None = None) -> Any:
        """The rows so far (of one boundary, if given), committed or not, as a pyarrow table."""
        import pyarrow.compute as pc

        tables = [read_table(self.path, name)] if self.done else [*self._kept[name], *self._fresh[name]]
        if boundary is not None:  # before joining: called at every boundary, so it must not copy all rows
            tables = [rows.filter(pc.equal(rows["boundary"], boundary)) for rows in tables]
        return concat(name, tables)

    def net(self, t: int) -> dict[str, Any]:
        """The net that `commit` saved at boundary `t` (INITIAL: the initialisation), on the CPU. StoreError if not."""
        path = self._net_path(t)
        if not path.exists():
            raise StoreError(f"{path}: this net was not kept; rerun with keep=all")
        with reporting(self.path):
            return _part(path, "net")

    def has_net(self, t: int) -> bool:
        return self._net_path(t).exists()

    def resume(self) -> tuple[int, dict[str, Any]] | None:
        """The newest checkpoint that loads and has all its rows: (t, state); None if there is none: start afresh.

        Rows after its boundary are dropped; the run writes them again. A file that does not load is renamed to
        *.corrupt and noted in `notes`. StoreError if a source file of the run has changed (by its manifest: call this
        before updating it), SchemaError under another schema version.
        """
        self._writable()
        with reporting(self.path):
            complete = self._read_tables()
            found, newest = None, self.path / "checkpoint.pt"
            for path in (newest, self.path / "checkpoint.previous.pt"):
                loaded = self._try(path)
                if loaded is not None and complete is not None and loaded["boundary"] <= complete:
                    found = loaded
                    os.replace(path, newest)  # others read it there
                    break
            if found is None:
                self._restart()
                self._ready = True
                return None
            if changed := sources.edited(self.manifest):
                raise StoreError(
                    f"{self.path}: started with different code ({sources.listed(changed)}); restore it, restart with"
                    " force=true, or keep both with force=beside"
                )
            self._truncate(found["boundary"])
        self._ready = True
        return found["boundary"], found["state"]

    def _read_tables(self) -> int | None:
        """Load the tables; returns the boundary up to which all are complete."""
        complete: list[int | None] = []
        for name in SCHEMAS:
            broken: list[Path] = []
            table, upto = read_parts(self.path, name, broken)
            for path in broken:
                self._set_aside(path)
            self._kept[name], self._fresh[name] = [table], []
            complete.append(upto)
        known = [upto for upto in complete if upto is not None]
        return min(known) if len(known) == len(SCHEMAS) else None

    def _truncate(self, t: int) -> None:
        """Drop rows after boundary `t` from memory; the next commit rewrites the files."""
        import pyarrow.compute as pc

        for name in SCHEMAS:
            (table,) = self._kept[name]
            self._kept[name] = [concat(name, [table.filter(pc.less_equal(table["boundary"], t))])]
        self._at = t

    def _restart(self) -> None:
        """Delete tables, checkpoints and nets of an earlier attempt."""
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
            return load(path)
        except Damaged:
            self._set_aside(path)
            return None

    def _set_aside(self, path: Path) -> None:
        os.replace(path, self.path / f"{path.name}.corrupt")
        self.notes.append(f"{path}: damaged, renamed to {path.name}.corrupt")

    def _net_path(self, t: int) -> Path:
        return self.path / "nets" / ("initial.pt" if t == INITIAL else f"{t}.pt")

    def _drop_nets(self, before: int) -> None:
        for path in (self.path / "nets").glob("*.pt"):
            if path.stem != "initial" and int(path.stem) < before:
                path.unlink()

    def finish(self, **changes: Any) -> None:
        """Merge the tables, mark the manifest as done (with other `changes`), then write DONE."""
        self._writable()
        if self._at is None:
            raise StoreError(f"{self.path}: nothing was committed, so there is nothing to finish")
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
                f"{self.path}: the run is {'closed' if self._lock is None else 'done'}; rows can no longer be added"
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
            error.add_note(f"{NOTE}{self.path}")
        try:
            if self._lock is not None and not self.done:
                failed = isinstance(error, Exception) and interruption(error) is None
                text = "".join(traceback.format_exception(error)) if failed else ""
                with suppress(StoreError):  # the disk may be what failed
                    self.update_manifest(
                        status="failed" if failed else "interrupted",
                        error=f"{type(error).__name__}: {first_line(error, 200)}" if error is not None else "",
                        traceback=text,
                        ended_at=now(),
                    )
        finally:
            self.close()


def _part(path: Path, key: str) -> dict[str, Any]:
    part = load(path).get(key)
    if not isinstance(part, dict):
        raise Damaged(path, f"{key}: missing")
    return part


def _wipe(path: Path) -> None:
    """Delete the files that a run writes, DONE first; the lock and other files stay."""
    (path / "DONE").unlink(missing_ok=True)
    for name in (*_OWN, *(f"{name}.parquet" for name in SCHEMAS)):
        entry = path / name
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink(missing_ok=True)
    for entry in path.glob("*.corrupt"):
        entry.unlink()
