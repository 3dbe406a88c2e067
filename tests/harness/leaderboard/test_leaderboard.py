"""Runs side by side: what is compared, what is ranked, what is said of the rest."""

from __future__ import annotations

import math
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

from harness.leaderboard import Board, cells, heading, leaderboard, markdown, overall, overall_table, text, told_apart
from harness.leaderboard import table as columns
from harness.report.leaderboard_files import write as write_files
from harness.store import readers
from tests.harness.folders import copies, edit, write


def only(root: Path, **options: Any) -> Board:
    (board,) = leaderboard([root], **options).boards
    return board


def table(board: Board) -> dict[str, dict[str, str]]:
    return {line["strategy"]: line for line in cells(board)}


# --- numbers ----------------------------------------------------------------------------------------


def test_a_row_says_what_scipy_says_of_the_same_seeds(tmp_path: Path) -> None:
    naive, ewc = [0.50, 0.52, 0.48, 0.55, 0.51], [0.53, 0.56, 0.47, 0.60, 0.58]
    write(tmp_path, "naive", naive)
    write(tmp_path, "ewc", ewc, step=3.0)
    board = only(tmp_path)
    first, second = board.rows
    assert (first.entry.label, first.rank, second.rank) == ("ewc", 1, 2)
    mean, half, n = first.means["average_accuracy"]
    low, high = scipy_stats.t.interval(0.95, 4, np.mean(ewc), scipy_stats.sem(ewc))
    assert (mean - half, mean + half, n) == pytest.approx((low, high, 5))
    apart = np.array(ewc) - naive
    known = scipy_stats.ttest_rel(ewc, naive).confidence_interval(0.95)
    assert first.difference == pytest.approx((apart.mean(), (known.high - known.low) / 2))
    assert first.improvement == 0.8
    assert first.improvement_interval == pytest.approx(tuple(scipy_stats.binomtest(4, 5).proportion_ci(0.95)))
    assert first.iqm == pytest.approx(np.mean([0.53, 0.56, 0.58]))
    assert first.entry.step == 3.0 and first.entry.memory == 100.0
    assert first.entry.seconds == pytest.approx(9.0 / 5)
    assert math.isnan(second.improvement) and second.difference == pytest.approx((math.nan, math.nan), nan_ok=True)
    assert table(board)["ewc"]["average accuracy"] == "0.548 ± 0.063"


def test_a_run_of_plain_training_costs_one_step_a_step(tmp_path: Path) -> None:
    """It has no plain step beside its own; one that has counts the median over tasks."""
    write(tmp_path, "naive", [0.5, 0.5], step=0.003, plain=False)
    write(tmp_path, "ewc", [0.5, 0.5], step=1.5)
    steps = {row.entry.label: row.entry.step for row in only(tmp_path).rows}
    assert steps == {"naive": 1.0, "ewc": 1.5}


def test_scores_are_of_the_last_boundary_or_the_mean_over_all(tmp_path: Path) -> None:
    values = {
        "learning_accuracy": [[0.9, 0.8], [0.7, 0.6], [0.5, 0.1]],
        "forgetting": [[math.nan] * 2, [0.3, 0.3], [0.2, 0.4]],
        "barrier_entezari_loss_joint": [[], [1.0, 2.0], [3.0, 4.0]],
    }
    write(tmp_path, "naive", [0.5, 0.6], metrics=values)
    entry = only(tmp_path).rows[0].entry
    assert entry.scores["learning_accuracy"] == pytest.approx([0.7, 0.5])
    assert entry.scores["forgetting"] == pytest.approx([0.2, 0.4])
    assert entry.scores["barrier"] == pytest.approx([2.0, 3.0])
    assert np.isnan(entry.scores["plasticity_lost"]).all()  # not recorded
    assert "plasticity lost" not in table(only(tmp_path))["naive"]


