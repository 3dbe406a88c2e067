"""What plasticity is measured against, trained plainly: a fresh net for each task, and copies of the learner.

Where there is a second core, processes beside the run train both: a run needs the scores of a task only at its end. The
numbers are the same, since neither depends on anything but the setting and the run's last checkpoint.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor

from harness import store
from harness.jobs.child import Child, Failed, Link, cores
from harness.jobs.folder import FolderSink, compiled, opened, resumed
from harness.jobs.setting import Setting, build_strategies
from harness.run import copy_score, run
from harness.store import sources
from harness.store.files import load
from harness.strategy import Strategy
from harness.trackers import Trackers
from harness.types import Net, Stream
from harness.wording import warn

RESET = {"reset": {"_target_": "strategies.reset.Reset"}}  # the control against which plasticity is measured
Tell = Callable[[int, dict[int, float]], None]  # task, and the accuracy of each seed


def beside(setting: Setting) -> bool:
    """Whether processes can train beside a run: on another core, without its threads and GPU, which no fork takes."""
    return setting.device.type == "cpu" and setting.threads == 1 and cores() > 1 and not torch.cuda.is_initialized()


# --- the control --------------------------------------------------------------------------------------


class Control:
    """A fresh net's accuracy on each task just after training on it: known, or as a process trains it."""

    def __init__(self, known: dict[int, dict[int, float]], seeds: Sequence[int], child: Child | None = None) -> None:
        self.known, self.seeds, self.child = known, tuple(seeds), child
        self.trained = 0  # tasks, by the process
        self.error: Exception | None = None  # of the process

    def __call__(self, task: int) -> Tensor:
        """Of each seed [S]; waits until it is trained. ValueError if the process has failed."""
        while self.child is not None and self.trained <= task:
            self._take(self.child)
        return torch.tensor([self.known.get(s, {}).get(task, math.nan) for s in self.seeds], dtype=torch.float64)

    def finish(self) -> None:
        """Wait until all of it is on disk."""
        while self.child is not None:
            self._take(self.child)

    def so_far(self) -> int | None:
        """The number of tasks that the process has trained; None if there is none any more.

        Does not wait, and raises nothing: only who needs the scores is told that they are missing.
        """
        with suppress(ValueError, Failed):
            while self.error is None and self.child is not None and self.child.ready:
                self._take(self.child)
        return None if self.child is None else self.trained

    def add(self, task: int, scores: dict[int, float]) -> None:
        for seed, score in scores.items():
            self.known.setdefault(seed, {})[task] = score
        self.trained = task + 1

    def _take(self, child: Child) -> None:
        try:
            if self.error is not None:
                raise self.error
            told = child.receive()
        except Exception as error:
            self.error = error
            raise
        if told is None:
            self.child = None
        else:
            self.add(*told)


def known_control(setting: Setting) -> dict[int, dict[int, float]]:
    """Accuracy on each task just after training on it, by seed and task, from the finished controls of this setting."""
    known: dict[int, dict[int, float]] = {}
    for found in store.find_runs(setting.cfg["results"], strategy="reset", setting=store.identity(setting.identity)):
        if sources.edited(found.manifest):
            continue
        try:
            table = store.read_rows(found, "accuracy")
        except store.StoreError as error:  # another control may have these seeds, or it is trained again
            warn(str(error))
            continue
        for task, scores in by_task(table).items():
            for seed, score in scores.items():
                known.setdefault(seed, {})[task] = score
    return known


def by_task(accuracy: Any) -> dict[int, dict[int, float]]:
    """Task -> seed -> accuracy just after training on it, from rows of the table."""
    found: dict[int, dict[int, float]] = {}
    for row in accuracy.to_pylist():
        if row["boundary"] == row["task"]:
            found.setdefault(row["task"], {})[row["seed"]] = row["accuracy"]
    return found


def train_control(setting: Setting, seeds: tuple[int, ...], tell: Tell) -> None:
    """Train the control of these seeds in its own run folder, or what is left of it, telling each task's scores.

    Under its lock: of several processes that need it, one trains and the others wait and read.
    """
    stream = replace(setting.stream(seeds), announced=True)  # the control needs them
    identity = {**setting.identity, "strategy": RESET, "seeds": list(seeds), "purpose": "control"}
    with opened(setting, stream, "reset", identity, beside=True, wait=3600.0) as folder:
        if folder.done:
            past = by_task(store.read_rows(folder, "accuracy"))
            for task in range(len(stream.tasks)):
                tell(task, past.get(task, {}))
            return
        resume = resumed(folder, setting, stream, RESET, {"metrics": [], "purpose": "control"})
        past = by_task(folder.table("accuracy"))
        for task in range(0 if resume is None else resume[0] + 1):
            tell(task, past.get(task, {}))
        parts = setting.parts(stream)
        result = run(
            stream,
            list(build_strategies(RESET).values()),
            evaluation=replace(setting.evaluation, tasks=1, every=None),
            is_control=True,
            gap=False,
            sink=Telling(folder, seeds, len(stream.tasks), tell),
            resume=resume,
            compile=compiled(folder, setting, stream, parts["model"]),
            **parts,
        )
        folder.finish(diverged=[], graphs=result.graphs)


class Telling(FolderSink):
    """Tells the scores of each task once they are on disk."""

    def __init__(self, folder: store.RunFolder, seeds: Sequence[int], tasks: int, tell: Tell) -> None:
        super().__init__(folder, Trackers([]), seeds, tasks)
        self.tell = tell

    def commit(self, boundary: int, checkpoint: Callable[[], dict[str, Any]], net: Net) -> None:
        super().commit(boundary, checkpoint, net)
        if boundary >= 0:
            self.tell(boundary, by_task(self.folder.table("accuracy", boundary)).get(boundary, {}))


def control_beside(setting: Setting, seeds: tuple[int, ...], folder: store.RunFolder) -> Child:
    """A process that trains the control, and tells at the end that it has."""

    def work(link: Link) -> None:
        train_control(setting, seeds, lambda task, scores: link.send((task, scores)))
        link.send(None)

    return Child("trains the control", work, close=folder.close)


# --- copies of the learner ----------------------------------------------------------------------------


class CopiesBeside:
    """Plainly trained copies of a run's learners, by a process that resumes the run from its last checkpoint."""

    def __init__(
        self, setting: Setting, stream: Stream, strategies: Sequence[Strategy], folder: store.RunFolder
    ) -> None:
        how = {**setting.parts(stream), "evaluation": setting.evaluation}
        checkpoint = folder.path / "checkpoint.pt"

        def work(link: Link) -> None:
            while True:
                task, began = link.receive(), time.perf_counter()
                score = copy_score(task, load(checkpoint)["state"], stream, strategies, **how)
                link.send((score.tolist(), time.perf_counter() - began))

        self.child = Child("trains copies of the learner", work, close=folder.close)
        self.asked, self.found = -1, (torch.empty(0), 0.0)

    def __call__(self, task: int) -> Callable[[], tuple[Tensor, float]]:
        """Start on a task, whose boundary before has just been committed; returns what waits for the scores [S]."""
        if task != self.asked:  # groups of seeds ask one after the other
            self.asked, self.waiting = task, True
            self.child.send(task)
        return self._wait

    def __enter__(self) -> Self:
        self.child.__enter__()
        return self

    def __exit__(self, *stop: Any) -> None:
        self.child.__exit__(*stop)

    def _wait(self) -> tuple[Tensor, float]:
        if self.waiting:
            score, seconds = self.child.receive()
            self.found, self.waiting = (torch.tensor(score, dtype=torch.float64), seconds), False
        return self.found
