"""A user's table of feature columns and a label column."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.wording import first_line
from tasks.datasets.dataset import Dataset, Preparation
from tasks.datasets.errors import DataError
from tasks.datasets.limits import check_memory
from tasks.datasets.own import existing, joined
from tasks.datasets.parts import PARTS, by_part, part_of, refuse_near
from tasks.datasets.values import NUMBERING, floats, labels

WRITTEN = re.compile(r"__index_level_\d+__|__null_dask_index__")  # columns in which pandas and dask store an index


class Table(NamedTuple):
    """A table as read; a dictionary finds columns by name, since pyarrow makes the list of names at each call."""

    data: Any
    file: Path
    place: dict[str, int]
    stored: tuple[str, ...]  # columns that are the writer's index

    def at(self, name: str) -> Callable[[int], str]:
        """The place of a row in this column, for messages."""
        return lambda row: f"{self.file}: row {row}, {name}"

    def column(self, name: str) -> Any:
        """DataError if the column is missing or has empty cells."""
        if name not in self.place:
            close = get_close_matches(str(name), self.place, 1)
            hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(list(self.place)[:20])}"
            raise DataError(f"{self.file}: no column {name}; {hint}")
        column = self.data.column(self.place[name])
        if column.null_count:
            row = column.is_null().to_numpy().argmax()
            raise DataError(
                f"{self.file}: row {row}, {name}: empty; {column.null_count} of {len(column)} rows are empty; fill or "
                "drop them"
            )
        return column


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

    `columns` are the features (null: all except `label`, `split` and the index that pandas stores). `split` is a column
    of train, val or test. Without it, a stratified fraction `test` of the rows is held out. PATH can also be a folder
    with train.parquet, test.parquet and optionally val.parquet. Labels are whole numbers from 0, or words.
    Raises DataError for data that does not fit.
    """
    how = Preparation(val, test, normalise)
    base = existing(path, "a parquet file, or a folder with train.parquet and test.parquet")
    return _table(base, (".parquet", ".parq", ".pq"), _parquet, label, columns, split, how)


def csv(
    path: str | Path | None,
    label: str = "label",
    columns: Sequence[str] | None = None,
    split: str | None = None,
    delimiter: str | None = None,
    val: float = 0.1,
    test: float = 0.2,
    normalise: str = "standard",
) -> Dataset:
    """A CSV file with a line of column names, or a folder with train.csv, test.csv and optionally val.csv.

    As `parquet`, with `delimiter` between cells (null: a tab in .tsv files, else a comma). Compressed files (.csv.gz)
    are read too. A column of row numbers without a name, as pandas writes it, is left out.
    """
    how = Preparation(val, test, normalise)
    known = isinstance(delimiter, str) and len(delimiter) == 1 and delimiter.isascii() and delimiter not in '"\r\n'
    if delimiter is not None and not known:
        raise ValueError(f"dataset.delimiter={delimiter!r}: must be one ASCII character, or null for a comma or tab")
    base = existing(path, "a CSV file, or a folder with train.csv and test.csv")
    suffixes = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
    return _table(base, suffixes, lambda file: _csv(file, delimiter, str(label)), label, columns, split, how)


