"""Some columns of one run's table: checked, and read without what is not needed, because there may be thousands."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from harness.store.errors import SCHEMA_VERSION, Damaged, SchemaError, check_version, regular
from harness.store.tables import MOST, SCHEMAS, UNREADABLE, fits, read_table, schema
from harness.store.versions import ADDED
from harness.wording import first_line

Where = Mapping[str, Collection[Any]]  # column -> values; a row is read if it has one of them in every column


def read_columns(folder: Path, name: str, columns: Sequence[str], where: Where, run_id: str, room: int = MOST) -> Any:
    """run_id and these columns of the table of a finished run, as a pyarrow table, and what decides about `where`.

    Rows are not selected yet, except that none is left if a column of `where` has another value in all rows, as the
    file's footer says; such a column is not read. The state in the file's metadata, the run_id of all rows,
    types, missing values and the checksums of what is read are checked. Raises FileNotFoundError, Damaged, SchemaError,
    and ValueError for more than `room` rows.
    """
    path = folder / f"{name}.parquet"
    regular(path)
    try:
        return _read(path, name, columns, where, run_id, room)
    except (FileNotFoundError, SchemaError, Damaged):
        raise
    except UNREADABLE as error:
        raise Damaged(path, first_line(error, 200)) from error


def _read(path: Path, name: str, columns: Sequence[str], where: Where, run_id: str, room: int) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    with open(path, "rb", buffering=0) as opened:  # one read is faster than many small ones
        content = pa.BufferReader(opened.read())
    file = pq.ParquetFile(content, page_checksum_verification=True, pre_buffer=False)
    footer = file.metadata
    state = json.loads(footer.metadata[b"harness"])
    check_version(path.parent, state.get("schema_version"))
    if not isinstance(state["boundary"], int):
        raise ValueError("its last boundary is missing")
    if footer.num_rows > room:
        raise ValueError(f"more than {room:,} rows")
    if state["schema_version"] < SCHEMA_VERSION and {*ADDED} & {*columns, *where}:
        return read_table(path.parent, name).select(list(dict.fromkeys(["run_id", *columns, *where])))
    constant = _constants(footer, name, [*where])
    needed = tuple(dict.fromkeys(["run_id", *columns, *(c for c in where if c not in constant)]))
    table, form = file.read(list(needed), use_threads=False), _form(name, needed)
    if not table.schema.equals(form):  # then no value can be missing either
        table = _checked(table, name, form)
    if pc.unique(table["run_id"]).to_pylist() not in ([run_id], []):
        raise ValueError("has rows of another run")
    return table if all(constant[c] in where[c] for c in where if c in constant) else table[:0]


@cache
def _form(name: str, columns: tuple[str, ...]) -> Any:
    import pyarrow as pa

    return pa.schema([schema(name).field(column) for column in columns])


def _checked(table: Any, name: str, form: Any) -> Any:
    """The table in this form; ValueError if its columns or types are others, or if values are missing."""
    for field in form:
        kind, found = SCHEMAS[name][field.name], table[field.name]
        if not fits(kind, found.type):
            raise ValueError(f"{field.name} is {found.type}, not {kind}")
        if found.null_count:
            raise ValueError(f"{field.name}: values are missing")
    return table.select(form.names).cast(form)


def _constants(footer: Any, name: str, columns: Sequence[str]) -> dict[str, Any]:
    """The value of each of these columns that has the same in all rows, as far as the footer says so."""
    found: dict[str, Any] = {}
    if footer.num_row_groups != 1:
        return found
    chunks, places = footer.row_group(0), list(SCHEMAS[name])
    for column in columns:
        at = places.index(column)
        chunk = chunks.column(at) if at < chunks.num_columns else None
        if chunk is not None and chunk.path_in_schema == column and (known := chunk.statistics) is not None:
            least = known.min
            if least is not None and least == known.max and not known.null_count:
                found[column] = least
    return found
