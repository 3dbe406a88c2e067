"""Readers of runs: one by its folder or id, all that match, or a consistent snapshot of many. None takes a lock."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.store.errors import StoreError, check_version
from harness.store.files import jsonable
from harness.store.tables import read_table, schema
from harness.wording import first_line

if TYPE_CHECKING:
    import pandas as pd

Mark = tuple[int, int]  # identifies a DONE file: a rerun writes another one


@dataclass(frozen=True)
class Run:
    """A run: its folder, and its manifest."""

    path: Path
    manifest: dict[str, Any]
    mark: Mark | None = None  # None: not finished


def find_runs(root: Path | str, **filters: object) -> Iterator[Run]:
    """Finished runs under `root`, in order of their paths, whose manifest has these values.

    >>> list(find_runs("no/such/folder", strategy="reset"))
    []
    """
    return finished([Path(root)], filters)


def finished(folders: Sequence[Path], filters: Mapping[str, object], *, check: bool = False) -> Iterator[Run]:
    """Finished runs in results folders, or single run folders, whose manifest has these values.

    StoreError for a manifest that cannot be read; with `check`, SchemaError for one of another schema version.
    """
    wanted = jsonable(filters)
    for folder in folders:
        for done in _files(folder, "DONE"):
            mark = _mark(done.parent)
            try:
                manifest = json.loads((done.parent / "manifest.json").read_bytes())
            except FileNotFoundError:
                continue  # a rerun with force=true is starting
            except (OSError, ValueError) as error:
                raise StoreError(
                    f"{done.parent / 'manifest.json'}: not readable ({first_line(error, 200)}); rerun with force=true"
                ) from error
            if check:
                check_version(done.parent, manifest.get("schema_version"))
            if mark is not None and all(key in manifest and manifest[key] == value for key, value in wanted.items()):
                yield Run(done.parent, manifest, mark)


def unfinished(folders: Sequence[Path]) -> list[Run]:
    """Runs that are running, interrupted or failed, in results folders or single run folders."""
    found = []
    for path in (path for folder in folders for path in _files(folder, "manifest.json")):
        if not (path.parent / "DONE").exists():
            try:
                found.append(Run(path.parent, json.loads(path.read_bytes())))
            except (OSError, ValueError):
                continue  # an unfinished run without a readable manifest has no result
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


class Wanted(NamedTuple):
    """What to read of a table: these columns, of the rows for which `keep` (a pyarrow.dataset expression) is true."""

    columns: Sequence[str]
    keep: Any = None


class Snapshot(NamedTuple):
    runs: list[Run]
    tables: dict[str, pd.DataFrame]  # every row names its run in `run_id`
    notes: list[str]  # what was left out, and why


def snapshot(folders: Sequence[Path], wanted: Mapping[str, Wanted], **filters: object) -> Snapshot:
    """The finished runs of results folders, and the wanted rows of their tables, by name of the table.

    `filters` are values of the manifest. Other processes may be writing: a rerun deletes DONE first and writes it last,
    so a DONE that is unchanged after the read proves that the tables were complete. A run that changed during the read
    is left out, with a note. A run that is in several folders counts once: the one that ended last. Raises StoreError,
    SchemaError.
    """
    runs, notes = _distinct(finished(folders, filters, check=True))
    while True:
        try:
            tables = {name: read(runs, name, *what) for name, what in wanted.items()}
        except FileNotFoundError:
            tables = {}
        except (OSError, ValueError) as error:  # pyarrow's errors derive from these
            if all(_mark(run.path) == run.mark for run in runs):
                raise _unreadable(runs, wanted) from error
            tables = {}
        still = [run for run in runs if _mark(run.path) == run.mark]
        if len(still) == len(runs):
            if len(tables) < len(wanted):
                raise _unreadable(runs, wanted)
            return Snapshot(runs, tables, notes)
        notes += [f"{run.path} is being rerun, and is left out" for run in runs if _mark(run.path) != run.mark]
        runs = still


def read(runs: Sequence[Run], name: str, columns: Sequence[str], keep: Any = None) -> pd.DataFrame:
    """Rows of a table of all these runs, in one threaded pass; FileNotFoundError if a run lacks the table."""
    import pyarrow.dataset as ds

    scan = ds.ParquetFragmentScanOptions(page_checksum_verification=True, pre_buffer=False)
    paths = [str(run.path / f"{name}.parquet") for run in runs]
    data = ds.dataset(paths, schema=schema(name), format=ds.ParquetFileFormat(default_fragment_scan_options=scan))
    frame: pd.DataFrame = data.to_table(columns=["run_id", *columns], filter=keep).to_pandas()
    return frame


def _files(folder: Path, name: str) -> list[Path]:
    """The files of this name in all runs of a results folder, or in the one run whose folder this is."""
    own = folder / name
    return [own] if own.exists() else sorted(folder.glob(f"runs/*/*/*/{name}"))


def _mark(path: Path) -> Mark | None:
    try:
        stat = os.stat(path / "DONE")
    except FileNotFoundError:
        return None
    return stat.st_ino, stat.st_mtime_ns


def _distinct(found: Iterator[Run]) -> tuple[list[Run], list[str]]:
    last: dict[str, Run] = {}
    notes = []
    for run in found:
        key = run.manifest["run_id"]
        if key in last and last[key].path.resolve() != run.path.resolve():
            first, second = sorted((last[key], run), key=lambda each: each.manifest.get("ended_at") or "")
            notes.append(f"{first.path} was rerun as {second.path}; only the later one is read")
            last[key] = second
        else:
            last[key] = run
    return list(last.values()), notes


def _unreadable(runs: Sequence[Run], wanted: Mapping[str, Wanted]) -> StoreError:
    """Names the first file that cannot be read."""
    path = runs[0].path
    for run, (name, what) in ((run, item) for run in runs for item in wanted.items()):
        try:
            read([run], name, *what)
        except (OSError, ValueError):
            path = run.path / f"{name}.parquet"
            break
    return StoreError(f"{path}: not readable; rerun with force=true")
