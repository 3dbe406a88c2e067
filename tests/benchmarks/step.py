"""Cost of a training step against hand-written PyTorch that does the same work, one net at a time.

    python tests/benchmarks/step.py [--rounds 15] [--steps 100] [--threads 1 [--cpu-time]]

All contenders take turns in one process; every ratio is a median over the rounds, of times that stand beside each
other. Ours is the whole loop as a run has it: order, batches, strategy, optimizer, and the recorder's share of a step.
What a strategy does at a task's end is not a step. Absolute times are one machine's and mean little.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness import loop, rng, tree
from harness.learner import Budget, Learner
from harness.models.mlp import MLP
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

Run = Callable[[int], float]  # trains so many steps; seconds
clock = time.perf_counter
LR, CAPACITY, STRENGTH, RHO = 0.01, 500, 1.0, 0.05
DECAY, RATE, MATURITY = 0.99, 1e-3, 100


@dataclass(frozen=True)
class Case:
    """A net and a batch size."""

    sizes: tuple[int, ...]
    batch: int

    def __str__(self) -> str:
        return f"{'-'.join(map(str, self.sizes))} batch {self.batch}"


SMALL, MIDDLE, LARGE = Case((64, 100, 100, 10), 32), Case((784, 100, 100, 10), 128), Case((784, 400, 400, 10), 128)


def samples(case: Case, rows: int) -> tuple[Tensor, Tensor]:
    key = rng.keys([0], "benchmark")
    return rng.normal(key, rows, case.sizes[0])[0], rng.integers(key, case.sizes[-1], rows)[0]


# --- by hand ----------------------------------------------------------------------------------------


class Bare:
    """One net, trained as one would write it down for this method and nothing else."""

    def __init__(self, case: Case, rows: int) -> None:
        self.x, self.y = samples(case, rows)
        self.batch, self.position = case.batch, rows
        self.linear = [nn.Linear(a, b) for a, b in zip(case.sizes, case.sizes[1:])]
        modules: list[nn.Module] = []
        for layer in self.linear:
            modules += [layer, nn.ReLU()]
        self.net = nn.Sequential(*modules[:-1])
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=LR)
        self.prepare()

    def prepare(self) -> None: ...

    def fresh(self) -> tuple[Tensor, Tensor]:
        """The next batch; a new order for every pass."""
        if self.position + self.batch > len(self.x):
            self.order, self.position = torch.randperm(len(self.x)), 0
        index = self.order[self.position : self.position + self.batch]
        self.position += self.batch
        return self.x[index], self.y[index]

    def step(self) -> None:
        x, y = self.fresh()
        self.optimizer.zero_grad()
        F.cross_entropy(self.net(x), y).backward()
        self.optimizer.step()

    def __call__(self, steps: int) -> float:
        began = clock()
        for _ in range(steps):
            self.step()
        return clock() - began


class BareEWC(Bare):
    def prepare(self) -> None:
        self.parameters = list(self.net.parameters())
        self.anchor = [p.detach().clone() for p in self.parameters]
        self.fisher = [torch.rand_like(p) for p in self.parameters]

    def step(self) -> None:
        x, y = self.fresh()
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.net(x), y)
        penalty = sum((f * (p - a) ** 2).sum() for p, a, f in zip(self.parameters, self.anchor, self.fisher))
        (loss + STRENGTH / 2 * penalty).backward()
        self.optimizer.step()


class BareReplay(Bare):
    """Reservoir, as many replayed rows as fresh ones, each half with its own mean."""

    def prepare(self) -> None:
        self.seen = len(self.x)
        self.mx, self.my = self.x[:CAPACITY].clone(), self.y[:CAPACITY].clone()

    def step(self) -> None:
        x, y = self.fresh()
        held = torch.randperm(len(self.mx))[: self.batch]
        self.optimizer.zero_grad()
        z = self.net(torch.cat([x, self.mx[held]]))
        loss = F.cross_entropy(z[: len(x)], y) + F.cross_entropy(z[len(x) :], self.my[held])
        loss.backward()
        self.optimizer.step()
        slot = (torch.rand(len(x)) * torch.arange(self.seen + 1, self.seen + len(x) + 1)).long()
        self.seen += len(x)
        keep = slot < len(self.mx)
        self.mx[slot[keep]], self.my[slot[keep]] = x[keep], y[keep]


class BareCBP(Bare):
    def prepare(self) -> None:
        hidden = self.linear[:-1]
        self.utility = [torch.zeros(layer.out_features) for layer in hidden]
        self.age = [torch.zeros(layer.out_features) for layer in hidden]
        self.due = [0.0 for _ in hidden]

    def step(self) -> None:
        x, y = self.fresh()
        self.optimizer.zero_grad()
        acts = []
        for layer in self.linear[:-1]:
            x = torch.relu(layer(x))
            acts.append(x)
        F.cross_entropy(self.linear[-1](x), y).backward()
        self.optimizer.step()
        with torch.no_grad():
            for i, act in enumerate(acts):
                self.replace(i, act)

    def replace(self, i: int, act: Tensor) -> None:
        own, reader, utility, age = self.linear[i], self.linear[i + 1], self.utility[i], self.age[i]
        age += 1
        utility.mul_(DECAY).add_(act.abs().mean(0) * reader.weight.abs().sum(0), alpha=1 - DECAY)
        mature = age > MATURITY
        self.due[i] += RATE * float(mature.sum())
        while self.due[i] >= 1:
            self.due[i] -= 1
            unit = int(torch.where(mature, utility / (1 - DECAY**age), torch.inf).argmin())
            bound = own.in_features**-0.5
            own.weight[unit].uniform_(-bound, bound)
            own.bias[unit] = 0
            reader.weight[:, unit] = 0
            utility[unit] = age[unit] = 0
            mature[unit] = False


class BareSAM(Bare):
    def prepare(self) -> None:
        self.parameters = list(self.net.parameters())

    def step(self) -> None:
        x, y = self.fresh()
        self.optimizer.zero_grad()
        F.cross_entropy(self.net(x), y).backward()
        with torch.no_grad():
            grads = [p.grad for p in self.parameters if p.grad is not None]
            length = torch.stack([g.square().sum() for g in grads]).sum().sqrt()
            uphill = [RHO / length * g for g in grads]
            for p, e in zip(self.parameters, uphill):
                p.add_(e)
        self.optimizer.zero_grad()
        F.cross_entropy(self.net(x), y).backward()
        with torch.no_grad():
            for p, e in zip(self.parameters, uphill):
                p.sub_(e)
        self.optimizer.step()


# --- ours -------------------------------------------------------------------------------------------


class DoublePass(Strategy):
    """The gradient at a point uphill (Foret et al. 2021): what a sharpness-aware step costs at least."""

    def grad(self, learner: Learner, inner: GradFn) -> GradFn:
        def uphill(params: Params, batch: Batch) -> tuple[Params, Aux]:
            g, aux = inner(params, batch)
            return inner(tree.add(params, g, RHO / tree.norm(g)), batch)[0], aux

        return uphill


class Stopwatch(Recorder):
    """The recorder of a real run, less what it does at a boundary."""

    def start(self, task: Task) -> None:
        super().start(task)
        self.began = clock()

    def step(self, step: Step, aux: Aux) -> None:
        super().step(step, aux)
        if self.learner.steps == self.learner.planned:
            self.online.flush()
            self.seconds = clock() - self.began

    def end(self, task: Task) -> None: ...


class Ours:
    """The harness with `seeds` nets at once."""

    def __init__(self, case: Case, rows: int, seeds: int = 1, strategy: Strategy | None = None) -> None:
        x, y = samples(case, rows)
        every = torch.arange(rows).expand(seeds, -1)
        zero = torch.zeros(seeds, 1, dtype=torch.int64)
        source = Rows(x, every, y.expand(seeds, -1), zero, torch.full((seeds,), rows))
        task = Task(0, source, source, source, rows)
        stream = Stream("benchmark", 1, "domain", (task,), x.shape[1:], case.sizes[-1], tuple(range(seeds)), "")
        model = MLP(stream.shape, stream.outputs, case.sizes[1:-1])
        self.batch, self.chain = case.batch, Chain([strategy] if strategy else [])
        self.learner = Learner(model, stream, SGD(lr=LR), Budget(batch_size=case.batch))
        self.watch = Stopwatch(self.learner, self.chain, {}, Evaluation(), InMemory())
        loop.prepare(self.learner, self.chain)

    def __call__(self, steps: int) -> float:
        self.learner.budget = Budget(steps=steps, batch_size=self.batch)
        loop.train(self.learner, self.chain, self.watch)
        return self.watch.seconds


class Penalised(EWC):
    """EWC with its springs taut from the start; estimating the Fisher information is not a step."""

    def setup(self, learner: Learner) -> None:
        super().setup(learner)
        self.weight = {k: torch.rand_like(v) for k, v in self.weight.items()}

    def end(self, learner: Learner, task: Task) -> None: ...


def methods(batch: int) -> dict[str, tuple[type[Bare], Callable[[], Strategy]]]:
    """Each method by hand and in the harness, with the same settings."""
    return {
        "ewc": (
            BareEWC,
            lambda: Penalised(strength=STRENGTH, mode="separate", gamma=1.0, fisher="exact", samples=None),
        ),
        "replay": (
            BareReplay,
            lambda: Replay(
                capacity=CAPACITY,
                batch_size=batch,
                policy="reservoir",
                weighting="sum",
                fill="step",
                replacement=False,
            ),
        ),
        "cbp": (
            BareCBP,
            lambda: CBP(rate=RATE, maturity=MATURITY, decay=DECAY, utility="contribution", bias_transfer=False),
        ),
        "double pass": (BareSAM, DoublePass),
    }


# --- the table --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """One row of the table: microseconds a step and net, and the ratio that has a budget."""

    case: str
    what: str
    ours: float
    by_hand: float
    ratio: float
    budget: float


def compare(case: str, bare: Run, ours: dict[str, tuple[Run, int, float]], steps: int, rounds: int) -> list[Line]:
    """Contenders name -> (run, nets it trains, budget), in turns with `bare`."""
    times: dict[str, list[float]] = {name: [] for name in ours}
    reference: list[float] = []
    for run in (bare, *(run for run, _, _ in ours.values())):
        run(min(steps, 2 * MATURITY))  # caches, memories and maturity
    for i in range(rounds):
        # each ratio is of neighbours in time, and both orders take turns
        for name, (run, nets, _) in ours.items():
            pair = [run, bare] if i % 2 else [bare, run]
            taken = {id(r): r(steps) for r in pair}
            times[name].append(taken[id(run)] / nets)
            reference.append(taken[id(bare)])
    lines = []
    for k, (name, (_, _, budget)) in enumerate(ours.items()):
        beside = reference[k :: len(ours)]
        ratio = median(a / b for a, b in zip(times[name], beside))
        a, b = (1e6 * median(v) / steps for v in (times[name], beside))
        lines.append(Line(case, name, a, b, ratio, budget))
    return lines


def main(arguments: Sequence[str] | None = None) -> list[Line]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="how often each contender has its turn")
    parser.add_argument("--steps", type=int, default=100, help="steps of a turn")
    parser.add_argument("--rows", type=int, default=12_000, help="training rows")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: as torch finds them")
    parser.add_argument("--cpu-time", action="store_true", help="time on the CPU: for a busy machine, with --threads 1")
    options = parser.parse_args(arguments)
    global clock
    clock = time.process_time if options.cpu_time else time.perf_counter
    if options.threads:
        torch.set_num_threads(options.threads)
    turn = {"steps": options.steps, "rounds": options.rounds}
    rows = options.rows
    torch.manual_seed(0)
    found: list[Line] = []
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, medians of {options.rounds} rounds")
    print(f"{'net':<28}{'what':<14}{'ours µs':>10}{'by hand µs':>12}{'ratio':>8}{'at most':>9}")

    def show(lines: list[Line]) -> None:
        for line in lines:
            verdict = "" if line.ratio <= line.budget else "  OVER"
            print(
                f"{line.case:<28}{line.what:<14}{line.ours:>10.1f}{line.by_hand:>12.1f}"
                f"{line.ratio:>8.2f}{line.budget:>9.2f}{verdict}",
                flush=True,
            )
        found.extend(lines)

    for case, alone, shared in ((SMALL, None, 0.4), (MIDDLE, 1.25, 1.1), (LARGE, 1.15, 1.1)):
        runs: dict[str, tuple[Run, int, float]] = {}
        if alone:
            runs["naive"] = Ours(case, rows), 1, alone
        runs["naive, of 10"] = Ours(case, rows, seeds=10), 10, shared
        show(compare(str(case), Bare(case, rows), runs, **turn))
    for name, (bare, part) in methods(MIDDLE.batch).items():
        run = Ours(MIDDLE, rows, strategy=part())
        show(compare(str(MIDDLE), bare(MIDDLE, rows), {name: (run, 1, 1.3)}, **turn))
    return found


if __name__ == "__main__":
    main()
