"""A training step as one compiled graph: forward, backward, penalties and optimizer."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from harness.learner import Learner
from harness.types import Batch, GradFn, Move, Moved, Numbers, Params
from harness.wording import first_line

GRAPHS = 8  # of one run, at most
COUNTERS = r".*\.now, .*\.steps, .*\.planned, .*\.epoch_steps"  # of a learner: numbers that change
NAMES = ("MODULE_MATCH", "CLASS_MATCH", "BUILTIN_MATCH", "CLOSURE_MATCH", "DUPLICATE_INPUT")  # of global variables
Compiler = Callable[[Any, Any], Any]  # a graph and its example inputs -> a function of the inputs


class CompiledStep:
    """`Learner.move`, compiled once for each form of a batch (torch.compile, Ansel et al. 2024).

    The first step of every task is eager, since the checks of own code run there, and so is a step whose batch has
    another form than the one before: a memory that fills would need a graph at each step. Which steps are compiled
    depends on the task alone, and every graph on its inputs alone, so a resumed run equals an uninterrupted one.

    What cannot be traced, and what needs more than GRAPHS graphs (a loss that reads a number which changes), is told to
    `warn` in one line, and the rest of the run is eager.
    """

    def __init__(self, learner: Learner, warn: Callable[[str], None], compiler: Compiler | None = None) -> None:
        self.learner, self.warn, self.compiler = learner, warn, compiler or inductor
        self.graphs, self.seconds = 0, 0.0  # compiled so far, and the time that took
        self.fallen_back = False
        self.last: Any = None
        self.numbers: Numbers = ()
        self.tensors: Numbers = ()
        how: Any = {"fullgraph": True, "dynamic": False, "recompile_limit": GRAPHS, "isolate_recompiles": True}
        how["options"] = {"guard_filter_fn": checked_again}
        self.graph: Move = torch.compile(learner.move, backend=self._counted, **how)

    def __call__(self, gradient: GradFn, params: Params, batch: Batch, numbers: Numbers) -> Moved:
        learner, form = self.learner, form_of(batch)
        known, self.last = form == self.last, form
        if self.fallen_back or not known or not learner.steps:
            return learner.move(gradient, params, batch, numbers)
        graphs, began = self.graphs, time.perf_counter()
        try:
            return self.graph(gradient, params, batch, self._as_tensors(numbers))
        except Exception as error:
            if not untraceable(error):
                raise
            self.fallen_back = True
            self.warn(f"compile: {reason(error)}; the run goes on with eager steps")
        finally:
            if self.graphs > graphs or self.fallen_back:
                self.seconds += time.perf_counter() - began
        return learner.move(gradient, params, batch, numbers)

    def _as_tensors(self, numbers: Numbers) -> Numbers:
        if numbers != self.numbers:
            self.numbers, device = numbers, self.learner.device
            self.tensors = torch.tensor(numbers, dtype=torch.float64, device=device).unbind()
        return self.tensors

    def _counted(self, graph: Any, inputs: Any) -> Any:
        made = self.compiler(graph, inputs)
        self.graphs += 1  # torch may have started again
        return made


def inductor(graph: Any, inputs: Any) -> Any:
    """Torch's own compiler: C++ on a CPU, Triton on a GPU. Its code is cached on disk between processes."""
    from torch._inductor.compile_fx import compile_fx

    return compile_fx(graph, inputs)


def checked_again(guards: Sequence[Any]) -> list[bool]:
    """Of the conditions of a graph, those that are checked at each step.

    Not checked is which modules, classes and functions the names of a module stand for: only a program that is patched
    while it runs changes that. It is a third of all conditions.
    """
    return [not (guard.is_global and guard.guard_type in NAMES) for guard in guards]


def form_of(batch: Batch) -> tuple[Any, ...]:
    """What a graph takes for granted of a batch: two of one form may share a graph."""
    mask = None if batch.mask is None else batch.mask.shape
    extra = tuple((name, value.shape if isinstance(value, Tensor) else None) for name, value in batch.extra.items())
    return batch.x.shape, mask, batch.key is None, extra


@contextmanager
def tracing() -> Iterator[None]:
    """Tell torch to trace the gradients inside a step, and what to take for an input rather than a constant.

    Its own warnings are kept back: `CompiledStep` says in a line what they say in twenty.
    """
    import torch._dynamo

    compiler: Any = torch.compiler.config
    loggers = [logging.getLogger(name) for name in ("torch._dynamo", "torch.utils.cpp_extension")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with torch._dynamo.config.patch(trace_autograd_ops=True), compiler.patch(dynamic_sources=COUNTERS):
            yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)


def untraceable(error: Exception) -> bool:
    """Whether torch could not compile: not an error of the code that was traced."""
    from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

    return isinstance(error, (TorchDynamoException, FailOnRecompileLimitHit))


def reason(error: Exception) -> str:
    """Why torch could not compile, in a line."""
    from torch._dynamo.exc import FailOnRecompileLimitHit

    if isinstance(error, FailOnRecompileLimitHit):
        return (
            f"the strategy or model needs more than {GRAPHS} graphs, because it reads numbers that change; tensors that"
            " are filled in place need one"
        )
    return f"torch cannot compile this step ({first_line(getattr(error, 'inner_exception', error))})"