def test_no_mean_skips_a_missing_value(tmp_path: Path) -> None:
    gap = {"trainability_gap": [[0.1, 0.1], [math.nan, 0.1], [0.1, 0.1]]}
    write(tmp_path, "naive", [0.5, 0.6], metrics=gap)
    board = only(tmp_path)
    assert np.isnan(board.rows[0].entry.scores["plasticity_lost"]).tolist() == [True, False]
    assert table(board)["naive"]["plasticity lost"] == "n/a 1/2"
    stopped_early = {"forgetting": [[0.1, 0.1], [0.2, 0.2], []]}  # nothing at the end is not the last there is
    write(tmp_path, "ewc", [0.5, 0.6], metrics=stopped_early)
    assert table(only(tmp_path))["ewc"]["forgetting"] == "-"


# --- what is ranked ---------------------------------------------------------------------------------


def test_only_complete_entries_are_ranked(tmp_path: Path) -> None:
    for name, score in (("naive", 0.5), ("ewc", 0.6)):
        write(tmp_path, name, [score] * 3)
    write(tmp_path, "replay", [0.9, 0.9])  # two seeds of three
    write(tmp_path, "si", [0.95, math.nan, 0.95])  # a value is missing
    write(tmp_path, "lwf", [0.9] * 3, done=False)
    edit(write(tmp_path, "mas", [0.9] * 3, done=False), status="failed", error="ValueError: no")
    board = only(tmp_path)
    shown = table(board)
    assert [row.entry.label for row in board.rows[:2]] == ["ewc", "naive"]
    assert {n: shown[n]["rank"] for n in ("replay", "si", "lwf", "mas")} == dict.fromkeys(
        ("replay", "si", "lwf", "mas"), "-"
    )
    assert shown["replay"]["seeds"] == "2/3" and shown["replay"]["average accuracy"] == "0.900 ± 0.000"
    assert shown["si"]["seeds"] == "2/3" and shown["si"]["average accuracy"] == "n/a 2/3"
    assert shown["lwf"]["seeds"] == "0/3, not finished"
    assert shown["mas"]["seeds"] == "0/3, failed: ValueError: no"


def test_a_run_cut_short_that_was_finished_elsewhere_is_not_shown_twice(tmp_path: Path) -> None:
    write(tmp_path, "naive", [0.5, 0.5], done=False)
    write(tmp_path, "naive", [0.5, 0.5, 0.5])
    assert [row.entry.state for row in only(tmp_path).rows] == ["done"]


def test_more_seeds_than_the_others_are_not_compared(tmp_path: Path) -> None:
    write(tmp_path, "naive", [0.5, 0.5])
    write(tmp_path, "ewc", [0.6, 0.6])
    write(tmp_path, "replay", [0.4, 0.4, 0.9, 0.9])
    board = only(tmp_path)
    assert board.seeds == (0, 1)
    assert [row.entry.label for row in board.rows] == ["ewc", "naive", "replay"]
    assert board.rows[2].means["average_accuracy"][0] == pytest.approx(0.4)
    assert "replay: seeds 2-3 are not compared" in board.notes[0]


def test_runs_of_one_strategy_pool_their_seeds(tmp_path: Path) -> None:
    write(tmp_path, "naive", [0.1, 0.2, 0.3, 0.4])
    write(tmp_path, "ewc", [0.5, 0.6], seeds=[0, 1])
    write(tmp_path, "ewc", [0.7, 0.8], seeds=[2, 3])
    first = only(tmp_path).rows[0]
    assert first.entry.scores["average_accuracy"].tolist() == [0.5, 0.6, 0.7, 0.8]
    assert len(first.entry.runs) == 2 and first.rank == 1


def test_a_diverged_seed_counts_as_nothing_learnt(tmp_path: Path) -> None:
    lost = {
        "learning_accuracy": [[0.8, 0.8], [math.nan, 0.8], [math.nan, 0.8]],
        "lambda_max_joint": [[1, 1]] * 2 + [[math.nan, 2]],
    }
    write(tmp_path, "naive", [0.5, 0.6])
    write(tmp_path, "sam", [math.nan, 0.9], metrics=lost, diverged=[0])
    board = only(tmp_path)
    shown = table(board)
    assert shown["sam"]["rank"].startswith("2")
    assert shown["sam"]["seeds"] == "2, 1 diverged"
    assert shown["sam"]["average accuracy"].startswith("0.450 ±")
    assert board.rows[1].entry.scores["learning_accuracy"] == pytest.approx([0.8 / 3, 0.8])
    assert shown["sam"]["sharpness"] == "div 1/2"  # no mean of the rest
    assert board.rows[1].improvement == 0.5


