"""What a designed grid says: what was planted, nothing where it was shuffled; what is no grid is refused."""

import itertools
import json
import math
import shutil

import numpy as np
import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from scipy import stats as scipy_stats

from harness import cli, store
from harness.config.catalogue import CONF
from harness.geometry.claims import CLAIMS, MEANING, QUANTITIES, explain, grid_rows, judge
from harness.geometry.texts import markdown, text, write
from harness.jobs.job import from_config
from tests.harness import folders

PLACES = [(s, a, lr) for s in ("permuted", "split") for a in ("sam", "replay+sam") for lr in (0.1, 0.2, 0.4)]
RUNS, TIMES = 12, 4
OUTCOMES = sorted({claim.y for claim in CLAIMS})
CAUSES = sorted({claim.x for claim in CLAIMS})


def grid(draw, effect=0.0, by_rate=0.0, by_loss=0.0):
    """Rows of a grid like the preset's: `effect` of a run's own geometry on its outcomes, beside two confounders."""
    rows = []
    for (stream, strategy, lr), run in itertools.product(PLACES, range(RUNS)):
        own = {name: draw.normal() for name in [*CAUSES, *OUTCOMES]}
        level = draw.normal()
        for t in range(TIMES):
            loss = level + 0.5 * draw.normal()
            shared = by_rate * np.log2(lr) + by_loss * loss + 0.5 * t
            row = {"stream": stream, "strategy": strategy, "lr": lr, "run_id": f"{stream}{strategy}{lr}{run}", "t": t}
            row |= {"loss": loss, "gap": draw.normal()}
            row |= {name: own[name] + shared + 0.7 * draw.normal() for name in CAUSES}
            causes = {claim.y: claim.sign * own[claim.x] for claim in CLAIMS}  # the last claim of an outcome counts
            row |= {name: own[name] + effect * causes[name] + shared + 0.7 * draw.normal() for name in OUTCOMES}
            rows.append(row)
    return pd.DataFrame(rows)


def shuffled(rows, draw):
    """Each run is given the outcomes of another one of its stream, strategy and learning rate."""
    given = rows.copy()
    for _, family in rows.groupby(["stream", "strategy", "lr"]):
        ids = family.run_id.unique()
        partner = dict(zip(ids, draw.permutation(ids)))
        outcome = family.set_index(["run_id", "t"])[OUTCOMES]
        at = pd.MultiIndex.from_arrays([family.run_id.map(partner), family.t])
        given.loc[family.index, OUTCOMES] = outcome.loc[at].to_numpy()
    return given


def decided(findings):
    return [f for f in findings if f.verdict != "undecided"]


def errors_of(n, resamples):
    """Whether any claim is decided in each of n shuffles, [n], and the p of each claim alone, [n, claims]."""
    draw = np.random.default_rng(0)
    rows = grid(draw, effect=1.0)
    assert len(decided(judge(rows, resamples=resamples))) >= 4, "what is planted is there"
    found = [judge(shuffled(rows, draw), resamples=resamples) for _ in range(n)]
    return np.array([bool(decided(f)) for f in found]), np.array([[f.found.p for f in one] for one in found])


@pytest.mark.nightly
def test_the_same_table_shuffled_finds_nothing():
    """In at most 5 % of shuffles is any of the claims decided, and one test alone errs in 5 %."""
    n = 60
    wrong, p = errors_of(n, resamples=200)
    assert wrong.sum() <= scipy_stats.binom.ppf(0.999, n, 0.05)
    alone = p < 0.05
    assert (alone.sum(0) <= scipy_stats.binom.ppf(0.9999, n, 0.05)).all()
    assert 0.02 < alone.mean() < 0.08


def test_a_few_shuffles_find_nothing():
    """The quick half: of five shuffles none decides a claim, and their p are as uniform as 55 of them can look."""
    wrong, p = errors_of(5, resamples=60)
    assert not wrong.any()
    assert 0.35 < p.mean() < 0.65 and (p < 0.05).mean() < 0.15, p.round(2)


def test_what_is_planted_is_found_with_its_sign():
    (mine, *_), draw = [c for c in CLAIMS if c.sign < 0], np.random.default_rng(1)
    for effect, verdict in ((1.0, "supported"), (-1.0, "contradicted")):
        found = {f.claim: f for f in judge(grid(draw, effect=effect), resamples=400)}
        for claim in (mine, CLAIMS[-1]):
            assert found[claim].verdict == verdict
            assert math.copysign(1, found[claim].found.rho) == math.copysign(1, effect) * claim.sign
            assert found[claim].found.runs == len(PLACES) * RUNS and found[claim].found.strata == 12 * 4 * 3
            assert 0.1 < found[claim].detectable < 0.35


