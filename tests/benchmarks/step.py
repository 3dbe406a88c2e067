"""A training step: eager and compiled, for several numbers of seeds, beside loops written by hand.

    python -m tests.benchmarks step [--nets 64-100-100 cnn] [--seeds 1 10] [--methods ewc] [--threads 1 [--cpu-time]]

Of each net, the contenders are a plain PyTorch loop ("by hand"), the same loop with its whole step compiled ("by hand,
compiled": gathering the rows, forward, backward and SGD are one graph, random draws are made outside), vmap of
functional_call, and ours, eager and compiled, for each number of seeds. Of each method, on 784-100-100 with one seed:
the loop by hand and ours, both eager and compiled. Numbers are microseconds for one step of one net.

All contenders take turns in one process; every ratio is a median over the rounds, of times that stand beside each
other. Ours is the whole loop as a run has it: order, batches, strategy, optimizer, and the recorder's share of a step.
What a strategy does at a task's end is not a step, and compiling is not part of any time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import isnan, nan
from statistics import median

import torch

from harness import loop, tree
from harness.compiling.step import CompiledStep, tracing
from harness.learner import Budget, Learner
from harness.optim import SGD
from harness.record.evaluation import Evaluation
from harness.record.recorder import Recorder
from harness.record.sinks import InMemory
from harness.rows import Rows
from harness.strategy import Chain, Strategy
from harness.types import Aux, Batch, GradFn, Params, Step, Stream, Task
from strategies.cbp import CBP
from strategies.ewc import EWC
from strategies.replay import Replay
from tests.benchmarks import by_hand, timing
from tests.benchmarks.by_hand import CASES, MATURITY, MIDDLE, Case
from tests.benchmarks.timing import clock

Run = Callable[[int], float]  # trains so many steps; seconds
TURNS = 64  # before ours begins anew


# --- ours -------------------------------------------------------------------------------------------


class DoublePass(Strategy):
    """The gradient at a point uphill (Foret et al. 2021): what a sharpness-aware step costs at least."""

    def grad(self, learner: Learner, inner: GradFn) -> GradFn:
        def uphill(params: Params, batch: Batch) -> tuple[Params, Aux]:
            g, aux = inner(params, batch)
            return inner(tree.add(params, g, by_hand.RHO / tree.norm(g)), batch)[0], aux

        return uphill


class Stopwatch(Recorder):
    """The recorder of a real run, less what it does at a boundary. A task's first step, never compiled, has no time."""

    def start(self, task: Task) -> None:
        super().start(task)
        self.entered = clock()

    def step(self, step: Step, aux: Aux) -> None:
        super().step(step, aux)
        if self.learner.steps == self.learner.planned:
            self.online.flush()
            self.seconds = (clock() - self.entered) * self.learner.planned / max(1, self.learner.planned - 1)
        elif self.learner.steps == 1:
            self.entered = clock()

    def end(self, task: Task) -> None: ...


class Ours:
    """The harness with `seeds` nets at once; each turn is a task of a stream whose tasks are the same."""

    def __init__(
        self, case: Case, rows: int, seeds: int = 1, strategy: Strategy | None = None, compiled: bool = False
    ) -> None:
        x, y = case.samples(rows)
        every = torch.arange(len(x)).expand(seeds, -1)
        zero = torch.zeros(seeds, 1, dtype=torch.int64)
        source = Rows(x, every, y.expand(seeds, -1), zero, torch.full((seeds,), len(x)))
        tasks = tuple(Task(t, source, source, source, len(x)) for t in range(TURNS))
        stream = Stream("benchmark", 1, "domain", tasks, case.shape, by_hand.OUTPUTS, tuple(range(seeds)), "")
        self.batch, self.chain = case.batch, Chain([strategy] if strategy else [])
        self.learner = Learner(case.ours(), stream, SGD(lr=by_hand.LR), Budget(batch_size=case.batch))
        if compiled:
            self.learner.compiled = CompiledStep(self.learner, print)
        self.watch = Stopwatch(self.learner, self.chain, {}, Evaluation(), InMemory())
        loop.prepare(self.learner, self.chain)
        self.turns: Iterator[None] = iter(())

    def __call__(self, steps: int) -> float:
        self.learner.budget = Budget(steps=steps, batch_size=self.batch)
        with tracing():
            if next(self.turns, self) is self:
                self.turns = loop.by_task(self.learner, self.chain, self.watch)
                next(self.turns)
        return self.watch.seconds


