"""From a stream, a model and strategies to tables, as a Python call.

>>> from tasks.datasets import load
>>> from tasks.permuted import permuted
>>> from harness.models.mlp import MLP
>>> from harness.optim import SGD
>>> from harness.learner import Budget
>>> from strategies.naive import Naive
>>> stream = permuted(dataset=load("digits"), seeds=[0, 1], n_tasks=2, fixed=False)
>>> model = MLP(stream.shape, stream.outputs, widths=(20,))
>>> result = run(stream, [Naive()], model=model, optimizer=SGD(lr=0.1), budget=Budget(epochs=1))
>>> result.accuracy.shape  # [seeds, boundaries with the initialisation, tasks]
torch.Size([2, 3, 2])
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from harness import loop, returns
from harness.boundary import Metric
from harness.compiling.step import CompiledStep, tracing
from harness.groups import groups, joined, stream_of
from harness.learner import Budget, Initial, Learner
from harness.models.module import as_model
from harness.optim import Optimizer
from harness.record.evaluation import Copies, Evaluation, PlainCopy
from harness.record.recorder import Recorder
from harness.record.sinks import Columns, InMemory, Sink, shared
from harness.strategy import Chain, Strategy
from harness.types import Model, Stream
from harness.wording import exits_refused, warn

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Result:
    """A finished run in memory."""

    accuracy: Tensor  # [S, T + 1, T] test accuracy; row 0 the initialisation, row i + 1 after task i
    alive: Tensor  # [S] False where the seed has diverged
    parts: tuple[Recorder, ...]  # of each group of seeds that were trained together, with its learner and strategy
    tables: dict[str, Columns] = field(default_factory=dict)  # empty if they went to a folder

    @property
    def learner(self) -> Learner:
        """The learner of all seeds. ValueError if they were trained in several groups: see `parts`."""
        return self._only.learner

    @property
    def strategy(self) -> Chain:
        """The strategies of all seeds. ValueError if they were trained in several groups: see `parts`."""
        return self._only.strategy

    @property
    def graphs(self) -> int:
        """Graphs that steps were compiled to: 0 for a run of eager steps."""
        return sum(r.learner.compiled.graphs for r in self.parts if isinstance(r.learner.compiled, CompiledStep))

    @property
    def _only(self) -> Recorder:
        if len(self.parts) > 1:
            raise ValueError(f"the seeds were trained in {len(self.parts)} groups; see Result.parts")
        return self.parts[0]

    def frame(self, table: str = "metrics") -> pd.DataFrame:
        """A table as a pandas frame."""
        import pandas as pd

        return pd.DataFrame(self.tables[table])


def run(
    stream: Stream,
    strategies: Sequence[Strategy] = (),
    *,
    model: Model | Callable[..., Any],
    optimizer: Optimizer,
    budget: Budget | None = None,
    metrics: Mapping[str, Metric] | None = None,
    metrics_every: int = 1,
    evaluation: Evaluation | None = None,
    control: Tensor | Callable[[int], Tensor] | None = None,
    is_control: bool = False,
    gap: bool = True,
    copies: Copies | None = None,
    workers: int = 1,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    autocast: torch.dtype | None = None,
    pin: Mapping[str, int | None] | None = None,
    start: Initial | None = None,
    sink: Sink | None = None,
    resume: tuple[int, dict[str, Any]] | None = None,
    compile: bool = False,
    progress: Callable[[int, int, int], None] = lambda task, step, steps: None,
) -> Result:
    """Train strategies on a stream, all seeds at once, and measure at every boundary.

    Seeds whose tasks differ in size are trained in groups of equal sizes (harness/groups.py), task by task.

    `control` [S, T] is a fresh net's accuracy on each task (`fresh_accuracy`), against which intransigence and the
    trainability gap are measured, or a function that gives it for a task [S] once that task has been learnt;
    `is_control` says that this run is that control. `copies` trains the plain copies for the gap elsewhere; by default
    they are trained here. `workers` metrics are taken at once. `sink` takes the rows, nets and checkpoints; by default
    they stay in memory. `resume` is a boundary and its checkpoint. `metrics_every=k` measures every k-th task, the
    first and the last. `compile` makes each step one compiled graph (harness/compiling/step.py), which pays for long
    runs and changes the last digits. `autocast` is the precision of the forward passes in training, as torch.bfloat16;
    None: `dtype`. `start` gives the weights of each seed before the first task, without those that are to be drawn.

    `model` may also be a function or class that makes an nn.Module (`models.module.as_model`).

    Raises ValueError if a strategy is not defined for the stream's scenario or needs boundaries that are hidden, and if
    own code returns what it should not (harness/returns.py) or calls sys.exit.
    """
    check_parts(strategies, optimizer)
    check_scenario(stream, strategies)
    check_boundaries(stream, strategies, optimizer)
    sink = InMemory() if sink is None else sink
    lanes, recorders = shared(sink, groups(stream)), []
    for lane in lanes:
        state, parts = (optimizer, strategies) if len(lanes) == 1 else deepcopy((optimizer, strategies))
        with exits_refused():
            own = stream_of(stream, lane.places)
            made, length = as_model(model, own), budget or Budget()
            how: dict[str, Any] = {"device": device, "dtype": dtype, "autocast": autocast, "pin": pin, "start": start}
            learner = Learner(made, own, state, length, **how)
            returns.model(learner)
        if compile:
            learner.compiled = CompiledStep(learner, warn)
        recorders.append(
            Recorder(
                learner,
                Chain(parts),
                metrics or {},
                evaluation or Evaluation(),
                lane,
                every=metrics_every,
                control=_control_of(control, lane.places),
                is_control=is_control,
                gap=gap,
                copies=None if copies is None else _copies_of(copies, lane.places),
                workers=workers,
                progress=progress,
                warn=warn,
            )
        )
    first = 0 if resume is None else resume[0] + 1
    with exits_refused():
        for recorder in recorders:
            loop.prepare(recorder.learner, recorder.strategy)
        for recorder, lane in zip(recorders, lanes):
            if resume is None:
                recorder.initial()
            else:
                recorder.load_state_dict(lane.state(resume[1]))
        with tracing() if compile else nullcontext():
            for _ in zip(*(loop.by_task(r.learner, r.strategy, r, start=first) for r in recorders)):
                pass
    for recorder in recorders:
        recorder.write_times(len(stream.tasks) - 1)
    found = joined(
        (lane.places, {"accuracy": r.accuracy, "alive": r.learner.alive.cpu()}) for lane, r in zip(lanes, recorders)
    )
    return Result(found["accuracy"], found["alive"], tuple(recorders), getattr(sink, "tables", {}))


def _control_of(
    control: Tensor | Callable[[int], Tensor] | None, places: Sequence[int]
) -> Callable[[int], Tensor] | None:
    """The control of the seeds at these places, by task."""
    if control is None:
        return None
    of = control
    return (lambda task: of[places, task]) if isinstance(of, Tensor) else (lambda task: of(task)[places])


def _copies_of(copies: Copies, places: Sequence[int]) -> Copies:
    def start(task: int) -> Callable[[], tuple[Tensor, float]]:
        wait = copies(task)

        def waited() -> tuple[Tensor, float]:
            score, seconds = wait()
            return score[places], seconds * len(places) / len(score)

        return waited

    return start


def copy_score(
    task: int,
    checkpoint: dict[str, Any],
    stream: Stream,
    strategies: Sequence[Strategy],
    *,
    model: Model | Callable[..., Any],
    optimizer: Optimizer,
    budget: Budget,
    evaluation: Evaluation,
    **how: Any,
) -> Tensor:
    """The score [S] of the plain copies of a run at the start of a task, from its checkpoint of the boundary before.

    The run is resumed from there, up to the first step; the objects that are given remain as they are.
    """
    lanes, found = shared(InMemory(), groups(stream)), []
    for lane in lanes:
        own = stream_of(stream, lane.places)
        state, parts = deepcopy((optimizer, strategies))
        with exits_refused():
            learner, chain = Learner(as_model(model, own), own, state, budget, **how), Chain(parts)
            loop.prepare(learner, chain)
            kept = lane.state(checkpoint)
            learner.load_state_dict(kept["learner"])
            chain.load_state_dict(kept["strategy"])
            found.append((lane.places, {"score": PlainCopy(learner, evaluation).at(chain, task)}))
    return joined(found)["score"]


def named(value: Any) -> str:
    """A value in a message, by its class.

    >>> named(3), named(int)
    ('a value of class int', 'the class int')
    """
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return f"a value of class {type(value).__name__}"


def check_parts(strategies: Any, optimizer: Any) -> None:
    """ValueError for what is easily taken for a list of strategies or an optimizer of ours."""
    if isinstance(strategies, Strategy) or not isinstance(strategies, Sequence):
        raise ValueError(f"strategies: {named(strategies)} is not a list; pass one, as in run(stream, [EWC(...)], ...)")
    for part in strategies:
        if not isinstance(part, Strategy):
            made = f"; make one, as in {part.__name__}(...)" if isinstance(part, type) else ""
            raise ValueError(f"strategies: {named(part)} is not a harness.strategy.Strategy{made}")
    if not isinstance(optimizer, Optimizer):
        raise ValueError(
            f"optimizer: {named(optimizer)} is not one of ours, which keep their state for each seed; pass SGD(lr=0.1),"
            " Adam(lr=0.001) or AdamW(lr=0.001) from harness.optim"
        )


def check_scenario(stream: Stream, strategies: Sequence[Strategy]) -> None:
    """ValueError if a strategy is not defined for the stream's scenario."""
    for part in strategies:
        if stream.scenario not in part.scenarios:
            why = f", because {part.why}" if part.why else ""
            known = ", ".join(part.scenarios)
            raise ValueError(f"scenario={stream.scenario}: {part.name} is defined for {known} only{why}")


