"""All that a metric may read at a task boundary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor

from harness.learner import Learner
from harness.rng import RandomStream
from harness.types import Batch, Loss, Net, Reading, Stream


class Inside(NamedTuple):
    """Scores of the deployed net during a task, on a fixed subset of each task's test rows."""

    steps: tuple[int, ...]  # K numbers of optimizer steps in this task, including its last
    score: Tensor  # [S, K, T]; NaN: not measured
    least: Tensor  # [S, T] lowest score of each old task, over all steps since it was learnt


class Nets(Protocol):
    """The net after each task, loaded on demand: nets[i], nets.initial; `i in nets` says whether it was kept."""

    @property
    def initial(self) -> Net: ...

    def __contains__(self, task: int) -> bool: ...

    def __getitem__(self, task: int) -> Net: ...


@dataclass(frozen=True)
class Boundary:
    """The state of a run at a task boundary. Read-only."""

    t: int
    phase: str  # "start": after begin, before the first step; "end": after the task
    stream: Stream
    learner: Learner  # for its model, device and optimizer settings; never changed
    trained: Net  # for curvature and paths
    deployed: Net  # for accuracy
    nets: Nets  # nets at earlier boundaries
    accuracy: Tensor  # R [S, T + 1, T]: row 0 the initialisation, row i + 1 after task i; NaN: not measured
    online: Tensor  # [S, steps] accuracy on each fresh batch before its update
    random: RandomStream  # separate from training, which metrics must not change
    control: Tensor | None = None  # [S, T] a fresh net's accuracy just after training on a task; NaN for later tasks
    gap: Tensor | None = None  # [S] test accuracy of the learner's copy after plain training on task t; None at start
    trained_score: Tensor | None = None  # [S] test score of the trained net on task t; None: the deployed net's
    alive: Tensor | None = None  # [S] False where the seed has diverged
    inside: Inside | None = None  # None unless eval.every is set

    def probe(self, task: int, size: int = 512, split: str = "train") -> Batch:
        """A fixed class-stratified sample of the task's train, val or test rows, the same for the whole run."""
        return self.learner.probe(self.stream.tasks[task], size, split)

    def loss(self, tasks: Sequence[int], size: int = 512) -> Loss:
        """Mean loss over the probes of `tasks` in evaluation mode, under this boundary's mask."""
        return self.learner.objective([self.probe(i, size) for i in tasks], self.stream, self.t)


class Metric(Protocol):
    """A pure function of a boundary: name -> [S], or a Reading."""

    def __call__(self, b: Boundary) -> dict[str, Tensor | Reading]: ...
