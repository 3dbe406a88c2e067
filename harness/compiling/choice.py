"""Whether compiled steps repay their compilation on this machine: `compile=auto`."""

from __future__ import annotations

import json
import platform
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from harness import rng
from harness.compiling.step import CompiledStep, tracing
from harness.learner import Budget, Learner
from harness.models.mlp import MLP
from harness.optim import SGD
from harness.rows import Rows
from harness.store.files import write_text
from harness.types import Model, Stream, Task

FEW = 20_000  # steps that no machine known repays: at most .5 ms saved a step, at least 10 s to compile
USUAL = 2  # graphs of a run: before and after the first task
TENSORS = 6  # parameters of the net that is measured
STEPS = 200


@dataclass(frozen=True)
class Costs:
    """Seconds on this machine for a 64-100-100-10 MLP, batch 32: the eager step, the compiled one, and compiling it.

    `failed` says why nothing could be compiled; the seconds then mean nothing.
    """

    eager: float
    compiled: float
    compiling: float
    failed: str = ""

    def repaid(self, steps: int, tensors: int) -> bool:
        """Whether so many steps of a net with so many parameter tensors save more time than compiling them takes.

        >>> costs = Costs(eager=6e-4, compiled=2e-4, compiling=20.0)
        >>> costs.repaid(90_000, 6), costs.repaid(110_000, 6), costs.repaid(110_000, 7)
        (False, True, False)

        A step saves at least what it saves for the small net (the work between operations); compiling takes time in
        proportion to the number of tensors.
        """
        return not self.failed and steps * (self.eager - self.compiled) > USUAL * self.compiling * tensors / TENSORS


def pays(steps: int, model: Model, device: torch.device, cache: Path) -> tuple[bool, str]:
    """Whether to compile a run of so many steps, and why not if there is no compiler.

    The costs are measured once for a machine, device, number of threads and version of torch, and kept in `cache`.
    """
    if steps < FEW:
        return False, ""
    costs = known(device, cache)
    return costs.repaid(steps, len(model.init(rng.keys([0], "compiling"))[0])), costs.failed


def known(device: torch.device, cache: Path) -> Costs:
    """The costs from the cache, or measured now."""
    key = f"{platform.node()} {platform.machine()} {device.type} {torch.get_num_threads()} {torch.__version__}"
    found: dict[str, Any] = {}
    with suppress(OSError, ValueError, TypeError):
        found = dict(json.loads(cache.read_text()))
    with suppress(KeyError, TypeError):
        return Costs(**found[key])
    print("compile=auto: measuring whether compiled steps pay on this machine (once, about a minute)", flush=True)
    costs = measured(device)
    with suppress(OSError):
        cache.parent.mkdir(parents=True, exist_ok=True)
        write_text(cache, json.dumps({**found, key: asdict(costs)}, indent=1))
    return costs


def measured(device: torch.device) -> Costs:
    """Costs of the small net, now."""
    learner = _small(device)
    task = learner.stream.tasks[0]
    learner.enter(task)
    learner.plan(task)
    gradient, batches = learner.value_and_grad(lambda *_: 0.0), learner.batches(task)

    def step(times: int) -> float:
        taken = []
        for _, batch in zip(range(times), batches):
            began = time.perf_counter()
            learner.advance(gradient, batch)
            taken.append(time.perf_counter() - began)
        return median(taken)

    step(STEPS // 10)
    eager = step(STEPS)
    said: list[str] = []
    learner.compiled = one = CompiledStep(learner, said.append)
    with tracing():
        step(STEPS // 10)
        return Costs(eager, step(STEPS), one.seconds, said[0] if said else "")


def _small(device: torch.device) -> Learner:
    rows, key = 1000, rng.keys([0], "compiling", device)
    x, y = rng.normal(key, rows, 64)[0], rng.integers(key, 10, rows)
    source = Rows(
        x,
        torch.arange(rows, device=device)[None],
        y,
        torch.zeros(1, 1, dtype=torch.int64, device=device),
        torch.tensor([rows], device=device),
    )
    task = Task(0, source, source, source)
    stream = Stream("small", 1, "domain", (task,), (64,), 10, (0,), "")
    model = MLP((64,), 10, (100, 100))
    return Learner(model, stream, SGD(lr=0.01), Budget(steps=3 * STEPS, batch_size=32), device=device)
