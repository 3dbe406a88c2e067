"""Merges of finished runs: rows against nets merged and tested by hand, and what is refused."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch

from harness import cli, store
from harness.finished import merge_texts
from harness.finished.measure import Opened, opened
from harness.finished.merge import LAST, OWN, merge
from harness.finished.merge_options import METHODS, MergeOptions, methods_of
from harness.finished.merge_pool import Pool
from harness.jobs.job import from_config
from harness.landscape.fisher import diagonal_on
from harness.merging.means import average, fisher
from harness.merging.table import METHODS as TABLE
from harness.merging.table import Given
from harness.merging.vectors import magmax, task_arithmetic
from harness.optim import SGD
from harness.store import files
from harness.types import Net, Params
from tests.compositions import composed
from tests.harness.finished.test_measure import trained
from tests.toy import MODELS, gaussian

OPTIONS = MergeOptions(rows=40, size=30, pairs=2, points=5, tested=50, steps=3)
PLAIN = ("metrics=off", "control=false", "gap=false", "train.steps=25")
LITTLE = MergeOptions(rows=20, size=20, pairs=2, points=3, tested=20, steps=2)
FAST = ["--rows", "20", "--size", "20", "--pairs", "2", "--points", "3", "--tested", "20", "--steps", "2"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tasks of split digits, two seeds, one after the other."""
    path = trained(tmp_path_factory.mktemp("results"), "tasks=split", "tasks.fixed=true", "scenario=class", *PLAIN)
    merge([path], METHODS, OPTIONS)
    return path


def table(run: Path) -> pd.DataFrame:
    return pd.read_parquet(run / "merge" / "merge.parquet")


def kept(run: Path, t: int) -> dict[str, torch.Tensor]:
    name = "initial" if t < 0 else str(t)
    found: dict[str, torch.Tensor] = files.load(run / "nets" / f"{name}.pt")["net"]["params"]
    return found


@pytest.fixture(scope="module")
def made(run: Path) -> Opened:
    """The run's stream and model."""
    with store.RunFolder.reopen(run) as folder:
        return opened(folder, {})


def scores(made: Opened, params: Any, split: str = "test") -> torch.Tensor:
    """Accuracy on each task under the last mask, on all test rows or on the sampled validation rows: [S, tasks]."""
    last = made.stream.tasks[-1]
    made.learner.enter(last)
    seen = made.stream.mask(torch.zeros(2, 1, dtype=torch.int64), last.index)
    found = []
    for task in made.stream.tasks:
        batches = [made.learner.probe(task, 40, "val")] if split == "val" else made.learner.scan(task.test)
        right = torch.zeros(2)
        for b in batches:
            logits = made.learner.model(params, {}, b.x, b.t).logits
            logits = logits if seen is None else logits.masked_fill(~seen, -torch.inf)
            right += (b.w * (logits.argmax(2) == b.y)).sum(1)
        found.append(right)
    return torch.stack(found, 1)


def shown(rows: pd.DataFrame, by: str) -> list[list[float]]:
    found: list[list[float]] = rows.pivot_table("value", "seed", by).to_numpy().tolist()
    return found


def test_a_merge_is_tested_on_all_rows_of_all_tasks_under_the_last_mask(run: Path, made: Opened) -> None:
    found = table(run)
    tested = found[(found.measure == "accuracy") & (found.task >= 0)]
    nets = [kept(run, t) for t in range(3)]
    assert shown(tested[tested.method == "average"], "task") == pytest.approx(
        scores(made, average(nets)).numpy(), abs=1e-6
    )
    assert shown(tested[tested.method == LAST], "task") == pytest.approx(scores(made, nets[2]).numpy(), abs=1e-6)
    own = torch.stack([scores(made, net)[:, t] for t, net in enumerate(nets)], 1)
    assert shown(tested[tested.method == OWN], "task") == pytest.approx(own.numpy(), abs=1e-6)
    assert set(tested.method) == {*METHODS, OWN, LAST, "base"}


def test_coefficients_are_the_best_on_validation_rows_for_each_seed(run: Path, made: Opened) -> None:
    found = table(run)
    nets, base = [kept(run, t) for t in range(3)], kept(run, -1)
    grid = [i / 20 for i in range(1, 21)]
    value = torch.stack([scores(made, task_arithmetic(base, nets, alpha=a), "val").mean(1) for a in grid], 1)
    rows = found[(found.method == "task_arithmetic") & (found.measure == "validation")]
    for s in (0, 1):
        own = rows[rows.seed == s].set_index("settings").value
        assert [own[f"alpha={a:g}"] for a in grid] == pytest.approx(value[s].tolist(), abs=1e-6)
    best = torch.tensor(grid)[value.argmax(1)]
    chosen = found[found.measure == "chosen_alpha"]
    assert chosen[chosen.method == "task_arithmetic"].value.tolist() == pytest.approx(best.tolist())
    merged = [task_arithmetic(base, nets, alpha=float(a)) for a in best]
    by_hand = torch.stack([scores(made, m)[s] for s, m in enumerate(merged)])
    tested = found[(found.method == "task_arithmetic") & (found.measure == "accuracy") & (found.task >= 0)]
    assert shown(tested, "task") == pytest.approx(by_hand.numpy(), abs=1e-6)


