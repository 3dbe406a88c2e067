"""Training plus evaluation after each task, against Avalanche 0.6 on split Fashion-MNIST.

    python -m tests.benchmarks versus_avalanche [--rounds 3] [--threads 1 [--cpu-time]]

Five class-incremental tasks, one epoch, batch 128, SGD, the same MLP, one seed. Avalanche runs its own SplitFMNIST
(--feed images: each sample an image that its transforms turn into a tensor) or, which suits it better, a benchmark of
tensors that are normalised already (--feed tensors); with large evaluation batches and no logger in both. Its benchmark
object, our stream and both libraries' imports are made beforehand. The two take turns, ratios are medians over rounds.
Final accuracies stand beside the times to show that the same problem was solved: equal for naive, close for replay.
EWC's is another quantity in either (its Fisher is of batch means, ours of each sample, exact over the labels).
"""

from __future__ import annotations

import itertools
import struct
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from harness.learner import Budget
from harness.models.mlp import MLP
from harness.optim import SGD
from harness.record.evaluation import Evaluation
from harness.rows import Rows
from harness.run import run
from harness.strategy import Strategy
from harness.types import Stream, Task
from strategies.ewc import EWC
from strategies.replay import Replay
from tasks.datasets import Dataset, load
from tasks.split import split
from tests.benchmarks import timing
from tests.benchmarks.timing import clock

LR, BATCH, CAPACITY, STRENGTH = 0.05, 128, 500, 1.0
TASKS = 5
Contender = Callable[[], float]  # trains and evaluates from scratch; mean accuracy over tasks at the end
AT_LEAST = {("naive", 100): 12.0, ("naive", 400): 6.0}  # how many times faster


class OnlySeen(Evaluation):
    """Tests the tasks so far, as the other contender does, and none ahead."""

    def measured(self, now: int, total: int, ahead: bool) -> range:
        return range(now + 1)


def ours(stream: Stream, width: int, make: Callable[[], list[Strategy]]) -> Contender:
    def train() -> float:
        result = run(
            stream,
            make(),
            model=MLP(stream.shape, stream.outputs, (width, width)),
            optimizer=SGD(lr=LR),
            budget=Budget(epochs=1, batch_size=BATCH),
            evaluation=OnlySeen(),
        )
        return float(result.accuracy[0, -1].mean())

    return train


def tensors(stream: Stream) -> Any:
    """Avalanche's benchmark over our own rows."""
    from avalanche.benchmarks import tensors_benchmark

    def rows(part: str) -> list[tuple[Any, Any]]:
        sources = [getattr(task, part) for task in stream.tasks]
        taken = [source.take(torch.arange(int(source.size[0]))[None]) for source in sources]
        return [(x[0], y[0]) for x, y, _ in taken]

    return tensors_benchmark(
        train_tensors=rows("train"), test_tensors=rows("test"), task_labels=[0] * len(stream.tasks)
    )


def classes(task: Task, data: Dataset) -> list[int]:
    assert isinstance(task.train, Rows)
    found: list[int] = data.y[task.train.index[0]].unique().tolist()
    return found


def images(stream: Stream, data: Dataset, folder: Path) -> Any:
    """Avalanche's SplitFMNIST with our order of classes, over files that torchvision finds in `folder`."""
    from avalanche.benchmarks import SplitFMNIST

    raw = folder / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for part, index in (("train", data.train), ("t10k", data.test)):
        pixels = (data.x[index] * 0.3530 + 0.2860).mul(255).round().to(torch.uint8).view(-1, 28, 28)
        for name, values in (("images-idx3", pixels), ("labels-idx1", data.y[index].to(torch.uint8))):
            head = struct.pack(f">{1 + values.dim()}I", 0x0800 + values.dim(), *values.shape)
            (raw / f"{part}-{name}-ubyte").write_bytes(head + values.numpy().tobytes())
    order = [c for task in stream.tasks for c in classes(task, data)]
    return SplitFMNIST(len(stream.tasks), fixed_class_order=order, dataset_root=folder)