def test_a_table_of_few_columns_says_too_what_diverged(tmp_path: Path) -> None:
    write(tmp_path, "naive", [0.5, 0.6])
    write(tmp_path, "sam", [math.nan, math.nan], diverged=[0, 1])
    heads, rows = columns(only(tmp_path), ("average accuracy",))
    assert heads == ["strategy", "seeds", "average accuracy"]
    assert rows[1] == ["sam", "2, 2 diverged", "0.000 ± 0.000"]


def test_a_single_seed_is_said_to_be_one(tmp_path: Path) -> None:
    write(tmp_path, "naive", [0.5], seeds=[3])
    assert heading(only(tmp_path)).endswith("Sorted by average accuracy; seed 3 (n = 1).")


def test_a_diverged_seed_of_a_score_without_bottom_is_minus_infinity(tmp_path: Path) -> None:
    write(tmp_path, "naive", [-0.5, -0.6])
    write(tmp_path, "sam", [math.nan, -0.1], diverged=[0])
    board = only(tmp_path)
    assert [row.entry.label for row in board.rows] == ["naive", "sam"]
    assert table(board)["sam"]["average accuracy"] == "-inf"
    markdown(leaderboard([tmp_path]))


def test_less_is_better_where_it_is(tmp_path: Path) -> None:
    low, high = ({"forgetting": [[math.nan] * 2, [v, v], [v, v + 0.01]]} for v in (0.1, 0.4))
    write(tmp_path, "naive", [0.9, 0.9], metrics=high)
    write(tmp_path, "ewc", [0.5, 0.5], metrics=low)
    board = only(tmp_path, by="forgetting")
    assert [row.entry.label for row in board.rows] == ["ewc", "naive"]
    assert board.rows[0].improvement == 1.0 and board.rows[0].difference[0] == pytest.approx(-0.3)
    assert board.rows[0].iqm == pytest.approx(0.105)
    assert "Sorted by forgetting" in heading(board)


def test_fronts_are_of_accuracy_against_each_cost(tmp_path: Path) -> None:
    write(tmp_path, "naive", [0.5, 0.5], step=1.0)
    write(tmp_path, "ewc", [0.7, 0.7], step=2.0)
    write(tmp_path, "si", [0.6, 0.6], step=3.0)  # slower and worse than ewc, holds and forgets as much
    fronts = {row.entry.label: row.fronts for row in only(tmp_path).rows}
    assert fronts == {"ewc": ("step", "memory", "forgetting"), "si": (), "naive": ("step",)}


# --- what is compared -------------------------------------------------------------------------------


def test_settings_versions_and_splits_are_kept_apart_and_it_is_said(tmp_path: Path) -> None:
    write(tmp_path, "naive", [0.5, 0.5])
    other = {**board_of_config(), "optimizer": {"_target_": "x.SGD", "lr": 0.5}}
    edit(write(tmp_path, "naive", [0.6, 0.6], setting="b" * 12), config=other)
    write(tmp_path, "ewc", [0.6, 0.6], stream_version=2)
    write(tmp_path, "si", [0.6, 0.6], split="val")
    found = leaderboard([tmp_path])
    assert len(found.boards) == 4
    assert "4 settings that are not compared" in found.notes[0]
    assert "lr=0.5" in found.notes[0] and "stream_version=2" in found.notes[0] and "split=val" in found.notes[0]


def board_of_config() -> dict[str, Any]:
    from tests.harness.folders import CONFIG

    return {**CONFIG, "strategy": {"naive": {"_target_": "strategies.naive.X"}}}


def test_the_same_seeds_on_other_data_are_not_compared(tmp_path: Path) -> None:
    write(tmp_path, "naive", [0.5, 0.5])
    write(tmp_path, "ewc", [0.6, 0.6], stream_hash="other")
    found = leaderboard([tmp_path])
    assert len(found.boards) == 2 and all(len(board.rows) == 1 for board in found.boards)
    assert "saw different data" in found.notes[0]


