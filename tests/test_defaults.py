"""One default for one thing: what a Python call leaves out is what the command line leaves out."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import get_object
from omegaconf import OmegaConf

from harness import store
from harness.config import catalogue
from harness.config.catalogue import CONF
from harness.jobs.job import from_config
from harness.learner import Budget
from harness.record.evaluation import Evaluation
from tasks.datasets import load
from tasks.datasets.table import SPECS
from tests.test_readme import README, SNIPPETS

GROUPS = ("dataset", "tasks", "model", "optimizer", "metrics")


def nodes(values: Any) -> Iterator[dict[str, Any]]:
    """Every mapping that names a _target_."""
    if isinstance(values, dict):
        if "_target_" in values:
            yield values
        for below in values.values():
            yield from nodes(below)


@pytest.mark.parametrize("group", GROUPS)
def test_a_default_in_a_signature_is_that_of_the_configuration(group: str) -> None:
    compared = 0
    for name, file in catalogue.options(group).items():
        for node in nodes(OmegaConf.to_container(OmegaConf.load(file), resolve=False)):
            made = get_object(node["_target_"])
            for p in inspect.signature(made).parameters.values():
                if p.default is not p.empty and p.name in node:
                    default = p.default if p.default is not None else _own(made, p.name, name)
                    told = list(default) if isinstance(default, tuple) else default
                    assert told == node[p.name] or (not told and not node[p.name]), f"{group}={name}: {p.name}"
                    compared += 1
    assert compared or group == "metrics"


def _own(made: Any, argument: str, name: str) -> Any:
    """A default of `load` that each data set has for itself."""
    return SPECS[name].normalise if made is load and argument == "normalise" else None


def test_the_budget_and_the_evaluation_are_those_of_the_configuration() -> None:
    whole = OmegaConf.load(CONF / "config.yaml")
    assert {f.name: f.default for f in fields(Budget)} == dict(whole.train)
    assert {**{f.name: f.default for f in fields(Evaluation)}, "split": "test"} == dict(whole.eval)


def test_the_readmes_python_call_is_its_command(tmp_path: Path) -> None:
    """The example's accuracy matrix, in the table that the command of the line above it writes."""
    (line,) = [line for line in README.read_text("utf-8").splitlines() if line.startswith("# harness ")]
    words = line.removeprefix("# harness ").split()
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        cfg = compose(
            "config", [*words, "metrics=off", "control=false", f"results={tmp_path}", "tracker.mode=disabled"]
        )
    from_config(cfg, progress=False)
    (found,) = store.find_runs(tmp_path)
    table = pd.read_parquet(found.path / "accuracy.parquet")
    scope: dict[str, Any] = {}
    exec(compile(SNIPPETS[2], "README.md", "exec"), scope)
    accuracy = scope["result"].accuracy
    assert len(table) > 0
    for row in table.itertuples():
        assert row.accuracy == accuracy[[0, 1, 2].index(row.seed), row.boundary + 1, row.task].item()
