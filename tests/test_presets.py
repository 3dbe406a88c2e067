"""Presets: each composes, tunes only keys that its strategies have, and runs."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf

from harness.config import catalogue
from harness.config.catalogue import CONF
from harness.config.ranges import check
from harness.jobs.job import from_config
from tests.compositions import composed, plain

PRESETS = list(catalogue.options("experiment"))
SAMPLED = [pytest.param(p, marks=pytest.mark.nightly if i % 4 else ()) for i, p in enumerate(PRESETS)]
STRATEGIES = set(catalogue.options("strategy"))
SCENARIOS = ("task", "domain", "class")
HELPERS = "preset"  # the one key under `tuned` that names no strategy: tables that others are read from
# what makes any preset small
SMALL = [
    "seeds=[0,1]", "tasks.n_tasks=2", "train.steps=2", "train.batch_size=4", "eval.samples=20", "tracker.mode=disabled",
    "gap=false", "control=false", "metrics=off", "threads=1", "device=cpu",
]  # fmt: skip
SLIM = {"mlp": ["model.widths=[6]"], "cnn": [], "resnet18": ["model.width=4"]}


@cache
def resolved(*overrides: str) -> dict[str, Any]:
    """As plain dicts; remembered, so read only."""
    return plain(composed(*overrides))


@cache
def everything(preset: str) -> DictConfig:
    """The preset with every strategy that it names, and three more."""
    tables = resolved(f"experiment={preset}")["tuned"].get(HELPERS, {})
    named = {*tuned(preset), *tables.get("lr", ()), *tables.get("weight_decay", ()), "ema", "naive", "reset"}
    return composed(f"experiment={preset}", f"strategy=[{','.join(sorted(named & STRATEGIES))}]", "metrics=off")


def chosen(preset: str, strategies: Sequence[str], scenario: str = "", **values: Any) -> dict[str, Any]:
    """The preset with a list of strategies, in its own scenario or another; `values` are the optimizer's."""
    cfg = deepcopy(everything(preset))
    cfg.strategy = {name: cfg.strategy[name] for name in strategies}
    cfg.scenario = scenario or cfg.scenario
    cfg.optimizer.update(values)
    return plain(cfg)


def tuned(preset: str, *overrides: str) -> dict[str, dict[str, Any]]:
    """Strategy -> key -> value."""
    whole = resolved(f"experiment={preset}", *overrides)["tuned"]
    return {name: keys for name, keys in whole.items() if name != HELPERS}


@cache
def node(name: str) -> dict[str, Any]:
    """A strategy's own file."""
    return dict(OmegaConf.load(CONF / "strategy" / f"{name}.yaml")[name])


def defined(scenario: str, preset: str) -> list[str]:
    """Strategies that the preset tunes and that are defined for the scenario."""
    return [name for name in tuned(preset) if scenario in get_class(node(name)["_target_"]).scenarios]


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_composes_in_every_scenario_and_its_values_are_in_range(preset: str) -> None:
    for scenario in SCENARIOS:
        check(resolved(f"experiment={preset}", f"scenario={scenario}"))


@pytest.mark.parametrize("preset", SAMPLED)
def test_what_a_preset_tunes_are_keys_of_strategies_there_are_and_values_they_take(preset: str) -> None:
    for name, values in tuned(preset).items():
        assert name in STRATEGIES, f"{preset} tunes {name}, which is no strategy"
        known = set(node(name)) - {"_target_"}
        assert set(values) <= known, f"{preset} tunes {name}.{set(values) - known}; it has {known}"
    made: list[Any] = []
    for scenario in SCENARIOS if tuned(preset) else ():
        names = defined(scenario, preset)
        whole = chosen(preset, names, scenario)
        for name in names:
            for key, value in whole["tuned"][name].items():
                assert whole["strategy"][name][key] == value
            if whole["strategy"][name] not in made:
                instantiate(whole["strategy"][name])  # refuses values out of range
                made.append(whole["strategy"][name])


@pytest.mark.parametrize("preset", SAMPLED)
def test_a_preset_s_tables_name_strategies_there_are_and_reach_the_run(preset: str) -> None:
    tables = resolved(f"experiment={preset}")["tuned"].get(HELPERS, {})
    for name in set(tables) & {"lr", "weight_decay"}:
        assert set(tables[name]) <= STRATEGIES
        other = resolved(f"experiment={preset}", "strategy=reset")["optimizer"][name]
        for strategy, value in tables[name].items():
            assert chosen(preset, [strategy, "ema"])["optimizer"][name] == value, "the first strategy's counts"
        assert chosen(preset, ["ema", "naive"])["optimizer"][name] == other
        assert chosen(preset, [strategy], **{name: 0.123})["optimizer"][name] == 0.123
    for scenario in set(tables) & set(SCENARIOS):
        assert set(tables[scenario]) == set(tables["task"])


def fitting(preset: str) -> list[str]:
    """A data set that is there, in place of one that may have to be downloaded."""
    return [] if resolved(f"experiment={preset}")["dataset"]["name"] == "digits" else ["dataset=digits"]


@pytest.mark.parametrize("preset", SAMPLED)
def test_a_preset_runs_two_tiny_tasks(preset: str, tmp_path: Path) -> None:
    target = resolved(f"experiment={preset}")["model"]["_target_"].rpartition(".")[2].lower()
    cfg = composed(f"experiment={preset}", *fitting(preset), *SMALL, *SLIM[target], f"results={tmp_path}")
    folder = from_config(cfg, progress=False)
    assert (folder / "DONE").exists() and (folder / "accuracy.parquet").exists()


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_starts_with_what_it_reproduces(preset: str) -> None:
    """The first comment is its line in `ls`."""
    lines = (CONF / "experiment" / f"{preset}.yaml").read_text().splitlines()
    assert lines[0] == "# @package _global_" and lines[1].startswith("# ") and len(lines[1]) > 30
    assert all(len(line) <= 120 for line in lines)


