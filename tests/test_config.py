"""The YAML files: they compose, say what their keys mean, and fit the constructors they name."""

import importlib
import inspect
import itertools
import re
from contextlib import contextmanager
from copy import deepcopy
from functools import cache

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import get_object
from omegaconf import OmegaConf

from harness.config import catalogue
from harness.config.catalogue import CONF, GROUPS
from harness.config.ranges import check
from tests import compositions
from tests.compositions import plain

EVERY = f"strategy=[{','.join(catalogue.options('strategy'))}]"
TIERS = ("off", "fast", "standard", "atlas")
FILES = sorted(CONF.rglob("*.yaml"))
# what the harness passes itself
GIVEN = {
    "tasks": {"dataset", "seeds", "scenario", "classes", "pin", "device"},
    "model": {"shape", "outputs"},
    "optimizer": set(),
    "dataset": set(),
}


@cache
def remembered(overrides):
    return plain(compositions.composed(*overrides))


def composed(*overrides):
    return deepcopy(remembered(overrides))  # tests take keys out


def option(group, name):
    """A composition with this option, and the like option of every group whose options go with any others."""
    if group not in GIVEN:
        return composed(f"{group}={name}")
    at = list(catalogue.options(group)).index(name)
    others = {g: list(catalogue.options(g)) for g in GIVEN}
    return composed(*(f"{g}={names[at % len(names)]}" for g, names in others.items()), "metrics=off")


@contextmanager
def refused(start):
    with pytest.raises(ValueError) as caught:
        yield
    line = str(caught.value)
    assert line.startswith(start) and "\n" not in line, line


@pytest.mark.parametrize("group", GROUPS)
def test_every_option_composes_and_its_values_are_in_range(group):
    """Strategies compose as one list; presets are composed in tests/test_presets.py."""
    if group == "strategy":
        check(composed(EVERY, "metrics=off"))
    elif group != "experiment":
        for name in catalogue.options(group):
            check(option(group, name))


def test_values_are_set_in_a_composition_as_hydra_sets_them():
    words = [
        "experiment=published/van_de_ven_2022_split_mnist",
        "strategy=[ewc,si]",
        "scenario=task",
        "seeds=[3,4]",
        "train.steps=5",
    ]
    words += ["+tuned.ewc.samples=3", "strategy.ewc.strength=${optimizer.lr}", "tasks.n_tasks=null", "results='a b'"]
    made = composed(*words)
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        assert plain(compose("config", words)) == made


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(CONF)))
def test_every_key_has_a_comment_above_it(file):
    """A mapping's keys count, not the mapping; a preset's keys are explained where they are defined."""
    if file.is_relative_to(CONF / "experiment"):
        pytest.skip("a preset sets keys, it defines none")
    lines = file.read_text().partition("\nhydra:")[0].splitlines()
    for above, line, below in zip(["", *lines], lines, [*lines[1:], ""]):
        key = re.match(r"( *)(\w+):", line)
        if not key or key[2] in ("_target_", "_partial_", "defaults"):
            continue
        if below.strip() and len(below) - len(below.lstrip()) > len(key[1]):
            continue
        assert above.strip().startswith("#"), line


@pytest.mark.parametrize("group", GIVEN)
def test_keys_are_the_constructors_arguments(group):
    for name in catalogue.options(group):
        node = option(group, name)[group]
        assert set(node) - {"_target_"} == _arguments(get_object(node["_target_"])) - GIVEN[group], name


def _arguments(target):
    """Names of a callable's arguments; those behind **kwargs are the base class's."""
    parameters = inspect.signature(target).parameters.values()
    names = {p.name for p in parameters if p.kind is not inspect.Parameter.VAR_KEYWORD}
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        names |= _arguments(target.__mro__[1])
    return names


def test_every_strategy_stands_under_its_own_name_so_that_lists_compose():
    for name in catalogue.options("strategy"):
        assert list(OmegaConf.load(CONF / "strategy" / f"{name}.yaml")) == [name]
    assert list(composed(EVERY, "metrics=off")["strategy"]) == list(catalogue.options("strategy"))
    assert list(composed("strategy=[l2_init,naive]")["strategy"]) == ["l2_init", "naive"]
    assert list(composed("strategy=[naive,l2_init]")["strategy"]) == ["naive", "l2_init"]


def test_each_metric_stands_in_a_file_of_its_own_that_tiers_name():
    """What a tier measures, the next one measures too; a file that no tier names is a metric by itself."""
    tiers = [list(composed(f"metrics={tier}")["metrics"]) for tier in TIERS]
    for less, more in itertools.pairwise(tiers):
        assert [name for name in more if name in less] == less
    columns: dict[str, str] = {}
    for name in set(catalogue.options("metrics")) - set(TIERS):
        ((key, node),) = composed(f"metrics={name}")["metrics"].items()
        function = get_object(node.pop("_target_"))
        assert key == name == function.__name__ and node.pop("_partial_") is True
        settings = dict(inspect.signature(function).parameters)
        assert set(node) == set(settings) - {"b"}
        assert all(p.default is p.empty for p in settings.values())  # defaults stand in the YAML only
        module = importlib.import_module(function.__module__)
        for column in module.COLUMNS:
            assert columns.setdefault(column, module.__name__) == module.__name__, f"{column} has two meanings"


def test_a_presets_value_for_a_method_loses_to_the_command_line_and_leaves_no_trace():
    tuned = "+tuned.l2_init.strength=7"
    assert composed("strategy=l2_init", tuned)["strategy"]["l2_init"]["strength"] == 7
    assert composed("strategy=l2_init", tuned, "strategy.l2_init.strength=8")["strategy"]["l2_init"]["strength"] == 8
    assert composed("strategy=naive", tuned)["strategy"] == {"naive": {"_target_": "strategies.naive.Naive"}}