def test_runs_of_several_sources_are_said_to_be(tmp_path: Path) -> None:
    write(tmp_path, "naive", [0.5, 0.5])
    write(tmp_path, "ewc", [0.6, 0.6], source="t" * 64)
    assert "the harness has changed between entries, whose results may differ for this reason" in only(tmp_path).notes


def test_versions_of_an_entry_are_rows_and_it_is_said_if_they_mix(tmp_path: Path) -> None:
    old, new = ({"harness.loop": "1", "strategies.l2": x} for x in "12")
    write(tmp_path, "naive", [0.5, 0.5], files={"harness.loop": "1", "strategies.naive": "1"})
    write(tmp_path, "l2", [0.6, 0.6], files=old)
    assert not [note for note in only(tmp_path).notes if "versions" in note or "changed" in note]
    write(tmp_path, "l2", [0.7, 0.9], files=new, version=2)
    board = only(tmp_path)
    means = {row.entry.label: row.means["average_accuracy"][0] for row in board.rows}
    assert means == pytest.approx({"l2@2": 0.8, "l2": 0.6, "naive": 0.5})
    assert [note for note in board.notes if "seed" in note] == []  # no run hides another
    assert "l2, l2@2: versions of l2 (strategies.l2 has changed)" in board.notes
    assert not any("between entries" in note for note in board.notes)
    write(tmp_path, "si", [0.5], seeds=[0], files={"harness.loop": "2"})
    write(tmp_path, "si", [0.5], seeds=[1], files={"harness.loop": "1"})
    notes = only(tmp_path).notes
    assert "si: versions of it are mixed, because harness.loop has changed between seeds 0 and seeds 1" in [
        note.replace("seeds 1 and seeds 0", "seeds 0 and seeds 1") for note in notes
    ]
    assert "harness.loop has changed between entries, whose results may differ for this reason" in notes


def test_a_baseline_is_an_entry_or_the_only_one_of_a_strategy(tmp_path: Path) -> None:
    write(tmp_path, "naive", [0.5, 0.5])
    write(tmp_path, "ewc", [0.6, 0.6], settings={"strength": 3.0})
    assert only(tmp_path, baseline="ewc").baseline == only(tmp_path, baseline="ewc[strength=3]").baseline
    write(tmp_path, "ewc", [0.6, 0.6], settings={"strength": 4.0})
    assert only(tmp_path, baseline="ewc[strength=3]").baseline == "ewc[strength=3]"
    assert "ewc is missing or incomplete" in only(tmp_path, baseline="ewc").notes[0]


def test_one_entry_of_two_values_is_said_to_be_two(tmp_path: Path) -> None:
    """Defaults change: what two runs recorded under one name can be different strategies."""
    edit(write(tmp_path, "ewc", [0.5, 0.5], settings={"strength": 1.0}), entry="ewc")
    edit(write(tmp_path, "ewc", [0.6, 0.6], settings={"strength": 3.0}), entry="ewc")
    found = leaderboard([tmp_path])
    assert [row.entry.label for row in found.boards[0].rows] == ["ewc (strength=3.0)", "ewc (strength=1.0)"]
    assert "the tables give 2 strategies with different values this entry" in found.notes[0]


def test_a_tuned_strategy_is_one_over_all_settings(tmp_path: Path) -> None:
    for i, setting in enumerate("abc"):
        write(tmp_path, "naive", [0.5, 0.5], setting=setting)
        write(tmp_path, "ewc", [0.6, 0.6], setting=setting, settings={"strength": float(3 + i)})
    assert [s.label for s in leaderboard([tmp_path]).overall] == ["ewc", "naive"]
    write(tmp_path, "ewc", [0.6, 0.6], setting="a", settings={"strength": 9.0})
    assert {s.label for s in leaderboard([tmp_path]).overall} == {
        "naive", "ewc[strength=3]", "ewc[strength=4]", "ewc[strength=5]", "ewc[strength=9]"
    }  # fmt: skip


