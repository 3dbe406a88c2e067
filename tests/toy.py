"""Toy runs (harness/contract/toy.py) of the strategies in conf/strategy, by their names."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf

from harness import rng
from harness.config import catalogue
from harness.contract import toy
from harness.contract.toy import MODELS, OPTIMIZERS, SEEDS, OneStage, Run, Saver, digits, same, state, stream
from harness.learner import Budget, Learner
from harness.loop import train
from harness.optim import Optimizer
from harness.rows import Rows
from harness.strategy import Chain, Strategy
from harness.types import Stream, Task

__all__ = ["MODELS", "OPTIMIZERS", "SEEDS", "OneStage", "Run", "Saver", "digits", "same", "state", "stream"]

FILES = catalogue.options("strategy")

# a preset, so that what acts rarely acts on a toy stream as well, memories overflow and merges are short
TUNED = {
    "ncm": {"capacity": 12},
    "ranpac": {"projected": 12},
    "randumb": {"projected": 12},
    "icarl": {"capacity": 13, "batch_size": 6},
    "upgd": {"sigma": 0.1},
    "spectral": {"strength": 0.1},
    "cbp": {"rate": 0.5, "maturity": 1},
    "redo": {"period": 3, "tau": 0.5, "samples": 16},
    "ewc": {"samples": 20},
    "fdr": {"capacity": 20, "batch_size": 6},
    "replay": {"capacity": 20, "batch_size": 6},
    "avalanche": {"name": "Replay", "options": {"mem_size": 20}},
    "der": {"capacity": 20, "batch_size": 6},
    "derpp": {"capacity": 20, "batch_size": 6},
    "er_ace": {"capacity": 20, "batch_size": 6},
    "mir": {"capacity": 20, "batch_size": 3, "candidates": 9},
    "gdumb": {"capacity": 20, "epochs": 2},
    "generative_replay": {"batch_size": 6, "widths": [7], "latent": 3, "likelihood": "gaussian", "steps": 4},
    "generative_classifier": {"steps": 3, "samples": 4, "widths": [7], "latent": 3, "likelihood": "gaussian"},
    "mcsgd": {"steps": 3, "batch_size": 6, "current": 12},
    "hare_tortoise": {"decay": 0.9, "period": 1},
    "hat": {"s_max": 20.0},
    "agem": {"per_task": 12, "batch_size": 6},
    "gem": {"per_task": 8},
    "gpm": {"threshold": 0.9, "samples": 16},
    "owm": {"batch_size": 8},
}


@cache
def node(name: str, tuned: bool = False) -> Any:
    """The strategy's configuration as a run has it, interpolations resolved, with TUNED if asked; read only."""
    values = TUNED if tuned else {}
    whole = OmegaConf.create({"tuned": {name: values.get(name, {})}, "strategy": OmegaConf.load(FILES[name])})
    resolved = OmegaConf.to_container(whole, resolve=True)
    assert isinstance(resolved, dict)
    return resolved["strategy"][name]


@cache
def strategy_class(name: str) -> type[Strategy]:
    return get_class(node(name)["_target_"])


def make(name: str) -> Strategy:
    part = instantiate(node(name, tuned=True))
    assert isinstance(part, Strategy)
    return part


def gaussian(
    model: Callable[[Stream], Any],
    optimizer: Optimizer,
    *,
    shape: tuple[int, ...] = (4,),
    rows: int = 64,
    tasks: int = 1,
    steps: int = 10,
    seeds: tuple[int, ...] = (0, 1),
) -> Learner:
    """A float64 learner on Gaussian inputs, the same for all seeds; task i's label is the sign of input i."""
    x, s = rng.normal(rng.keys([5], "x"), rows, *shape, dtype=torch.float64)[0], len(seeds)
    index, t, size = torch.arange(rows).expand(s, -1), torch.zeros(s, 1).long(), torch.full((s,), rows)
    labels = [(x.flatten(1)[:, i] > 0).long().expand(s, -1) for i in range(tasks)]
    sources = [Rows(x, index, y, t, size) for y in labels]
    made = tuple(Task(i, source, source, source, rows) for i, source in enumerate(sources))
    toy = Stream("toy", 1, "domain", made, shape, 2, seeds, "")
    return Learner(model(toy), toy, optimizer, Budget(steps=steps, batch_size=8), dtype=torch.float64)


def begin(
    names: tuple[str, ...],
    scenario: str,
    model: str,
    optimizer: Optimizer,
    seeds: tuple[int, ...],
    dtype: torch.dtype,
    steps: int,
) -> tuple[Learner, Chain]:
    try:
        return toy.begin([make(name) for name in names], scenario, MODELS[model], optimizer, seeds, dtype, steps)
    except toy.Undefined as refusal:
        if model == "mlp":  # every method is defined for the MLP
            raise
        pytest.skip(str(refusal))


def go(
    names: tuple[str, ...],
    scenario: str,
    model: str,
    optimizer: str,
    seeds: tuple[int, ...] = SEEDS,
    dtype: torch.dtype = torch.float64,
    steps: int = 4,
) -> Run:
    learner, chain = begin(names, scenario, model, OPTIMIZERS[optimizer](), seeds, dtype, steps)
    saver = Saver(learner, chain)
    train(learner, chain, saver)
    return Run(learner, chain, saver.saved)


@cache
def once(name: str, scenario: str, model: str, optimizer: str) -> Run:
    """A finished run that several tests look at."""
    return go((name,), scenario, model, optimizer)