def _table(
    base: Path,
    suffixes: Sequence[str],
    read: Callable[[Path], Table],
    label: str,
    columns: Sequence[str] | None,
    split: str | None,
    how: Preparation,
) -> Dataset:
    if isinstance(columns, str):
        raise ValueError(f"dataset.columns={columns}: must be a list of columns, as in [{columns}], or null for all")
    columns = None if columns is None else [str(c) for c in columns]
    label, split = str(label), None if split is None else str(split)
    kind, notes = suffixes[0], list[str]()
    files = _files(base, suffixes, notes) if base.is_dir() else {"": base}
    if base.is_dir() and not {"train", "test"} <= set(files):
        raise DataError(f"{base}: found {', '.join(f.name for f in files.values()) or f'no {kind[1:]} file'}; "
                        f"expected train{kind} and test{kind}")  # fmt: skip
    if split is not None and base.is_dir():
        raise ValueError(f"dataset.split={split}: the files of a folder are the split; use null")
    tables = {p: read(f) for p, f in files.items()}
    first = next(iter(tables.values()))
    chosen = list(columns) if columns is not None else [c for c in first.place if c not in (label, split)]
    if columns is None:
        index = _index(list(tables.values())) - {label, split}
        chosen = [c for c in chosen if c not in index]
        notes += [f"index column {name or 'without a name'} left out" for name in sorted(index)]
        known = {*chosen, *index, label, split}
        extra = sorted({c for t in tables.values() for c in t.place} - known)
        notes += [f"columns only in some files left out: {', '.join(extra[:10])}"] if extra else []
    found: dict[str, Any] = {}
    rows: dict[str, tuple[Path, NDArray[np.int64]]] = {}
    for given, table in tables.items():
        y, x = _labels(table, label), _features(table, chosen)
        whose = _split_of(table, split) if split is not None else None
        for part in PARTS if whose is not None else [given or "train"]:
            at = np.flatnonzero(whose == part) if whose is not None else np.arange(len(y))
            if len(at):
                found[part] = (x[at], y[at]) if whose is not None else (x, y)
                rows[part] = table.file, at
    if split is not None and not {"train", "test"} <= set(found):
        raise DataError(f"{base}: column {split} contains only {', '.join(found)}; expected train and test")

    def place(part: str, row: int) -> str:
        file, at = rows[part]
        return f"{file}: row {at[row]}, {label}"

    return joined(base.stem, found, place, how, notes)


def _files(base: Path, suffixes: Sequence[str], notes: list[str]) -> dict[str, Path]:
    """Part -> its file. Other files of the same kind are counted, and refused if their names resemble a part."""
    stems = {}
    for file in sorted(base.iterdir()):
        suffix = next((s for s in sorted(suffixes, key=len, reverse=True) if file.name.lower().endswith(s)), None)
        if suffix and file.is_file() and not file.name.startswith("."):
            stems[file.name] = file.name[: -len(suffix)]
    refuse_near(stems.values(), str(base), "file")
    by_name: dict[str, Path] = {}
    for name, stem in stems.items():
        if stem in by_name:
            raise DataError(f"{base}: files {by_name[stem].name} and {name} mean the same part; keep one of them")
        by_name[stem] = base / name
    parts = by_part(by_name, str(base), "files")
    others = len(stems) - len(parts)
    notes += [f"{len(parts)} of {len(stems)} {suffixes[0]} files used"] if others else []
    return {part: by_name[stem] for part, stem in parts.items()}


def _index(tables: Sequence[Table]) -> set[str]:
    """Columns that number the rows instead of describing them: the label could be read off them."""
    found = {name for t in tables for name in t.stored} | {n for t in tables for n in t.place if WRITTEN.fullmatch(n)}
    for name in tables[0].place:
        if NUMBERING.fullmatch(name) and all(name not in t.place or _numbers_rows(t, name) for t in tables):
            found.add(name)
    return found


def _numbers_rows(table: Table, name: str) -> bool:
    import pyarrow.types as kinds

    column = table.data.column(table.place[name])
    return kinds.is_integer(column.type) and len(column.unique()) == len(column)


def _parquet(file: Path) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        opened = pq.ParquetFile(file)  # unlike read_table, it adds no partition columns from the path
        facts = opened.metadata
        check_memory(8 * facts.num_rows * facts.num_columns, str(file), "store fewer rows or columns")
        table = opened.read()
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{file}: cannot be read as parquet ({first_line(error)}); replace it") from error
    except MemoryError as error:
        raise DataError(f"{file}: does not fit into memory; store fewer rows or columns") from error
    return _checked(table, file, _stored_index(table))


def _stored_index(table: Any) -> tuple[str, ...]:
    """Columns that pandas stored as the index; a range is described without a column."""
    try:
        described = json.loads((table.schema.metadata or {}).get(b"pandas", b"{}"))
        return tuple(name for name in described.get("index_columns", ()) if isinstance(name, str))
    except (ValueError, AttributeError, TypeError):  # not written by pandas
        return ()