def test_the_information_of_a_net_is_taken_on_its_own_task_under_its_own_mask(run: Path, made: Opened) -> None:
    learner, information = made.learner, []
    for t, task in enumerate(made.stream.tasks):
        learner.enter(task)
        learner.params = kept(run, t)
        information.append(diagonal_on(learner, [learner.probe(task, 30)], "exact", learner.random("x")))
    by_hand = scores(made, fisher([kept(run, t) for t in range(3)], information))
    rows = table(run)
    rows = rows[(rows.method == "fisher") & (rows.measure == "accuracy") & (rows.task >= 0)]
    assert shown(rows, "task") == pytest.approx(by_hand.numpy(), abs=1e-6)


def test_pairs_have_a_line_barriers_angles_and_what_merging_loses(run: Path, made: Opened) -> None:
    found = table(run)
    pairs = found[(found["first"] == 0) & (found.second == 2)]
    for kind in ("loss", "error"):
        path = pairs[(pairs.measure == kind) & (pairs.aligned == "as they are")]
        line = torch.tensor(shown(path, "alpha"))
        chord = line[:, :1] + torch.linspace(0, 1, 5) * (line[:, -1:] - line[:, :1])
        barrier = pairs[(pairs.measure == f"barrier_entezari_{kind}") & (pairs.aligned == "as they are")]
        assert barrier[barrier.task < 0].value.tolist() == pytest.approx((line - chord).amax(1).tolist(), abs=1e-6)
        assert sorted(set(barrier.task)) == [-1, 0, 2]
    a, b, zero = ({k: v.double() for k, v in kept(run, t).items()} for t in (0, 2, -1))
    x, y = (torch.cat([(p[k] - zero[k]).flatten(1) for k in zero], 1) for p in (a, b))
    cosine = (x * y).sum(1) / x.norm(dim=1) / y.norm(dim=1)
    assert pairs[pairs.measure == "cosine"].value.tolist() == pytest.approx(cosine.tolist(), abs=1e-5)
    opposite = pairs[pairs.measure == "sign_conflicts"].value.tolist()
    assert opposite == pytest.approx(((x * y < 0).sum(1) / (x * y != 0).sum(1)).tolist(), abs=1e-3)
    lost = pairs[(pairs.method == "average") & (pairs.measure == "lost")]
    merged = pairs[(pairs.method == "average") & (pairs.measure == "accuracy")]
    made.learner.enter(made.stream.tasks[-1])
    mean = Net(average([kept(run, 0), kept(run, 2)]), {}, made.learner.apply)
    tests = {t: made.stream.tasks[t].test for t in (0, 2)}
    own = [made.learner.evaluate(made.net(t), rows, samples=50)[0] for t, rows in tests.items()]
    both = [made.learner.evaluate(mean, rows, samples=50)[0] for rows in tests.values()]
    assert merged.value.tolist() == pytest.approx(torch.stack(both).mean(0).tolist())
    assert lost.value.tolist() == pytest.approx((torch.stack(own).mean(0) - torch.stack(both).mean(0)).tolist())


def test_the_table_and_the_figure_are_made_from_the_rows(run: Path) -> None:
    found = merge_texts.read(run / "merge")
    lines = merge_texts.text(found)
    assert f"base of task vectors: the initial net of {run.name}" in lines
    own = table(run)
    own = own[(own.method == "average") & (own.measure == "accuracy") & (own.task >= 0)]
    mean = own.groupby("seed").value.mean().mean()
    (line,) = (line for line in lines if line.strip().startswith("average"))
    assert line.split()[1] == f"{mean:.3f}"
    path = merge_texts.draw(found)
    assert path.read_text("utf-8").startswith("<?xml") and path.name == "merge.svg"