@pytest.fixture(params=[2, pytest.param(6, marks=pytest.mark.nightly)])
def tables(request):
    return request.param


def nothing_is_found(make, looks, tables):
    """Of two tables none is decided, of six at most one (chance 0.03); the mean of all coefficients is near 0."""
    draw, found = np.random.default_rng(2), []
    for _ in range(tables):
        rows = make(draw)
        assert rows.sharpness.corr(rows.rise, method="spearman") > looks, "unstratified it looks certain"
        found.append(judge(rows, resamples=200 if tables > 2 else 60))
    assert sum(bool(decided(f)) for f in found) <= (tables > 2)
    assert abs(np.mean([f.found.rho * f.claim.sign for one in found for f in one])) < 0.06


def test_what_goes_through_the_learning_rate_alone_is_undecided(tables):
    nothing_is_found(lambda draw: grid(draw, by_rate=3.0), 0.7, tables)


def test_what_goes_through_the_training_loss_alone_is_undecided(tables):
    nothing_is_found(lambda draw: grid(draw, by_loss=1.0), 0.3, tables)


def test_a_gap_that_is_there_today_is_no_forecast():
    """Curvature that only mirrors today's loss of plasticity, which lasts, does not precede tomorrow's."""
    draw = np.random.default_rng(4)
    rows = grid(draw)
    rows["rank"] = -rows.gap + 0.5 * draw.normal(size=len(rows))
    rows["gap_next"] = rows.gap + 0.5 * draw.normal(size=len(rows))
    (claim,) = (c for c in CLAIMS if c.y == "gap_next")
    (held,) = (f for f in judge(rows, resamples=400) if f.claim == claim)
    assert held.verdict == "undecided"
    rows["gap"] = draw.normal(size=len(rows))  # were it not controlled
    (free,) = (f for f in judge(rows, resamples=400) if f.claim == claim)
    assert free.verdict == "supported" and free.found.rho < -0.4


