"""Training on split MNIST beside the code of van de Ven, Tuytelaars & Tolias (2022), with the same settings.

    git clone https://github.com/GMvandeVen/continual-learning && git -C continual-learning checkout e6d795a
    python -m tests.benchmarks versus_van_de_ven --repository continual-learning --data FOLDER [--threads 1]

FOLDER has torchvision's MNIST/raw. Five tasks of two classes, class scenario, all outputs competing, 784-400-400, Adam,
2,000 iterations of 128 rows a task: none is plain training, replay their experience replay (100 rows of each class in
memory, 128 replayed an iteration). Times are of training alone, with filling the memory and without loading, building
data sets or testing: theirs of `train_cl`, as their own --time measures it, ours of the whole loop with the recorder's
share of a step. Both run in this process, in turns. Theirs trains one seed after the other, so that five seeds are five
times one. MNIST's classes are uneven, and ours trains seeds together only if they have one order of classes (--fixed);
by default each has another, as in theirs. The accuracies, mean over tasks at the end, show that the same problem was
solved.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import torch

from harness import loop
from harness.groups import groups, stream_of
from harness.learner import Budget, Learner
from harness.models.mlp import MLP
from harness.optim import Adam
from harness.record.evaluation import Evaluation
from harness.record.recorder import Recorder
from harness.record.sinks import InMemory
from harness.strategy import Chain, Strategy
from harness.types import Stream, Task
from strategies.replay import Replay
from tasks.datasets import Dataset, load
from tasks.split import split
from tests.benchmarks import timing
from tests.benchmarks.timing import clock

COMMIT = "e6d795a"
TASKS, WIDTHS, BATCH, LR, PER_CLASS = 5, (400, 400), 128, 0.001, 100
METHODS = {"none": [], "replay": ["--replay=buffer", f"--budget={PER_CLASS}"]}  # their options


@dataclass(frozen=True)
class Line:
    """One row of the table: seconds of training, their ratio, and mean accuracy over tasks at the end."""

    method: str
    seeds: int
    ours: float
    theirs: float
    ratio: float
    accuracy: tuple[float, float]


class Theirs:
    """Their `main.run` with `train_cl` timed."""

    def __init__(self, repository: Path, data: Path, folder: Path, iterations: int) -> None:
        sys.path.insert(0, str(repository))
        import main

        self.main, self.folder, self.iterations = main, folder, iterations
        raw = folder / "data" / "MNIST" / "MNIST" / "raw"  # where theirs looks, unpacked: else torchvision downloads
        raw.mkdir(parents=True)
        for path in (data / "MNIST" / "raw").iterdir():
            content = path.read_bytes()
            unpacked = gzip.decompress(content) if path.suffix == ".gz" else content
            (raw / path.name.removesuffix(".gz")).write_bytes(unpacked)

    def __call__(self, method: str, seed: int) -> tuple[float, float]:
        """Seconds of training, and the accuracy at the end."""
        seconds: list[float] = []
        train = self.main.train_cl

        def timed(*args: Any, **kwargs: Any) -> None:
            began = clock()
            train(*args, **kwargs)
            seconds.append(clock() - began)

        results = self.folder / f"{method}-{seed}"
        options = [
            *("--experiment=splitMNIST", "--scenario=class", f"--contexts={TASKS}", f"--iters={self.iterations}"),
            *(f"--fc-units={WIDTHS[0]}", f"--fc-layers={len(WIDTHS) + 1}", f"--batch={BATCH}", f"--lr={LR}"),
            *("--active-classes=all", f"--seed={seed}", "--no-save", "--no-gpus", "--time", *METHODS[method]),
            *(f"--data-dir={self.folder / 'data'}", f"--results-dir={results}"),
        ]
        typed = mock.patch.object(sys, "argv", ["main.py", *options])
        with typed, mock.patch.object(self.main, "train_cl", timed), _quiet():
            self.main.run(self.main.handle_inputs())
        (accuracy,) = results.glob("acc-*.txt")
        return seconds[0], float(accuracy.read_text())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        yield


class Unmeasured(Recorder):
    """The recorder of a real run, less what it does at a boundary."""

    def end(self, task: Task) -> None:
        self.online.flush()


def ours(tasks: Stream, method: str, iterations: int) -> tuple[float, float]:
    """Seconds of training, and the accuracy at the end, mean over seeds."""
    seconds, scores = 0.0, []
    for places in groups(tasks):
        own = stream_of(tasks, places)
        learner = Learner(
            MLP(own.shape, own.outputs, WIDTHS), own, Adam(lr=LR), Budget(steps=iterations, batch_size=BATCH)
        )
        chain = Chain(parts(method, own.outputs))
        recorder = Unmeasured(learner, chain, {}, Evaluation(), InMemory())
        loop.prepare(learner, chain)
        began = clock()
        loop.train(learner, chain, recorder)
        seconds += clock() - began
        scores += [learner.evaluate(learner.net, task.test)[0] for task in own.tasks]
    return seconds, float(torch.cat(scores).mean())


def stream(data: Dataset, seeds: Sequence[int], fixed: bool) -> Stream:
    return split(dataset=data, seeds=seeds, scenario="class", classes="all", n_tasks=TASKS, fixed=fixed)


def parts(method: str, outputs: int) -> list[Strategy]:
    if method == "none":
        return []
    return [
        Replay(
            capacity=PER_CLASS * outputs,
            batch_size=BATCH,
            policy="class_balanced",
            weighting="share",
            fill="end",
            replacement=False,
        )
    ]


def main(arguments: Sequence[str] | None = None) -> list[Line]:
    parser = timing.parser(__doc__, rounds=1)
    parser.add_argument("--repository", type=Path, required=True, help=f"a clone of their repository, at {COMMIT}")
    parser.add_argument("--data", type=Path, required=True, help="the folder with MNIST/raw")
    parser.add_argument("--iterations", type=int, default=2000, help="of each task")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 5], help="that ours trains at once")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--fixed", action="store_true", help="one order of classes for all seeds of ours")
    options = parser.parse_args(arguments)
    for path in (options.repository / "main.py", options.data / "MNIST" / "raw"):
        if not path.exists():
            parser.error(f"{path}: not found")
    timing.begin(options)
    print(
        f"{'method':<10}{'seeds':>6}{'ours s':>9}{'theirs s':>10}{'times faster':>14}{'accuracy, ours and theirs':>28}"
    )
    data = load("mnist", val=0.0, normalise="unit", root=options.data)
    found: list[Line] = []
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        theirs = Theirs(options.repository.absolute(), options.data.absolute(), Path(name), options.iterations)
        for method in options.methods:
            times: dict[int, list[tuple[float, float]]] = {s: [] for s in options.seeds}
            for seed in range(1, options.rounds + 1):
                other, reached = theirs(method, seed)
                for s in options.seeds:
                    own, accuracy = ours(stream(data, range(s), options.fixed), method, options.iterations)
                    times[s].append((own, s * other))
                    scores = accuracy, reached  # of the last round
            for s in options.seeds:
                mine, other = (median(values) for values in zip(*times[s]))
                line = Line(method, s, mine, other, median(b / a for a, b in times[s]), scores)
                found.append(line)
                pair = "{:.3f}  {:.3f}".format(*line.accuracy)
                print(
                    f"{method:<10}{s:>6}{line.ours:>9.1f}{line.theirs:>10.1f}{line.ratio:>14.1f}{pair:>28}", flush=True
                )
    return found


if __name__ == "__main__":
    main()