PUBLISHED = {  # preset -> settings of the paper, by dotted key
    "published/van_de_ven_2022_split_mnist": {"model.widths": [400, 400], "optimizer.lr": 0.001, "train.steps": 2000},
    "published/van_de_ven_2018_permuted_mnist": {"dataset.pad": 2, "model.widths": [1000, 1000], "optimizer.lr": 1e-4},
    "published/der_split_mnist": {"train.batch_size": 10, "model.widths": [100, 100], "optimizer.lr": 0.03},
    "published/der_permuted_mnist": {"tasks.n_tasks": 20, "train.batch_size": 128, "optimizer.lr": 0.2},
    "published/der_rotated_mnist": {"tasks.angles": "uniform", "tasks.spread": 180.0, "optimizer.lr": 0.2},
    "published/der_split_cifar10": {"train.epochs": 50, "train.batch_size": 32, "dataset.name": "cifar10"},
    "published/mcsgd_permuted_mnist": {"model.dropout": 0.25, "train.batch_size": 16, "optimizer.gamma": 0.7},
    "published/mcsgd_rotated_mnist": {"tasks.angles": "steps", "train.batch_size": 64, "optimizer.lr": 0.08},
    "published/mcsgd_split_cifar100": {"tasks.n_tasks": 20, "scenario": "task", "model.width": 20},
    "published/l2_init_permuted_mnist": {"tasks.n_tasks": 500, "train.steps": 625, "train.batch_size": 16},
    "published/upgd_input_permuted_mnist": {"tasks.n_tasks": 200, "train.steps": 5000, "model.widths": [300, 150]},
    "published/upgd_label_permuted_emnist": {"tasks.n_tasks": 400, "train.steps": 2500, "train.batch_size": 1},
    "published/online_permuted_mnist": {"tasks.n_tasks": 800, "train.batch_size": 1, "optimizer.lr": 0.003},
    "published/l2_init_five_plus_one": {"tasks.n_tasks": 30, "train.steps": 780, "model.kernel": 5, "classes": "all"},
    "published/growing_cifar100": {
        "tasks.n_tasks": 20,
        "train.batch_size": 90,
        "model.width": 64,
        "optimizer.gamma": 0.2,
    },
    "published/slowly_changing_regression": {"tasks.n_tasks": 100, "tasks.held": 15, "model.widths": [5]},
}


@pytest.mark.parametrize("preset", PUBLISHED)
def test_settings_are_the_published_ones(preset: str) -> None:
    cfg = OmegaConf.create(resolved(f"experiment={preset}"))
    for key, value in PUBLISHED[preset].items():
        assert OmegaConf.select(cfg, key) == value, key


def test_strengths_follow_the_scenario() -> None:
    preset = "experiment=published/van_de_ven_2022_split_mnist"
    found = {
        scenario: resolved(preset, "strategy=[ewc,si]", f"scenario={scenario}")["strategy"] for scenario in SCENARIOS
    }
    assert {k: v["ewc"]["strength"] for k, v in found.items()} == {"task": 1e5, "domain": 1e10, "class": 1e9}
    assert {k: v["si"]["strength"] for k, v in found.items()} == {"task": 10, "domain": 5e4, "class": 5e3}
    pinned = resolved(preset, "strategy=ewc", "strategy.ewc.strength=7")
    assert pinned["strategy"]["ewc"]["strength"] == 7


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_lwf_is_that_of_the_code_of_2022(scenario: str) -> None:
    settings = resolved("experiment=published/van_de_ven_2022_split_mnist", "strategy=lwf", f"scenario={scenario}")[
        "strategy"
    ]["lwf"]
    weighting = "heads" if scenario == "class" else "tasks"
    wanted = {"strength": 1, "temperature": 2, "t_squared": False, "weighting": weighting, "student": "competing"}
    assert {k: settings[k] for k in wanted} == wanted


THEIRS = {  # settings of van de Ven's code (e6d795a) for split MNIST that are not our defaults
    "separate": {"model.widths": [100, 100]},
    "xdg": {"strategy.xdg.share": 0.9, "model.widths": [400, 400]},
    "ewc": {"strategy.ewc.mode": "separate", "strategy.ewc.fisher": "exact", "strategy.ewc.samples": None},
    "si": {"strategy.si.xi": 0.1, "strategy.si.gradient": "total"},
    "replay": {"strategy.replay.weighting": "share", "strategy.replay.fill": "end", "strategy.replay.policy": "ring"},
    "icarl": {"strategy.icarl.shares": "all", "strategy.icarl.temperature": 2, "strategy.icarl.capacity": 1000},
    "generative_replay": {"strategy.generative_replay.latent": 100, "strategy.generative_replay.widths": [400, 400]},
    "generative_classifier": {"strategy.generative_classifier.answer": "gaussian", "classes": "all"},
}


@pytest.mark.parametrize("strategy", THEIRS)
def test_the_preset_of_2022_has_the_settings_of_the_code(strategy: str) -> None:
    scenario = "task" if strategy in ("separate", "xdg") else "class"
    words = "experiment=published/van_de_ven_2022_split_mnist", f"strategy={strategy}", f"scenario={scenario}"
    cfg = OmegaConf.create(resolved(*words))
    for key, value in THEIRS[strategy].items():
        assert OmegaConf.select(cfg, key) == value, key


def test_a_misspelt_key_under_tuned_would_be_seen() -> None:
    """The check above, on a preset that is wrong."""
    whole = resolved("experiment=published/der_permuted_mnist", "+tuned.der.alhpa=1")["tuned"]["der"]
    assert not set(whole) <= set(node("der"))
