"""The grids of the strategies, and what a sweep of `experiment=tune` makes of them."""

import itertools
import json

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf

from harness.config import catalogue
from harness.config.catalogue import CONF
from harness.jobs.trials import TRIALS, chosen, written
from strategies.l2 import L2
from strategies.l2_init import L2Init
from strategies.si import SI
from tests.command import harness


@pytest.fixture(scope="module")
def nodes():
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        cfg = compose("config", [f"strategy=[{','.join(catalogue.options('strategy'))}]"])
    return OmegaConf.to_container(cfg.strategy, resolve=True)


def test_every_point_of_a_grid_is_of_the_constructors_arguments_the_default_among_them(nodes):
    tuned = 0
    for name, node in nodes.items():
        grid = get_class(node["_target_"]).grid
        assert set(grid) <= set(node) - {"_target_"}, name
        default = {key: node[key] for key in grid}
        for key, values in grid.items():
            assert default[key] in values and len(set(values)) == len(values) > 1, name
            assert {type(v) for v in values} - {type(None)} == {type(v) for v in values if v is not None}
        points = chosen(grid, default)
        assert points[0] == default and len(points) <= TRIALS and (len(points) >= 3 or not grid), name
        for point in points:
            instantiate({**node, **point}, _convert_="all")
        tuned += bool(grid)
    assert tuned >= 30


# settings with limits, or of another kind: their grids have the sources' values
LIMITED = {"decay", "period", "weight_new", "margin", "threshold", "alpha", "tau", "weighting", "shrink", "share"}


def test_values_without_a_limit_are_evenly_spaced_in_the_logarithm(nodes):
    even = 0
    for name, node in nodes.items():
        for key, values in get_class(node["_target_"]).grid.items():
            if key in LIMITED and not (key == "alpha" and name.startswith("der")):
                continue
            steps = [b / a for a, b in itertools.pairwise(values)]
            assert len(values) == TRIALS and min(steps) >= 2 and max(steps) <= 1.4 * min(steps), (name, key, values)
            even += 1
    assert even >= 20


def test_the_largest_strength_is_within_the_bound_of_gradient_descent():
    """Of the penalties whose curvature is the same everywhere; the others were tried."""
    assert 0.2 * L2(strength=max(L2.grid["strength"])).strength < 2
    assert 0.2 * 2 * L2Init(strength=max(L2Init.grid["strength"])).strength < 2


def test_where_the_default_is_none_of_the_values_it_is_tried_beside_them():
    assert chosen({"a": (1, 2, 4, 8)}, {"a": 3}) == [{"a": 3}, {"a": 1}, {"a": 2}, {"a": 8}]
    assert chosen({"a": (1, 2)}, {"a": 1}) == [{"a": 1}, {"a": 2}]
    both = chosen({"a": (1, 2, 3), "b": (1, 2, 3, 4)}, {"a": 1, "b": 2})
    assert len(both) == TRIALS and {p["a"] for p in both} == {1, 2, 3} and len({p["b"] for p in both}) >= 3
    assert both == chosen({"a": (1, 2, 3), "b": (1, 2, 3, 4)}, {"a": 1, "b": 2})


def test_a_value_that_is_typed_is_read_as_it_was(nodes):
    for name, node in nodes.items():
        for values in get_class(node["_target_"]).grid.values():
            for value in values:
                read = OmegaConf.from_dotlist([f"x={written(value)}"]).x
                assert read == value and type(read) is type(value), name


STUB = """
import json, sys, types
from omegaconf import OmegaConf

def from_config(cfg, progress):
    with open("jobs", "a") as file:
        job = [OmegaConf.to_container(cfg.strategy, resolve=True), list(cfg.seeds), cfg.eval.split, cfg.results]
        file.write(json.dumps(job) + "\\n")

sys.modules["harness.jobs.job"] = types.ModuleType("harness.jobs.job")
sys.modules["harness.jobs.job"].from_config = from_config
from harness.cli import main
sys.exit(main())
"""


def jobs(folder, *words):
    """The strategy, seeds, split and folder of every job of a sweep, and what is printed."""
    (folder / "stub.py").write_text(STUB)
    done = harness("experiment=tune", *words, cwd=folder, file=folder / "stub.py")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return [json.loads(line) for line in (folder / "jobs").read_text().splitlines()], done.stdout


@pytest.mark.nightly
def test_a_sweep_of_tune_tries_each_strategy_at_every_point_of_its_grid(tmp_path):
    found, said = jobs(tmp_path, "strategy=naive,ewc", "metrics=off")
    assert {tuple(job[1]) for job in found} == {(100, 101, 102)} and {job[2] for job in found} == {"val"}
    assert [job[0] for job in found if "naive" in job[0]] == [{"naive": {"_target_": "strategies.naive.Naive"}}]
    tried = {name: [job[0][name]["strength"] for job in found if name in job[0]] for name in ("ewc",)}
    assert sorted(tried["ewc"]) == [0.45, 1.4, 4.5, 14.0]
    assert said.endswith("next: python -m harness tune results/tuning\n")


def test_a_list_of_strategies_has_as_many_trials_as_one_and_what_was_typed_is_not_tried_otherwise(tmp_path):
    words = (
        "strategy=[replay,si]",
        "metrics=off",
        "strategy.replay.weighting=mean,share",
        "results=there",
        "seeds=[7]",
    )
    found, said = jobs(tmp_path, *words)
    assert {tuple(job[1]) for job in found} == {(7,)} and {job[3] for job in found} == {"there"}
    tried = [(job[0]["replay"]["weighting"], job[0]["si"]["strength"]) for job in found]
    assert sorted(tried) == sorted((w, s) for w in ("mean", "share") for s in SI.grid["strength"])
    assert said.endswith("next: python -m harness tune there\n")
