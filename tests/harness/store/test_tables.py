"""Rows, columns and parquet files: what is written is what is read, to the byte."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from harness import store
from harness.store import StoreError, run_folder
from tests.harness.store.runs import advance, begin, rows, tables

ROOT = Path(__file__).parents[3]


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    with begin(tmp_path, scenario="domain") as run:
        run.append(
            0,
            "end",
            {
                "metrics": {
                    "seed": torch.tensor([3, 3, 4, 4]),
                    "metric": "curvature",
                    "axis": "alpha",
                    "coord": [0.0, 0.1, 0.0, 0.1],
                    "value": torch.tensor([1.5, math.nan, math.inf, -2.0]),
                    "better": ["lower"] * 4,
                }
            },
        )
        run.commit(0, {})
        run.finish()
    (first, second, third, fourth) = store.read_table(run.path, "metrics").to_pylist()
    assert first == {
        "run_id": "abc", "stream": "permuted", "scenario": "domain", "strategy": "ewc",
        "setting": "", "entry": "ewc", "seed": 3, "diverged": False,
        "boundary": 0, "phase": "end", "net": "trained", "task": -1, "metric": "curvature",
        "axis": "alpha", "coord": "0.0", "value": 1.5, "stderr": pytest.approx(math.nan, nan_ok=True),
        "better": "lower", "schema_version": 2,
    }  # fmt: skip
    assert math.isnan(second["value"]) and third["value"] == math.inf and fourth["value"] == -2.0
    assert float(second["coord"]) == 0.1 and fourth["seed"] == 4


def test_dicts_and_columns_make_the_same_table(tmp_path: Path) -> None:
    made = []
    forms: dict[str, store.Rows] = {
        "columns": {"seed": np.arange(3), "step": [1, 2, 3], "loss": np.array([1.0, np.nan, 3.0])},
        "dicts": [
            {"seed": 0, "step": 1, "loss": 1.0},
            {"seed": 1, "step": 2},
            {"seed": 2, "step": 3, "loss": 3},
        ],
    }
    for name, given in forms.items():
        with begin(tmp_path / name) as run:
            run.append(0, "end", {"curves": given})
            run.commit(0, {})
            made.append(tables(run.path)["curves.parquet"])
    assert made[0] == made[1]


def test_appended_arrays_may_be_reused_by_the_caller(tmp_path: Path) -> None:
    values = np.array([1.0, 2.0])
    with begin(tmp_path) as run:
        run.append(0, "end", {"curves": {"seed": [0, 1], "step": 1, "loss": values}})
        values[:] = 9.0
        assert run.table("curves")["loss"].to_pylist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"metric": {"seed": 1}}, "metric"),
        ({"curves": {"seed": [1], "step": 1, "acc": 1.0}}, "curves.acc: unknown column"),
        ({"curves": {"seed": [1, 2], "step": [1]}}, "1 values for 2 rows"),
        ({"curves": {"seed": [1, 2]}}, "curves.step: missing"),
        ({"curves": {"seed": [1.5], "step": 1}}, "curves.seed: .*1.5.* is not an integer"),
        ({"curves": [{"seed": 1, "step": 1}, {"seed": 1}]}, "curves.step: missing in row 1"),
    ],
)
def test_wrong_rows_are_refused_whole(tmp_path: Path, given: dict[str, Any], message: str) -> None:
    with begin(tmp_path) as run, pytest.raises(ValueError, match=message):
        run.append(0, "end", {"timing": [{"part": "train", "seconds": 1.0}], **given})
    assert len(run.table("timing")) == 0


def test_no_rows_are_no_rows(tmp_path: Path) -> None:
    with begin(tmp_path) as run:
        run.append(0, "end", {"timing": {"part": [], "seconds": [], "peak_memory": []}, "curves": []})
        run.commit(0, {})
        run.finish()
    assert [len(store.read_table(run.path, name)) for name in store.SCHEMAS] == [0, 0, 0, 0]


def test_equal_rows_are_equal_bytes(tmp_path: Path, whole: dict[str, bytes]) -> None:
    with begin(tmp_path / "again") as run:
        advance(run, -1, 0, 1, 2)
        run.finish()
    assert tables(run.path) == whole and len(whole) == 4


def test_a_flipped_bit_in_a_table_is_seen(tmp_path: Path) -> None:
    with begin(tmp_path) as run:
        run.append(0, "end", {"curves": {"seed": np.arange(5000), "step": 1, "loss": np.random.rand(5000)}})
        run.commit(0, {})
    path = run.path / "curves.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"curves\.parquet: damaged"):
        store.read_table(run.path, "curves")


def test_bytes_do_not_depend_on_how_the_rows_arrived(tmp_path: Path) -> None:
    loss = np.random.default_rng(0).random(60_000)
    made = []
    for pieces in (1, 37):
        with begin(tmp_path / str(pieces)) as run:
            for part in np.array_split(np.arange(60_000), pieces):
                run.append(0, "end", {"curves": {"seed": part, "step": part % 7, "loss": loss[part]}})
            run.commit(0, {})
        made.append(tables(run.path))
    assert made[0] == made[1]


def test_parts_merge_into_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    for small in (0, 20_000):
        monkeypatch.setattr(run_folder, "_SMALL", small)
        with begin(tmp_path / str(small)) as run:
            advance(run, *range(-1, 12))
            assert (run.path / "parts").exists() == (small == 0)
            run.finish()
        made.append(tables(run.path))
    assert made[0] == made[1]


def test_a_long_run_writes_in_proportion_to_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = 0
    write = run_folder.write_table

    def counting(path: Path, table: pa.Table, *rest: Any, **named: Any) -> None:
        nonlocal written
        written += len(table)
        write(path, table, *rest, **named)

    monkeypatch.setattr(run_folder, "write_table", counting)
    monkeypatch.setattr(run_folder, "_SMALL", 0)
    with begin(tmp_path) as run:
        for t in range(100):
            run.append(t, "end", {"curves": {"seed": np.arange(10), "step": 1}})
            run.commit(t, {})
    # whole each time: 10 (1 + ... + 100) = 50,500
    assert 1000 <= written < 7_000


def test_table_shows_one_boundary_committed_or_not(tmp_path: Path) -> None:
    with begin(tmp_path) as run:
        advance(run, 0)
        run.append(1, "end", rows(1))
        assert run.table("metrics", 1)["value"].to_pylist() == rows(1)["metrics"]["value"].tolist()
        assert len(run.table("metrics")) == 4


def test_schema_md_lists_exactly_the_columns() -> None:
    text = (ROOT / "results" / "SCHEMA.md").read_text("utf-8")
    for name, columns in store.SCHEMAS.items():
        section = text.split(f"\n## {name}\n")[1].split("\n## ")[0]
        cells = [
            [c.strip() for c in line.strip("|").split("|")] for line in section.splitlines() if line.startswith("|")
        ]
        assert cells[0] == ["column", "type", "unit", "meaning"]
        assert {c[0]: c[1] for c in cells[2:]} == columns and all(len(c) == 4 and c[3] for c in cells)
        assert {f.name: str(f.type) for f in store.schema(name)} == {
            k: v.replace("float64", "double") for k, v in columns.items()
        }
    version = text.split("\n## Version\n")[1].split()[0]
    assert int(version) == store.SCHEMA_VERSION
