"""What the trials choose, what stands in the preset, and what is refused."""

from __future__ import annotations

import copy
import math
import re
import shutil
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from harness.cli import main
from harness.config.preflight import composed
from harness.tuning import tune
from harness.tuning.choice import Tried
from harness.tuning.figures import figure, overall
from harness.tuning.files import markdown, write
from harness.tuning.preset import option
from tests import compositions
from tests.harness import folders

SEEDS = (100, 101, 102)
SETTING = ("tasks=split", "scenario=class", "tasks.n_tasks=2", "train.steps=7", "model.widths=[30]")


@pytest.fixture(scope="module", autouse=True)
def composed_once() -> Iterator[None]:
    """What the same words compose to is remembered: Hydra takes a third of a second each time."""
    kept: dict[tuple[Any, ...], dict[str, Any]] = {}

    def remembered(overrides: Sequence[str], config_dir: str | None = None) -> dict[str, Any]:
        key = (*overrides, config_dir)
        if config_dir is not None or key not in kept:  # a user's folder changes
            kept[key] = composed(overrides, config_dir)
        return copy.deepcopy(kept[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("harness.config.preflight.composed", remembered)
        yield


@cache
def said(*words: str) -> dict[str, Any]:
    """The configuration that words compose to; to be copied before it is changed."""
    return compositions.plain(compositions.composed(*SETTING, *words))


def trial(root: Path, scores: list[float], *words: str, seeds: tuple[int, ...] = SEEDS, **manifest: Any) -> Path:
    """A finished trial of what the words say, in SETTING, with these average accuracies at the end."""
    cfg = said(*words)
    label = "+".join(cfg["strategy"])
    kept = {"split": "val", "config": cfg, "setting": "b" * 12, **manifest}
    settings = {"is": " ".join(words), "of": kept["setting"]}
    return folders.write(root, label, scores, seeds=seeds, stream="split_digits_class", settings=settings, **kept)


def ewc(root: Path, by_strength: dict[float, list[float]], **kept: Any) -> Tried:
    """What is made of trials of EWC alone."""
    for strength, scores in by_strength.items():
        lost = [s for s, v in zip(SEEDS, scores) if math.isnan(v)]
        trial(root, scores, "strategy=ewc", f"strategy.ewc.strength={strength}", diverged=lost, **kept)
    ((one,),) = [setting.tried for setting in tune([root])]
    return one


def test_the_best_mean_is_chosen_and_all_that_was_tried_stands_behind_it(tmp_path: Path) -> None:
    scores = {2.0: [0.5, 0.5, 0.5], 0.2: [0.4, 0.5, 0.6], 0.63: [0.6, 0.7, 0.8], 6.3: [0.2, 0.2, 0.2]}
    one = ewc(tmp_path, scores)
    assert [t.values["ewc.strength"] for t in one.trials] == [0.2, 0.63, 2.0, 6.3]  # by value, not by name
    assert [t.default for t in one.trials] == [False, False, True, False]
    assert one.best.values == {"ewc.strength": 0.63} and (one.edge, one.missing) == ("", ())
    assert one.best.mean == pytest.approx(0.7) and one.best.half == pytest.approx(0.2484, abs=1e-4)  # t 4.3027, s 0.1
    # paired: 0.1, 0.2, 0.3 more than the default
    assert one.gain == pytest.approx((0.2, 0.2484), abs=1e-4)


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ({0.2: [0.5] * 3, 2.0: [0.5] * 3, 0.63: [0.5] * 3}, 2.0),  # a tie goes to the default
        ({0.2: [0.6] * 3, 2.0: [0.5] * 3, 0.63: [0.6] * 3}, 0.2),  # without it to the first
        ({0.2: [0.5] * 3, 2.0: [0.4] * 3, 0.63: [0.9, math.nan, 0.5]}, 0.2),  # a diverged seed is 0, not left out
        ({0.2: [math.nan] * 3, 2.0: [0.1] * 3, 0.63: [math.nan] * 3}, 2.0),
        ({0.2: [math.nan] * 3, 2.0: [math.nan] * 3, 0.63: [math.nan] * 3}, 2.0),  # nothing to choose by
    ],
)
def test_ties_and_diverged_seeds(tmp_path: Path, scores: dict[float, list[float]], best: float) -> None:
    one = ewc(tmp_path, scores)
    assert one.best.values == {"ewc.strength": best} and one.missing == ({"ewc.strength": 6.3},)
    assert one.lost == all(math.isnan(v) for row in scores.values() for v in row)


