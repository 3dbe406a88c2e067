"""The four tables of a run as parquet: explicit schemas, and files that may come in parts.

results/SCHEMA.md documents every column.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.store.errors import SCHEMA_VERSION, Damaged, SchemaError, StoreError, check_version, regular, reporting
from harness.store.files import jsonable, replacing
from harness.store.versions import ADDED, upgraded
from harness.wording import first_line

# plain names: importing this module must not import pyarrow
SCHEMAS: dict[str, dict[str, str]] = {
    "metrics": {
        "run_id": "string", "stream": "string", "scenario": "string", "strategy": "string",
        "setting": "string", "entry": "string", "seed": "int64", "boundary": "int64", "phase": "string",
        "net": "string", "task": "int64", "metric": "string", "axis": "string", "coord": "string",
        "value": "float64", "stderr": "float64", "diverged": "bool", "better": "string", "schema_version": "int64",
    },
    "accuracy": {
        "run_id": "string", "setting": "string", "entry": "string", "seed": "int64", "boundary": "int64",
        "task": "int64", "split": "string", "accuracy": "float64", "loss": "float64", "n": "int64",
    },
    "curves": {
        "run_id": "string", "setting": "string", "entry": "string", "seed": "int64", "boundary": "int64",
        "step": "int64", "online_accuracy": "float64", "loss": "float64",
    },
    "timing": {
        "run_id": "string", "setting": "string", "entry": "string", "boundary": "int64", "part": "string",
        "seconds": "float64", "peak_memory": "float64",
    },
}  # fmt: skip
DEFAULTS: dict[str, Any] = {  # of columns that a row may omit; every float may be omitted, and is then NaN
    "net": "trained", "task": -1, "axis": "", "coord": "", "better": "", "split": "test", "diverged": False,
}  # fmt: skip

SMALL = 2**16  # bytes of a table; unpacking less than that takes longer than reading it, and there may be thousands
MOST = 50_000_000  # rows of a table; more would fill the memory
# a damaged table may fail anywhere; pyarrow's errors derive from these
UNREADABLE = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    NotImplementedError,
    MemoryError,
    RecursionError,
)

TableRows = Sequence[Mapping[str, Any]] | Mapping[str, Any]  # dicts, or columns (arrays; scalars broadcast)


def schema(name: str, boundary: int | None = None, after: int | None = None) -> Any:
    """The pyarrow schema of a table; its metadata say up to which boundary the file is complete."""
    import pyarrow as pa

    state = {"schema_version": SCHEMA_VERSION, "boundary": boundary, "after": after}
    types = {"string": pa.string(), "int64": pa.int64(), "float64": pa.float64(), "bool": pa.bool_()}
    return pa.schema(
        [pa.field(column, types[kind], nullable=False) for column, kind in SCHEMAS[name].items()],
        metadata={"harness": json.dumps(state)},
    )


# --- rows to arrow ------------------------------------------------------------------------------


def as_table(name: str, rows: TableRows, fill: Mapping[str, Any]) -> Any:
    """Rows or columns as a pyarrow table; a copy. `fill` has the values of columns that are constant in a run.

    ValueError for an unknown table or column, columns of different lengths, and a missing value where one is needed.
    """
    import pyarrow as pa

    _check_name(name)
    if not len(rows):
        return schema(name).empty_table()
    kinds = SCHEMAS[name]
    given = _columns(rows, kinds, fill)
    if unknown := sorted(given.keys() - kinds.keys()):
        raise ValueError(f"{name}.{unknown[0]}: unknown column; the columns are {', '.join(kinds)}")
    n = _length(name, given)
    values = {c: given[c] if c in given else _default(c, kind, fill) for c, kind in kinds.items()}
    arrays = [_array(f"{name}.{c}", kind, values[c], n) for c, kind in kinds.items()]
    return pa.Table.from_arrays(arrays, schema=schema(name))


def _check_name(name: str) -> None:
    if name not in SCHEMAS:
        raise ValueError(f"table {name!r}: unknown table; the tables are {', '.join(SCHEMAS)}")


def _columns(rows: TableRows, kinds: Mapping[str, str], fill: Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(rows, Mapping):
        return {k: v.detach().cpu().numpy() if hasattr(v, "detach") else v for k, v in rows.items()}
    names = {k for row in rows for k in row}
    return {k: [row.get(k, _default(k, kinds.get(k, ""), fill)) for row in rows] for k in names}


def _length(name: str, columns: Mapping[str, Any]) -> int:
    sizes = {k: len(v) for k, v in columns.items() if not _scalar(v)}
    n = max(sizes.values(), default=1)
    for column, size in sizes.items():
        if size != n:
            raise ValueError(f"{name}.{column}: {size} values for {n} rows; columns must have the same length")
    return n


def _array(where: str, kind: str, value: Any, n: int) -> Any:
    """One column of n rows; a scalar stands for every row."""
    import numpy as np
    import pyarrow as pa

    if value is None and kind != "float64":
        raise ValueError(f"{where}: missing; every row needs it")
    if kind == "string":
        if _scalar(value):
            return pa.repeat(_text(value), n)
        return pa.array([_text(v) for v in (value.tolist() if hasattr(value, "tolist") else value)], pa.string())
    if kind == "int64" and isinstance(value, list) and None in value:
        raise ValueError(f"{where}: missing in row {value.index(None)}; every row needs it")
    array = np.asarray([math.nan if v is None else v for v in value] if isinstance(value, list) else value)
    if kind == "int64" and array.size and array.dtype.kind not in "iub":
        raise ValueError(f"{where}: {array.flat[0]!r} is not an integer")
    if kind == "bool" and array.size and array.dtype.kind != "b":
        raise ValueError(f"{where}: {array.flat[0]!r} is not true or false")
    dtype = {"int64": np.int64, "float64": np.float64, "bool": np.bool_}[kind]
    return pa.array(np.broadcast_to(array.astype(dtype), n).copy())


def _scalar(value: Any) -> bool:
    import numpy as np

    return isinstance(value, str) or np.ndim(value) == 0


def _default(column: str, kind: str, fill: Mapping[str, Any]) -> Any:
    return fill.get(column, DEFAULTS.get(column, math.nan if kind == "float64" else None))


def _text(value: Any) -> str:
    """Text of a coordinate: numbers as Python writes them, which float() and int() read back."""
    value = value.item() if hasattr(value, "item") else value
    return value if isinstance(value, str) else "" if value is None else repr(value)


# --- files --------------------------------------------------------------------------------------


def concat(name: str, tables: Sequence[Any]) -> Any:
    """One table with one chunk a column; a chunk for each of hundreds of boundaries would be slow to read."""
    import pyarrow as pa

    # not empty_table(), which imports pandas
    return pa.concat_tables([pa.Table.from_batches([], schema(name)), *tables]).combine_chunks()


def write_table(path: Path, table: Any, name: str, boundary: int, after: int | None = None) -> None:
    """Write a table that is complete up to `boundary`; a part continues the rows up to boundary `after`."""
    import pyarrow.parquet as pq

    small = table.nbytes < SMALL
    floats = [c for c, kind in SCHEMAS[name].items() if kind == "float64"]
    repeated = [c for c, kind in SCHEMAS[name].items() if kind == "string" or (kind == "int64" and not small)]
    with replacing(path) as tmp:
        pq.write_table(
            table.cast(schema(name, boundary, after)),
            tmp,
            compression="none" if small else "zstd",
            use_dictionary=repeated,
            use_byte_stream_split=floats,  # half the time of a dictionary of distinct floats, and smaller
            write_page_checksum=True,
        )


def read_file(path: Path, name: str) -> tuple[Any, dict[str, Any]]:
    """One file's table, and the state in its metadata. SchemaError under another version."""
    import pyarrow.parquet as pq

    regular(path)
    # not pq.read_table: it reads "key=value" folders above the file as columns
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        state = _state(path, file)
        if file.metadata.num_rows > MOST:
            raise ValueError(f"{file.metadata.num_rows:,} rows, more than {MOST:,}")
        table = file.read()
    if state["schema_version"] < SCHEMA_VERSION:
        table = upgraded(name, table, path.parent.parent if path.parent.name == "parts" else path.parent)
        table = table.select(list(SCHEMAS[name]))
    return table.cast(schema(name)), state