def test_the_hours_and_the_machines_are_stated(tmp_path: Path) -> None:
    cpu, gpu = {"cpu": "Abacus", "gpu": None}, {"cpu": "Abacus", "gpu": "Loom"}
    write(tmp_path, "naive", [0.5, 0.5], threads=2, hardware=cpu, tasks=3)  # 3 s of training for each task
    write(tmp_path, "ewc", [0.6, 0.6], threads=2, hardware=cpu, tasks=3)
    write(tmp_path, "si", [0.6, 0.6], threads=1, hardware=gpu, tasks=10)
    told = "0.013 training hours in total (without evaluation and metrics), on Abacus, 2 threads (2 runs); Loom (1 run)"
    assert only(tmp_path).notes[-1] == told  # 9 + 9 + 30 seconds


def test_entries_of_one_strategy_are_told_apart_by_their_values(tmp_path: Path) -> None:
    write(tmp_path, "ewc", [0.5, 0.5], settings={"strength": 1.0})
    write(tmp_path, "ewc", [0.6, 0.6], settings={"strength": 30.0})
    assert [row.entry.label for row in only(tmp_path).rows] == ["ewc[strength=30]", "ewc[strength=1]"]
    assert told_apart([{"a": {"x": 1}, "b": {"x": 1}}, {"a": {"x": 2}, "b": {"x": 3}}]) == [
        "a.x=1, b.x=1",
        "a.x=2, b.x=3",
    ]


def test_a_run_in_two_folders_counts_once(tmp_path: Path) -> None:
    edit(write(tmp_path / "one", "naive", [0.5, 0.5]), ended_at="2026-01-01")
    edit(write(tmp_path / "two", "naive", [0.7, 0.7]), ended_at="2026-01-02")
    found = leaderboard([tmp_path / "one", tmp_path / "two", tmp_path / "two"])
    ((row,),) = [board.rows for board in found.boards]
    assert row.means["average_accuracy"][0] == pytest.approx(0.7)
    assert "only the later one" in found.notes[0]


# --- over all settings ------------------------------------------------------------------------------


def test_overall_ranks_only_what_is_complete_everywhere(tmp_path: Path) -> None:
    for stream, scores in (("a_domain", (0.5, 0.6, 0.7)), ("b_domain", (0.5, 0.9, 0.7))):
        for name, score in zip(("naive", "ewc", "replay"), scores):
            write(tmp_path, name, [score, score + 0.01], stream=stream, setting=stream)
    write(tmp_path, "si", [0.99, 0.99], stream="a_domain", setting="a_domain")
    found = leaderboard([tmp_path])
    standing = {s.label: s for s in found.overall}
    assert [s.label for s in found.overall] == ["ewc", "replay", "naive", "si"]
    assert (standing["ewc"].rank, standing["replay"].rank, standing["naive"].rank) == (1.5, 1.5, 3.0)  # si left out
    # no resample of seeds 0.01 apart changes a rank within a board
    assert [standing[name].rank_interval for name in ("ewc", "naive")] == [(1.5, 1.5), (3.0, 3.0)]
    assert math.isnan(standing["si"].rank) and standing["si"].found == 1
    assert standing["ewc"].iqm == pytest.approx((0.61 + 0.9) / 2)
    assert standing["ewc"].improvement == 1.0
    assert overall(found.boards[:1], "naive") == ()
    assert "settings" in "\n".join(text(found)) and "1/2" in markdown(found)
    said = "2 settings, average accuracy over seeds 0-1 (n = 2) in each. Sorted by mean rank"
    assert all(said in page for page in ("\n".join(text(found)), markdown(found)))


def test_overall_counts_settings_and_diverged_seeds(tmp_path: Path) -> None:
    """Of all settings that compare anything, also where no entry is complete in every one of them."""
    for stream, names in (("a_domain", ("naive", "ewc")), ("b_domain", ("sam", "replay"))):
        for name in names:
            lost = {"diverged": [1]} if name == "sam" else {}
            write(tmp_path, name, [0.5, math.nan if lost else 0.6], stream=stream, setting=stream, **lost)
    found = leaderboard([tmp_path])
    _, rows = overall_table(found)
    assert {row[1]: row[2] for row in rows} == dict.fromkeys(("ewc", "naive", "replay"), "1/2") | {
        "sam": "1/2, 1 seed diverged"
    }
    for seed in (0, 1):  # of all settings together
        write(tmp_path, "sam", [math.nan] * 2, stream=f"{seed}", setting=f"{seed}", diverged=[0, 1])
        write(tmp_path, "naive", [0.5] * 2, stream=f"{seed}", setting=f"{seed}")
    (two,) = [row[2] for row in overall_table(leaderboard([tmp_path]))[1] if row[1] == "sam"]
    assert two == "3/4, 5 seeds diverged"


