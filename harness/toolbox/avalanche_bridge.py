"""Our streams and learners as benchmarks and modules of Avalanche 0.6 (Carta et al. 2023, JMLR), imported lazily.

A stream becomes a benchmark, one seed of a learner a module with our masked loss. `tasks/avalanche.py` turns an
Avalanche benchmark into a stream.
"""

from __future__ import annotations

import io
import random as python_random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.learner import Learner, mask_logits
from harness.types import Buffers, Out, Params, Source, Stream


def rows(source: Source, row: int) -> tuple[Tensor, Tensor]:
    """Inputs [n, *shape] and targets [n] of all rows of seed number `row`, in the source's order."""
    position = torch.arange(int(source.size[row]), device=source.size.device)
    x, y, _ = source.take(position.expand(len(source.size), -1))
    return x[row].clone(), y[row].clone()


def benchmark(stream: Stream, row: int = 0) -> Any:
    """An Avalanche benchmark of the data of seed number `row`: one experience per task, with its test set.

    Task labels count up with scenario=task and are 0 otherwise. `classes_order` and `n_classes_per_exp`, which
    tensors_benchmark omits, are set (iCaRL reads them). Every task is copied into tensors: permuted inputs need
    the memory of the data set once per task.
    Raises ValueError for regression, which Avalanche's classification benchmarks do not support.
    """
    if stream.loss == "mse":
        raise ValueError(f"{stream.name}: is a regression; Avalanche's benchmarks support classification only")
    from avalanche.benchmarks import tensors_benchmark

    train, test = ([rows(getattr(task, part), row) for task in stream.tasks] for part in ("train", "test"))
    labels = [task.index if stream.scenario == "task" else 0 for task in stream.tasks]
    made = tensors_benchmark(train_tensors=train, test_tensors=test, task_labels=labels)
    classes = [y.unique().tolist() for _, y in train]
    made.n_classes_per_exp = [len(c) for c in classes]
    made.classes_order = [c for task in classes for c in task]
    return made


class Network(nn.Module):
    """One seed's parameters and buffers as a module, under the same names."""

    def __init__(self, learner: Learner, s: int) -> None:
        super().__init__()
        for k, v in learner.params.items():
            self._owner(k).register_parameter(k.rpartition(".")[2], nn.Parameter(v[s].detach().clone()))
        for k, v in learner.buffers.items():
            self._owner(k).register_buffer(k.rpartition(".")[2], v[s].detach().clone())
        masks = learner.stream.masks
        self.heads: Any = None if masks is None else masks[s % len(masks)]  # [T, C]
        apply, stochastic = learner.apply, learner.model.stochastic

        def run(params: Params, buffers: Buffers, x: Tensor, t: Tensor, train: bool) -> Out:
            key = torch.randint(2**62, (1,)).to(x.device) if train and stochastic else None
            params, buffers = ({k: v[None] for k, v in part.items()} for part in (params, buffers))
            return apply(params, buffers, x[None], t[None], train=train, key=key)

        self.run = run  # a function: copies of the module share it

    def _owner(self, name: str) -> nn.Module:
        module: nn.Module = self
        for part in name.split(".")[:-1]:
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        return module

    def logits(self, x: Tensor, t: Tensor) -> Tensor:
        out = self.run(dict(self.named_parameters()), dict(self.named_buffers()), x, t, self.training)
        if self.training:
            with torch.no_grad():
                for k, v in self.named_buffers():
                    v.copy_(out.buffers[k][0])
        return out.logits[0]

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(x, torch.zeros(len(x), dtype=torch.int64, device=x.device))


def network(learner: Learner, s: int) -> nn.Module:
    """Seed s's network; with scenario=task one that takes task labels from Avalanche."""
    if learner.stream.scenario != "task":
        return Network(learner, s)
    from avalanche.models import MultiTaskModule

    class Heads(Network, MultiTaskModule):  # type: ignore[misc]
        known_train_tasks_labels: Any

        def forward(self, x: Tensor, task_labels: Tensor | None = None) -> Any:
            """Logits, 0 at other tasks' outputs; without labels a dict with those of every known task."""
            known = sorted(self.known_train_tasks_labels)
            if task_labels is None:
                z = self.logits(x, torch.zeros(len(x), dtype=torch.int64, device=x.device))
                return {t: z.where(self.heads[t], 0) for t in known}
            return self.logits(x, task_labels).where(self.heads[task_labels], 0)

    return Heads(learner, s)


class Criterion(nn.Module):
    """Our masked cross-entropy; the task follows from the targets."""

    def __init__(self, stream: Stream, s: int) -> None:
        super().__init__()
        self.now, self.reduction = 0, "mean"  # MIR sets the reduction
        self.scenario = stream.scenario
        used = masked(stream) and stream.masks is not None
        self.masks = stream.masks[s % len(stream.masks)] if used and stream.masks is not None else None  # [T, C]

    def forward(self, logits: Tensor, y: Tensor) -> Tensor:
        mask = None
        if self.masks is not None:
            task = self.masks.long().argmax(0)  # of each output
            mask = self.masks[task[y]] if self.scenario == "task" else self.masks[: self.now + 1].any(0)
        return F.cross_entropy(mask_logits(logits, mask), y, reduction=self.reduction)


def masked(stream: Stream) -> bool:
    """Whether some outputs do not compete."""
    return stream.scenario == "task" or (stream.scenario == "class" and stream.classes != "all")


@contextmanager
def apart(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Seed the global random generators and restore them afterwards; suppress warnings and output."""
    devices = [device] if torch.device(device).type == "cuda" else []
    before = python_random.getstate(), np.random.get_state()
    # recorded, because Avalanche re-enables some warnings
    with torch.random.fork_rng(devices), warnings.catch_warnings(record=True), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        python_random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            python_random.setstate(before[0])
            np.random.set_state(before[1])