def test_the_rank_correlation_is_by_seed_over_pairs() -> None:
    lost, barrier = [0.1, 0.3, 0.2, 0.9], [[1.0, 3.0, 2.0, 4.0], [4.0, 2.0, 3.0, 1.0]]
    rows: list[dict[str, Any]] = []
    for seed in (0, 1):
        for second in range(1, 5):
            at = {"seed": seed, "first": 0, "second": second, "task": 0}
            rows.append({**at, "method": "average", "measure": "lost", "value": lost[second - 1], "aligned": ""})
            rows.append({**at, "method": "", "measure": "barrier_entezari_error", "value": barrier[seed][second - 1],
                         "aligned": "as they are"})  # fmt: skip
    assert merge_texts.correlation(pd.DataFrame(rows), "average") == pytest.approx([1.0, -1.0])
    assert pd.isna(merge_texts.correlation(pd.DataFrame([r for r in rows if r["second"] < 3]), "average")).all()


def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["harness", "merge", *argv])
    code = cli.main()
    return code, *capsys.readouterr()


def moved(run: Path, folder: Path, t: int) -> Path:
    """A copy of the run in which the net after task t is another."""
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("merge*"))
    name = folder / "nets" / f"{'initial' if t < 0 else t}.pt"
    content = files.load(name)
    content["net"]["params"] = {k: v + 0.01 for k, v in content["net"]["params"].items()}
    files.save(name, content)
    return folder


def test_several_runs_are_merged_with_a_common_base_or_without(
    run: Path, made: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other, far = (moved(run, tmp_path / name, t) for name, t in (("one", 1), ("other", 2), ("far", -1)))
    code, out, err = said(monkeypatch, capsys, str(one), str(other), "--with", "average,magmax", *FAST)
    assert code == 0, err
    assert "2 nets of one other" in out and "base of task vectors: the initial net of one" in out
    found = pd.read_parquet(one / "merge_other" / "merge.parquet")
    rows = found[(found.method == "average") & (found.measure == "accuracy") & (found.task >= 0) & (found.second < 0)]
    by_hand = scores(made, average([kept(one, 2), kept(other, 2)]))
    assert shown(rows, "task") == pytest.approx(by_hand.numpy(), abs=1e-6)
    unrelated = merge([one, far], ("average", "magmax"), LITTLE)
    assert unrelated.notes == ["no magmax: the runs have no initial net in common (pin.init=0 gives them one)"]
    assert "base of task vectors: none" in merge_texts.text(unrelated)
    assert "cosine" not in unrelated.columns["measure"] and "magmax" not in unrelated.columns["method"]
    with pytest.raises(ValueError, match="merge --with magmax: nothing to do: no magmax"):
        merge([one, far], ("magmax",), LITTLE)
    for key, value, part in (
        ("stream_hash", "0", "another stream or number of seeds"),
        ("config", {"model": {"_target_": "x"}}, "another model than"),
    ):
        facts = json.loads((run / "manifest.json").read_text())
        facts[key] = {**facts["config"], **value} if isinstance(value, dict) else value
        (far / "manifest.json").write_text(json.dumps(facts))
        with pytest.raises(ValueError, match=part):
            merge([one, far], ("average",), LITTLE)


def test_what_cannot_be_merged_is_refused_in_one_line(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lost = tmp_path / "lost"
    shutil.copytree(run, lost)
    (lost / "nets" / "1.pt").unlink()
    for argv, part in (
        ((str(lost),), "has the nets of 3 of 4 boundaries, and all are needed; rerun with keep=all force=true"),
        ((str(run), "--with", "mean"), "merge --with mean: unknown; choose from average"),
        ((str(run), "--with", "ties,ties"), "merge --with ties: named twice"),
        ((str(run), "--with", ","), "names no method"),
        ((str(run), str(run)), "a run is named twice"),
        ((str(run), "--pairs", "1"), "merge --pairs 1: must be a whole number of at least 2"),
        ((str(run), "optimizer.lr=1"), "merge optimizer.lr=1: cannot be changed here"),
        ((), "merge: name a finished run"),
        ((str(tmp_path / "no"),), "neither a run folder"),
    ):
        code, _, err = said(monkeypatch, capsys, *argv)
        assert code == 2 and part in err and len(err.splitlines()) == 1, (argv, err)


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (("eval.split=val",), "eval.split=val leaves no other rows"),
        (("dataset.val=0",), "rerun it with dataset.val=0.1"),
        (("strategy=xdg", "scenario=task"), "need state of the strategy"),
    ],
)
def test_runs_without_what_a_merge_needs_are_refused(tmp_path: Path, overrides: tuple[str, ...], part: str) -> None:
    path = trained(tmp_path, *PLAIN, "train.steps=2", *overrides)
    with pytest.raises(ValueError, match=part):
        merge([path], METHODS, OPTIONS)
    assert not (path / "merge").exists()


