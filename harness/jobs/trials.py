"""Trials: the sweeper of `experiment=tune`, which tries a few values of every strategy's own settings, as many of each.

A strategy's class names in `grid` the values that are worth trying. What buys accuracy with memory or time, such as the
rows that are held, is a budget and no part of it: more of that is always better.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

from harness.jobs.sweep import PLUGINS

TRIALS = 4  # of every strategy that has a grid, and of every list of strategies


class Trials(BasicSweeper):
    """Each job that was typed, once for every point of the grids of its strategies.

    A setting that was typed is left as it is: `strategy.ewc.strength=1,3` stands in place of the class's values.
    """

    __module__ = PLUGINS

    def get_job_batch(self) -> Sequence[Sequence[str]]:
        return [[*job, *point] for job in super().get_job_batch() for point in self.points(job)]

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """What was typed is composed before Hydra sees it (harness.preflight), and each job when it starts."""

    def points(self, job: Sequence[str]) -> list[list[str]]:
        """Settings of each trial of a job."""
        from omegaconf import OmegaConf

        assert self.hydra_context is not None and self.config is not None
        cfg = self.hydra_context.config_loader.load_sweep_config(self.config, list(job))
        typed = {line.partition("=")[0].lstrip("+") for line in job}
        grid = {key: values for key, values in grid_of(cfg.strategy).items() if f"strategy.{key}" not in typed}
        points = chosen(grid, {key: OmegaConf.select(cfg.strategy, key) for key in grid})
        return [[f"strategy.{key}={written(value)}" for key, value in point.items()] for point in points]


def grid_of(strategies: Mapping[str, Any]) -> dict[str, Sequence[Any]]:
    """What the classes of a configuration's strategies name as worth trying: setting, as in ewc.strength -> values."""
    from hydra.utils import get_class

    return {
        f"{part}.{key}": values
        for part, node in strategies.items()
        for key, values in getattr(get_class(node["_target_"]), "grid", {}).items()
    }


def chosen(grid: Mapping[str, Sequence[Any]], default: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The default, and of all other points of the grid at most TRIALS - 1, evenly from the first to the last.

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
    """A value as it is typed.

    >>> [written(v) for v in (1e-6, 10.0, None, True, "sum", [85, 85])]
    ['1e-06', '10.0', 'null', 'true', 'sum', '[85, 85]']
    """
    return value if isinstance(value, str) else json.dumps(value)
