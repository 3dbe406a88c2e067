"""What is measured after a run is what the run would have recorded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from omegaconf import OmegaConf
from torch import Tensor

from harness import cli, store
from harness.boundary import Boundary
from harness.finished.measure import KEY, measure, merged
from harness.jobs.job import from_config
from harness.store import files
from harness.types import Reading
from tests.compositions import composed

SMALL = ("tasks.n_tasks=3", "train.steps=8", "seeds=[0,1]", "tracker.mode=disabled", "threads=1", "model.widths=[12]")
CHEAP = ("metrics=standard", "metrics.sharpness.steps=6", "metrics.rises.ascent=2", "metrics.connectivity.points=3")


def trained(results: Path, *overrides: str) -> Path:
    return from_config(composed(*SMALL, *overrides, f"results={results}"), progress=False)


def chosen(*overrides: str) -> dict[str, Any]:
    cfg = OmegaConf.to_container(composed(*overrides).metrics)
    assert isinstance(cfg, dict)
    return {str(k): v for k, v in cfg.items()}


def rows(path: Path) -> pd.Series:
    frame = store.read_table(path, "metrics").to_pandas()
    return frame.set_index(KEY).sort_index()[["value", "stderr", "better"]]


def both(tmp_path: Path, *overrides: str, metrics: tuple[str, ...] = CHEAP) -> tuple[pd.DataFrame, pd.DataFrame, str]:
    """Tables of a run with metrics, and of the same without, measured afterwards."""
    whole = trained(tmp_path / "whole", *metrics, *overrides)
    plain = trained(tmp_path / "plain", "metrics=off", *overrides)
    assert not set(rows(plain).index.get_level_values("metric")) & {"forgetting", "lambda_max_joint", "path_length"}
    said = measure(plain, chosen(*metrics))
    return rows(whole), rows(plain), said


@pytest.mark.parametrize(
    "overrides",
    [
        ("strategy=[ewc,replay]", "optimizer.momentum=0.9", "optimizer.schedule=cosine"),
        pytest.param(("strategy=reset", "scenario=task", "tasks=split", "tasks.n_tasks=2"), marks=pytest.mark.nightly),
        pytest.param(("strategy=naive", "optimizer=adam", "train.steps=70"), marks=pytest.mark.nightly),
    ],
    ids=["stateful", "control", "adam"],
)
def test_measured_afterwards_is_bit_for_bit_what_the_run_records(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    whole, after, said = both(tmp_path, *overrides)
    started = whole.index.get_level_values("phase") == "start"
    if "strategy=reset" in overrides:  # what it begins a task with is not kept
        assert "phase start: reset" in said
        assert not (after.index.get_level_values("phase") == "start").any()
        whole = whole[~started]
    else:
        assert started.any()
    if "optimizer=adam" in overrides:  # whose state is kept only for the last boundary
        assert "the optimizer's state before the last boundary" in said
        lost = whole.value.notna() & after.value.isna()
        assert set(whole.index.get_level_values("metric")[lost]) == {"eos_ratio", "next_eos_ratio"}
        less = whole.index.get_level_values("coord").isin(["sharpness", "forecast"])  # the work that it would have been
        whole, after = whole[~(lost | less)], after[~(lost | less)]
    elif "strategy=reset" not in overrides:
        assert "missing" not in said, said
    binned = whole.index.get_level_values("metric") == "online_accuracy"  # 70 steps lie in 50 stretches
    pd.testing.assert_frame_equal(whole[~binned], after[~binned], check_exact=True)
    pd.testing.assert_frame_equal(whole[binned], after[binned], rtol=1e-12)


def test_a_net_of_its_own_that_was_not_kept_is_named_and_the_last_boundary_is_whole(tmp_path: Path) -> None:
    """XdG's forward pass reads gates; what only the accuracy matrix needs is there at every boundary."""
    few = ("metrics=[transfer,sharpness]", "metrics.sharpness.steps=6")
    whole, after, said = both(tmp_path, "strategy=xdg", "scenario=task", metrics=few)
    assert "missing: sharpness: needs the forward pass of xdg, whose state is kept only for the last boundary" in said
    last = whole.index.get_level_values("boundary") == 2
    end = whole.index.get_level_values("phase") == "end"
    pd.testing.assert_frame_equal(whole[last & end], after.loc[whole[last & end].index], check_exact=True)
    forgetting = whole[whole.index.get_level_values("metric") == "forgetting"]
    pd.testing.assert_frame_equal(forgetting, after.loc[forgetting.index], check_exact=True)
    assert len(after) < len(whole)


def deployed_mass(b: Boundary) -> dict[str, Tensor | Reading]:
    return {"mass": sum(v.flatten(1).sum(1) for v in b.deployed.params.values())} if b.phase == "end" else {}  # type: ignore[dict-item]


def test_the_deployed_net_of_a_strategy_is_known_of_the_last_boundary_only(tmp_path: Path) -> None:
    path = trained(tmp_path, "strategy=ema", "metrics=off", "control=false", "gap=false")
    node = {"mass": {"_target_": f"{__name__}.deployed_mass", "_partial_": True}}
    said = measure(path, node)
    assert "missing: mass: needs the net that ema deploys, which is kept only for the last boundary" in said
    found = rows(path).loc[lambda r: r.index.get_level_values("metric") == "mass"]
    state = files.load(path / "checkpoint.pt")["state"]["strategy"]["EMA"]
    assert found.index.get_level_values("boundary").unique() == [2]
    net = files.load(path / "nets" / "2.pt")["net"]["params"]
    trained_mass = sum(v.flatten(1).sum(1) for v in net.values()).tolist()
    assert state and (found.value != trained_mass).all()


