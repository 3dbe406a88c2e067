"""The page about all measures, made from the files of conf/metrics and the columns that their modules declare."""

from __future__ import annotations

import importlib
import inspect
import re
from functools import cache
from typing import Any

from harness.config import catalogue
from harness.config.catalogue import CONF

TIERS = ("off", "fast", "standard", "atlas")  # each measures what the one before it does, and more
HEAD = """\
# Metrics

Made by `python -m harness catalogue metrics > harness/metrics/README.md` from the files of `conf/metrics` and the
docstrings; not edited by hand. `metrics=TIER` chooses a tier, `metrics=[TIER,NAME]` adds one metric,
`metrics.NAME=null` leaves one out, `metrics.NAME.KEY=VALUE` sets it, and `python -m harness measure RUN metrics=...`
takes them afterwards. A boundary is measured after every `metrics_every`-th task, the first and the last; within it
each metric names at most `tasks` of the tasks seen, evenly spread, the first and the current among them.

Costs are of a boundary late in a stream, counted (tests/test_costs.py) and recorded with every run: a gradient is a
backward pass, and forward passes include those of gradients. NaN stands where a value is not defined.
"""


def text() -> str:
    """The whole page as Markdown."""
    return "\n".join([HEAD, tiers(), *(section(name) for name in names())])


def names() -> list[str]:
    """Every metric, in the order in which the tiers name them; those of no tier last."""
    ordered = [name for tier in reversed(TIERS) for name in settings_of(tier)]
    return list(dict.fromkeys([*ordered, *(set(catalogue.options("metrics")) - set(TIERS))]))


@cache
def settings_of(option: str) -> dict[str, Any]:
    """The metrics of `metrics=option` with their settings."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        made = OmegaConf.to_container(compose("config", [f"metrics={option}"]).metrics)
    assert isinstance(made, dict)
    return {str(k): v for k, v in made.items()}


def tiers() -> str:
    lines = ["| tier | metrics | cost of a boundary |", "| --- | --- | --- |"]
    for tier in TIERS:
        links = ", ".join(f"[{name}](#{name})" for name in settings_of(tier)) or "-"
        lines.append(f"| {tier} | {links} | {cost_of(tier)} |")
    return "\n".join([*lines, ""])


def cost_of(option: str) -> str:
    """What the opening comment of its file says that it costs."""
    comment = re.match(r"(?:#.*\n)+", catalogue.options("metrics")[option].read_text(encoding="utf-8"))
    said = " ".join(line.lstrip("# ") for line in comment[0].splitlines()) if comment else ""
    found = re.search(r"Cost of a boundary: (.*?)\.(?: |$)", said)
    return found[1] if found else "not stated"


def section(name: str) -> str:
    """A metric's text, tier, cost and columns."""
    from hydra.utils import get_method

    node = settings_of(name)[name]
    function = get_method(node["_target_"])
    module = importlib.import_module(function.__module__)
    tier = next((t for t in TIERS if name in settings_of(t)), "none, named by itself")
    settings = ", ".join(f"`{k}={typed(v)}`" for k, v in node.items() if not k.startswith("_"))
    lines = [
        f"## {name}",
        "",
        f"{catalogue.describe('metrics')[name]} From tier: {tier}. Cost of a boundary: {cost_of(name)}.",
        *([f"Settings: {settings}."] if settings else []),
        "",
        inspect.getdoc(function) or "",
        "",
        "| column | better | unit | of | meaning |",
        "| --- | --- | --- | --- | --- |",
    ]
    of = getattr(module, "NET", "trained")
    for column, (better, unit, meaning, data) in module.COLUMNS.items():
        where = f"{of} net, {data} rows" if data else f"{of} net"
        lines.append(
            f"| {column} | {better or '-'} | {unit or '-'} | {where} | {meaning.replace('|', chr(92) + '|')} |"
        )
    return "\n".join([*lines, ""])


def typed(value: Any) -> str:
    return f"[{','.join(map(str, value))}]" if isinstance(value, list) else str(value)