def test_a_preset_wins_over_config_yaml_and_the_command_line_over_the_preset():
    assert composed()["train"]["epochs"] != 1
    assert composed("experiment=permuted_fashion")["train"]["epochs"] == 1
    assert composed("experiment=permuted_fashion", "train.epochs=3")["train"]["epochs"] == 3


def test_presets_are_the_protocols_they_name():
    fashion = composed("experiment=permuted_fashion")
    assert (fashion["tasks"]["n_tasks"], fashion["dataset"]["name"], fashion["model"]["widths"]) == (
        20,
        "fashion_mnist",
        [400, 400],
    )
    long = composed("experiment=long_plasticity_digits")
    assert (long["tasks"]["n_tasks"], long["optimizer"]["_target_"]) == (75, "harness.optim.Adam")
    assert (long["train"]["steps"], long["train"]["batch_size"]) == (100, 16)


def test_default_needs_no_download_and_has_several_seeds():
    cfg = composed()
    assert cfg["dataset"]["name"] == "digits" and cfg["tracker"]["mode"] == "offline"
    assert cfg["seeds"] == [0, 1, 2, 3, 4] and cfg["scenario"] == "domain"


# --- ranges -------------------------------------------------------------------------------------------


def changed(key, value):
    cfg = composed()
    node = cfg
    *path, last = key.split(".")
    for part in path:
        node = node[part]
    node[last] = value
    return cfg


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("seeds", [], "seeds=[]: must contain at least one"),
        ("seeds", [1, 2, 1], "seeds=[1,2,1]: 1 is listed twice"),
        ("seeds", [0, -3], "seeds=[0,-3]: -3 must be"),
        ("seeds", [True], "seeds=[true]: true must be"),
        ("seeds", 5, "seeds=5: must be a list"),
        ("scenario", "clas", "scenario=clas: must be task, domain or class; did you mean class?"),
        ("classes", None, "classes=null: must be seen or all"),
        ("boundaries", "hiden", "boundaries=hiden: must be announced or hidden; did you mean hidden?"),
        ("results", "", "results=: must name a folder"),
        ("device", "gpu", "device=gpu: must be auto, cpu, cuda or cuda:N"),
        ("threads", -1, "threads=-1: must be at least 0"),
        ("dtype", "float16", "dtype=float16: must be float32 or float64"),
        ("force", 1, "force=1: must be true, false or beside"),
        ("keep", "some", "keep=some: must be all or last"),
        ("gap", "yes", "gap=yes: must be true or false"),
        ("train.epochs", 0, "train.epochs=0: must be at least 1"),
        ("train.epochs", 1.5, "train.epochs=1.5: must be a whole number"),
        ("train.steps", 0, "train.steps=0: must be at least 1"),
        ("train.batch_size", 0, "train.batch_size=0: must be at least 1"),
        ("train.batch_size", None, "train.batch_size=null: must be a whole number"),
        ("train.batch_size", True, "train.batch_size=true: must be a whole number"),
        ("eval.tasks", "sen", "eval.tasks=sen: must be seen, all, or a number"),
        ("eval.tasks", 0, "eval.tasks=0: must be seen, all, or a number"),
        ("eval.samples", -1, "eval.samples=-1: must be at least 1"),
        ("pin.init", -1, "pin.init=-1: must be at least 0"),
        ("tuned", 3, "tuned=3: must be a mapping"),
        ("tasks.n_tasks", 0, "tasks.n_tasks=0: must be at least 1"),
        ("optimizer.lr", -0.1, "optimizer.lr=-0.1: must be above 0"),
        ("optimizer.lr", float("nan"), "optimizer.lr=nan: must be a number"),
        ("optimizer.momentum", 1.0, "optimizer.momentum=1.0: must be at least 0 and below 1"),
        ("optimizer.nesterov", True, "optimizer.nesterov=true: needs a momentum"),
        (
            "optimizer.schedule",
            "cosin",
            "optimizer.schedule=cosin: must be constant, step, cosine or task; did you mean cosine?",
        ),
        ("optimizer.milestones", [0.5, 3], "optimizer.milestones=[0.5,3]: must be fractions"),
        ("tracker.mode", "on", "tracker.mode=on: must be offline, online or disabled"),
    ],
)
def test_a_value_out_of_range_is_named_with_its_remedy(key, value, line):
    with refused(line):
        check(changed(key, value))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seeds", [7]),
        ("train.steps", 5),
        ("train.steps", None),
        ("eval.tasks", 3),
        ("eval.tasks", "all"),
        ("eval.samples", 1),
        ("pin.probe", 0),
        ("threads", 0),
        ("device", "cuda:1"),
        ("optimizer.lr", 1),
        ("optimizer.momentum", 0),
    ],
)
def test_the_least_value_in_range_passes(key, value):
    check(changed(key, value))


def test_epochs_may_be_null_only_beside_steps():
    cfg = composed()
    cfg["train"] = {"epochs": None, "steps": 5, "batch_size": 2}
    check(cfg)
    cfg["train"]["steps"] = None
    with refused("train.epochs=null: must be a whole number"):
        check(cfg)


def test_betas_are_checked_where_an_optimizer_has_them():
    cfg = composed("optimizer=adam")
    check(cfg)
    cfg["optimizer"]["betas"] = [0.9, 1.0]
    with refused("optimizer.betas=[0.9,1.0]: must be two numbers"):
        check(cfg)
