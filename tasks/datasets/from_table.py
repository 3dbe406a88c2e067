"""A user's table of feature columns and a label column."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.wording import first_line
from tasks.datasets.dataset import Dataset, Preparation
from tasks.datasets.errors import DataError
from tasks.datasets.own import PARTS, existing, joined


def parquet(
    path: str | Path | None,
    label: str = "label",
    columns: Sequence[str] | None = None,
    split: str | None = None,
    val: float = 0.1,
    test: float = 0.2,
    normalise: str = "standard",
) -> Dataset:
    """A parquet file whose columns are features and a label.

    `columns` are the features (null: all except `label` and `split`). `split` is a column of train, val or test.
    Without it, a stratified fraction `test` of the rows is held out. PATH can also be a folder with train.parquet,
    test.parquet and optionally val.parquet. Labels are whole numbers from 0, or words.
    Raises DataError for data that does not fit.
    """
    how = Preparation(val, test, normalise)
    base = existing(path, "a parquet file, or a folder with train.parquet and test.parquet")
    files = (
        {p: base / f"{p}.parquet" for p in PARTS if (base / f"{p}.parquet").is_file()} if base.is_dir() else {"": base}
    )
    if base.is_dir() and not {"train", "test"} <= set(files):
        raise DataError(f"{base}: found {', '.join(f.name for f in files.values()) or 'no parquet file'}; "
                        "expected train.parquet and test.parquet")  # fmt: skip
    if split is not None and base.is_dir():
        raise ValueError(f"dataset.split={split}: the files of a folder are the split; use null")
    tables = {p: _table(f) for p, f in files.items()}
    found: dict[str, Any] = {}
    rows: dict[str, tuple[Path, NDArray[np.int64]]] = {}
    chosen = list(columns) if columns is not None else None
    for part, table in tables.items():
        file = files[part]
        if chosen is None:
            chosen = [c for c in table.column_names if c not in (label, split)]
        y, whose = _words(table, label, file), _words(table, split, file) if split is not None else None
        x = _features(table, chosen, file)
        if whose is not None:
            odd = [i for i, v in enumerate(whose.tolist()) if v not in PARTS]
            if odd:
                raise DataError(f"{file}: row {odd[0]}, {split}: {whose[odd[0]]}; must be train, val or test")
        for p in PARTS if whose is not None else [part or "train"]:
            index = np.flatnonzero(whose == p) if whose is not None else np.arange(len(y))
            if len(index):
                found[p], rows[p] = (x[index], y[index]), (file, index)
    if split is not None and not {"train", "test"} <= set(found):
        raise DataError(f"{base}: column {split} contains only {', '.join(found)}; expected train and test")

    def place(part: str, row: int) -> str:
        file, index = rows[part]
        return f"{file}: row {index[row]}, {label}"

    return joined(base.stem, found, place, how)


def _table(file: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(file).read()  # unlike read_table, it adds no partition columns from the path
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{file}: cannot be read as parquet ({first_line(error)}); replace it") from error
    for name, count in Counter(table.column_names).items():
        if count > 1:
            raise DataError(f"{file}: {count} columns are called {name}; rename them")
    if not table.num_rows:
        raise DataError(f"{file}: has no rows; expected at least one")
    return table


def _column(table: Any, name: str, file: Path) -> Any:
    if name not in table.column_names:
        close = get_close_matches(str(name), table.column_names, 1)
        hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(table.column_names[:20])}"
        raise DataError(f"{file}: no column {name}; {hint}")
    column = table[name]
    if column.null_count:
        row = column.is_null().to_numpy().argmax()
        raise DataError(
            f"{file}: row {row}, {name}: empty; {column.null_count} of {len(column)} rows are empty; fill or drop them"
        )
    return column


def _features(table: Any, columns: Sequence[str], file: Path) -> NDArray[np.float32]:
    import pyarrow.types as kinds

    if not columns:
        raise DataError(f"{file}: has no feature columns, only the label")
    made = []
    for name in columns:
        column = _column(table, name, file)
        kind = column.type
        if not (kinds.is_integer(kind) or kinds.is_floating(kind) or kinds.is_boolean(kind) or kinds.is_decimal(kind)):
            raise DataError(
                f"{file}: column {name} is {kind}, not a number; encode it, or list the feature columns in "
                "dataset.columns=[...]"
            )
        with np.errstate(over="ignore"):
            values = column.to_numpy().astype(np.float32)
        bad = ~np.isfinite(values)
        if bad.any():
            row = int(bad.argmax())
            raise DataError(
                f"{file}: row {row}, {name}: {values[row]}; {int(bad.sum())} of {len(values)} rows are not finite; "
                "fill or drop them"
            )
        made.append(values)
    return np.stack(made, 1)


def _words(table: Any, name: str, file: Path) -> NDArray[Any]:
    """A column of labels: whole numbers, or words."""
    import pyarrow as pa
    import pyarrow.types as kinds

    column = _column(table, name, file)
    if kinds.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    if kinds.is_string(kind) or kinds.is_large_string(kind) or kind == pa.string_view():
        return np.array(column.to_pylist(), dtype=np.str_)
    if kinds.is_integer(kind) or kinds.is_boolean(kind):
        return np.asarray(column.to_numpy())
    raise DataError(f"{file}: column {name} is {kind}; labels must be whole numbers from 0, or words")