def theirs(benchmark: Any, outputs: int, width: int, name: str) -> Contender:
    from avalanche.evaluation.metrics import accuracy_metrics
    from avalanche.training.plugins import EvaluationPlugin, ReplayPlugin
    from avalanche.training.supervised import EWC, Naive

    def train() -> float:
        features = benchmark.train_stream[0].dataset[0][0].numel()
        model = nn.Sequential(
            nn.Flatten(), nn.Linear(features, width), nn.ReLU(),
            nn.Linear(width, width), nn.ReLU(), nn.Linear(width, outputs),
        )  # fmt: skip
        settings: dict[str, Any] = {
            "model": model,
            "optimizer": torch.optim.SGD(model.parameters(), lr=LR),
            "criterion": nn.CrossEntropyLoss(),
            "train_mb_size": BATCH,
            "train_epochs": 1,
            "eval_mb_size": 2048,
            "evaluator": EvaluationPlugin(accuracy_metrics(experience=True)),
        }
        if name == "ewc":
            strategy = EWC(ewc_lambda=STRENGTH, mode="separate", **settings)
        else:
            plugins = [ReplayPlugin(mem_size=CAPACITY, batch_size_mem=BATCH)] if name == "replay" else []
            strategy = Naive(plugins=plugins, **settings)
        for i, experience in enumerate(benchmark.train_stream):
            strategy.train(experience)
            found = strategy.eval(benchmark.test_stream[: i + 1])
        scores = [v for k, v in found.items() if k.startswith("Top1_Acc_Exp")]
        assert len(scores) == TASKS
        return float(sum(scores)) / len(scores)

    return train


@dataclass(frozen=True)
class Line:
    """One row of the table: seconds, their ratio and mean accuracy over tasks at the end."""

    method: str
    width: int
    ours: float
    avalanche: float
    ratio: float
    accuracy: tuple[float, float]


def methods() -> dict[str, Callable[[], list[Strategy]]]:
    return {
        "naive": lambda: [],
        "replay": lambda: [
            Replay(
                capacity=CAPACITY, batch_size=BATCH, policy="reservoir", weighting="mean", fill="end", replacement=False
            )
        ],
        "ewc": lambda: [EWC(strength=2 * STRENGTH, mode="separate", gamma=1.0, fisher="exact", samples=None)],
    }


def main(arguments: Sequence[str] | None = None) -> list[Line]:
    parser = timing.parser(__doc__, rounds=3)
    parser.add_argument("--dataset", default="fashion_mnist")
    parser.add_argument("--feed", default="images", choices=["images", "tensors"], help="images: fashion_mnist only")
    parser.add_argument("--widths", type=int, nargs="+", default=[100, 400], help="units of both hidden layers")
    parser.add_argument("--methods", nargs="+", default=list(methods()), choices=list(methods()))
    options = parser.parse_args(arguments)
    timing.begin(options)
    data = load(options.dataset, val=0.0)
    stream = split(dataset=data, seeds=[0], scenario="class", classes="all", n_tasks=TASKS, fixed=False)
    found: list[Line] = []
    print(f"{'method':<10}{'widths':>9}{'ours s':>9}{'avalanche s':>13}{'times faster':>14}{'at least':>10}", end="")
    print(f"{'accuracy, ours and theirs':>28}")
    with warnings.catch_warnings(record=True), tempfile.TemporaryDirectory() as folder:
        # Avalanche's, on newer libraries than its own; recorded, since it switches some of them back on
        warnings.simplefilter("ignore")
        benchmark = tensors(stream) if options.feed == "tensors" else images(stream, data, Path(folder))
        for width, name in itertools.product(options.widths, options.methods):
            contenders = ours(stream, width, methods()[name]), theirs(benchmark, stream.outputs, width, name)
            line = race(name, width, *contenders, options.rounds)
            found.append(line)
            least = AT_LEAST.get((name, width), float("nan"))
            print(
                f"{name:<10}{f'{width}-{width}':>9}{line.ours:>9.2f}{line.avalanche:>13.2f}{line.ratio:>14.1f}"
                f"{least:>10.0f}{'{:.3f}  {:.3f}'.format(*line.accuracy):>28}{'  UNDER' if line.ratio < least else ''}",
                flush=True,
            )
    return found


def race(name: str, width: int, a: Contender, b: Contender, rounds: int) -> Line:
    """Both in turns, after one run of ours to warm up (Avalanche's is too long for it to matter)."""
    a()
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        accuracy = []
        for contender, times in zip((a, b), seconds):
            began = clock()
            accuracy.append(contender())
            times.append(clock() - began)
    ratio = median(y / x for x, y in zip(*seconds))
    return Line(name, width, median(seconds[0]), median(seconds[1]), ratio, (accuracy[0], accuracy[1]))


if __name__ == "__main__":
    main()
