"""Toy runs of the strategies in conf/strategy: three tasks of four steps on 90 digits, three seeds.

The nets are an MLP and one stage of ResNet-18: residual stream and batch norm.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
import torch
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf
from torch import Tensor

from harness import rng
from harness.config import catalogue
from harness.learner import Budget, Learner
from harness.loop import prepare, train
from harness.models.mlp import MLP
from harness.models.resnet18 import ResNet18
from harness.optim import SGD, Adam, Optimizer
from harness.rows import Rows
from harness.strategy import Chain, Strategy
from harness.types import Aux, Step, Stream, Task
from tasks.datasets import Dataset, load
from tasks.permuted import permuted
from tasks.split import split

FILES = catalogue.options("strategy")
SEEDS = (0, 1, 2)

# a preset, so that what acts rarely acts on a toy stream as well, memories overflow and merges are short
TUNED = {
    "ncm": {"capacity": 12},
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
    "generative_replay": {"batch_size": 6, "widths": [7], "latent": 3, "likelihood": "gaussian"},
    "generative_classifier": {"steps": 3, "samples": 4, "widths": [7], "latent": 3, "likelihood": "gaussian"},
    "mcsgd": {"steps": 3, "batch_size": 6, "current": 12},
    "hare_tortoise": {"decay": 0.9, "period": 1},
    "hat": {"s_max": 20.0},
    "agem": {"per_task": 12, "batch_size": 6},
    "gem": {"per_task": 8},
    "gpm": {"threshold": 0.9, "samples": 16},
    "owm": {"batch_size": 8},
}


class OneStage(ResNet18):
    """ResNet-18 cut off after its first stage: two residual blocks with batch norm, and the head."""

    def __init__(self, shape: tuple[int, ...], outputs: int, width: int = 3) -> None:
        super().__init__(shape, outputs, width)
        kept = {n: c for n, c in self.convs.items() if n.startswith(("stem", "stage1"))}
        names, self.features = [*kept, "head"], width
        stream = ("stem", "stage1.block1.conv2", "stage1.block2.conv2")
        inner = ("stage1.block1.conv1", "stage1.block2.conv1")
        self.convs, self.stages = kept, {"stage1": self.stages["stage1"]}
        self.layers = tuple(layer for layer in self.layers if layer.input in names)
        self.units = (
            *(u for u in self.units if u.act in inner),
            self._unit("stage1", width, stream, [*inner, "head"]),
        )


MODELS = {"mlp": lambda s: MLP(s.shape, s.outputs, (8, 6)), "residual": lambda s: OneStage(s.shape, s.outputs)}
OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda: SGD(lr=0.05),
    "momentum": lambda: SGD(lr=0.05, momentum=0.9),
    "adam": lambda: Adam(lr=0.01),
}


def node(name: str, tuned: dict[str, Any] | None = None) -> Any:
    """The strategy's configuration as a run has it, interpolations resolved."""
    whole = OmegaConf.create({"tuned": tuned or {}, "strategy": OmegaConf.load(FILES[name])})
    resolved = OmegaConf.to_container(whole, resolve=True)
    assert isinstance(resolved, dict)
    return resolved["strategy"][name]


def strategy_class(name: str) -> type[Strategy]:
    return get_class(node(name)["_target_"])


def make(name: str) -> Strategy:
    part = instantiate(node(name, TUNED))
    assert isinstance(part, Strategy)
    return part


@cache
def digits() -> Dataset:
    whole = load("digits", normalise="standard")
    return replace(whole, train=whole.train[:90], val=whole.val[:20], test=whole.test[:60])


def stream(scenario: str, seeds: tuple[int, ...]) -> Stream:
    data: dict[str, Any] = {"dataset": digits(), "seeds": seeds, "scenario": scenario, "fixed": False}
    whole = permuted(**data, n_tasks=3) if scenario == "domain" else split(**data, n_tasks=5)
    return replace(whole, tasks=whole.tasks[:3])


class Saver:
    """An observer that saves after task 1 what a checkpoint holds."""

    saved: bytes | None = None

    def __init__(self, learner: Learner, chain: Chain) -> None:
        self.learner, self.chain = learner, chain

    def start(self, task: Task) -> None: ...

    def step(self, step: Step, aux: Aux) -> None: ...

    def end(self, task: Task) -> None:
        if task.index == 1:
            file = io.BytesIO()
            torch.save(state(self.learner, self.chain), file)
            self.saved = file.getvalue()


@dataclass
class Run:
    learner: Learner
    chain: Chain
    saved: bytes | None

    def logits(self) -> list[Tensor]:
        """What the deployed net says about every task's test rows: [rows of that seed, C], seed by seed."""
        net, tasks = self.chain.deploy(self.learner, self.learner.net), self.learner.stream.tasks
        with torch.no_grad():
            found = [(b.w > 0, net(b.x, b.t).logits) for task in tasks for b in self.learner.scan(task.test)]
        return [torch.cat([z[s][real[s]] for real, z in found]) for s in range(self.learner.S)]


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


def state(learner: Learner, chain: Chain) -> dict[str, Any]:
    return {"learner": learner.state_dict(), "strategy": chain.state_dict()}


def begin(
    names: tuple[str, ...],
    scenario: str,
    model: str,
    optimizer: Optimizer,
    seeds: tuple[int, ...],
    dtype: torch.dtype,
    steps: int,
) -> tuple[Learner, Chain]:
    source = stream(scenario, seeds)
    learner = Learner(MODELS[model](source), source, optimizer, Budget(steps=steps, batch_size=8), dtype=dtype)
    chain = Chain([make(name) for name in names])
    try:
        prepare(learner, chain)
    except ValueError as refusal:
        if model == "mlp":  # every method is defined for the MLP
            raise
        pytest.skip(str(refusal))
    return learner, chain


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


def same(a: Any, b: Any) -> bool:
    """Bitwise equality of nested states."""
    if isinstance(a, Tensor):
        return torch.equal(a, b) or bool(((a == b) | (a.isnan() & b.isnan())).all())
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)