def test_values_that_only_the_run_knew_stay_and_a_second_time_changes_nothing(tmp_path: Path) -> None:
    path = trained(tmp_path, "strategy=l2", "metrics=[plasticity,transfer]", "metrics.plasticity.size=40")
    before = rows(path)
    table = (path / "accuracy.parquet").read_bytes()
    measure(path, chosen("metrics=[plasticity,transfer]", "metrics.plasticity.size=40"))
    pd.testing.assert_frame_equal(before, rows(path), check_exact=True)
    measure(path, chosen("metrics=plasticity", "metrics.plasticity.size=30"), every=2)
    again = rows(path)
    assert again.index.equals(before.index)
    boundary, metric = again.index.get_level_values("boundary"), again.index.get_level_values("metric")
    changed = again.value.ne(before.value) & again.value.notna()
    assert set(boundary[changed]) == {0, 2} and "grad_norm" in set(metric[changed])
    assert not changed[metric.isin(["trainability_gap", "intransigence", "forgetting", "weight_l2"])].any()
    manifest = json.loads((path / "manifest.json").read_text())
    assert [list(m["metrics"]) for m in manifest["measured"]] == [["plasticity", "transfer"], ["plasticity"]]
    assert manifest["measured"][1]["every"] == 2 and manifest["measured"][1]["missing"] == []
    assert (path / "accuracy.parquet").read_bytes() == table and manifest["status"] == "done"


def test_nan_never_takes_the_place_of_a_value() -> None:
    row = {
        "seed": 0,
        "boundary": 1,
        "phase": "end",
        "net": "trained",
        "task": -1,
        "metric": "a",
        "axis": "",
        "coord": "",
    }
    old = pd.DataFrame([{**row, "value": 1.0, "stderr": 0.1}, {**row, "metric": "b", "value": 2.0, "stderr": 0.2}])
    new = pd.DataFrame([{**row, "value": float("nan"), "stderr": float("nan")}])
    both = merged(old, new).set_index("metric")
    assert both.value.to_dict() == {"a": 1.0, "b": 2.0} and both.stderr.to_dict() == {"a": 0.1, "b": 0.2}
    longer = pd.DataFrame([{**row, "axis": "k", "coord": str(i), "value": float(i), "stderr": 0.0} for i in range(3)])
    assert merged(both.reset_index(), longer).metric.tolist() == ["b", "a", "a", "a"]


def test_what_cannot_be_measured_is_said_in_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = trained(tmp_path, "strategy=naive", "metrics=off", "control=false", "gap=false", "keep=last")
    capfd.readouterr()

    def said(*args: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["harness", "measure", *args])
        code = cli.main()
        out, err = capfd.readouterr()
        assert not out and err.count("\n") == 1
        return code, err.removeprefix("harness: ")

    before = {f: f.read_bytes() for f in path.rglob("*") if f.is_file() and f.name != "lock"}
    line = f"{path}: has the nets of 2 of 4 boundaries, and all are needed; rerun with keep=all force=true\n"
    assert said(str(path), "metrics=fast") == (2, line)
    assert said(str(tmp_path), "metrics=fast") == (
        2,
        f"measure {tmp_path}: neither a run folder nor the beginning of a run id in results/runs\n",
    )
    assert said("metrics=fast")[1].startswith("measure: name a finished run by its folder or the beginning of its id")
    assert said(str(path), "metrics=sharp")[1] == "metrics=sharp: unknown metrics; did you mean metrics=sharpness?\n"
    assert said(str(path), "strategy=ewc")[1].startswith("measure strategy=ewc: cannot be changed here")
    unfinished = tmp_path / "unfinished"
    shutil.copytree(path, unfinished)
    (unfinished / "DONE").unlink()
    assert said(str(unfinished))[1].startswith(f"{unfinished}: the run is not finished; repeat its command")
    other = tmp_path / "other"
    shutil.copytree(path, other)
    for t in (0, 1):
        shutil.copy(other / "nets" / "2.pt", other / "nets" / f"{t}.pt")
    manifest = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps({**manifest, "stream_hash": "0"}))
    assert said(str(other))[1].startswith(f"{other}: the data stream can no longer be reproduced")

    def stop(*args: Any, **how: Any) -> None:
        raise KeyboardInterrupt

    (other / "manifest.json").write_text(json.dumps(manifest))
    table = (other / "metrics.parquet").read_bytes()
    monkeypatch.setattr("harness.finished.measure.Replay.around", stop)
    assert said(str(other)) == (130, f"interrupted: {other} is unchanged\n")
    assert (other / "metrics.parquet").read_bytes() == table
    assert {f: f.read_bytes() for f in path.rglob("*") if f.is_file() and f.name != "lock"} == before


def known(b: Boundary) -> dict[str, Tensor | Reading]:
    return {"known": b.accuracy.isfinite().sum((1, 2)).double()}


def test_a_metric_sees_nothing_of_what_comes_after_its_boundary(tmp_path: Path) -> None:
    path = trained(tmp_path, "strategy=naive", "metrics=off", "control=false", "gap=false")
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["config"]["boundaries"]  # as in a run that is older than this key
    (path / "manifest.json").write_text(json.dumps(manifest))
    measure(path, {"known": {"_target_": f"{__name__}.known", "_partial_": True}})
    scores = store.read_table(path, "accuracy").to_pandas()
    found = rows(path).loc[lambda r: r.index.get_level_values("metric") == "known"].reset_index()
    assert len(found) == 2 * 2 * 3
    for seed, t, phase, value in zip(found.seed, found.boundary, found.phase, found.value):
        assert value == ((scores.seed == seed) & (scores.boundary <= t - (phase == "start"))).sum()
