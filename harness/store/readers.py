"""Many finished runs at once: each manifest, and what is needed of a table in one threaded pass over all files."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.store import Run, StoreError, check_version, schema

if TYPE_CHECKING:
    import pandas as pd

Mark = tuple[int, int]  # of a DONE file: it is another one once the run was done again


class Wanted(NamedTuple):
    """Of a table: these columns, of the rows where `keep` (a pyarrow.dataset expression) holds."""

    columns: Sequence[str]
    keep: Any = None


class Snapshot(NamedTuple):
    runs: list[Run]
    tables: dict[str, pd.DataFrame]  # every row names its run in `run_id`
    notes: list[str]  # what was left out, and why


def snapshot(folders: Sequence[Path], wanted: Mapping[str, Wanted], **filters: object) -> Snapshot:
    """The finished runs of results folders, and what is `wanted` of their tables, by name of the table.

    `filters` are values of the manifest. While other processes write, no row is of a run that is half written: DONE
    goes before a run's files do and comes back last, so that a run whose DONE is the same before and after the
    reading was whole all along. One that changed meanwhile is left out, with a note. A run that stands in several
    folders counts once, the one that ended last. Raises StoreError, SchemaError.
    """
    found, notes = _distinct(find(folders, **filters))
    while True:
        runs = [run for run, _ in found]
        try:
            tables = {name: read(runs, name, *what) for name, what in wanted.items()}
        except FileNotFoundError:
            tables = {}
        except (OSError, ValueError) as error:  # pyarrow's errors are these; one file may be what fails
            if all(_mark(run.path) == mark for run, mark in found):
                raise StoreError(f"{_broken(runs, wanted)}: not readable; run again with force=true") from error
            tables = {}
        still = [(run, mark) for run, mark in found if _mark(run.path) == mark]
        if len(still) == len(found):
            if len(tables) < len(wanted):
                raise StoreError(f"{_broken(runs, wanted)}: not readable; run again with force=true")
            return Snapshot(runs, tables, notes)
        for run, mark in found:
            if _mark(run.path) != mark:
                notes.append(f"{run.path} is being run again, and left out")
        found = still


def find(folders: Sequence[Path], **filters: object) -> list[tuple[Run, Mark]]:
    """Finished runs in results folders (or single ones), in order of their paths, with the mark of their DONE."""
    found = []
    for folder in folders:
        for done in _in(folder, "DONE"):
            mark = _mark(done.parent)
            try:
                manifest = json.loads((done.parent / "manifest.json").read_bytes())
            except FileNotFoundError:
                continue  # being started again by force=true
            except (OSError, ValueError) as error:
                raise StoreError(f"{done.parent / 'manifest.json'}: not readable; run again with force=true") from error
            check_version(done.parent, manifest.get("schema_version"))
            if mark is not None and all(manifest.get(key) == value for key, value in filters.items()):
                found.append((Run(done.parent, manifest), mark))
    return found


def unfinished(folders: Sequence[Path]) -> list[Run]:
    """Runs that were begun and are not done: cut short, failed, or under way."""
    found = []
    for path in (path for folder in folders for path in _in(folder, "manifest.json")):
        if not (path.parent / "DONE").exists():
            try:
                found.append(Run(path.parent, json.loads(path.read_bytes())))
            except (OSError, ValueError):
                continue  # what cannot be read of it is no result
    return found


def read(runs: Sequence[Run], name: str, columns: Sequence[str], keep: Any = None) -> pd.DataFrame:
    """Rows of a table of all these runs; FileNotFoundError where one lacks it."""
    import pyarrow.dataset as ds

    scan = ds.ParquetFragmentScanOptions(page_checksum_verification=True, pre_buffer=False)
    paths = [str(run.path / f"{name}.parquet") for run in runs]
    data = ds.dataset(paths, schema=schema(name), format=ds.ParquetFileFormat(default_fragment_scan_options=scan))
    frame: pd.DataFrame = data.to_table(columns=["run_id", *columns], filter=keep).to_pandas()
    return frame


def _in(folder: Path, name: str) -> list[Path]:
    """The files of this name of all runs in a results folder, or of the one run whose folder this is."""
    own = folder / name
    return [own] if own.exists() else sorted(folder.glob(f"runs/*/*/*/{name}"))


def _mark(path: Path) -> Mark | None:
    try:
        stat = os.stat(path / "DONE")
    except FileNotFoundError:
        return None
    return stat.st_ino, stat.st_mtime_ns


def _distinct(found: Sequence[tuple[Run, Mark]]) -> tuple[list[tuple[Run, Mark]], list[str]]:
    last: dict[str, tuple[Run, Mark]] = {}
    notes = []
    for run, mark in found:
        key = run.manifest["run_id"]
        if key in last and last[key][0].path.resolve() != run.path.resolve():
            first, second = sorted((last[key], (run, mark)), key=lambda each: each[0].manifest.get("ended_at") or "")
            notes.append(f"{first[0].path} was run again as {second[0].path}, and only the later one is read")
            last[key] = second
        else:
            last[key] = (run, mark)
    return list(last.values()), notes


def _broken(runs: Sequence[Run], wanted: Mapping[str, Wanted]) -> Path:
    """The first file that cannot be read."""
    for run in runs:
        for name, what in wanted.items():
            try:
                read([run], name, *what)
            except (OSError, ValueError):
                return run.path / f"{name}.parquet"
    return runs[0].path


def find_run(name: str, root: Path = Path("results"), *, command: str) -> Path:
    """The folder of a run, given its path or the beginning of its id under `root`. ValueError if there is none."""
    if (Path(name) / "manifest.json").is_file():
        return Path(name)
    found = sorted(path.parent for path in root.glob("runs/*/*/*/manifest.json") if path.parent.name.startswith(name))
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"{command} {name}: matches {len(found)} run ids; type more of the id")
    raise ValueError(f"{command} {name}: not the folder of a run, and no run id in {root}/runs starts with it")
