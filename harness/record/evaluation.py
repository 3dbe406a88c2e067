"""What is evaluated at a boundary: which tasks, on how many examples, and the plainly trained copy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from harness import loop
from harness.learner import Learner
from harness.strategy import Strategy
from harness.types import Aux, Step, Task

# called as a task starts, it starts the training of plain copies elsewhere, from the checkpoint of the boundary before;
# what it returns waits for their scores [S] and the seconds that they took
Copies = Callable[[int], Callable[[], tuple[Tensor, float]]]

INSIDE = 1000  # test rows of a task that is evaluated within another (De Lange et al. 2023)


@dataclass(frozen=True)
class Evaluation:
    """Which tasks are tested at a boundary, and on how many rows.

    tasks: `seen` (every task so far, and the next one for forward transfer), `all`, or the number of latest tasks (and
    the next one) for long streams. samples: a class-stratified subset of each task's test rows; None: all. every: also
    test the tasks so far every so many steps within a task, on `samples` rows or `INSIDE` of them.
    """

    tasks: str | int = "seen"
    samples: int | None = None
    batch_size: int = 2048
    every: int | None = None

    def __post_init__(self) -> None:
        if self.tasks not in ("seen", "all") and not (isinstance(self.tasks, int) and self.tasks >= 1):
            raise ValueError(f"eval.tasks={self.tasks}: must be seen, all or a number of latest tasks")
        if self.samples is not None and self.samples < 1:
            raise ValueError(f"eval.samples={self.samples}: must be at least 1, or null for all")
        if self.batch_size < 1:
            raise ValueError(f"eval.batch_size={self.batch_size}: must be at least 1")
        if self.every is not None and self.every < 1:
            raise ValueError(f"eval.every={self.every}: must be at least 1, or null for boundaries only")

    def tested(self, now: int, total: int, ahead: bool) -> range:
        """Tasks tested after task `now` (-1: at initialisation); `ahead`: whether unseen tasks can be tested."""
        first, last = 0, now
        if isinstance(self.tasks, int):
            first = max(0, now + 1 - self.tasks)
        if ahead:
            last = total - 1 if self.tasks == "all" or (now < 0 and self.tasks == "seen") else now + 1
        return range(first, min(last, total - 1) + 1)


def measured(t: int, total: int, every: int) -> bool:
    """Whether metrics are taken around task `t` of `total`: every k-th task, and always the first and the last.

    >>> [t for t in range(10) if measured(t, 10, 4)]
    [0, 4, 8, 9]
    """
    return t % every == 0 or t == total - 1


def trained_score(learner: Learner, task: Task, evaluation: Evaluation) -> Tensor:
    """Test score of the trained net on `task`, as that of the deployed net in the accuracy matrix: [S]."""
    return learner.evaluate(learner.net, task.test, size=evaluation.batch_size, samples=evaluation.samples)[0].cpu()


class PlainCopy:
    """The observer that a resumed run shows where its next task begins, and that ends it there."""

    class Reached(Exception):
        """The task has begun."""

    def __init__(self, learner: Learner, evaluation: Evaluation) -> None:
        self.learner, self.evaluation = learner, evaluation

    def at(self, strategy: Strategy, task: int) -> Tensor:
        """`trained_plainly` as the loop starts the task: [S]."""
        try:
            loop.train(self.learner, strategy, self, start=task)
        except self.Reached:
            return self.score
        raise AssertionError("the loop has not started the task")

    def start(self, task: Task) -> None:
        self.score = trained_plainly(self.learner, task, self.evaluation)
        raise self.Reached

    def step(self, step: Step, aux: Aux) -> None: ...
    def end(self, task: Task) -> None: ...


def trained_plainly(learner: Learner, task: Task, evaluation: Evaluation) -> Tensor:
    """Test score on `task` of a copy of the learner, trained on it without any strategy: [S]."""
    copy = learner.clone()
    copy.plan(task)
    for _ in copy.descend(copy.batches(task)):
        pass
    copy.mark_diverged()
    return copy.evaluate(copy.net, task.test, size=evaluation.batch_size, samples=evaluation.samples)[0].cpu()
