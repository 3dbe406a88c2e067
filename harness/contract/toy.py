"""Toy runs: three tasks of four steps on 90 digits, three seeds.

The nets are an MLP and one stage of ResNet-18: residual stream and batch norm.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from harness.learner import Budget, Learner
from harness.loop import prepare, train
from harness.models.mlp import MLP
from harness.models.resnet18 import ResNet18
from harness.optim import SGD, Adam, Optimizer
from harness.strategy import Chain, Strategy
from harness.types import Aux, Model, Step, Stream, Task
from tasks.datasets import Dataset, load
from tasks.permuted import permuted
from tasks.split import split

SEEDS = (0, 1, 2)
TASKS, STEPS = 3, 4


class Undefined(ValueError):
    """A strategy refuses this net."""


class OneStage(ResNet18):
    """ResNet-18 cut off after its first stage: two residual blocks with batch norm, and the head."""

    def __init__(self, shape: Sequence[int], outputs: int, width: int = 3) -> None:
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


MODELS: dict[str, Callable[[Stream], Model]] = {
    "mlp": lambda s: MLP(s.shape, s.outputs, (8, 6)),
    "residual": lambda s: OneStage(s.shape, s.outputs),
}
OPTIMIZERS: dict[str, Callable[[], Optimizer]] = {
    "sgd": lambda: SGD(lr=0.05),
    "momentum": lambda: SGD(lr=0.05, momentum=0.9),
    "adam": lambda: Adam(lr=0.01),
}


@cache
def digits() -> Dataset:
    whole = load("digits", normalise="standard")
    label = whole.y[whole.train]
    nine = torch.cat([whole.train[label == c][:9] for c in range(10)]).sort().values  # so that all seeds train together
    return replace(whole, train=nine, val=whole.val[:20], test=whole.test[:60])


@cache
def stream(scenario: str, seeds: tuple[int, ...]) -> Stream:
    data: dict[str, Any] = {"dataset": digits(), "seeds": seeds, "scenario": scenario, "fixed": False}
    whole = permuted(**data, n_tasks=TASKS) if scenario == "domain" else split(**data, n_tasks=5)
    return replace(whole, tasks=whole.tasks[:TASKS])


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

    def checkpoint(self) -> dict[str, Any]:
        """What was saved after task 1."""
        assert self.saved is not None
        saved: dict[str, Any] = torch.load(io.BytesIO(self.saved), weights_only=True)
        return saved


def begin(
    parts: Sequence[Strategy],
    scenario: str,
    model: Callable[[Stream], Model],
    optimizer: Optimizer,
    seeds: Sequence[int] = SEEDS,
    dtype: torch.dtype = torch.float64,
    steps: int = STEPS,
) -> tuple[Learner, Chain]:
    """A learner and a chain, prepared. Undefined if a strategy refuses the net."""
    source = stream(scenario, tuple(seeds))
    learner = Learner(model(source), source, optimizer, Budget(steps=steps, batch_size=8), dtype=dtype)
    chain = Chain(parts)
    try:
        prepare(learner, chain)
    except ValueError as refusal:
        raise Undefined(str(refusal)) from refusal
    return learner, chain


def go(*how: Any, **options: Any) -> Run:
    """A finished run, of what `begin` takes."""
    learner, chain = begin(*how, **options)
    saver = Saver(learner, chain)
    train(learner, chain, saver)
    return Run(learner, chain, saver.saved)


def state(learner: Learner, chain: Chain) -> dict[str, Any]:
    return {"learner": learner.state_dict(), "strategy": chain.state_dict()}


def same(a: Any, b: Any) -> bool:
    """Bitwise equality of nested states."""
    if isinstance(a, Tensor):
        return torch.equal(a, b) or (a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all()))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def copy_of(value: Any) -> Any:
    """A nested state that later changes do not reach."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {k: copy_of(v) for k, v in value.items()}
    return [copy_of(v) for v in value] if isinstance(value, (list, tuple)) else value


def differing(a: Any, b: Any, where: str = "") -> str:
    """The path to the first entry that differs; "" if none does."""
    if isinstance(a, dict) and isinstance(b, dict) and list(a) == list(b):
        return next((d for k in a if (d := differing(a[k], b[k], f"{where}.{k}".lstrip(".")))), "")
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        return next((d for i, (x, y) in enumerate(zip(a, b)) if (d := differing(x, y, f"{where}[{i}]"))), "")
    return "" if type(a) is type(b) and same(a, b) else where or "all of it"