class Penalised(EWC):
    """EWC with its springs taut from the start; estimating the Fisher information is not a step."""

    def setup(self, learner: Learner) -> None:
        super().setup(learner)
        self.weight = {k: torch.rand_like(v) for k, v in self.weight.items()}

    def end(self, learner: Learner, task: Task) -> None: ...


@dataclass(frozen=True)
class Method:
    """A method by hand and in the harness, with the same settings."""

    eager: type[by_hand.Bare]
    compiled: type[by_hand.Compiled] | None
    ours: Callable[[], Strategy]


METHODS = {
    "ewc": Method(
        by_hand.BareEWC,
        by_hand.CompiledEWC,
        lambda: Penalised(strength=by_hand.STRENGTH, mode="separate", gamma=1.0, fisher="exact", samples=None),
    ),
    "replay": Method(
        by_hand.BareReplay,
        by_hand.CompiledReplay,
        lambda: Replay(
            capacity=by_hand.CAPACITY,
            batch_size=MIDDLE.batch,
            policy="reservoir",
            weighting="sum",
            fill="step",
            replacement=False,
        ),
    ),
    "cbp": Method(
        by_hand.BareCBP,
        None,
        lambda: CBP(
            rate=by_hand.RATE, maturity=MATURITY, decay=by_hand.DECAY, utility="contribution", bias_transfer=False
        ),
    ),
    "sam": Method(by_hand.BareSAM, by_hand.CompiledSAM, DoublePass),
}


# --- the table --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Contender:
    """`run` trains `seeds` nets; its time for each is compared with that of `beside` (one net), and with a budget."""

    what: str
    run: Run
    beside: Run
    seeds: int = 1
    budget: float = nan


@dataclass(frozen=True)
class Line:
    """One row of the table: microseconds for a step of one net, and their ratio, which may have a budget."""

    case: str
    what: str
    seeds: int
    time: float
    beside: float
    ratio: float
    budget: float


OURS, COMPILED, HAND = "ours", "ours, compiled", "by hand, compiled"
# a net's step over that of the eager loop by hand
BUDGETS = {
    ("64-100-100", OURS, 10): 0.40,
    ("784-100-100", OURS, 1): 1.25,
    ("784-100-100", OURS, 10): 1.10,
    ("784-400-400", OURS, 1): 1.15,
    ("784-400-400", OURS, 10): 1.10,
    ("64-100-100", COMPILED, 1): 0.40,
    ("64-100-100", COMPILED, 10): 0.20,
    ("784-100-100", COMPILED, 1): 0.75,
    ("784-400-400", COMPILED, 1): 0.85,
}
METHOD, COMPILED_METHOD = 1.3, 1.25  # over the same method by hand, eager and compiled
FEW, MANY = (1, 5, 10), (1, 5, 10, 30)


def compare(case: str, contenders: Sequence[Contender], steps: int, rounds: int) -> list[Line]:
    """Each contender and the run beside it, in turns."""
    runs = {id(run): run for c in contenders for run in (c.beside, c.run)}
    for run in runs.values():
        run(min(steps, 2 * MATURITY))  # caches, memories, maturity and compiling
    times: list[list[tuple[float, float]]] = [[] for _ in contenders]
    for i in range(rounds):
        # each ratio is of neighbours in time, and both orders take turns
        for found, c in zip(times, contenders):
            taken = {id(run): run(steps) for run in ([c.beside, c.run] if i % 2 else [c.run, c.beside])}
            found.append((taken[id(c.run)] / c.seeds, taken[id(c.beside)]))
    lines = []
    for found, c in zip(times, contenders):
        own, other = (1e6 * median(values) / steps for values in zip(*found))
        lines.append(Line(case, c.what, c.seeds, own, other, median(a / b for a, b in found), c.budget))
    return lines