def check_boundaries(stream: Stream, strategies: Sequence[Strategy], optimizer: Optimizer) -> None:
    """ValueError if boundaries are hidden and a strategy, the scenario or the optimizer depends on them."""
    if stream.announced:
        return
    needs = [part.name for part in strategies if part.needs_boundaries]
    if needs:
        raise ValueError(
            f"boundaries=hidden: {needs[0]} acts at task boundaries, and would not be told of them;"
            " use boundaries=announced"
        )
    if stream.scenario == "task":
        raise ValueError("boundaries=hidden: scenario=task reveals each example's task; use scenario=domain or class")
    if stream.scenario == "class" and stream.classes == "seen":
        raise ValueError("boundaries=hidden: classes=seen adds a task's classes at its boundary; use classes=all")
    if optimizer.reset_each_task:
        raise ValueError("boundaries=hidden: optimizer.reset=true acts at task boundaries; use optimizer.reset=false")
    if optimizer.schedule != "constant" and (optimizer.scope == "task" or optimizer.schedule == "task"):
        raise ValueError(
            f"boundaries=hidden: optimizer.schedule={optimizer.schedule} restarts at each task; "
            "use schedule=constant or scope=stream"
        )


def fresh_accuracy(accuracy: Tensor) -> Tensor:
    """Accuracy on each task just after training on it: [S, T], from a run of strategy=reset."""
    return accuracy[:, 1:].diagonal(dim1=1, dim2=2)