def check_file(path: Path, name: str) -> None:
    """Damaged unless `path` is a table of this name that is complete, by its first and last bytes. SchemaError."""
    import pyarrow.parquet as pq

    regular(path)
    try:
        with pq.ParquetFile(path) as file:
            state = _state(path, file)
            added = ADDED if state["schema_version"] < SCHEMA_VERSION else ()
            for column, kind in SCHEMAS[name].items():
                if column not in added and not fits(kind, found := file.schema_arrow.field(column).type):
                    raise ValueError(f"{column} is {found}, not {kind}")
    except SchemaError:
        raise
    except UNREADABLE as error:
        raise Damaged(path, first_line(error, 200)) from error


def fits(kind: str, found: Any) -> bool:
    """Whether a pyarrow type holds values of this kind."""
    from pyarrow import types

    if kind == "string":
        return bool(types.is_string(found) or types.is_large_string(found))
    return bool({"int64": types.is_integer, "float64": types.is_floating, "bool": types.is_boolean}[kind](found))


def _state(path: Path, file: Any) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((file.schema_arrow.metadata or {}).get(b"harness", b"{}"))
    check_version(path.parent, state.get("schema_version"))
    if not isinstance(state["boundary"], int):
        raise ValueError("its last boundary is missing")
    return state


def read_parts(folder: Path, name: str, broken: list[Path] | None = None) -> tuple[Any, int | None]:
    """The table joined from its parts, and the boundary up to which it is complete (None: no file).

    An unreadable file is added to `broken`, and ends the table; StoreError if `broken` is None.
    """
    main = folder / f"{name}.parquet"
    parts = {int(p.suffix[1:]): p for p in (folder / "parts").glob(f"{name}.*") if re.fullmatch(r"\.-?\d+", p.suffix)}
    paths = [main, *(parts[t] for t in sorted(parts))]
    tables: list[Any] = []
    complete: int | None = None
    for path in paths:
        try:
            if path != main and complete is not None and int(path.suffix[1:]) <= complete:
                continue  # already merged into the main file
            table, state = read_file(path, name)
        except FileNotFoundError:
            break
        except SchemaError:
            raise
        except UNREADABLE as error:
            if broken is None:
                raise error if isinstance(error, Damaged) else Damaged(path, first_line(error, 200)) from error
            broken.append(path)
            break
        if path != main and state.get("after") != complete:
            break  # a part in between is missing
        tables.append(table)
        complete = state["boundary"]
    return concat(name, tables), complete


