"""What the YAML files say that a metric costs is what was counted."""

import re

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from harness.config import catalogue
from harness.config.catalogue import CONF
from harness.jobs.setting import chosen_metrics
from harness.learner import Budget
from harness.models.mlp import MLP
from harness.optim import SGD
from harness.record.sinks import InMemory
from harness.run import run
from strategies.naive import Naive
from tasks.datasets import load
from tasks.permuted import permuted

KINDS = {"hessian_products": "Hessian product", "gradients": "gradient", "forward_passes": "forward pass"}
AFTER = 11  # the boundary looked at: from there on no tier measures more tasks


def stated(file):
    """Numbers of the opening comment's line on cost; what it does not name is 0."""
    line = re.search(r"^# Cost of a boundary: .*", file.read_text(), re.MULTILINE)
    assert line, f"{file} lacks a line like '# Cost of a boundary: 3 gradients, 5 forward passes'"
    found = {kind: re.search(rf"(\d+) {word}", line[0]) for kind, word in KINDS.items()}
    return {kind: int(match[1]) if match else 0 for kind, match in found.items()}


@pytest.mark.parametrize(
    "option",
    [pytest.param(o, marks=pytest.mark.nightly if o == "atlas" else ()) for o in catalogue.options("metrics")],
)
def test_a_file_states_the_work_that_is_counted_at_a_late_boundary(option):
    """Start and end of a task together."""
    stream = permuted(dataset=load("digits"), seeds=[0], n_tasks=AFTER + 1, fixed=False)
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        node = OmegaConf.to_container(compose("config", [f"metrics={option}"]).metrics)
    how = {"model": MLP(stream.shape, 10, (6,)), "optimizer": SGD(lr=0.1), "budget": Budget(steps=1), "gap": False}
    sink = InMemory()
    run(stream, [Naive()], metrics=chosen_metrics(node), metrics_every=AFTER, sink=sink, **how)
    table = sink.tables["metrics"]
    rows = list(zip(table["metric"], table["boundary"], table["value"]))
    counted = {kind: sum(v for name, t, v in rows if name == kind and t == AFTER) for kind in KINDS}
    assert stated(catalogue.options("metrics")[option]) == counted
