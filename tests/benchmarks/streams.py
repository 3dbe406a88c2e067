"""Updates a second on the long streams, all seeds together, beside a bare PyTorch loop that trains one net.

    python -m tests.benchmarks streams [--rounds 15] [--steps 1000] [--threads 1 [--cpu-time]]

Slowly-changing regression at the published settings (20-5-1, SGD, batch 1), and online permuted inputs of 784 values
(784-100-100-10, SGD, batch 1 and 16). Ours is the whole loop as a run has it, with order, permutation and recorder; the
bare loop has its rows permuted and in order beforehand. Contenders take turns in one process, and every ratio is a
median over the rounds, of times that stand beside each other: time for one net's update over the bare loop's.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from harness import loop, rng
from harness.learner import Budget, Learner
from harness.models.mlp import MLP
from harness.optim import SGD
from harness.record.evaluation import Evaluation
from harness.record.sinks import InMemory
from harness.strategy import Chain
from harness.types import Stream
from tasks.datasets import Dataset
from tasks.permuted import permuted
from tasks.slowly_changing_regression import slowly_changing_regression
from tests.benchmarks import timing
from tests.benchmarks.step import Contender, Line, Stopwatch, compare
from tests.benchmarks.timing import clock

LR = 0.01
Make = Callable[[tuple[int, ...], int], Stream]


class Bare:
    """One net on the rows of the stream's first task, which are laid out beforehand."""

    def __init__(self, stream: Stream, widths: Sequence[int], batch: int) -> None:
        source = stream.tasks[0].train
        x, y, _ = source.take(torch.arange(int(source.size[0]))[None])
        self.x, self.y, self.batch, self.at = x[0].flatten(1), y[0], batch, 0
        sizes = [self.x.shape[1], *widths, stream.outputs]
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise(sizes):
            layers += [nn.Linear(a, b), nn.ReLU()]
        self.net = nn.Sequential(*layers[:-1])
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=LR)
        self.loss = F.mse_loss if stream.loss == "mse" else F.cross_entropy

    def __call__(self, steps: int) -> float:
        began = clock()
        for _ in range(steps):
            if self.at + self.batch > len(self.x):
                self.at = 0
            rows = slice(self.at, self.at + self.batch)
            self.optimizer.zero_grad()
            self.loss(self.net(self.x[rows]), self.y[rows]).backward()
            self.optimizer.step()
            self.at += self.batch
        return clock() - began


class Ours:
    """The harness on all seeds of a stream."""

    def __init__(self, stream: Stream, widths: Sequence[int], batch: int) -> None:
        self.batch, self.chain = batch, Chain([])
        model = MLP(stream.shape, stream.outputs, tuple(widths))
        self.learner = Learner(model, stream, SGD(lr=LR), Budget(batch_size=batch))
        self.watch = Stopwatch(self.learner, self.chain, {}, Evaluation(), InMemory())
        loop.prepare(self.learner, self.chain)

    def __call__(self, steps: int) -> float:
        self.learner.budget = Budget(steps=steps, batch_size=self.batch)
        loop.train(self.learner, self.chain, self.watch)
        return self.watch.seconds


def regression(seeds: tuple[int, ...], rows: int) -> Stream:
    return slowly_changing_regression(seeds=seeds, n_tasks=1, fixed=False, rows=rows)


def online(seeds: tuple[int, ...], rows: int) -> Stream:
    n = rows + 20
    x = rng.normal(rng.keys([0], "benchmark"), n, 1, 28, 28)[0]
    parts = torch.arange(n - 20), torch.arange(n - 20, n - 10), torch.arange(n - 10, n)
    noise = Dataset("noise", x, torch.arange(n) % 10, *parts, 10, "")
    return permuted(dataset=noise, seeds=seeds, n_tasks=1, fixed=False)


def main(arguments: Sequence[str] | None = None) -> list[Line]:
    parser = timing.parser(__doc__, rounds=15)
    parser.add_argument("--steps", type=int, default=1000, help="steps of a turn")
    parser.add_argument("--rows", type=int, default=10_000, help="training rows of the task")
    options = parser.parse_args(arguments)
    timing.begin(options)
    print(f"{'stream':<32}{'seeds':>6}{'updates/s':>12}{'bare loop':>12}{'times as many':>15}{'at least':>10}")
    found: list[Line] = []
    cases: list[tuple[str, Make, tuple[int, ...], int, dict[int, float]]] = [
        ("slowly-changing regression", regression, (5,), 1, {1: math.nan, 30: 15, 150: 50}),
        ("online permuted, batch 1", online, (100, 100), 1, {1: math.nan, 30: math.nan}),
        ("online permuted, batch 16", online, (100, 100), 16, {1: math.nan, 30: math.nan}),
    ]
    for name, make, widths, batch, least in cases:
        bare = Bare(make((0,), options.rows), widths, batch)
        contenders = [
            Contender("ours", Ours(make(tuple(range(s)), options.rows), widths, batch), bare, s, 1 / k)
            for s, k in least.items()
        ]
        for line in compare(name, contenders, options.steps, options.rounds):
            wanted = 1 / line.budget
            goal = "" if math.isnan(wanted) else f"{wanted:>10.0f}" + ("  UNDER" if 1 / line.ratio < wanted else "")
            rates = f"{1e6 / line.time:>12,.0f}{1e6 / line.beside:>12,.0f}"
            print(f"{name:<32}{line.seeds:>6}{rates}{1 / line.ratio:>15.1f}{goal}", flush=True)
            found.append(line)
    return found


if __name__ == "__main__":
    main()
