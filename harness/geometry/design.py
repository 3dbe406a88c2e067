"""Are these runs a designed grid: every knob crossed with every other, and nothing else different?"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from harness import store
from harness.leaderboard.naming import listed
from harness.store.entries import leaves

RATE = "optimizer.lr"
KNOBS = (RATE, "train.batch_size", "strategy.sam.rho", "model.dropout")  # may differ within a strategy
FIXED = ("tasks", "scenario", "classes", "boundaries", "dataset", "model", "optimizer", "train", "eval", "strategy",
         "seeds", "dtype", "pin", "start")  # fmt: skip
REMEDY = "`python -m harness experiment=geometry results=FOLDER` makes one"

Block = tuple[str, str]  # stream, strategy
Leaves = Mapping[str, Any]  # dotted key -> value of one run's configuration


class Design(NamedTuple):
    """A grid in which every knob is crossed with every other."""

    levels: dict[str, list[float]]
    streams: list[str]
    strategies: list[str]
    seeds: list[int]


def stream_and_strategy(run: store.Run) -> Block:
    return run.path.parent.parent.name, run.manifest["strategy"]


def design(runs: Sequence[store.Run], where: str) -> Design:
    """The grid that these runs form. ValueError if a knob is not crossed or anything else differs."""
    configs = [dict(leaves({k: run.manifest["config"].get(k) for k in FIXED})) for run in runs]
    blocks = [stream_and_strategy(run) for run in runs]
    levels = {knob: sorted({c[knob] for c in configs if knob in c}) for knob in KNOBS}
    levels = {knob: values for knob, values in levels.items() if len(values) > 1}
    if len(levels.keys() - {RATE}) < 2:
        raise ValueError(
            f"explain {where}: not a designed grid: fewer than two of {', '.join(KNOBS[1:])} vary within a strategy, "
            f"so geometry is confounded with method; {REMEDY}"
        )
    for block in sorted(set(blocks)):
        _refuse_other_differences([c for c, p in zip(configs, blocks) if p == block], block, where)
    streams, strategies = (sorted({block[i] for block in blocks}) for i in (0, 1))
    _refuse_missing(
        itertools.product(streams, strategies, *levels.values()),
        {(*block, *(c.get(knob) for knob in levels)) for block, c in zip(blocks, configs)},
        list(levels),
        where,
    )
    return Design(levels, streams, strategies, list(runs[0].manifest["seeds"]))


def _refuse_other_differences(configs: Sequence[Leaves], block: Block, where: str) -> None:
    for key in sorted({key for c in configs for key in c} - set(KNOBS)):
        if len({json.dumps(c.get(key)) for c in configs}) > 1:
            raise ValueError(
                f"explain {where}: not a designed grid: {key} differs between runs of {block[1]} on {block[0]}, and "
                f"its effect would be attributed to geometry; {REMEDY}"
            )


def _refuse_missing(wanted: Any, there: set[tuple[Any, ...]], knobs: Sequence[str], where: str) -> None:
    cells = list(wanted)
    missing = [cell for cell in cells if cell not in there]
    if missing:
        stream, strategy, *values = missing[0]
        first = ", ".join([f"{strategy} on {stream}", *(f"{knob}={v}" for knob, v in zip(knobs, values))])
        raise ValueError(
            f"explain {where}: {len(missing)} of {len(cells)} cells of the grid are missing, the first is {first}; "
            "rerun the sweep to complete it, and keep other runs in another folder"
        )


def in_words(plan: Design) -> list[str]:
    """The grid in two lines: what ran, and the levels of each knob."""
    knobs = ", ".join(f"{knob} {' '.join(f'{v:g}' for v in values)}" for knob, values in plan.levels.items())
    return [
        f"{', '.join(plan.strategies)} on {', '.join(plan.streams)}, seeds {listed(plan.seeds)} in each run; crossed:",
        knobs,
    ]
