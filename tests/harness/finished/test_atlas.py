"""The atlas of a finished run: its tables against lines walked by hand, its figures, and what it does not do twice."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from harness import cli, store, tree
from harness.finished import atlas, atlas_figures
from harness.finished.atlas_options import AtlasOptions
from harness.finished.measure import opened
from harness.landscape import paths
from harness.store import files
from tests.harness.finished.test_measure import trained

SETTINGS = AtlasOptions(tasks=3, points=5, grid=3, size=60, vectors=2, steps=5)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four tasks of digits, two seeds on one stream; the joint net of that setting beside it."""
    plain = ("metrics=off", "control=false", "gap=false", "pin.stream=0", "tasks.n_tasks=4", "train.steps=30")
    results = tmp_path_factory.mktemp("results")
    trained(results, "strategy=joint", *plain)
    path = trained(results, "strategy=naive", *plain)
    parts, remarks = atlas.atlas(path, SETTINGS)
    assert parts == list(atlas.PARTS) and remarks == []
    return path


def table(run: Path, part: str) -> pd.DataFrame:
    return pd.read_parquet(run / "atlas" / f"{part}.parquet")


def losses(run: Path, params: Any, tasks: list[int], size: int = 60) -> torch.Tensor:
    """Mean cross-entropy of each task's probe by hand: [S, tasks]."""
    with store.RunFolder.reopen(run) as folder:
        learner = opened(folder, {}).learner
        found = []
        for t in tasks:
            batch = learner.probe(learner.stream.tasks[t], size)
            logits = learner.model(params, {}, batch.x, batch.t).logits
            nll = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.y.flatten(), reduction="none")
            found.append((nll.view_as(batch.w) * batch.w).sum(1))
    return torch.stack(found, 1)


def net(run: Path, t: int) -> Any:
    return files.load(run / "nets" / f"{t}.pt")["net"]["params"]


def test_barriers_are_those_of_lines_walked_by_hand(run: Path) -> None:
    found = table(run, "barriers")
    assert sorted({*zip(found.start, found.end)}) == [(0, 1), (0, 3), (1, 3)]
    a, b = net(run, 0), net(run, 3)
    walked = torch.stack([losses(run, tree.lerp(a, b, i / 4), [0, 3]) for i in range(5)], 1)  # [S, 5, 2]
    line = found[(found.start == 0) & (found.end == 3)]
    for m, of in enumerate(("earlier", "later", "both")):
        path = walked[..., m] if m < 2 else walked.mean(2)
        rows = line[(line.of == of) & (line.measure == "loss")]
        for s in (0, 1):
            assert rows[rows.seed == s].sort_values("alpha").value.tolist() == pytest.approx(path[s].tolist(), rel=1e-5)
            chord = path[s, 0] + torch.linspace(0, 1, 5) * (path[s, -1] - path[s, 0])
            barrier = line[(line.of == of) & (line.measure == "barrier_entezari_loss") & (line.seed == s)]
            assert barrier.value.item() == pytest.approx((path[s] - chord).max().item(), abs=1e-5)


def test_planes_hold_the_losses_of_their_corners(run: Path) -> None:
    found = table(run, "planes")
    assert set(found.of) == {"0", "1", "3"}
    flat = paths.plane(net(run, 0), net(run, 1), net(run, 3))
    row = found[(found.seed == 1) & (found.of == "3") & (found.corner < 0)].iloc[5]
    at = tree.add(tree.add(flat.origin, flat.u, row.x), flat.v, row.y)
    assert row.value == pytest.approx(losses(run, at, [3])[1].item(), rel=1e-5)
    corners = found[(found.seed == 1) & (found.of == "3") & (found.corner >= 0)].sort_values("corner")
    for (x, y), t in zip(zip(corners.x, corners.y), (0, 1, 3)):
        point = tree.add(tree.add(flat.origin, flat.u, x), flat.v, y)
        for k, v in net(run, t).items():
            torch.testing.assert_close(point[k][1], v[1], rtol=1e-4, atol=1e-5)
    around = table(run, "random_planes")
    centre = around[(around.x == 0) & (around.y == 0) & (around.corner < 0) & (around.of == "3") & (around.seed == 0)]
    assert centre.value.item() == pytest.approx(losses(run, net(run, 3), [0, 1, 2, 3])[0].mean().item(), rel=1e-5)


def test_the_line_to_another_seed_ends_at_its_net_and_alignment_moves_units_only(run: Path) -> None:
    found = table(run, "seeds")
    last = net(run, 3)
    here = losses(run, last, [3])[:, 0]
    there = losses(run, {k: v.roll(-1, 0) for k, v in last.items()}, [3])[:, 0]
    for how in atlas.ALIGNED:
        rows = found[(found.aligned == how) & (found.measure == "loss")]
        assert rows[rows.alpha == 0].value.tolist() == pytest.approx(here.tolist(), rel=1e-5)
        assert rows[rows.alpha == 1].value.tolist() == pytest.approx(there.tolist(), rel=1e-4)
    half = found[(found.measure == "loss") & (found.alpha == 0.5)].groupby("aligned").value.mean()
    assert half["weights"] < half["as they are"]
    assert (found[found.measure == "moved share"].value > 0.3).all()


