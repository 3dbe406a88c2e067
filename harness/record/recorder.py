"""The observer of a run: at each boundary it evaluates, measures and writes rows. It changes nothing of the run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from harness.boundary import Boundary, Inside, Metric
from harness.learner import Learner
from harness.record import costs
from harness.record.clock import Clock
from harness.record.evaluation import INSIDE, Copies, Evaluation, measured, trained_plainly, trained_score
from harness.record.layout import accuracy_rows, curve_rows, timing_rows
from harness.record.meter import Meter
from harness.record.online import Online
from harness.record.sinks import Sink, StoredNets
from harness.record.stability import unstable
from harness.strategy import Chain
from harness.types import Aux, Column, Step, Task

IDLE = 1e-4  # share of the loss: a penalty or replay that stays below it for a whole task has no effect
COLUMNS = {
    "fresh_score": Column(
        "", "score", "test score of a fresh net on the new task just after training on it", "test", ""
    ),
    "plain_score": Column(
        "", "score", "test score on the new task of a copy of the learner, trained on it plainly", "test", ""
    ),
}


class Recorder:
    """Records a run to a sink."""

    def __init__(
        self,
        learner: Learner,
        strategy: Chain,
        metrics: Mapping[str, Metric],
        evaluation: Evaluation,
        sink: Sink,
        *,
        every: int = 1,
        control: Callable[[int], Tensor] | None = None,
        is_control: bool = False,
        gap: bool = True,
        copies: Copies | None = None,
        workers: int = 1,
        progress: Callable[[int, int, int], None] = lambda task, step, steps: None,
        warn: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.learner, self.strategy, self.evaluation, self.sink = learner, strategy, evaluation, sink
        self.clock = Clock(learner.device)
        self.meter = Meter(learner, metrics, sink, self.clock, workers)
        self.control, self.is_control, self.copies = control, is_control, copies
        self.progress, self.warn, self.warned = progress, warn, False
        self.unstable: dict[str, str] = {}  # strategies whose penalty alone made steps grow
        self.size = _numel(learner)  # before the strategy adds parameters
        self.measure_gap = gap and (is_control or control is not None)
        total = len(learner.stream.tasks)
        self.fresh: Tensor | None = None  # score of a fresh net on each task that has been learnt [S, T]
        if is_control or control is not None:
            self.fresh, self.compared = torch.full((learner.S, total), math.nan, dtype=torch.float64), 0
        self.chosen = {t for t in range(total) if measured(t, total, every)}
        self.accuracy = torch.full((learner.S, total + 1, total), math.nan, dtype=torch.float64)
        self.loss = self.accuracy.clone()
        self.tested: dict[int, list[int]] = {}  # row of both -> its tasks that were tested
        self.least = torch.full_like(self.accuracy[:, 0], math.inf)  # lowest score of each old task within later ones
        self.random = learner.random("probe")
        self.trained_score: Tensor | None = None

    # --- the observer's hooks ---------------------------------------------------------------------

    def initial(self) -> None:
        """Evaluate the untrained net."""
        with self.clock.timed("evaluate"):
            self.test(-1)
        self.commit(-1)

    def start(self, task: Task) -> None:
        self.online = Online(self.learner)
        self.within: dict[int, Tensor] = {}  # steps done -> score of each task [S, T]
        self.gap: Tensor | None = None
        self.aside = 0.0  # seconds that recording took between steps
        copied: Callable[[], tuple[Tensor, float]] | None = None
        if self.measure_gap and task.index in self.chosen and not (self.is_control or self.strategy.plain):
            copied = self.copies(task.index) if self.copies is not None else self.copy(task)
        self.copied = copied
        self.compare(task.index)
        self.measure(task, "start")
        self.warn_if_unstable()
        self.began = self.clock.now()

    def step(self, step: Step, aux: Aux) -> None:
        self.online.add(step, aux)
        learner = self.learner
        if learner.steps == learner.planned:
            self.clock.add("step", (self.clock.now() - self.began - self.aside) / learner.planned)
        entered = time.perf_counter()
        if self.online.full:
            self.online.flush()
            self.progress(learner.now, learner.steps, learner.planned)
        if self.evaluation.every and (learner.steps % self.evaluation.every == 0 or learner.steps == learner.planned):
            self.look()
        self.aside += time.perf_counter() - entered

    def end(self, task: Task) -> None:
        self.online.flush()
        self.clock.add("train", self.clock.now() - self.began - self.clock.spent.get("evaluate inside", 0.0))
        self.learner.mark_diverged()
        for score in self.within.values():
            self.least[:, : task.index] = self.least.minimum(score)[:, : task.index]  # NaN stays: not measured
        with self.clock.timed("evaluate"):
            self.test(task.index)
        self.compare(task.index + 1)
        if self.copied is not None:
            self.gap, seconds = self.copied()
            self.clock.add("gap", seconds)
        elif self.measure_gap and (self.is_control or self.strategy.plain):
            self.gap = self.accuracy[:, task.index + 1, task.index]  # the learner itself was trained plainly
        self.measure(task, "end")
        self.controls(task)
        self.costs(task)
        self.warn_if_idle(task)
        if scores := self.online.scores.shape[1]:
            self.curves(task, scores)
        self.commit(task.index)

    # --- parts --------------------------------------------------------------------------------------

    def copy(self, task: Task) -> Callable[[], tuple[Tensor, float]]:
        """Train the plain copy here; returns what tells its score."""
        began = self.clock.now()
        score = trained_plainly(self.learner, task, self.evaluation)
        seconds = self.clock.now() - began
        return lambda: (score, seconds)

    def compare(self, tasks: int) -> None:
        """Know the score of a fresh net on the first so many tasks."""
        if self.fresh is None:
            return
        for t in range(self.compared, tasks):
            own = self.accuracy[:, t + 1, t]
            self.fresh[:, t] = own if self.is_control or self.control is None else self.control(t)
        self.compared = tasks

    def test(self, now: int) -> None:
        """Fill row `now + 1` of the accuracy matrix."""
        learner, stream = self.learner, self.learner.stream
        net = self.strategy.deploy(learner, learner.net)
        ahead = not (stream.scenario == "class" and stream.classes == "seen")
        for j in self.evaluation.tested(now, len(stream.tasks), ahead):
            score, loss = learner.evaluate(
                net, stream.tasks[j].test, size=self.evaluation.batch_size, samples=self.evaluation.samples
            )
            self.accuracy[:, now + 1, j], self.loss[:, now + 1, j] = score.cpu(), loss.cpu()
            self.tested.setdefault(now + 1, []).append(j)
        self.trained_score = None
        if now in self.chosen and self.fresh is not None and not learner.net.same(net):
            self.trained_score = trained_score(learner, stream.tasks[now], self.evaluation)

    def look(self) -> None:
        """Test the tasks so far between two steps (De Lange et al. 2023)."""
        learner, evaluation = self.learner, self.evaluation
        with self.clock.timed("evaluate inside"):
            net = self.strategy.deploy(learner, learner.net)
            score = torch.full_like(self.least, math.nan)
            for j in evaluation.tested(learner.now, score.shape[1], ahead=False):
                test, samples = learner.stream.tasks[j].test, evaluation.samples or INSIDE
                score[:, j] = learner.evaluate(net, test, size=evaluation.batch_size, samples=samples)[0].cpu()
            self.within[learner.steps] = score

    def boundary(self, task: Task, phase: str) -> Boundary:
        """What a metric may read now."""
        learner, inside = self.learner, None
        if self.within:
            inside = Inside(tuple(self.within), torch.stack(list(self.within.values()), 1), self.least)
        return Boundary(
            t=task.index,
            phase=phase,
            stream=learner.stream,
            learner=learner,
            trained=learner.net,
            deployed=self.strategy.deploy(learner, learner.net),
            nets=StoredNets(learner, self.sink),
            accuracy=self.accuracy,
            online=self.online.scores,
            random=self.random,
            control=self.fresh,
            gap=self.gap,
            trained_score=self.trained_score if phase == "end" else None,
            alive=learner.alive,
            inside=inside,
        )

    def measure(self, task: Task, phase: str) -> None:
        """Take the metrics, if this task is among those that are measured."""
        if task.index in self.chosen:
            self.meter.measure(lambda: self.boundary(task, phase))

    def controls(self, task: Task) -> None:
        """The scores that plasticity is measured against; they cannot be recomputed after the run."""
        fresh = None if self.fresh is None else self.fresh[:, task.index]
        for name, value in (("fresh_score", fresh), ("plain_score", self.gap)):
            if value is not None:
                self.meter.emit(task.index, "end", name, value, COLUMNS[name])

    def costs(self, task: Task) -> None:
        """What the strategy stores and adds; and the time of a plain step, in the table of times."""
        learner, S = self.learner, self.learner.S
        values = {"memory": costs.held(self.strategy.holds()), "extra_parameters": _numel(learner) - self.size}
        for name, value in values.items():
            each = torch.full((S,), value / S, dtype=torch.float64)
            self.meter.emit(task.index, "end", name, each, costs.COLUMNS[name])
        if learner.planned and not self.strategy.plain:
            self.clock.add("plain step", costs.plain_step(learner, task, self.clock.now))

    def warn_if_idle(self, task: Task) -> None:
        """Warn once if a penalty or replayed rows have no effect: their strength is off by orders of magnitude."""
        online = self.online
        acting = [
            p.name for p in self.strategy.parts if p.overrides("loss") or (online.appended and p.overrides("batch"))
        ]
        if task.index and acting and self.learner.planned and bool((online.share < IDLE).all()) and not self.warned:
            self.warned = True
            self.warn(
                f"task {task.index}: {'+'.join(acting)} contributed less than {IDLE:g} of the loss, which is too"
                " little to have an effect; check its strength"
            )

    def warn_if_unstable(self) -> None:
        """Warn once of each penalty that is too stiff for the learning rate, before its first such task."""
        found = unstable(self.learner, self.strategy)
        for name, said in found.items():
            if name not in self.unstable:
                self.warn(said)
        self.unstable = {**found, **self.unstable}

    def curves(self, task: Task, steps: int) -> None:
        """The learning curve within the task."""
        score, loss = self.online.scores, self.online.losses
        for s, seed in enumerate(self.learner.seeds):
            self.sink.write("curves", curve_rows(seed, boundary=task.index, score=score[s], loss=loss[s]))

    def commit(self, now: int) -> None:
        """Hand over the boundary's rows, its net, and the state that a resumed run needs."""
        stream, samples = self.learner.stream, self.evaluation.samples
        for j in self.tested.get(now + 1, []):
            score, loss = self.accuracy[:, now + 1, j], self.loss[:, now + 1, j]
            if score.isnan().all():
                continue
            size = stream.tasks[j].test.size.tolist()
            n = size if samples is None else [min(rows, samples) for rows in size]
            about: Any = {"boundary": now, "task": j, "split": stream.split}
            self.sink.write("accuracy", accuracy_rows(self.learner.seeds, **about, score=score, loss=loss, n=n))
        self.write_times(now)
        began = self.clock.now()
        self.sink.commit(now, self.state_dict, self.learner.net)
        self.clock.add("checkpoint", self.clock.now() - began)

    def write_times(self, now: int) -> None:
        """Rows of the time since the last call; a checkpoint's own time comes with the next boundary."""
        self.sink.write("timing", timing_rows(now, self.clock.take()))

    # --- state --------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        cells = torch.tensor([[i, j] for i, tasks in self.tested.items() for j in tasks], dtype=torch.int64).view(-1, 2)
        return {
            "learner": self.learner.state_dict(),
            "strategy": self.strategy.state_dict(),
            # of the matrices what was tested: the whole would grow with the square of the tasks, at every boundary
            "tested": cells,
            "accuracy": self.accuracy[:, cells[:, 0], cells[:, 1]],
            "loss": self.loss[:, cells[:, 0], cells[:, 1]],
            "least": self.least,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.learner.load_state_dict(state["learner"])
        self.strategy.load_state_dict(state["strategy"])
        row, task = state["tested"].T
        self.accuracy[:, row, task], self.loss[:, row, task] = state["accuracy"], state["loss"]
        for i, j in state["tested"].tolist():
            self.tested.setdefault(i, []).append(j)
        self.least = state["least"].clone()


def _numel(learner: Learner) -> int:
    """Trained parameters of all seeds."""
    return sum(v.numel() for v in learner.params.values())
