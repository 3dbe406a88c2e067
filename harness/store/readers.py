"""Readers of runs: one by its folder or id, all that match, or a consistent snapshot of many. None takes a lock."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.config.ranges import TASKS
from harness.store.columns import Where, read_columns
from harness.store.errors import Damaged, StoreError
from harness.store.files import jsonable
from harness.store.manifest import read_manifest
from harness.store.tables import MOST, UNREADABLE, read_table, schema
from harness.wording import first_line, warn

if TYPE_CHECKING:
    import pandas as pd

TOGETHER = 64  # runs whose rows are in memory before they are selected
Mark = tuple[int, int]  # identifies a DONE file: a rerun writes another one


@dataclass(frozen=True)
class Run:
    """A run: its folder, and its manifest."""

    path: Path
    manifest: dict[str, Any]
    mark: Mark | None = None  # None: not finished


def find_runs(root: Path | str, **filters: object) -> Iterator[Run]:
    """Finished runs under `root`, in order of their paths, whose manifest has these values; warns of damaged ones.

    >>> list(find_runs("no/such/folder", strategy="reset"))
    []
    """
    notes: list[str] = []
    yield from finished([Path(root)], filters, notes, whole=False)
    if notes:
        more = f" (and {len(notes) - 1} other damaged runs)" if len(notes) > 1 else ""
        warn(f"left out: {notes[0]}{more}")


def finished(
    folders: Sequence[Path], filters: Mapping[str, object], notes: list[str], *, whole: bool = True
) -> Iterator[Run]:
    """Finished runs in results folders, or single run folders, whose manifest has these values.

    A run that cannot be read is left out and added to `notes`; `whole` as in `read_manifest`.
    """
    wanted = jsonable(filters)
    for folder in folders:
        for done in _files(folder, "DONE"):
            mark = _mark(done.parent)
            try:
                manifest = read_manifest(done.parent, whole=whole)
            except (FileNotFoundError, StoreError) as error:
                if mark is not None and _mark(done.parent) == mark:  # else a rerun with force=true is starting
                    known = isinstance(error, StoreError)
                    notes.append(str(error if known else Damaged(done.parent / "manifest.json", "missing")))
                continue
            if mark is not None and all(key in manifest and manifest[key] == value for key, value in wanted.items()):
                yield Run(done.parent, manifest, mark)


def unfinished(folders: Sequence[Path], notes: list[str] | None = None) -> list[Run]:
    """Runs that are running, interrupted or failed, in results folders or single run folders.

    A run that cannot be read is left out and added to `notes`, and so is one that has recorded nothing yet.
    """
    found = []
    for path in (path for folder in folders for path in _files(folder, "manifest.json")):
        if not os.path.exists(f"{path.parent}/DONE"):
            try:
                manifest = read_manifest(path.parent, whole=False)
                if "setting" in manifest:
                    manifest = read_manifest(path.parent)
                found.append(Run(path.parent, manifest))
            except FileNotFoundError:
                continue
            except StoreError as error:
                if notes is not None:
                    notes.append(str(error))
    return found


def find_run(name: str, root: Path = Path("results"), command: str = "show") -> Path:
    """The folder of a run, by its path or the beginning of its id under `root`. ValueError if there is not just one."""
    if (Path(name) / "manifest.json").is_file():
        return Path(name)
    found = sorted(path.parent for path in _files(root, "manifest.json") if path.parent.name.startswith(name))
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"{command} {name}: {len(found)} run ids begin with this; give more characters")
    raise ValueError(f"{command} {name}: neither a run folder nor the beginning of a run id in {root}/runs")


def read_all(root: Path | str, name: str = "metrics", **filters: object) -> Any:
    """One table of every finished run under `root` whose manifest matches, as a pyarrow table.

    `read_all("results").to_pandas()` is the long frame of everything. A wildcard over the files instead would take the
    columns of the first file, and lose columns that only later files have.
    """
    import pyarrow as pa

    tables = [read_table(run, name) for run in find_runs(root, **filters)]
    return pa.concat_tables([schema(name).empty_table(), *tables])


def read_rows(run: Any, name: str) -> Any:
    """A table of a Run or RunFolder. Damaged if its seeds, tasks or boundaries cannot be the run's."""
    import pyarrow.compute as pc

    table, path = read_table(run, name), run.path / f"{name}.parquet"
    if "seed" in table.column_names and not {*table["seed"].unique().to_pylist()} <= {*run.manifest["seeds"]}:
        raise Damaged(path, "has seeds that the run does not have")
    for column in ("boundary", "task"):
        if len(table) and column in table.column_names:
            found = pc.min_max(table[column]).as_py()
            if found["min"] < -1 or found["max"] >= TASKS:
                raise Damaged(path, f"{column} outside -1 to {TASKS - 1}")
    return table


class Wanted(NamedTuple):
    """What to read of a table: these columns, of the rows that have one of the values in `where`, by column."""

    columns: Sequence[str]
    where: Where | None = None


class Snapshot(NamedTuple):
    runs: list[Run]
    tables: dict[str, pd.DataFrame]  # every row names its run in `run_id`
    notes: list[str]  # what was left out, and why