def test_a_score_that_was_not_recorded_is_that_of_the_accuracies(tmp_path: Path) -> None:
    trial(tmp_path, [0.1] * 3, "strategy=ewc")
    nothing = {"average_accuracy": [[]] * 3}
    trial(tmp_path, [0.3] * 3, "strategy=ewc", "strategy.ewc.strength=20", metrics=nothing)
    ((one,),) = [setting.tried for setting in tune([tmp_path])]
    assert not one.best.default and one.trials[1].mean == pytest.approx(0.8)  # .7, .8 and .9 in the table


@pytest.mark.parametrize(("strengths", "edge"), [((0.2, 2.0), "smallest"), ((2.0, 6.3), "largest"), ((2.0,), "")])
def test_a_best_value_at_the_edge_of_what_was_tried_is_said(tmp_path: Path, strengths: Any, edge: str) -> None:
    better = {s: [0.5 + 0.1 * (s != 2.0)] * 3 for s in strengths}
    assert ewc(tmp_path / "a", better).edge == edge
    assert ewc(tmp_path / "b", dict.fromkeys(strengths, [0.5] * 3)).edge == ""  # no better than elsewhere


def test_test_rows_and_reported_seeds_choose_nothing(tmp_path: Path) -> None:
    path = trial(tmp_path / "a", [0.9] * 3, "strategy=ewc", split="test")
    with pytest.raises(ValueError, match=re.escape(f"tune {path}: scored on test rows, which must not choose values")):
        tune([tmp_path / "a"])
    path = trial(tmp_path / "b", [0.9] * 3, "strategy=ewc", seeds=(4, 100, 101))
    with pytest.raises(
        ValueError, match=re.escape(f"tune {path}: trained with seeds [4], which are used for reported results")
    ):
        tune([tmp_path / "b"])


def test_trials_of_other_seeds_do_not_compete(tmp_path: Path) -> None:
    trial(tmp_path, [0.9, 0.9], "strategy=ewc", seeds=SEEDS[:2])
    trial(tmp_path, [0.5] * 3, "strategy=ewc", "strategy.ewc.strength=20")
    (setting,) = tune([tmp_path])
    assert [len(one.trials) for one in setting.tried] == [1]
    assert any(note == "ewc: left out because it has only seeds 100-101" for note in setting.notes)


def many(root: Path) -> None:
    """Trials of several strategies: with a setting of numbers, of words, of both, of none, and a list."""
    for weighting, score in (("sum", 0.6), ("mean", 0.7), ("share", 0.65)):
        words = ("strategy=replay", f"strategy.replay.weighting={weighting}", "strategy.replay.capacity=50")
        trial(root, [score] * 3, *words)
    for strength, score in ((0.2, 0.3), (2.0, 0.31), (0.63, 0.35), (6.3, 0.2)):
        trial(root, [score, score + 0.01, score], "strategy=ewc", f"strategy.ewc.strength={strength}")
    for alpha, score in (("null", 0.3), (0.2, 0.4), (0.4, 0.2)):
        trial(root, [score] * 3, "strategy=imm", f"strategy.imm.alpha={alpha}")
    trial(root, [0.2, 0.25, 0.2], "strategy=naive")
    for strength in (2.0, 0.63):
        trial(root, [0.6 + strength / 1000] * 3, "strategy=[replay,ewc]", f"strategy.ewc.strength={strength}")


