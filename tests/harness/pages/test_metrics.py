"""The page about all metrics says what stands in the files, and nothing else."""

import importlib

from hydra.utils import get_method

from harness import ROOT
from harness.config import catalogue
from harness.pages import metrics

README = ROOT / "harness" / "metrics" / "README.md"


def test_the_page_in_the_repository_is_the_one_that_the_files_make() -> None:
    remedy = "run python -m harness catalogue metrics > harness/metrics/README.md"
    assert README.read_text(encoding="utf-8") == metrics.text(), remedy


def test_every_metric_has_a_section_with_all_its_columns_a_tier_and_a_cost() -> None:
    text = README.read_text(encoding="utf-8")
    found = [part.split("\n", 1) for part in text.split("\n## ")[1:]]
    assert {name for name, _ in found} == set(catalogue.options("metrics")) - set(metrics.TIERS)
    assert "not stated" not in text
    for name, body in found:
        target = metrics.settings_of(name)[name]["_target_"]
        columns = importlib.import_module(get_method(target).__module__).COLUMNS
        assert [line.split(" | ")[0] for line in body.splitlines() if line.startswith("| ")][2:] == [
            f"| {column}" for column in columns
        ]
    transfer = dict(found)["transfer"]
    assert "| forgetting | lower | score | deployed net |" in transfer and "From tier: fast" in transfer
    assert "Hessian product" in dict(found)["sharpness"].split("| column")[0]


def test_each_column_names_the_net_that_it_is_of() -> None:
    found = {
        name: column
        for option in set(catalogue.options("metrics")) - set(metrics.TIERS)
        for name, column in importlib.import_module(
            get_method(metrics.settings_of(option)[option]["_target_"]).__module__
        ).COLUMNS.items()
    }
    assert {column.net for column in found.values()} == {"trained", "deployed", "both", ""}
    of = {net: {name for name, column in found.items() if column.net == net} for net in ("deployed", "both", "")}
    assert of[""] == {"trainability_gap"}
    assert of["both"] == {"readout_gap_task", "forgetting_shallow", "forgetting_shallow_task"}
    assert "online_accuracy" not in of["deployed"] and {"average_accuracy", "ece", "wc_accuracy"} <= of["deployed"]
