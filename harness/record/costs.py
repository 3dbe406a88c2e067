"""What a strategy costs compared with plain training: bytes it stores, parameters it adds, time of a step."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from torch import Tensor

from harness.learner import Learner
from harness.types import Bytes, Column, Task

STEPS = 20  # plain steps to time
WARMUP = 3

COLUMNS = {
    "memory": Column("lower", "byte", "bytes stored for one seed between tasks: memories, networks...", net=""),
    "extra_parameters": Column("lower", "", "trained parameters for one seed beyond the model's own", net=""),
}


def held(state: Any) -> int:
    """Bytes of all tensors in nested state; a tensor that occurs twice counts once.

    >>> import torch
    >>> x = torch.zeros(3, 4)
    >>> held({"a": [x, x], "b": {"c": torch.zeros(2, dtype=torch.int64)}, "d": 3})
    64
    """
    storages: dict[int, int] = {}
    numbers: list[int] = []

    def visit(node: Any) -> None:
        if isinstance(node, Tensor):
            storage = node.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
        elif isinstance(node, Bytes):
            numbers.append(node)
        elif isinstance(node, dict):
            for value in node.values():
                visit(value)
        elif isinstance(node, (list, tuple)):
            for value in node:
                visit(value)

    visit(state)
    return sum(storages.values()) + sum(numbers)


def plain_step(learner: Learner, task: Task, clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of one step of plain training on this task, measured on a copy: the mean over STEPS steps."""
    copy = learner.clone()
    copy.plan(task)
    copy.planned = WARMUP + STEPS
    began = clock()
    for i, _ in enumerate(copy.descend(copy.batches(task)), 1):
        if i == WARMUP:
            began = clock()
    return (clock() - began) / STEPS
