"""Readers of many runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from harness import store
from harness.store import RunFolder, StoreError, readers
from tests.harness.folders import write
from tests.harness.store.runs import advance

ROOT = Path(__file__).parents[3]


def test_find_runs_sees_finished_runs_that_match(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for strategy, setting, finished in (("ewc", "s1", True), ("reset", "s1", True), ("reset", "s2", False)):
        with RunFolder.open(tmp_path, "permuted", strategy, f"r{strategy}{setting}") as run:
            run.update_manifest(setting_id=setting, seeds=(0, 1))
            advance(run, 0)
            if finished:
                run.finish()
    found = list(store.find_runs(tmp_path, strategy="reset"))
    assert [r.manifest["setting_id"] for r in found] == ["s1"] and found[0].path.name == "rresets1"
    assert len(list(store.find_runs(tmp_path, setting_id="s1", seeds=(0, 1)))) == 2
    assert not list(store.find_runs(tmp_path, nonsense=None))
    (found[0].path / "manifest.json").write_text("{")
    assert [run.path.name for run in store.find_runs(tmp_path)] == ["rewcs1"]
    assert "rresets1/manifest.json: damaged (not JSON" in capsys.readouterr().err


def test_read_all_joins_finished_runs_even_below_a_folder_named_like_a_partition(tmp_path: Path) -> None:
    root = tmp_path / "lr=0.1"
    assert len(store.read_all(root, "accuracy")) == 0
    for strategy in ("ewc", "naive"):
        with RunFolder.open(root, "permuted", strategy, f"id-{strategy}") as run:
            advance(run, 0, 1)
            run.finish()
    table = store.read_all(root, "metrics")
    assert table.column_names == list(store.SCHEMAS["metrics"])  # pq.read_table would add lr
    assert table["run_id"].to_pylist() == ["id-ewc"] * 4 + ["id-naive"] * 4
    assert len(store.read_all(root, "metrics", strategy="naive")) == 4
    frame = table.to_pandas()
    assert frame.groupby("strategy")["value"].mean().index.tolist() == ["ewc", "naive"]
    with pytest.raises(ValueError, match="unknown table"):
        store.read_all(root, "metric")
    with pytest.raises(StoreError, match="is this the folder of a run"):
        store.read_table(tmp_path, "metrics")


def test_rows_are_those_with_the_wanted_values_whether_a_column_varies_or_not(tmp_path: Path) -> None:
    write(tmp_path, "naive", [0.5, 0.6])
    write(tmp_path, "ewc", [0.5, 0.6])
    runs = list(store.find_runs(tmp_path))
    whole = store.read_all(tmp_path, "metrics").to_pandas()
    for where in ({"phase": ["start"]}, {"phase": ["end"], "metric": ["memory", "forgetting"]}, {"boundary": [1, 2]}):
        found = readers.read(runs, "metrics", ("seed", "boundary", "metric", "value"), where)
        known = whole
        for column, values in where.items():
            known = known[known[column].isin(values)]
        key = ["run_id", "seed", "boundary", "metric", "value"]
        assert found[key].reset_index(drop=True).equals(known[key].reset_index(drop=True)), where


def test_importing_the_store_costs_neither_torch_nor_pyarrow() -> None:
    code = "import sys, harness.store; print([m for m in ('torch', 'pyarrow', 'numpy', 'pandas') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True, check=True)
    assert done.stdout == "[]\n"


def test_a_folder_or_the_beginning_of_an_id_is_enough(tmp_path: Path) -> None:
    first, second = (tmp_path / "runs" / "split" / "ewc" / name for name in ("c14b", "c15a"))
    for folder in (first, second):
        folder.mkdir(parents=True)
        (folder / "manifest.json").touch()
    assert store.find_run(str(first), command="card") == first
    assert store.find_run("c15", tmp_path, command="card") == second
    with pytest.raises(ValueError, match="card c1: 2 run ids begin with this; give more characters"):
        store.find_run("c1", tmp_path, command="card")
    with pytest.raises(ValueError, match=r"card d: neither a run folder nor"):
        store.find_run("d", tmp_path, command="card")
