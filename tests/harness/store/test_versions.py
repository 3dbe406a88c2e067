"""A run that was written under schema version 1 reads as one of today: version_1/ is such a run, unchanged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness import store
from harness.leaderboard import leaderboard
from harness.store.versions import ADDED
from tests.harness.folders import write

OLD = Path(__file__).parent / "version_1"


@pytest.fixture
def results(tmp_path: Path) -> Path:
    shutil.copytree(OLD, tmp_path / "runs" / "permuted_digits_domain" / "ewc" / "17b2431f97a1")
    return tmp_path


def test_the_run_is_of_version_1() -> None:
    for name in store.SCHEMAS:
        schema = pq.read_schema(OLD / f"{name}.parquet")
        assert json.loads(schema.metadata[b"harness"])["schema_version"] == 1 and not {*ADDED} & {*schema.names}


def test_its_tables_have_todays_columns_and_their_own_values(results: Path) -> None:
    for name, columns in store.SCHEMAS.items():
        table, raw = store.read_all(results, name), pq.ParquetFile(OLD / f"{name}.parquet").read()
        assert table.schema.equals(store.schema(name)) and table.column_names == list(columns)
        assert set(table["entry"].to_pylist()) == {"ewc[strength=3,mode=separate]"}
        for column in {*raw.column_names} - {"net", "metric", "schema_version"}:
            assert table[column].equals(raw[column]) or np.array_equal(table[column], raw[column], equal_nan=True)


def test_its_setting_is_that_of_its_manifest(results: Path) -> None:
    facts = json.loads((OLD / "manifest.json").read_text())
    assert set(store.read_all(results)["setting"].to_pylist()) == {f"{facts['setting']}@{facts['stream_version']}"}


def test_nets_are_named_by_column(results: Path) -> None:
    frame = store.read_all(results).to_pandas()
    nets = {metric: set(rows.net) for metric, rows in frame.groupby("metric")}
    assert nets["online_accuracy"] == {"trained"} and nets["average_accuracy"] == {"deployed"}
    assert nets["intransigence_deployed"] == {"deployed"} and "intransigence" not in nets
    assert nets["trainability_gap"] == nets["memory"] == {""} and nets["weight_l2"] == {"trained"}


def test_the_leaderboard_shows_it_beside_runs_of_today(results: Path) -> None:
    facts = store.read_manifest(OLD)
    about = {k: facts[k] for k in ("setting", "stream_version", "stream_hash")}
    about["config"] = {**facts["config"], "strategy": {"naive": {"_target_": "strategies.naive.Naive"}}}
    write(results, "naive", [0.5, 0.6], stream="permuted_digits_domain", tasks=2, **about)
    (board,) = leaderboard([results]).boards
    accuracy = {row.entry.label: row.means["average_accuracy"][0] for row in board.rows}
    raw = pq.ParquetFile(OLD / "metrics.parquet").read().to_pandas()
    last = raw[(raw.metric == "average_accuracy") & (raw.boundary == 1)].value.mean()
    assert accuracy == {"ewc[strength=3,mode=separate]": pytest.approx(last), "naive": pytest.approx(0.55)}
    assert any("the harness has changed between entries" in note for note in board.notes)


def test_a_seed_had_diverged_where_it_has_no_value_at_all(results: Path) -> None:
    (path,) = results.glob("runs/*/*/*")
    facts = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**facts, "diverged": [1]}))
    table = pq.ParquetFile(path / "metrics.parquet").read()
    gone = [
        s == 1 and t == 1 and p == "end"
        for s, t, p in zip(*(table[c].to_pylist() for c in ("seed", "boundary", "phase")))
    ]
    values = [float("nan") if lost else v for lost, v in zip(gone, table["value"].to_pylist())]
    at = table.column_names.index("value")
    pq.write_table(table.set_column(at, table.schema.field(at), pa.array(values)), path / "metrics.parquet")
    assert store.read_table(path, "metrics")["diverged"].to_pylist() == gone
    assert any(gone) and np.isnan([v for v, lost in zip(values, gone) if not lost]).any()  # undefined is not diverged


def test_a_finished_run_of_version_1_can_be_added_to(results: Path) -> None:
    (path,) = results.glob("runs/*/*/*")
    with store.RunFolder.reopen(path) as folder:
        table = store.read_table(folder, "metrics")
        folder.replace("metrics", table.to_pylist())
    assert store.read_table(path, "metrics").to_pandas().equals(table.to_pandas())
    assert json.loads(pq.read_schema(path / "metrics.parquet").metadata[b"harness"])["schema_version"] == 2
    assert len(leaderboard([results]).boards) == 1