def snapshot(folders: Sequence[Path], wanted: Mapping[str, Wanted], **filters: object) -> Snapshot:
    """The finished runs of results folders, and the wanted rows of their tables, by name of the table.

    `filters` are values of the manifest. Other processes may be writing: a rerun deletes DONE first and writes it last,
    so a DONE that is unchanged after the read proves that the tables were complete. A run that changed during the read
    is left out, with a note, and so is a damaged one. A run that is in several folders counts once: the one that ended
    last.
    """
    notes: list[str] = []
    with _uncollected(), _kept_memory():
        return _snapshot(_distinct(finished(folders, filters, notes), notes), wanted, notes)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without the garbage collector, which would visit thousands of manifests again and again."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


@contextmanager
def _kept_memory() -> Iterator[None]:
    """With the system's allocator: Arrow's returns its pages after each of thousands of files, and takes new ones."""
    import pyarrow as pa

    before = pa.default_memory_pool()
    pa.set_memory_pool(pa.system_memory_pool())
    try:
        yield
    finally:
        pa.set_memory_pool(before)


def _snapshot(runs: list[Run], wanted: Mapping[str, Wanted], notes: list[str]) -> Snapshot:
    while True:
        tables: dict[str, pd.DataFrame] = {}
        try:
            for name, what in wanted.items():
                tables[name] = read(runs, name, *what)
        except UNREADABLE as error:
            problem: BaseException | None = error
        else:
            problem = None
        changed = {run.path for run in runs if _mark(run.path) != run.mark}
        if problem is None and not changed:
            return Snapshot(runs, tables, notes)
        notes += [f"{run.path} is being rerun, and is left out" for run in runs if run.path in changed]
        left = [run for run in runs if run.path not in changed]
        if not changed:
            damaged = {run.path: found for run in runs if (found := _damage(run, wanted))}
            if not damaged:
                raise StoreError(f"the tables of {len(runs)} runs: not readable together ({problem})") from problem
            notes += damaged.values()
            left = [run for run in runs if run.path not in damaged]
        runs = left


def read(runs: Sequence[Run], name: str, columns: Sequence[str], where: Where | None = None) -> pd.DataFrame:
    """Rows of a table of all these runs; FileNotFoundError if a run lacks the table, Damaged, SchemaError."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    where = where or {}
    form = pa.schema([schema(name).field(column) for column in dict.fromkeys(["run_id", *columns])])
    kept, room = [form.empty_table()], MOST
    for start in range(0, len(runs), TOGETHER):
        some = runs[start : start + TOGETHER]
        ids = [run.manifest["run_id"] for run in some]
        parts: dict[tuple[str, ...], list[tuple[int, Any]]] = {}  # by what had to be read
        for i, run in enumerate(some):
            table = read_columns(run.path, name, columns, where, ids[i], room)
            room -= table.num_rows
            parts.setdefault(tuple(table.column_names), []).append((i, table))
        for names, found in parts.items():
            table = pa.concat_tables([part for _, part in found]).combine_chunks()  # else each chunk is filtered apart
            owner = np.repeat([i for i, _ in found], [part.num_rows for _, part in found])
            owner = pa.DictionaryArray.from_arrays(pa.array(owner, pa.int32()), ids)
            table = table.set_column(names.index("run_id"), "run_id", owner)  # smaller than the texts
            for column in (c for c in where if c in names):
                table = table.filter(pc.is_in(table[column], pa.array([*where[column]], table[column].type)))
            kept.append(table.select(form.names).cast(form))
    frame: pd.DataFrame = pa.concat_tables(kept).to_pandas()
    return frame


def _files(folder: Path, name: str) -> list[Path]:
    """The files of this name in all runs of a results folder, or in the one run whose folder this is."""
    own = folder / name
    if own.exists():
        return [own]
    return [path / name for path in run_paths(folder) if os.path.lexists(f"{path}/{name}")]


def run_paths(folder: Path) -> list[Path]:
    """The folders of all runs of a results folder."""
    found = [os.path.join(folder, "runs")]
    for _ in range(3):  # as glob("runs/*/*/*") in a third of its time
        found = [
            entry.path
            for above in found
            for entry in _entries(above)
            if not entry.name.startswith(".") and entry.is_dir()
        ]
    return [Path(path) for path in sorted(found)]


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as inside:
            return list(inside)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []


def _mark(path: Path) -> Mark | None:
    try:
        stat = os.stat(f"{path}/DONE")
    except FileNotFoundError:
        return None
    return stat.st_ino, stat.st_mtime_ns


def _distinct(found: Iterator[Run], notes: list[str]) -> list[Run]:
    last: dict[str, Run] = {}
    for run in found:
        key = run.manifest["run_id"]
        if key in last and last[key].path.resolve() != run.path.resolve():
            first, second = sorted((last[key], run), key=lambda each: each.manifest.get("ended_at") or "")
            notes.append(f"{first.path} was rerun as {second.path}; only the later one is read")
            last[key] = second
        else:
            last[key] = run
    return list(last.values())


def _damage(run: Run, wanted: Mapping[str, Wanted]) -> str:
    """Why the tables of a run cannot be read; empty if they can."""
    for name, what in wanted.items():
        try:
            read([run], name, *what)
        except Damaged as error:
            return str(error)
        except UNREADABLE as error:
            missing = isinstance(error, FileNotFoundError)
            path = run.path / f"{name}.parquet"
            return str(Damaged(path, "missing" if missing else first_line(error, 200)))
    return ""