# --- refusals and files -----------------------------------------------------------------------------


def test_what_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    path = write(tmp_path, "naive", [0.5, 0.5])
    with pytest.raises(ValueError, match="--by speed: unknown score; choose from average_accuracy"):
        leaderboard([tmp_path], by="speed")
    with pytest.raises(ValueError, match="--by sharpness: has no better direction"):
        leaderboard([tmp_path], by="sharpness")
    with pytest.raises(ValueError, match="--baseline si: unknown entry; choose from naive"):
        leaderboard([tmp_path], baseline="si")
    write(tmp_path, "ewc", [0.5, 0.5])  # is shown in any case

    def left_out() -> str:
        found = leaderboard([tmp_path])
        assert [row.entry.label for row in found.boards[0].rows] == ["ewc"]
        (note,) = found.notes
        return note

    edit(path, schema_version=99)
    assert left_out().startswith(f"{path}: written under schema version 99, but this program reads versions 1 and 2")
    edit(path, schema_version=2)
    whole = (path / "metrics.parquet").read_bytes()
    for broken in (whole[:-100], b"", whole[:10] + bytes(60) + whole[70:]):
        (path / "metrics.parquet").write_bytes(broken)
        note = left_out()
        assert note.startswith(f"{path}/metrics.parquet: damaged (") and "; rerun with force=true" in note
    (path / "metrics.parquet").unlink()
    assert left_out().startswith(f"{path}/metrics.parquet: damaged (missing); rerun with force=true")
    (path / "manifest.json").write_text("{")
    assert left_out().startswith(f"{path}/manifest.json: damaged (not JSON: ")


def test_the_files_hold_what_is_printed(tmp_path: Path) -> None:
    write(tmp_path, "naive", [0.5, 0.6])
    write(tmp_path, "x|y<b>`", [0.7, 0.8])
    found = leaderboard([tmp_path])
    out = tmp_path / "out"
    write_files(found, out)
    page = (out / "leaderboard.md").read_text()
    assert "x\\|y&lt;b>'" in page and "<b>" not in page
    wide, csv = pd.read_parquet(out / "leaderboard.parquet"), pd.read_csv(out / "leaderboard.csv")
    assert wide.entry.tolist() == csv.entry.tolist() == ["x|y<b>`", "naive"]
    assert wide.average_accuracy.tolist() == pytest.approx([0.75, 0.55])
    seeds = pd.read_parquet(out / "leaderboard_seeds.parquet")
    mine = seeds[(seeds.score == "average_accuracy") & (seeds.entry == "naive")]
    assert mine.value.tolist() == [0.5, 0.6] and len(seeds) == len(pd.read_csv(out / "leaderboard_seeds.csv"))
    assert not list(out.glob(".*"))
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        write_files(found, tmp_path / "file")


# --- many, and under way ----------------------------------------------------------------------------


def test_a_run_that_is_begun_again_is_left_out_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "naive", [0.5, 0.5])
    path = write(tmp_path, "ewc", [0.6, 0.6])
    read, calls = readers.read, []

    def meanwhile(*args: Any) -> pd.DataFrame:
        if not calls:  # another process starts it again with force=true, and has written its first boundary
            (path / "DONE").unlink()
        calls.append(args)
        return read(*args)

    monkeypatch.setattr(readers, "read", meanwhile)
    found = leaderboard([tmp_path])
    assert [row.entry.label for row in found.boards[0].rows if row.entry.state == "done"] == ["naive"]
    assert "ewc" in found.notes[0] and "being rerun" in found.notes[0]


def version(root: Path, k: int, i: int, number: int) -> Path:
    """A run whose values all say which time it was written."""
    values = [0.1 * k + 0.01 * number] * 2
    return write(root, f"m{k}", values, settings={"i": i}, step=2.0 + number, force=True)


