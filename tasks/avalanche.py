"""A stream handed over to Avalanche (Carta et al. 2023, JMLR), whose strategies then train on our rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from harness.types import Source, Stream


def rows(source: Source, row: int) -> tuple[Tensor, Tensor]:
    """Inputs [n, *shape] and targets [n] of all rows of seed number `row`, in the source's own order."""
    position = torch.arange(int(source.size[row]), device=source.size.device)
    x, y, _ = source.take(position.expand(len(source.size), -1))
    return x[row].clone(), y[row].clone()


def benchmark(stream: Stream, row: int = 0) -> Any:
    """An Avalanche benchmark of what seed number `row` sees: one experience a task, with its test set.

    Task labels count up with scenario=task and are 0 otherwise. `classes_order` and `n_classes_per_exp`, which
    tensors_benchmark leaves out, are there too (iCaRL reads them). Every task is copied into tensors, so that
    permuted inputs take the room of the data set once a task.
    Raises ValueError for regression, which Avalanche's classification benchmarks cannot hold.
    """
    if stream.loss == "mse":
        raise ValueError(
            f"{stream.name}: Avalanche's benchmarks hold classes only, and this stream has a regression loss"
        )
    from avalanche.benchmarks import tensors_benchmark

    train, test = ([rows(getattr(task, part), row) for task in stream.tasks] for part in ("train", "test"))
    labels = [task.index if stream.scenario == "task" else 0 for task in stream.tasks]
    made = tensors_benchmark(train_tensors=train, test_tensors=test, task_labels=labels)
    classes = [y.unique().tolist() for _, y in train]
    made.n_classes_per_exp = [len(c) for c in classes]
    made.classes_order = [c for task in classes for c in task]
    return made