def read_table(run: Any, name: str) -> Any:
    """A table of one run, finished or not, as a pyarrow table. `run`: its folder, or an object with a `path`.

    Raises ValueError for an unknown table, StoreError if the folder has none that can be read, SchemaError.
    """
    folder = Path(getattr(run, "path", run))
    _check_name(name)
    table, complete = read_parts(folder, name)
    if complete is None:
        raise StoreError(f"{folder}: no {name}.parquet found; is this the folder of a run?")
    return table


def write_frame(path: Path, columns: Mapping[str, Sequence[Any]], about: Mapping[str, Any]) -> None:
    """Write a table of any form, atomically; `about` says how it was made, and `read_about` returns it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({k: pa.array(v, from_pandas=False) for k, v in columns.items()})
    with reporting(path.parent), replacing(path) as tmp:
        pq.write_table(table.replace_schema_metadata({"about": json.dumps(jsonable(about))}), tmp, compression="zstd")


def read_about(path: Path) -> dict[str, Any] | None:
    """The `about` that `write_frame` stored in the table at `path`; None if there is none, or it cannot be read."""
    import pyarrow.parquet as pq

    try:
        about: dict[str, Any] = json.loads((pq.read_schema(path).metadata or {})[b"about"])
    except UNREADABLE:
        return None
    return about if isinstance(about, dict) else None