def test_the_line_to_the_joint_net_ends_at_it_however_its_units_are_ordered(run: Path) -> None:
    found = table(run, "joint")
    (other,) = store.find_runs(run.parents[3], strategy="joint")
    ends = losses(run, net(run, 1), [0, 1, 3]), losses(run, net(other.path, 3), [0, 1, 3])  # [S, 3]
    for how in ("as they are", "weights"):
        rows = found[(found.start == 1) & (found.aligned == how) & (found.measure == "loss")]
        for alpha, end in enumerate(ends):
            here = rows[rows.alpha == alpha]
            assert here[here.of == "own"].value.tolist() == pytest.approx(end[:, 1].tolist(), rel=1e-4)
            assert here[here.of == "all"].value.tolist() == pytest.approx(end.mean(1).tolist(), rel=1e-4)
    half = found[(found.measure == "loss") & (found.of == "all") & (found.alpha == 0.5)].groupby("aligned").value.mean()
    assert half["weights"] < half["as they are"]


def test_a_density_is_one_over_the_eigenvalues(run: Path) -> None:
    found = table(run, "spectra")
    for _, rows in found.groupby(["seed", "after"]):
        step = rows.eigenvalue.diff().iloc[1]
        assert rows.value.sum() * step == pytest.approx(1, abs=0.01)
    assert set(found.after) == {0, 1, 3}


def test_what_is_done_is_not_done_again_unless_asked_or_otherwise(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def stub(name: str) -> atlas.Part:
        def part(view: Any, tick: Any) -> Any:
            made.append(name)
            return {"seed": [0], "value": [0.0]}

        return part

    before = {f: f.read_bytes() for f in (run / "atlas").iterdir()}
    monkeypatch.setattr(atlas, "PARTS", {name: stub(name) for name in atlas.PARTS})
    atlas.atlas(run, SETTINGS)
    assert made == [] and {f: f.read_bytes() for f in (run / "atlas").iterdir()} == before
    (run / "atlas" / "planes.parquet").unlink()
    atlas.atlas(run, SETTINGS)
    assert made == ["planes"]
    atlas.atlas(run, replace(SETTINGS, points=7))
    assert made[1:] == list(atlas.PARTS)
    atlas.atlas(run, replace(SETTINGS, points=7), force=True)
    assert len(made) == 1 + 2 * len(atlas.PARTS)
    for f, content in before.items():
        f.write_bytes(content)


@pytest.mark.nightly
def test_figures_come_as_png_and_svg(run: Path) -> None:
    written = atlas_figures.draw(run / "atlas")
    assert {p.stem for p in written} == set(atlas_figures.DRAWN) and {p.suffix for p in written} == {".png", ".svg"}
    assert (run / "atlas" / "barriers.png").read_bytes().startswith(b"\x89PNG")
    text = (run / "atlas" / "seeds.svg").read_text()
    assert "matched by weights" in text and "loss, nat" in text


@pytest.mark.parametrize("parts", [["seeds"], pytest.param(list(atlas.PARTS), marks=pytest.mark.nightly)])
def test_the_same_tables_give_the_same_figures(run: Path, tmp_path: Path, parts: list[str]) -> None:
    drawn = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        for part in parts:
            shutil.copy(run / "atlas" / f"{part}.parquet", tmp_path / name)
        drawn.append({p.name: p.read_bytes() for p in atlas_figures.draw(tmp_path / name)})
    assert len(drawn[0]) >= 2 and drawn[0] == drawn[1]


def test_what_has_no_atlas_says_so_in_one_line(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def said(*args: str) -> str:
        monkeypatch.setattr("sys.argv", ["harness", "atlas", *args])
        code = cli.main()
        out, err = capfd.readouterr()
        assert code == 2 and not out and err.count("\n") == 1, err
        return err.removeprefix("harness: ")

    assert said().startswith("the following arguments are required: RUN; see ")
    assert said(str(tmp_path)).startswith(
        f"atlas {tmp_path}: neither a run folder nor the beginning of a run id in results/runs"
    )
    assert said(str(run), "grids=9") == "atlas grids=9: unknown option; did you mean --grid?\n"
    assert said(str(run), "grid=x").startswith("argument --grid: x: must be a whole number; see ")
    assert said(str(run), "grid=1") == "atlas --grid 1: must be a whole number of at least 3\n"


def test_what_a_run_has_not_is_said_with_the_remedy(tmp_path: Path) -> None:
    path = trained(tmp_path, "strategy=naive", "metrics=off", "control=false", "gap=false")
    with store.RunFolder.reopen(path) as folder:
        view = atlas.View(opened(folder, {}), SETTINGS)
        reason, lonely = atlas.strangers(view), atlas.unaccompanied(view)
    assert lonely.startswith("no finished run of strategy=joint with this setting")
    assert reason.startswith("each seed has different tasks; train with pin.stream=0")