def _csv(file: Path, delimiter: str | None, label: str) -> Table:
    import pyarrow as pa
    from pyarrow import csv as reader

    between, size = delimiter or ("\t" if ".tsv" in file.suffixes else ","), file.stat().st_size
    check_memory(size, str(file), "store fewer rows or columns")
    # one block: every column is converted once per block, which would make wide tables quadratic
    blocks = reader.ReadOptions(block_size=min(max(size, 2**24), 2**30))
    cells = reader.ParseOptions(delimiter=between, newlines_in_values=True)
    try:
        table = reader.read_csv(file, blocks, cells, reader.ConvertOptions(column_types={label: pa.string()}))
    except (OSError, pa.ArrowException) as error:
        reason = "".join(c if c.isprintable() else "?" for c in first_line(error, 100))
        raise DataError(
            f"{file}: cannot be read as CSV ({reason}); write it in UTF-8 with as many cells in each line, or set "
            "dataset.delimiter"
        ) from error
    except MemoryError as error:
        raise DataError(f"{file}: does not fit into memory; store fewer rows or columns") from error
    names = [name for name in table.column_names if name]
    if names and all(_is_number(name) for name in names):
        raise DataError(f"{file}: its first line is {', '.join(names[:5])}; expected names of the columns; add them")
    checked = _checked(table, file, ())
    if label not in checked.place:
        return checked
    return checked._replace(data=table.set_column(checked.place[label], label, _as_written(table[label])))


def _as_written(words: Any) -> Any:
    """Labels in a CSV file as numbers, unless numbers would merge some, such as 7 and 07."""
    import pyarrow as pa
    import pyarrow.compute as pc

    trimmed = pc.utf8_trim_whitespace(words)
    for kind in (pa.int64(), pa.float64()):
        try:
            made = trimmed.cast(kind)
        except pa.ArrowInvalid:
            continue
        return made if len(made.unique()) == len(trimmed.unique()) else words
    return words


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _checked(table: Any, file: Path, index: tuple[str, ...]) -> Table:
    names = table.column_names
    for name, count in Counter(names).items():
        if count > 1:
            raise DataError(f"{file}: {count} columns are called {name}; rename them")
    if not table.num_rows:
        raise DataError(f"{file}: has no rows; expected at least one")
    return Table(table, file, {name: i for i, name in enumerate(names)}, index)


def _features(table: Table, columns: Sequence[str]) -> NDArray[Any]:
    import pyarrow as pa
    import pyarrow.types as kinds

    if not columns:
        raise DataError(f"{table.file}: has no feature columns, only the label")
    made = []
    for name in columns:
        column = table.column(name)
        kind = column.type
        if kinds.is_decimal(kind):
            column = column.cast(pa.float64())
        elif not (kinds.is_integer(kind) or kinds.is_floating(kind) or kinds.is_boolean(kind)):
            raise DataError(
                f"{table.file}: column {name} is {kind}, not a number; encode it, or list the feature columns in "
                "dataset.columns=[...]"
            )
        made.append(floats(column.to_numpy(), table.at(name)))
    x = np.empty((len(made), len(made[0])), np.result_type(*{v.dtype for v in made}))
    for i, values in enumerate(made):
        x[i] = values
    return np.ascontiguousarray(x.T)


def _plain(table: Table, name: str) -> Any:
    """A column as NumPy has it, or as Python objects."""
    import pyarrow.types as kinds

    column = table.column(name)
    if kinds.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if kinds.is_integer(column.type) or kinds.is_floating(column.type) or kinds.is_boolean(column.type):
        return column.to_numpy()
    return np.array([*column.to_pylist(), None], dtype=object)[:-1]  # None: an array of lists stays one of objects


def _labels(table: Table, name: str) -> NDArray[Any]:
    return labels(_plain(table, name), f"{table.file}: column {name}", table.at(name))


def _split_of(table: Table, name: str) -> NDArray[Any]:
    said = _plain(table, name).tolist()
    parts = [part_of(v) if isinstance(v, str) else None for v in said]
    if None in parts:
        row = parts.index(None)
        raise DataError(f"{table.file}: row {row}, {name}: {said[row]}; must be train, val or test")
    return np.array(parts)