@pytest.mark.nightly
def test_the_preset_makes_the_setting_again_with_the_chosen_values(tmp_path: Path) -> None:
    many(tmp_path / "r")
    (setting,) = tune([tmp_path / "r"])
    assert list(setting.presets) == ["tuned_split_class_digits", "tuned_split_class_digits_replay_ewc"]
    folder = tmp_path / "mine" / "experiment"
    folder.mkdir(parents=True)
    for name, text in setting.presets.items():
        (folder / f"own_{name}.yaml").write_text(text)  # a preset of ours may have the name
        assert max(map(len, text.splitlines())) <= 120
    for words in (["strategy=ewc"], ["strategy=[replay,imm]"]):
        got = composed(["experiment=own_tuned_split_class_digits", *words], str(tmp_path / "mine"))
        plain = copy.deepcopy(said(*words))
        if "ewc" in got["strategy"]:
            assert got["strategy"]["ewc"].pop("strength") == 0.63 != plain["strategy"]["ewc"].pop("strength")
        if "replay" in got["strategy"]:  # what was typed for all trials is part of it
            assert got["strategy"]["replay"].pop("weighting") == "mean" != plain["strategy"]["replay"].pop("weighting")
            assert got["strategy"]["replay"].pop("capacity") == 50 != plain["strategy"]["replay"].pop("capacity")
        if "imm" in got["strategy"]:
            assert (got["strategy"]["imm"].pop("alpha"), plain["strategy"]["imm"].pop("alpha")) == (0.2, None)
        assert got.pop("tuned") and plain.pop("tuned") == {}
        assert got == plain  # seeds 0-4 and test rows among it
    both = composed(
        ["experiment=own_tuned_split_class_digits_replay_ewc", "strategy=[replay,ewc]"], str(tmp_path / "mine")
    )
    assert (both["strategy"]["ewc"]["strength"], both["strategy"]["replay"]["weighting"]) == (0.63, "sum")
    assert yaml.safe_load(setting.presets["tuned_split_class_digits"])["tuned"]["ewc"] == {"strength": 0.63}


def test_the_preset_says_what_each_choice_rests_on(tmp_path: Path) -> None:
    many(tmp_path / "r")
    trial(tmp_path / "r", [math.nan] * 3, "strategy=mas", diverged=list(SEEDS))
    trial(tmp_path / "r", [math.nan] * 3, "strategy=mas", "strategy.mas.strength=0.03", diverged=list(SEEDS))
    (setting,) = tune([tmp_path / "r"])
    text = " ".join(line.lstrip("# ") for line in setting.presets["tuned_split_class_digits"].splitlines())
    assert (
        "ewc, n = 3: strength=0.2 0.303 ± 0.014; strength=0.63 0.353 ± 0.014; strength=2.0 (default) 0.313 ± 0.014; "
        "strength=6.3 0.203 ± 0.014. Best minus default, paired by seed: 0.040 ± 0.000." in text
    )
    assert "imm, n = 3: alpha=null (default) 0.300 ± 0.000; alpha=0.2" in text and "Not tried: alpha=0.6." in text
    assert "strength=0.003 (default) 0.000 ± 0.000, 3 diverged; " in text
    assert "Every seed of every trial diverged: nothing was chosen." in text
    assert "Nothing to tune, one trial of the defaults: naive 0.217 ± 0.072." in text


def test_settings_of_one_name_are_told_apart_and_the_model_and_budget_are_found_again(tmp_path: Path) -> None:
    trial(tmp_path, [0.5] * 3, "strategy=ewc")
    words = ("optimizer=adam", "optimizer.lr=0.003", "dataset.val=0.2", "dataset.root=/somewhere", "pin.init=3")
    trial(tmp_path, [0.5] * 3, "strategy=ewc", *words, setting="c" * 12)
    first, second = tune([tmp_path])
    assert (first.name, second.name) == ("tuned_split_class_digits_bbbb", "tuned_split_class_digits_cccc")
    preset = yaml.safe_load(second.presets[second.name])
    assert {"override /optimizer": "adam"} in preset["defaults"] and preset["optimizer"] == {"lr": 0.003}
    assert preset["dataset"] == {"val": 0.2} and preset["pin"] == {"init": 3} and preset["train"] == {"steps": 7}
    assert option("dataset", composed(["dataset=emnist_letters", "dataset.pad=2"])["dataset"]) == "emnist_letters"
    with pytest.raises(ValueError, match=r"model: no file has the target my\.Net; name its folder: --config-dir"):
        option("model", {"_target_": "my.Net"})


def test_a_presets_own_value_is_the_default(tmp_path: Path) -> None:
    """The trials of experiment=[mine,tune], where mine has tuned.ewc.strength: 7."""
    trial(tmp_path, [0.5] * 3, "strategy=ewc", "+tuned.ewc.strength=7")
    trial(tmp_path, [0.6] * 3, "strategy=ewc", "+tuned.ewc.strength=7", "strategy.ewc.strength=20")
    ((one,),) = [setting.tried for setting in tune([tmp_path])]
    assert one.default is not None and one.default.values == {"ewc.strength": 7}