def of_net(case: Case, rows: int, seeds: Sequence[int], compiles: bool) -> Iterator[Contender]:
    """Everything that trains this net, beside the eager loop by hand."""
    bare = by_hand.Bare(case, rows)
    if compiles:
        yield Contender(HAND, by_hand.Compiled(case, rows), bare)
    for s in seeds:
        yield Contender("vmap", by_hand.Vectorised(case, rows, s), bare, s)
    for what in (OURS, COMPILED) if compiles else (OURS,):
        for s in seeds:
            run = Ours(case, rows, s, compiled=what == COMPILED)
            yield Contender(what, run, bare, s, BUDGETS.get((case.name, what, s), nan))


def of_method(name: str, rows: int, compiles: bool) -> Iterator[Contender]:
    """A method, eager beside the eager loop by hand, compiled beside the compiled one."""
    method = METHODS[name]
    bare = method.eager(MIDDLE, rows)
    yield Contender(f"{name}, ours", Ours(MIDDLE, rows, strategy=method.ours()), bare, budget=METHOD)
    if compiles and method.compiled:
        hand = method.compiled(MIDDLE, rows)
        yield Contender(f"{name}, by hand, compiled", hand, bare)
        run = Ours(MIDDLE, rows, strategy=method.ours(), compiled=True)
        yield Contender(f"{name}, ours, compiled", run, hand, budget=COMPILED_METHOD)


def shown(line: Line) -> str:
    budget = "" if isnan(line.budget) else f"{line.budget:>9.2f}" + ("" if line.ratio <= line.budget else "  OVER")
    times = f"{line.time:>12.1f}{line.beside:>12.1f}{line.ratio:>8.2f}"
    return f"{line.case:<24}{line.what:<26}{line.seeds:>6}{times}{budget}"


def main(arguments: Sequence[str] | None = None) -> list[Line]:
    parser = timing.parser(__doc__, rounds=15)
    parser.add_argument("--nets", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", help="at once; by default 1 5 10, and 30 for widths of 100")
    parser.add_argument("--eager", action="store_true", help="compile nothing")
    parser.add_argument("--steps", type=int, default=100, help="of a turn of an MLP; fewer of the cnn and resnet18")
    parser.add_argument("--rows", type=int, default=12_000, help="training rows; fewer of the cnn and resnet18")
    options = parser.parse_args(arguments)
    timing.begin(options)
    print(f"{'net':<24}{'what':<26}{'seeds':>6}{'µs a net':>12}{'beside µs':>12}{'ratio':>8}{'at most':>9}")
    found: list[Line] = []
    for name in options.nets:
        case = CASES[name]
        seeds = options.seeds or (MANY if case in (by_hand.SMALL, MIDDLE) else FEW)
        contenders = [*of_net(case, options.rows, seeds, not options.eager)]
        found += _table(str(case), contenders, max(2, options.steps // case.weight), options.rounds)
    for name in options.methods:
        contenders = [*of_method(name, options.rows, not options.eager)]
        found += _table(str(MIDDLE), contenders, options.steps, options.rounds)
    return found


def _table(case: str, contenders: Sequence[Contender], steps: int, rounds: int) -> list[Line]:
    lines = compare(case, contenders, steps, rounds)
    for line in lines:
        print(shown(line), flush=True)
    torch._dynamo.reset()  # it compiles a function only a few times
    return lines


if __name__ == "__main__":
    main()