def test_rows_with_anything_missing_are_left_out_and_counted():
    rows = grid(np.random.default_rng(5))
    rows.loc[rows.t == 3, ["rise", "gap_next"]] = np.nan
    by_outcome = {f.claim.y: f.found.rows for f in judge(rows, resamples=20)}
    whole = len(PLACES) * RUNS * TIMES
    assert by_outcome == {"rise": whole * 3 // 4, "gap_next": whole * 3 // 4, "share_lost": whole, "ece": whole}


def test_the_correction_counts_every_test():
    found = judge(grid(np.random.default_rng(6), effect=0.4), resamples=200)
    p = np.array([f.found.p for f in found])
    assert len(p) == len(CLAIMS) == 11
    least = int(p.argmin())
    assert found[least].p_holm == pytest.approx(min(1, 11 * p[least]))
    assert all(f.p_holm >= f.found.p for f in found)


# --- folders ----------------------------------------------------------------------------------------------

LEVELS = {"train.batch_size": [4, 8], "strategy.sam.rho": [0.0, 0.1, 0.3], "optimizer.lr": [0.1]}


def composed(root, **knobs):
    """The configuration of a tiny cell, measured as the preset measures."""
    given = OmegaConf.load(CONF / "experiment" / "geometry.yaml").hydra.sweeper.params
    shared = [f"{k}={v}" for k, v in given.items() if k.startswith("metrics.")]
    small = ["tasks.n_tasks=3", "train.steps=3", "model.widths=[6]", "seeds=[0,1]", "metrics.sharpness.size=40"]
    small += [f"metrics.{name}.size=40" for name in ("forecast", "ledger", "anchors", "calibration", "plasticity")]
    cell = [f"{knob}={v}" for knob, v in knobs.items()]
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return compose("config", ["experiment=geometry", *shared, *small, *cell, f"results={root}"])


def written(root, cfg, draw):
    """The run's folder as if it had been trained: quantities at random, among rows that `explain` must not take."""
    seeds, tasks, spec = list(cfg.seeds), cfg.tasks.n_tasks, OmegaConf.to_container(cfg, resolve=True)
    run_id, r = store.identity({"config": spec}), draw.uniform(0.2, 1, (len(seeds), tasks, tasks))
    with store.RunFolder.open(root, "permuted_digits_domain", "sam", run_id, scenario="domain") as run:
        run.update_manifest(seeds=seeds, config=spec, purpose="run", setting="a" * 12, source="s" * 64, diverged=[])
        run.update_manifest(stream_version=1, stream_hash="h", split="test", metrics=[], threads=1)
        for t in range(tasks):
            for phase in ("start", "end"):
                at = {"learning_accuracy": {-1: r[:, t, t]}}
                for name in sorted({source.metric for source in QUANTITIES.values()}):
                    drawn = {} if name in at else {task: draw.uniform(0.1, 1, len(seeds)) for task in range(-1, t + 1)}
                    at.setdefault(name, drawn)
                at["forgetting_task"] = {j: r[:, j, j] - r[:, t, j] for j in range(t)}
                rows = [
                    {"seed": s, "metric": name, "task": j, "coord": coord, "value": v[i] + (coord == "0.1")}
                    for name, of in at.items()
                    for j, v in of.items()
                    for i, s in enumerate(seeds)
                    for coord in (("0.01", "0.1") if name == "next_curvature_rank" else ("",))
                ]
                cells = [
                    {"seed": s, "task": j, "accuracy": r[i, t, j], "n": 10}
                    for i, s in enumerate(seeds)
                    for j in range(t + 1)
                ]
                run.append(t, phase, {"metrics": rows, **({"accuracy": cells} if phase == "end" else {})})
            run.commit(t, {})
        run.finish(diverged=[])
    return run.path


@pytest.fixture(scope="module", params=["written", pytest.param("trained", marks=pytest.mark.nightly)])
def results(request, tmp_path_factory):
    """A tiny grid."""
    root, draw = tmp_path_factory.mktemp("grid"), np.random.default_rng(8)
    for values in itertools.product(*LEVELS.values()):
        cfg = composed(root, **dict(zip(LEVELS, values)))
        if request.param == "trained":
            from_config(cfg, progress=False)
        else:
            written(root, cfg, draw)
    return root


def test_a_cell_of_the_preset_records_every_quantity(tmp_path):
    from_config(composed(tmp_path), progress=False)
    (run,) = store.find_runs(tmp_path, strategy="sam")
    rows = grid_rows([run], pd.read_parquet(run.path / "metrics.parquet"), "here").set_index("t")
    assert set(QUANTITIES) <= set(rows) and rows.loc[[0, 1]].notna().all(axis=None)
    now = [name for name, source in QUANTITIES.items() if not source.ahead]
    assert rows.loc[2, now].notna().all(), "what needs no later boundary is there after the last task too"


def test_a_grid_is_read_from_its_folder(results, tmp_path):
    found = explain([results])
    assert found.design.levels == {k: v for k, v in LEVELS.items() if len(v) > 1}
    assert found.design.strategies == ["sam"] and found.design.seeds == [0, 1]
    assert len(found.rows) == 6 * 3 and set(found.rows.lr) == {0.1}
    counted = {f.claim.y: f.found.of for f in found.findings}
    assert counted["ece"] == 9 and counted["rise"] == counted["gap_next"] == 6, "thirds of 3 and of 2 boundaries"
    write(found, tmp_path / "out")
    kept = pd.read_parquet(tmp_path / "out" / "explain.parquet")
    assert kept.verdict.tolist() == [f.verdict for f in found.findings]
    assert len(pd.read_parquet(tmp_path / "out" / "explain_rows.parquet")) == 18
    page = (tmp_path / "out" / "explain.md").read_text()
    assert page == markdown(found) and max(map(len, text(found))) <= 120
    assert all(f"`{name}`" in page for claim in CLAIMS for name in (claim.x, claim.y, *claim.controls))
    assert {name for c in CLAIMS for name in (c.x, c.y, *c.controls)} == set(MEANING)


def test_every_quantity_is_that_of_the_tables(results):
    """By another way: from each run's own file, seed by seed."""
    rows = explain([results]).rows
    path = next(results.glob("runs/*/sam/*"))
    m, a = (pd.read_parquet(path / f"{name}.parquet") for name in ("metrics", "accuracy"))
    m = m[m.seed.isin([0, 1])]

    def value(metric, boundary, task=-1, phase="end", coord=""):
        same = (m.metric == metric) & (m.boundary == boundary) & (m.task == task) & (m.phase == phase)
        (zero, one) = m[same & (m.coord == coord)].sort_values("seed").value
        return zero, one

    r = a.set_index(["seed", "boundary", "task"]).accuracy
    for t in (0, 1):
        row = rows[(rows.run_id == path.name) & (rows.t == t)].iloc[0]
        lost = [(r[s, t, t] - r[s, t + 1, t]) / r[s, t, t] for s in (0, 1)]
        assert row.share_lost == pytest.approx(np.mean(lost))
        both = np.add(value("ledger_first", t + 1, t), value("ledger_second", t + 1, t))
        assert row.ledger == pytest.approx(np.mean(both))
        assert row.rise == pytest.approx(np.mean(value("ledger_loss", t + 1, t)))
        assert row["rank"] == pytest.approx(np.mean(value("next_curvature_rank", t + 1, phase="start", coord="0.01")))
        assert row.gap == pytest.approx(np.mean(value("trainability_gap", t)))
        assert row.gap_next == pytest.approx(np.mean(value("trainability_gap", t + 1)))
        assert row.ece == pytest.approx(np.mean(value("ece_task", t, t)))
        assert row.loss == pytest.approx(np.mean(value("probe_loss_current", t)))
        assert row.sharpness == pytest.approx(np.mean(value("lambda_max_current", t)))
        assert row.sharpness_adaptive == pytest.approx(np.mean(value("lambda_max_adaptive_current", t)))
        assert row.barrier == pytest.approx(np.mean(value("anchor_barrier_entezari_loss", t + 1, t)))
        assert row.barrier_error == pytest.approx(np.mean(value("anchor_barrier_entezari_error", t + 1, t)))
    assert rows[rows.t == 2][["rise", "gap_next", "rank"]].isna().all(axis=None)


def test_a_seed_that_diverged_takes_its_run_s_rows_out(results):
    m = pd.concat(pd.read_parquet(p / "metrics.parquet") for p in results.glob("runs/*/sam/*"))
    run = m.run_id.iloc[0]
    m.loc[(m.run_id == run) & (m.seed == 1) & (m.boundary >= 1), "value"] = np.nan
    rows = grid_rows([r for r in store.find_runs(results) if r.manifest["strategy"] == "sam"], m, "here")
    own = rows[rows.run_id == run].set_index("t")
    assert own.sharpness.isna().tolist() == [False, True, True]
    assert own.rise.isna().all(), "the first task's rise is measured after the second"
    assert set(QUANTITIES) <= set(rows)


def said(capsys, monkeypatch, *argv):
    monkeypatch.setattr("sys.argv", ["harness", "explain", *map(str, argv)])
    code = cli.main()
    done = capsys.readouterr()
    return code, done.out, done.err


def test_the_command_prints_and_writes(results, tmp_path, capsys, monkeypatch):
    code, out, err = said(capsys, monkeypatch, results, "--out", tmp_path / "there")
    assert code == 0 and not err
    assert all(out.count(claim.claim) == 1 for claim in CLAIMS)
    assert sorted(p.name for p in (tmp_path / "there").iterdir()) == [
        "explain.md", "explain.parquet", "explain_rows.parquet",
    ]  # fmt: skip


def test_what_is_no_grid_is_refused_in_one_line(results, tmp_path, capsys, monkeypatch):
    board = tmp_path / "board"
    for strategy in ("naive", "ewc"):
        folders.write(board, strategy, [0.5, 0.6])
    code, _, err = said(capsys, monkeypatch, board)
    assert code == 2 and err.count("\n") == 1
    assert "not a designed grid" in err and "confounded with method" in err and "experiment=geometry" in err

    some = tmp_path / "some"
    shutil.copytree(results, some)
    lost = next(some.glob("runs/*/sam/*"))
    shutil.rmtree(lost)
    code, _, err = said(capsys, monkeypatch, some)
    assert code == 2 and "1 of 6 cells of the grid are missing, the first is sam on permuted_digits_domain" in err

    other = tmp_path / "other"
    shutil.copytree(results, other)
    path = next(other.glob("runs/*/sam/*"))
    facts = json.loads((path / "manifest.json").read_text())
    facts["config"]["train"]["steps"] = 4
    folders.edit(path, config=facts["config"])
    code, _, err = said(capsys, monkeypatch, other)
    assert code == 2 and "not a designed grid: train.steps differs between runs of sam" in err and err.count("\n") == 1

    bare = tmp_path / "bare"
    shutil.copytree(results, bare)
    path = next(bare.glob("runs/*/sam/*"))
    import pyarrow.parquet as pq

    rows = pq.ParquetFile(path / "metrics.parquet").read()
    keep = [name != "ece_task" for name in rows["metric"].to_pylist()]
    pq.write_table(rows.filter(keep), path / "metrics.parquet")
    code, _, err = said(capsys, monkeypatch, bare)
    assert code == 2 and "1 runs lack ece_task" in err and path.name in err
