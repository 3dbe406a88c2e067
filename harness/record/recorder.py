"""The observer that measures: accuracy, online accuracy, metrics and times, as rows at each boundary."""

from __future__ import annotations

import itertools
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from harness import counting, tree
from harness.boundary import Boundary, Inside, Metric
from harness.learner import Learner, mask_logits
from harness.record import costs
from harness.strategy import Chain
from harness.types import Aux, Batch, Column, Net, Out, Reading, Step, Task

Columns = dict[str, list[Any]]  # column name -> values
CHUNK = 50  # steps whose logits are kept until they are scored together: scoring each costs 5 % of a small step
CURVE_BINS = 50  # points of a task's learning curve
INSIDE = 1000  # test rows of a task that is tested within another, as in the paper
IDLE = 1e-4  # of the loss: a penalty or replayed rows that stay below all task long do nothing
COLUMNS = {
    "fresh_score": Column("", "score", "test score of a fresh net on the new task just after training on it"),
    "plain_score": Column("", "score", "test score on the new task of a copy of the learner, trained on it plainly"),
}


@dataclass(frozen=True)
class Evaluation:
    """Which tasks are tested at a boundary, on how many samples.

    tasks: `seen` (every task so far and the next one, for forward transfer), `all`, or the number of
    latest tasks (and the next one) for long streams. every: also every so many steps within a task,
    the tasks so far on `samples` rows, or `INSIDE` of them.
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
            raise ValueError(f"eval.every={self.every}: must be at least 1, or null for boundaries alone")

    def measured(self, now: int, total: int, ahead: bool) -> range:
        """Tasks tested after task `now` (-1: at initialisation); `ahead`: unseen tasks have a meaning."""
        first, last = 0, now
        if isinstance(self.tasks, int):
            first = max(0, now + 1 - self.tasks)
        if ahead:
            last = total - 1 if self.tasks == "all" or (now < 0 and self.tasks == "seen") else now + 1
        return range(first, min(last, total - 1) + 1)


class Sink(Protocol):
    """Where rows go at the end of a boundary: a run folder, a tracker, a list."""

    def write(self, table: str, columns: Columns) -> None: ...
    def commit(self, boundary: int, checkpoint: Callable[[], dict[str, Any]], net: Net) -> None: ...
    def net(self, task: int) -> dict[str, Any]: ...
    def has_net(self, task: int) -> bool: ...


@dataclass
class InMemory:
    """Keeps rows and nets in lists, for a notebook and for tests."""

    tables: dict[str, Columns] = field(default_factory=dict)
    nets: dict[int, dict[str, Any]] = field(default_factory=dict)

    def write(self, table: str, columns: Columns) -> None:
        whole = self.tables.setdefault(table, {k: [] for k in columns})
        for k, v in columns.items():
            whole[k].extend(v)

    def commit(self, boundary: int, checkpoint: Callable[[], dict[str, Any]], net: Net) -> None:
        self.nets[boundary] = {"params": tree.copy(net.params), "buffers": tree.copy(net.buffers)}

    def net(self, task: int) -> dict[str, Any]:
        return self.nets[task]

    def has_net(self, task: int) -> bool:
        return task in self.nets


class StoredNets:
    """The nets of earlier boundaries, read from where they were kept."""

    def __init__(self, learner: Learner, sink: Sink) -> None:
        self.learner, self.sink = learner, sink

    def __contains__(self, task: int) -> bool:
        return self.sink.has_net(task)

    def __getitem__(self, task: int) -> Net:
        kept = self.sink.net(task)
        params, buffers = ({k: v.to(self.learner.device) for k, v in kept[p].items()} for p in ("params", "buffers"))
        return Net(params, buffers, self.learner.apply)

    @property
    def initial(self) -> Net:
        return self[-1]


class Recorder:
    """Watches a run and writes what it sees; it changes nothing of it."""

    def __init__(
        self,
        learner: Learner,
        strategy: Chain,
        metrics: Mapping[str, Metric],
        evaluation: Evaluation,
        sink: Sink,
        *,
        every: int = 1,
        control: Tensor | None = None,
        is_control: bool = False,
        gap: bool = True,
        progress: Callable[[int, int, int], None] = lambda task, step, steps: None,
        warn: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.warn, self.warned = warn, False
        self.own = _numel(learner)
        self.learner, self.strategy, self.metrics, self.evaluation = learner, strategy, metrics, evaluation
        self.sink, self.control, self.is_control, self.progress = sink, control, is_control, progress
        self.measure_gap = gap and (is_control or control is not None)
        total = len(learner.stream.tasks)
        self.chosen = {t for t in range(total) if measured(t, total, every)}
        self.accuracy = torch.full((learner.S, total + 1, total), math.nan, dtype=torch.float64)
        self.loss = self.accuracy.clone()
        self.least = torch.full_like(self.accuracy[:, 0], math.inf)  # score of each old task within later ones
        self.gap: Tensor | None = None
        self.random = learner.random("probe")
        self.times: dict[str, float] = {}
        self.last: dict[str, Tensor] = {}  # what the console shows: metric -> [S]

    # --- the observer's hooks ---------------------------------------------------------------------

    def initial(self) -> None:
        """Measure the untrained net."""
        with self.timed("evaluate"):
            self.test(-1)
        self.commit(-1, "init")

    def start(self, task: Task) -> None:
        self.pending: list[tuple[Tensor, Batch, Tensor, Tensor | float]] = []
        self.latest: tuple[Batch, Out] | None = None
        self.share = torch.zeros_like(self.learner.alive, dtype=torch.float64)  # of the loss: penalty and replay
        self.appended = False
        self.online: list[Tensor] = []
        self.losses: list[Tensor] = []
        self.within: dict[int, Tensor] = {}  # steps done -> score of each task [S, T]
        self.gap, self.aside = None, 0.0  # seconds that recording took of the steps' time
        if self.measure_gap and task.index in self.chosen and not (self.is_control or self.strategy.plain):
            with self.timed("gap"):
                self.gap = trained_plainly(self.learner, task, self.evaluation)
        self.measure(task, "start")
        self.began = self.clock()

    def step(self, step: Step, aux: Aux) -> None:
        fresh = step.fresh
        self.pending.append((aux.out.logits.detach()[:, : fresh.y.shape[1]], fresh, aux.loss, aux.penalty))
        self.latest = (step.batch, aux.out)
        if self.learner.steps == self.learner.planned:
            self.add_time("step", (self.clock() - self.began - self.aside) / self.learner.planned)
        entered = time.perf_counter()
        if len(self.pending) == CHUNK:
            self.score()
            self.progress(self.learner.now, self.learner.steps, self.learner.planned)
        if self.evaluation.every:
            self.look(self.evaluation.every)
        self.aside += time.perf_counter() - entered

    def end(self, task: Task) -> None:
        self.score()
        self.add_time("train", self.clock() - self.began - self.times.get("evaluate inside", 0.0))
        self.learner.mark_diverged()
        for score in self.within.values():
            self.least[:, : task.index] = self.least.minimum(score)[:, : task.index]  # NaN stays: not measured
        with self.timed("evaluate"):
            self.test(task.index)
        if self.is_control:
            self.control = self.accuracy[:, 1:].diagonal(dim1=1, dim2=2)
        if self.measure_gap and (self.is_control or self.strategy.plain):
            self.gap = self.accuracy[:, task.index + 1, task.index]  # plain training is what it just had
        self.measure(task, "end")
        self.controls(task)
        self.costs(task)
        self.warn_if_idle(task)
        self.curves(task)
        self.commit(task.index, "end")

    # --- parts --------------------------------------------------------------------------------------

    def score(self) -> None:
        """Score the kept steps: accuracy before the update (or minus the error), and the loss."""
        if not self.pending:
            return
        logits, batches, losses, penalties = zip(*self.pending)
        self.pending = []
        self.share = self.share.maximum(self.added(losses, penalties, batches[-1].w.shape[1]))
        if self.learner.stream.loss == "mse":
            right = [-(a - b.y).square().mean(-1).mean(1) for a, b in zip(logits, batches)]
        else:
            right = [(mask_logits(a, b.mask).argmax(-1) == b.y).double().mean(1) for a, b in zip(logits, batches)]
        self.online.append(torch.stack(right, 1))
        self.losses.append(torch.stack(losses, 1).double())

    def added(self, losses: Sequence[Tensor], penalties: Sequence[Tensor | float], fresh: int) -> Tensor:
        """Largest share of the loss that penalties made up, or, in the latest step, rows that were appended: [S]."""
        total = torch.stack(list(losses))
        share = torch.zeros_like(total[0])
        if any(isinstance(p, Tensor) for p in penalties):
            each = torch.stack([torch.zeros_like(share) + p for p in penalties])
            share = (each / total).abs().amax(0)
        if self.latest is not None and self.latest[0].w.shape[1] > fresh:
            batch, out = self.latest
            self.appended = True
            appended = (batch.w * self.learner.row_loss(out.logits.detach(), batch))[:, fresh:].sum(1)
            share = share.maximum((appended / total[-1]).abs())
        return share.double()

    def warn_if_idle(self, task: Task) -> None:
        """Say once of a penalty or replayed rows that they do nothing: a strength off by orders of magnitude."""
        acting = [
            p.name for p in self.strategy.parts if p.overrides("loss") or (self.appended and p.overrides("batch"))
        ]
        if task.index and acting and self.learner.planned and bool((self.share < IDLE).all()) and not self.warned:
            self.warned = True
            self.warn(
                f"task {task.index}: what {'+'.join(acting)} added stayed under {IDLE:g} of the loss, which does"
                " nothing; is its strength of the right size?"
            )

    def controls(self, task: Task) -> None:
        """What plasticity is measured against, whatever is measured now: both are gone after the run."""
        fresh = None if self.control is None else self.control[:, task.index]
        boundary = self.boundary(task, "end")
        for name, value in (("fresh_score", fresh), ("plain_score", self.gap)):
            if value is not None:
                self.emit(boundary, "deployed", name, value, COLUMNS[name])

    def costs(self, task: Task) -> None:
        """What the strategy holds and adds, and, outside the tables that must be equal, the time of a plain step."""
        learner, S = self.learner, self.learner.S
        values = {"memory": costs.held(self.strategy.holds()), "extra_parameters": _numel(learner) - self.own}
        boundary = self.boundary(task, "end")
        for name, value in values.items():
            each = torch.full((S,), value / S, dtype=torch.float64)
            self.emit(boundary, "trained", name, each, costs.COLUMNS[name])
        if learner.planned and not self.strategy.plain:
            self.add_time("plain step", costs.plain_step(learner, task, self.clock))

    def test(self, now: int) -> None:
        """Fill row `now + 1` of the accuracy matrix."""
        learner, stream = self.learner, self.learner.stream
        net = self.strategy.deploy(learner, learner.net)
        ahead = not (stream.scenario == "class" and stream.classes == "seen")
        for j in self.evaluation.measured(now, len(stream.tasks), ahead):
            score, loss = learner.evaluate(
                net, stream.tasks[j].test, size=self.evaluation.batch_size, samples=self.evaluation.samples
            )
            self.accuracy[:, now + 1, j], self.loss[:, now + 1, j] = score.cpu(), loss.cpu()

    def look(self, every: int) -> None:
        """Test the tasks so far within one, every so many steps and after the last (De Lange et al. 2023)."""
        learner, steps = self.learner, self.learner.steps
        if steps % every and steps != learner.planned:
            return
        with self.timed("evaluate inside"):
            net = self.strategy.deploy(learner, learner.net)
            score = torch.full_like(self.least, math.nan)
            for j in self.evaluation.measured(learner.now, score.shape[1], ahead=False):
                score[:, j] = learner.evaluate(
                    net,
                    learner.stream.tasks[j].test,
                    size=self.evaluation.batch_size,
                    samples=self.evaluation.samples or INSIDE,
                )[0].cpu()
            self.within[steps] = score

    def boundary(self, task: Task, phase: str) -> Boundary:
        learner = self.learner
        return Boundary(
            t=task.index,
            phase=phase,
            stream=learner.stream,
            learner=learner,
            trained=learner.net,
            deployed=self.strategy.deploy(learner, learner.net),
            nets=StoredNets(learner, self.sink),
            accuracy=self.accuracy,
            online=torch.cat(self.online, 1).cpu() if self.online else torch.empty(learner.S, 0),
            random=self.random,
            control=self.control,
            gap=self.gap,
            alive=learner.alive,
            inside=Inside(tuple(self.within), torch.stack(list(self.within.values()), 1), self.least)
            if self.within
            else None,
        )

    def measure(self, task: Task, phase: str) -> None:
        if task.index not in self.chosen or not self.metrics:
            return
        spent: dict[str, Counter[str]] = {}
        with self.counted():
            boundary = self.boundary(task, phase)
            for name, metric in self.metrics.items():
                with self.timed(f"metric/{name}"), counting.counting() as spent[name]:
                    readings = metric(boundary)
                columns, net = described(metric)
                for column, value in readings.items():
                    self.emit(boundary, net, column, value, columns.get(column))
        worked = {name: one for name, one in spent.items() if one}
        for kind, meaning in counting.COLUMNS.items() if worked else ():
            each = torch.tensor([[float(one[kind]) for one in worked.values()]]).expand(self.learner.S, -1)
            self.emit(boundary, "trained", kind, Reading(each, axis="metric", coords=list(worked)), meaning)

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Nets made inside, and copies of the learner, count their forward passes."""
        plain = self.learner.apply
        self.learner.apply = counting.counted(plain)
        try:
            yield
        finally:
            self.learner.apply = plain

    def emit(self, b: Boundary, net: str, name: str, value: Tensor | Reading, column: Column | None) -> None:
        reading = value if isinstance(value, Reading) else Reading(value)
        table = reading.value.detach().cpu().double()
        table = table.view(len(table), -1).masked_fill(~self.learner.alive.cpu()[:, None], math.nan)
        errors = torch.full_like(table, math.nan)
        if reading.stderr is not None:
            errors = reading.stderr.detach().cpu().double().view_as(table)
        if not reading.axis:
            self.last[name] = table[:, 0]
        coords = list(reading.coords) or list(range(table.shape[1]))
        n = table.numel()
        per_task = reading.axis == "task"
        tasks = [int(c) for c in coords] if per_task else list(reading.tasks) or [-1] * len(coords)
        self.sink.write(
            "metrics",
            {
                "seed": [s for s in self.learner.seeds for _ in coords],
                "boundary": [b.t] * n,
                "phase": [b.phase] * n,
                "net": [net] * n,
                "task": [task for _ in self.learner.seeds for task in tasks],
                "metric": [name] * n,
                "axis": ["" if per_task else reading.axis] * n,
                "coord": ["" if per_task or not reading.axis else str(c) for _ in self.learner.seeds for c in coords],
                "value": table.flatten().tolist(),
                "stderr": errors.flatten().tolist(),
                "better": [column.better if column else ""] * n,
            },
        )

    def curves(self, task: Task) -> None:
        """The learning curve within the task, averaged over at most CURVE_BINS stretches of steps."""
        if not self.online:
            return
        online, loss = torch.cat(self.online, 1).cpu(), torch.cat(self.losses, 1).cpu()
        bins = min(CURVE_BINS, online.shape[1])
        edges = [round(i * online.shape[1] / bins) for i in range(bins + 1)]
        for s, seed in enumerate(self.learner.seeds):
            spans = [(a, b) for a, b in itertools.pairwise(edges)]
            self.sink.write(
                "curves",
                {
                    "seed": [seed] * bins,
                    "boundary": [task.index] * bins,
                    "step": [b for _, b in spans],
                    "online_accuracy": [float(online[s, a:b].mean()) for a, b in spans],
                    "loss": [float(loss[s, a:b].mean()) for a, b in spans],
                },
            )

    def commit(self, now: int, phase: str) -> None:
        """Hand over the boundary's rows, its net and all that a resumed run needs."""
        measured = [j for j in range(self.accuracy.shape[2]) if not self.accuracy[:, now + 1, j].isnan().all()]
        tests = self.learner.stream.tasks
        for j in measured:
            size = tests[j].test.size.tolist()
            shown = size if self.evaluation.samples is None else [min(n, self.evaluation.samples) for n in size]
            self.sink.write(
                "accuracy",
                {
                    "seed": list(self.learner.seeds),
                    "boundary": [now] * self.learner.S,
                    "task": [j] * self.learner.S,
                    "split": [self.learner.stream.split] * self.learner.S,
                    "accuracy": self.accuracy[:, now + 1, j].tolist(),
                    "loss": self.loss[:, now + 1, j].tolist(),
                    "n": shown,
                },
            )
        self.write_times(now)
        began = self.clock()
        self.sink.commit(now, self.state_dict, self.learner.net)
        self.add_time("checkpoint", self.clock() - began)

    def write_times(self, now: int) -> None:
        """Rows of the time that passed since they were last written; a checkpoint's own come with the next."""
        times, self.times = self.times, {}
        self.sink.write(
            "timing",
            {
                "boundary": [now] * len(times),
                "part": list(times),
                "seconds": list(times.values()),
                "peak_memory": [peak_memory()] * len(times),
            },
        )

    # --- time and state -------------------------------------------------------------------------------

    def clock(self) -> float:
        if self.learner.device.type == "cuda":
            torch.cuda.synchronize(self.learner.device)
        return time.perf_counter()

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        began = self.clock()
        yield
        self.add_time(part, self.clock() - began)

    def add_time(self, part: str, seconds: float) -> None:
        self.times[part] = self.times.get(part, 0.0) + seconds

    def state_dict(self) -> dict[str, Any]:
        return {
            "learner": self.learner.state_dict(),
            "strategy": self.strategy.state_dict(),
            "accuracy": self.accuracy,
            "loss": self.loss,
            "least": self.least,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.learner.load_state_dict(state["learner"])
        self.strategy.load_state_dict(state["strategy"])
        self.accuracy, self.loss, self.least = (state[k].clone() for k in ("accuracy", "loss", "least"))


def measured(t: int, total: int, every: int) -> bool:
    """Whether metrics are taken around task `t` of `total`: every k-th, the first and the last always.

    >>> [t for t in range(10) if measured(t, 10, 4)]
    [0, 4, 8, 9]
    """
    return t % every == 0 or t == total - 1


def trained_plainly(learner: Learner, task: Task, evaluation: Evaluation) -> Tensor:
    """Test accuracy on `task` of a copy of the learner, trained on it without any strategy: [S]."""
    copy = learner.clone()
    copy.plan(task)
    for _ in copy.descend(copy.batches(task)):
        pass
    copy.mark_diverged()
    return copy.evaluate(copy.net, task.test, size=evaluation.batch_size, samples=evaluation.samples)[0].cpu()


def described(metric: Metric) -> tuple[Mapping[str, Column], str]:
    """What a metric's columns mean, and the net that it is of, from the module it stands in."""
    function = metric.func if isinstance(metric, partial) else metric
    module = sys.modules.get(getattr(function, "__module__", ""))
    return getattr(module, "COLUMNS", {}), getattr(module, "NET", "trained")


def peak_memory() -> int:
    """Largest resident size of this process so far, in bytes (of the GPU's allocations where there is one)."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return int(torch.cuda.max_memory_allocated())
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _numel(learner: Learner) -> int:
    """Numbers that are trained, of all seeds."""
    return sum(v.numel() for v in learner.params.values())