def seen(root: Path) -> dict[Path, int]:
    """Each finished run on the leaderboard -> the number of its version, which is the same in all its tables."""
    found = {}
    for row in (row for board in leaderboard([root]).boards for row in board.rows):
        if row.entry.state == "done":
            k, number = int(row.entry.strategy[1:]), int(row.entry.step - 2)
            assert row.entry.scores["average_accuracy"] == pytest.approx([0.1 * k + 0.01 * number] * 2)
            assert row.entry.scores["forgetting"] == pytest.approx([0.1] * 2)
            found[row.entry.runs[0].path] = number
    return found


def test_at_every_moment_of_a_rewrite_a_run_is_whole_or_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each change of a name in its folder; tests/crash.py kills in between too."""
    version(tmp_path, 1, 0, 0)
    moments: list[list[int]] = []

    def hooked(change: Any) -> Any:
        def then(*args: Any, **options: Any) -> None:
            change(*args, **options)
            with monkeypatch.context() as free:
                for name, original in changes.items():
                    free.setattr(os, name, original)
                moments.append([*seen(tmp_path).values()])

        return then

    changes = {name: getattr(os, name) for name in ("replace", "rename", "unlink", "remove")}
    with monkeypatch.context() as patch:
        for name, change in changes.items():
            patch.setattr(os, name, hooked(change))
        version(tmp_path, 1, 0, 1)
    old, new = moments.count([0]), moments.count([1])
    assert len(moments) > 10 and new == 1
    assert moments == [[0]] * old + [[]] * (len(moments) - old - new) + [[1]] * new


def test_a_run_that_is_written_anew_between_two_tables_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = version(tmp_path, 0, 0, 0)
    version(tmp_path, 1, 0, 0)
    read, calls = readers.read, []

    def meanwhile(*args: Any) -> pd.DataFrame:
        calls.append(args)
        if len(calls) == 2:
            version(tmp_path, 1, 0, 1)
        return read(*args)

    monkeypatch.setattr(readers, "read", meanwhile)
    assert seen(tmp_path) == {other: 0}


ROUNDS, WRITERS = 4, 8


def _writer(root: str, k: int, start: Any, ended: Any) -> None:
    for number in range(ROUNDS):
        start[number].wait()
        version(Path(root), k, number % 2, number)
        ended[number].release()


def test_eight_write_while_one_reads(tmp_path: Path) -> None:
    """No error and no half run. In a round each writer writes one of its two runs; the other one must be seen."""
    context = multiprocessing.get_context("fork")
    start, ended = ([make() for _ in range(ROUNDS)] for make in (context.Event, lambda: context.Semaphore(0)))
    writers = [context.Process(target=_writer, args=(str(tmp_path), k, start, ended)) for k in range(WRITERS)]
    for writer in writers:
        writer.start()
    before: dict[Path, int] = {}
    try:
        for number in range(ROUNDS):
            start[number].set()
            untouched = {run: n for run, n in before.items() if n > number - 2}
            done = 0
            while done < WRITERS:
                assert untouched.items() <= seen(tmp_path).items(), "what nobody writes is there"
                done += ended[number].acquire(timeout=60) or pytest.fail("a writer did not end its round")
                while ended[number].acquire(block=False):
                    done += 1
            before = seen(tmp_path)
            assert len(before) == WRITERS * min(2, number + 1)
    finally:
        for event in start:
            event.set()
        for writer in writers:
            writer.join()
    assert [writer.exitcode for writer in writers] == [0] * WRITERS


def test_reading_many_runs_costs_little_for_each(tmp_path: Path) -> None:
    """Processor time; `python -m tests.benchmarks leaderboard` makes and reads 2,000."""
    source = write(tmp_path / "one", "naive", [0.5, 0.6, 0.7, 0.5, 0.6])
    copies(source, tmp_path / "many", 200)
    leaderboard([tmp_path / "one"])  # imports
    began = time.process_time()
    found = leaderboard([tmp_path / "many"])
    spent = time.process_time() - began
    assert sum(len(board.rows) for board in found.boards) == 200
    assert spent < 2.0  # measured 0.5; one look-up in a pandas index for each value took 5