def test_a_diverged_seed_is_nan_and_the_others_are_as_without_it(run: Path, tmp_path: Path) -> None:
    lost = tmp_path / "lost"
    shutil.copytree(run, lost)
    content = files.load(lost / "nets" / "1.pt")
    content["net"]["params"]["fc1.weight"][0, 0, 0] = torch.nan
    files.save(lost / "nets" / "1.pt", content)
    methods = ("average", "ties", "magmax", "regmean", "fisher", "opcm", "rebasin")
    found = pd.DataFrame(merge([lost], methods, OPTIONS).columns)
    tested = found[(found.measure == "accuracy") & found.method.isin(methods)]
    assert tested[tested.seed == 0].value.isna().all()
    old = table(run)
    key = ["method", "first", "second", "aligned", "task", "measure", "alpha", "settings"]
    both = found[found.seed == 1].merge(old[old.seed == 1], on=key, how="left")
    exact = both.measure.isin(["accuracy", "error", "lost", "cosine", "sign_conflicts", "distance"])
    assert exact.sum() > 50
    assert both[exact].value_x.tolist() == pytest.approx(both[exact].value_y.tolist(), abs=1e-6)
    (line,) = (line for line in merge_texts.text(merge_texts.read(lost / "merge")) if line.split()[:1] == ["average"])
    mean = tested[(tested.method == "average") & (tested.second < 0) & (tested.seed == 1)].value.mean() / 2
    assert line.split()[1] == f"{mean:.3f}" and line.count("div 1/2") == 3  # it counts as accuracy 0


def test_a_merge_that_is_not_finite_has_no_score_and_is_not_chosen(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(g: Given, scale: float) -> Params:
        merged = magmax(g.start, g.nets, scale=scale)
        merged["head.bias"][0] = merged["head.bias"][0] if scale == 0.5 else torch.nan
        return merged

    monkeypatch.setitem(TABLE, "magmax", replace(TABLE["magmax"], merge=broken, grid={"scale": (0.1, 0.5, 0.9)}))
    monkeypatch.setitem(TABLE, "average", replace(TABLE["average"], merge=lambda g: broken(g, 0.1)))
    found = pd.DataFrame(merge([run], ("magmax", "average"), LITTLE, out=tmp_path).columns)
    first = found[(found.seed == 0) & (found["first"] < 0)]
    assert first[first.measure == "chosen_scale"].value.tolist() == [0.5]
    assert first[first.measure == "validation"].value.isna().tolist() == [True, False, True, True]
    tested = first[first.measure == "accuracy"]
    assert (
        tested[tested.method == "magmax"].value.notna().all() and tested[tested.method == "average"].value.isna().all()
    )
    assert found[(found.seed == 1) & (found.measure == "accuracy")].value.notna().all()


@pytest.mark.nightly
def test_a_run_with_batch_norm_is_merged(tmp_path: Path) -> None:
    few = ("tasks.n_tasks=2", "train.steps=3", "seeds=[0,1]", "model=resnet18", "model.width=4")
    off = ("metrics=off", "control=false", "gap=false", "tracker.mode=disabled")
    path = from_config(composed(*few, *off, f"results={tmp_path}"), progress=False)
    found = merge([path], ("average",), MergeOptions(rows=10, size=20, pairs=2, points=3, tested=10, steps=1))
    assert any(line.startswith("batch norm: running statistics") for line in merge_texts.text(found))
    frame = pd.DataFrame(found.columns)
    assert frame[frame.method == "average"].value.notna().all()


def test_running_statistics_of_a_merge_are_those_of_training_rows() -> None:
    made = gaussian(MODELS["residual"], SGD(lr=0.1), shape=(3, 8, 8), tasks=2, steps=3, rows=16)
    old = Net(made.params, {k: v + 5 for k, v in made.buffers.items()}, made.apply)
    run: Any = SimpleNamespace(stream=made.stream, learner=made)
    pool = Pool(run, ("a", "b"), (old, old), ((0,), (1,)), None, MergeOptions(size=16))
    net = pool.fitted(made.params, (0, 1))
    batches = pool.probes((0, 1))
    x, t = torch.cat([b.x for b in batches], 1), torch.cat([b.t for b in batches], 1)
    z = made.apply(net.params, net.buffers, x, t, record=True).preacts["stem"].movedim(2, 1).flatten(2)
    torch.testing.assert_close(net.buffers["stem.norm.mean"], z.mean(2))
    torch.testing.assert_close(net.buffers["stem.norm.var"], z.var(2))


def test_the_methods_of_the_option() -> None:
    assert methods_of(" ties, fisher ") == ("ties", "fisher")