def test_tables_and_figures_hold_every_trial_and_are_the_same_each_time(tmp_path: Path) -> None:
    many(tmp_path / "r")
    for out in ("a", "b"):
        write(tune([tmp_path / "r"]), tmp_path / out)
    names = ["sensitivity.md", "sensitivity.parquet", "sensitivity.svg", "tuned_split_class_digits.svg"]
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == names
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    rows = pd.read_parquet(tmp_path / "a" / "sensitivity.parquet")
    assert len(rows) == 3 * (3 + 4 + 3 + 1 + 2) and rows[rows.chosen].groupby("strategy").trial.nunique().eq(1).all()
    best = rows[rows.chosen & (rows.strategy == "ewc")]
    assert list(best.seed) == list(SEEDS) and list(best.main_value) == [0.63] * 3
    assert np.allclose(best.average_accuracy, [0.35, 0.36, 0.35])
    (setting,) = tune([tmp_path / "r"])
    lines = markdown([setting]).splitlines()
    assert "| ewc | strength=0.63 | 0.353 ± 0.014 | chosen |" in lines
    assert "| naive | nothing to tune | 0.217 ± 0.072 | default |" in lines
    drawn = [ax.get_title() for ax in figure(setting).axes if ax.axison]
    assert drawn == ["ewc", "imm", "replay+ewc"]  # replay varies a word


def test_the_command(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)

    def typed(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["harness", "tune", *words])
        return main(), *capsys.readouterr()  # type: ignore[return-value]

    told = "harness: tune {}: no trials; run them with python -m harness -m experiment=tune {}\n"
    assert typed() == (2, "", told.format("results/tuning", "strategy=..."))
    assert typed("strategy=ewc") == (2, "", told.format("strategy=ewc", "strategy=ewc"))
    assert typed("--best") == (2, "", "harness: unrecognized arguments: --best; see harness tune --help\n")
    many(tmp_path / "r")
    code, out, err = typed("r", "--out", "presets", "--tables", "t")
    assert (code, err) == (0, "") and re.search(r"^  ewc +0.353 ± 0.014  strength=0.63$", out, re.M)
    written = re.findall("^written: (.*)$", out, re.M)
    assert len(written) == 6 and all(Path(name).is_file() for name in written)
    before = {name: Path(name).read_bytes() for name in written}
    assert typed("r", "--out", "presets", "--tables", "t")[0] == 0
    assert {name: Path(name).read_bytes() for name in written} == before
    shutil.rmtree(tmp_path / "r")
    (tmp_path / "r" / "runs").mkdir(parents=True)
    assert typed("r")[:2] == (0, "no finished trial in r\n")


def test_the_good_range_is_where_half_of_the_gain_over_naive_is_kept(tmp_path: Path) -> None:
    trial(tmp_path, [0.2, 0.2, 0.2], "strategy=naive")
    for strength, score in ((0.01, 0.25), (0.1, 0.3), (1.0, 0.6), (10.0, 0.2)):
        trial(tmp_path, [score] * 3, "strategy=l2", f"strategy.l2.strength={strength}")
        trial(tmp_path, [score / 4] * 3, "strategy=ewc", f"strategy.ewc.strength={strength}")
        trial(tmp_path, [0.5] * 3, "strategy=ewc", "strategy.ewc.mode=separate", f"strategy.ewc.strength={strength}")
    found = tune([tmp_path])
    lines = [line for line in markdown(found).splitlines() if "| strength |" in line]
    # l2: half way is .4, a third of a decade above .1 and half a decade above 1; online ewc never reaches naive
    assert lines == [
        "| ewc, mode=online | strength | 0.150 | 1 | none |  |  |",
        "| ewc, mode=separate | strength | 0.500 | 0.01 | ≤ 0.01 | ≥ 10 | ≥ 3.0 |",
        "| l2 | strength | 0.600 | 1 | 0.22 | 3.2 | 1.2 |",
    ]
    drawn = overall(found)
    assert [ax.get_title() for ax in drawn.axes] == ["ewc, mode=online", "ewc, mode=separate", "l2"]
    bars = [[np.asarray(line.get_xdata()) for line in ax.lines if line.get_linewidth() == 7] for ax in drawn.axes]
    assert [len(found) for found in bars] == [0, 1, 1] and np.allclose(bars[2], [(0.1 * 10 ** (1 / 3), 10**0.5)])
