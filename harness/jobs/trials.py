"""Trials: the sweeper of `experiment=tune`, which gives every strategy the same few trials of its settings.

The `grid` of a strategy's class lists the values worth trying. Settings that buy accuracy with memory or time, such as
the number of stored rows, are budgets and are not in the grid: more is always better.

One rule places the values. A strength, radius, rate or other positive setting without a limit has values evenly spaced
in the logarithm, mostly by half an order of magnitude, the default among them. All of them train: the largest leaves no
seed diverged at the defaults of a run (digits, seeds 100 to 102, validation rows), and where a penalty is quadratic,
its curvature stays within the bound of harness/record/stability.py. Where the best was at an end, the grid was extended
there, up to that point. A share, decay or threshold, which has limits, has its sources' values. No value was chosen by
a score of a reported run: trials have seeds and rows of their own.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.plugins import Plugins

from harness.jobs.sweep import PLUGINS

Plugins.instance()  # executes Hydra's plugins once more; a class that was derived before is then of another base
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper  # noqa: E402

TRIALS = 4  # for each strategy that has a grid, and for each list of strategies


class Trials(BasicSweeper):
    """Runs each typed job once for every point of the grids of its strategies.

    A typed setting is kept: `strategy.ewc.strength=1,3` replaces the values in the class.
    """

    __module__ = PLUGINS

    def get_job_batch(self) -> Sequence[Sequence[str]]:
        return [[*job, *point] for job in super().get_job_batch() for point in self.points(job)]

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Nothing: what was typed was checked before (harness.config.preflight), and each job is when it starts."""

    def points(self, job: Sequence[str]) -> list[list[str]]:
        """The settings of each trial of a job."""
        from omegaconf import OmegaConf

        assert self.hydra_context is not None and self.config is not None
        cfg = self.hydra_context.config_loader.load_sweep_config(self.config, list(job))
        typed = {line.partition("=")[0].lstrip("+") for line in job}
        grid = {key: values for key, values in grid_of(cfg.strategy).items() if f"strategy.{key}" not in typed}
        points = chosen(grid, {key: OmegaConf.select(cfg.strategy, key) for key in grid})
        return [[f"strategy.{key}={written(value)}" for key, value in point.items()] for point in points]


def grid_of(strategies: Mapping[str, Any]) -> dict[str, Sequence[Any]]:
    """The grids of a configuration's strategies: setting, as in ewc.strength -> values."""
    from hydra.utils import get_class

    return {
        f"{part}.{key}": values
        for part, node in strategies.items()
        for key, values in getattr(get_class(node["_target_"]), "grid", {}).items()
    }


def chosen(grid: Mapping[str, Sequence[Any]], default: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The default, and at most TRIALS - 1 other points of the grid, spaced evenly from the first to the last.

    >>> chosen({"a": (1, 2, 4, 8)}, {"a": 2})
    [{'a': 2}, {'a': 1}, {'a': 4}, {'a': 8}]
    >>> chosen({"a": (1, 2, 4, 8), "b": (0, 1)}, {"a": 2, "b": 0})  # of seven others, the first, fourth and seventh
    [{'a': 2, 'b': 0}, {'a': 1, 'b': 0}, {'a': 4, 'b': 0}, {'a': 8, 'b': 1}]
    >>> chosen({}, {})
    [{}]
    """
    points = [dict(zip(grid, values)) for values in itertools.product(*grid.values())]
    others = [point for point in points if point != default]
    count = min(TRIALS - 1, len(others))
    return [dict(default), *(others[i * (len(others) - 1) // max(1, count - 1)] for i in range(count))]


def written(value: Any) -> str:
    """A value as a user types it.

    >>> [written(v) for v in (1e-6, 10.0, None, True, "sum", [85, 85])]
    ['1e-06', '10.0', 'null', 'true', 'sum', '[85, 85]']
    """
    return value if isinstance(value, str) else json.dumps(value)
