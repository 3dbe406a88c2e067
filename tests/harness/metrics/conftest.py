"""A boundary to measure: a real learner on a toy stream, its nets drawn rather than trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from harness import rng, tree
from harness.boundary import Boundary
from harness.learner import Budget, Learner
from harness.models.mlp import MLP
from harness.optim import SGD
from harness.rows import Rows
from harness.types import Model, Net, Stream, Task

TASKS = 4
Make = Callable[..., Boundary]


@dataclass
class Nets:
    initial: Net
    after: list[Net]

    def __contains__(self, task: int) -> bool:
        return task < len(self.after)

    def __getitem__(self, task: int) -> Net:
        return self.after[task]


def stream(seeds: tuple[int, ...], scenario: str, loss: str) -> Stream:
    """Four tasks of 60 rows with 8 inputs; two classes each, in outputs of their own unless scenario=domain."""
    n = 60
    x = torch.randn(TASKS, n, 8, generator=torch.Generator().manual_seed(0))
    y = (x[..., 0] + x[..., 1] > 0).long()
    outputs = 2 if scenario == "domain" else 2 * TASKS
    if scenario != "domain":
        y = y + 2 * torch.arange(TASKS)[:, None]
    target = x[..., :2].sin() if loss == "mse" else y
    rows = []
    for t in range(TASKS):
        index = rng.permutation(rng.fold(rng.keys(seeds, "stream"), t), n)
        task_id = torch.full((len(seeds), 1), t if scenario == "task" else 0)
        size = torch.full((len(seeds),), n)
        rows.append(Rows(x.flatten(0, 1), index + t * n, target[t][index], task_id, size))
    masks = None if scenario == "domain" else torch.eye(TASKS, dtype=torch.bool).repeat_interleave(2, 1)[None]
    tasks = tuple(Task(t, r, r, r, n) for t, r in enumerate(rows))
    return Stream("toy", 1, scenario, tasks, (8,), outputs, seeds, "", masks, loss=loss)


@pytest.fixture
def boundary() -> Make:
    def make(
        seeds: tuple[int, ...] = (3, 5),
        *,
        t: int = 3,
        phase: str = "end",
        scenario: str = "domain",
        loss: str = "cross_entropy",
        dtype: torch.dtype = torch.float64,
        model: Callable[[Stream], Model] = lambda s: MLP(s.shape, s.outputs, (10, 6)),
        **fields: Any,
    ) -> Boundary:
        toy = stream(seeds, scenario, loss)
        learner = Learner(model(toy), toy, SGD(lr=0.1), Budget(), dtype=dtype)
        nets = []
        for i in range(TASKS + 1):  # the initialisation, then four nets that drift from it
            fresh, _ = learner.fresh(rng.fold(learner.key("drift"), i))
            params = tree.add(learner.params, fresh, 0.3 * i)
            nets.append(Net(params, tree.copy(learner.buffers), learner.apply))
        trained = nets[t + 1 if phase == "end" else t]
        learner.params, learner.now = trained.params, t
        accuracy = rng.uniform(learner.key("accuracy"), TASKS + 1, TASKS, dtype=dtype)
        online = rng.uniform(learner.key("online"), 7, dtype=dtype)
        own = rng.RandomStream(learner.key("metrics"))
        kept = Nets(nets[0], nets[1 : t + 1])  # a net of the future must not be asked for
        whole: dict[str, Any] = {
            "accuracy": accuracy,
            "online": online,
            "random": own,
            "alive": learner.alive,
            **fields,
        }
        return Boundary(t, phase, toy, learner, trained, trained, kept, **whole)

    return make
