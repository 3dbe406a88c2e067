"""Agreement with Avalanche 0.6 where it is right, and its faults by name where it is not.

Importing it takes seconds and warns about newer libraries than its own, hence one file, and filters here alone.
"""

import math
import runpy
import warnings
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness import loop
from harness.fisher import diagonal
from harness.learner import Budget, Learner
from harness.models.mlp import MLP
from harness.optim import SGD
from harness.recorder import Evaluation
from harness.run import run
from harness.strategy import Chain, Strategy
from harness.types import Params, Stream
from strategies.ewc import EWC
from strategies.replay import Replay
from tasks.datasets import Dataset, load
from tasks.permuted import permuted
from tasks.split import split

LR, MOMENTUM = 0.05, 0.9


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings(record=True):  # recorded, since it switches some of its own back on
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(scope="module")
def avalanche() -> Iterator[Any]:
    state = torch.random.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import avalanche
        import avalanche.benchmarks.utils
        import avalanche.evaluation.metrics
        import avalanche.training.plugins
        import avalanche.training.supervised
    yield avalanche
    torch.random.set_rng_state(state)


@cache
def digits() -> Dataset:
    whole = load("digits", val=0.0)
    return replace(whole, train=whole.train[:300], test=whole.test[:200])


def rows(source: Any) -> tuple[Tensor, Tensor]:
    """All rows of the first seed."""
    x, y, _ = source.take(torch.arange(int(source.size[0])).expand(len(source.size), -1))
    return x[0], y[0]


def benchmark_of(avalanche: Any, stream: Stream) -> Any:
    parts = {f"{p}_tensors": [rows(getattr(t, p)) for t in stream.tasks] for p in ("train", "test")}
    return avalanche.benchmarks.tensors_benchmark(**parts, task_labels=[0] * len(stream.tasks))


def net_of(params: Params) -> nn.Sequential:
    """The first seed's MLP as a torch module."""
    net = nn.Sequential(nn.Flatten())
    for name in ("fc1", "head"):
        w, b = params[f"{name}.weight"][0], params[f"{name}.bias"][0]
        layer = nn.Linear(w.shape[1], w.shape[0])
        with torch.no_grad():
            layer.weight.copy_(w)
            layer.bias.copy_(b)
        net.extend([layer, nn.ReLU()] if name == "fc1" else [layer])
    return net


def learner_of(stream: Stream) -> Learner:
    model = MLP(stream.shape, stream.outputs, (20,))
    return Learner(model, stream, SGD(lr=LR, momentum=MOMENTUM), Budget(epochs=2, batch_size=16))


def theirs(avalanche: Any, stream: Stream, name: str, train_mb_size: int = 16, **options: Any) -> tuple[Any, nn.Module]:
    """Avalanche's strategy, from our initial weights, over our batches in our order."""
    learner = learner_of(stream)
    net = net_of(learner.params)
    batches = []
    for task in stream.tasks:
        learner.enter(task)
        learner.plan(task)
        batches.append([[b.x[0], b.y[0], b.t[0]] for b in learner.batches(task)])
    base = getattr(avalanche.training.supervised, name)

    class Fed(base):  # type: ignore[misc, valid-type]
        def make_train_dataloader(self, **_: Any) -> None:
            self.dataloader = batches[self.experience.current_experience]

    strategy = Fed(
        model=net,
        optimizer=torch.optim.SGD(net.parameters(), lr=LR, momentum=MOMENTUM),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=train_mb_size,
        evaluator=avalanche.training.plugins.EvaluationPlugin(),
        **options,
    )
    for experience in benchmark_of(avalanche, stream).train_stream:
        strategy.train(experience)
    return strategy, net


def ours(stream: Stream, *parts: Strategy) -> Learner:
    learner, chain = learner_of(stream), Chain(list(parts))
    loop.prepare(learner, chain)
    loop.train(learner, chain, loop.Blind())
    return learner


def distance(learner: Learner, net: nn.Module) -> float:
    pairs = zip(learner.params.values(), net.parameters())
    return max(float((a[0] - b.detach()).abs().max()) for a, b in pairs)


def streams() -> dict[str, Stream]:
    data: dict[str, Any] = {"dataset": digits(), "seeds": (3,), "fixed": False}
    return {
        "permuted": permuted(**data, n_tasks=3),
        "split": split(**data, n_tasks=5, scenario="class", classes="all"),
    }


@pytest.mark.parametrize("name", ["permuted", "split"])
def test_naive_on_the_same_batches_ends_at_the_same_weights(avalanche: Any, name: str) -> None:
    stream = streams()[name]
    learner = ours(stream)
    assert distance(learner, theirs(avalanche, stream, "Naive")[1]) < 1e-6
    assert distance(learner, net_of(learner_of(stream).params)) > 0.1


def test_ewc_with_fisher_batches_of_one_sample_ends_at_the_same_weights(avalanche: Any) -> None:
    """Then Avalanche's Fisher is the empirical one of each sample; its λ has no ½, hence strength 2 λ."""
    stream = streams()["permuted"]
    learner = ours(stream, EWC(strength=4.0, mode="separate", gamma=1.0, fisher="empirical", samples=None))
    _, net = theirs(avalanche, stream, "EWC", train_mb_size=1, ewc_lambda=2.0)
    assert distance(learner, net) < 2e-6
    assert distance(ours(stream), net) > 0.01


def fisher_of(avalanche: Any, net: nn.Module, stream: Stream, size: int) -> list[Tensor]:
    plugin = avalanche.training.plugins.EWCPlugin(ewc_lambda=1.0)
    data = benchmark_of(avalanche, stream).train_stream[0].dataset
    torch.manual_seed(0)  # for its loader, which shuffles
    optimizer = torch.optim.SGD(net.parameters(), lr=LR)
    found = plugin.compute_importances(net, nn.CrossEntropyLoss(), optimizer, data, torch.device("cpu"), size)
    return [v.data for v in found.values()]


def test_avalanche_s_fisher_shrinks_as_its_batches_grow_and_ours_does_not(avalanche: Any) -> None:
    """Its λ therefore means another strength at every batch size (avalanche#1224)."""
    stream = streams()["permuted"]
    learner = learner_of(stream)
    learner.enter(stream.tasks[0])
    net = net_of(learner.params)
    total = {size: float(sum(v.sum() for v in fisher_of(avalanche, net, stream, size))) for size in (1, 10, 100)}
    assert total[1] > 3 * total[10] > 6 * total[100]

    def diagonal_of(size: int) -> Params:
        return diagonal(learner, stream.tasks[0].train, "empirical", learner.random("x"), size=size)

    exact = diagonal_of(1000)
    for size in (1, 10, 100):
        for k, v in diagonal_of(size).items():
            torch.testing.assert_close(v, exact[k], rtol=1e-4, atol=1e-9)
    for v, expected in zip(exact.values(), fisher_of(avalanche, net, stream, 1)):  # batches of one: the same
        torch.testing.assert_close(v[0], expected.view_as(v[0]), rtol=1e-4, atol=1e-9)


def test_avalanche_s_synaptic_intelligence_is_naive_on_a_cpu(avalanche: Any) -> None:
    """Its anchors alias the live weights, so that every importance is 0: no reference for ours."""
    stream = streams()["permuted"]
    _, naive = theirs(avalanche, stream, "Naive")
    si, net = theirs(avalanche, stream, "SynapticIntelligence", si_lambda=1000.0)
    assert all(torch.equal(a, b) for a, b in zip(naive.parameters(), net.parameters()))
    (plugin,) = (p for p in si.plugins if type(p).__name__ == "SynapticIntelligencePlugin")
    assert all(float(v.data.abs().max()) == 0 for v in plugin.ewc_data[1].values())


def test_avalanche_drops_classes_that_do_not_divide_and_ours_refuses(avalanche: Any) -> None:
    data = digits()
    sets = {}
    for part in ("train", "test"):
        index = getattr(data, part)
        pairs = torch.utils.data.TensorDataset(data.x[index], data.y[index])
        pairs.targets = data.y[index].tolist()  # type: ignore[attr-defined]
        sets[part] = avalanche.benchmarks.utils.as_classification_dataset(pairs)
    made = avalanche.benchmarks.class_incremental_benchmark(sets, num_experiences=3, seed=0)
    kept = {c for e in made.train_stream for c in e.classes_in_this_experience}
    assert len(kept) == 9  # of 10
    with pytest.raises(ValueError, match=r"tasks\.n_tasks=3: must divide the 10 classes"):
        split(dataset=data, seeds=(0,), n_tasks=3, fixed=False)


SEEDS = tuple(range(8))
MARGIN = 0.06


@pytest.mark.slow
def test_replay_reaches_the_same_accuracy_to_within_a_margin(avalanche: Any) -> None:
    """Other draws, so statistically: two one-sided tests at 5 % put the means within 0.06 of each other.

    Both replay 32 rows of 100 from past tasks beside 32 fresh ones under one mean. Avalanche keeps as many
    rows of each task, ours a reservoir over all rows, which is the same in expectation.
    """
    data = load("digits", val=0.0)
    stream = split(dataset=data, seeds=SEEDS, scenario="class", classes="all", n_tasks=5, fixed=False)
    part = Replay(capacity=100, batch_size=32, policy="reservoir", weighting="mean", fill="end", replacement=False)
    model = MLP(stream.shape, stream.outputs, (50,))
    budget = Budget(epochs=4, batch_size=32)
    options: dict[str, Any] = {"optimizer": SGD(lr=LR), "budget": budget, "evaluation": Evaluation("seen")}
    found = run(stream, [part], model=model, **options).accuracy[:, -1].mean(1)
    naive = run(stream, [], model=model, **options).accuracy[:, -1].mean(1)
    expected = []
    for seed in SEEDS:
        alone = split(dataset=data, seeds=(seed,), scenario="class", classes="all", n_tasks=5, fixed=False)
        benchmark = benchmark_of(avalanche, alone)
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 50), nn.ReLU(), nn.Linear(50, 10))
        plugins = avalanche.training.plugins
        strategy = avalanche.training.supervised.Naive(
            model=net,
            optimizer=torch.optim.SGD(net.parameters(), lr=LR),
            criterion=nn.CrossEntropyLoss(),
            train_mb_size=32,
            train_epochs=4,
            plugins=[plugins.ReplayPlugin(mem_size=100, batch_size_mem=32)],
            evaluator=plugins.EvaluationPlugin(),
        )
        for experience in benchmark.train_stream:
            strategy.train(experience)
        with torch.no_grad():
            scores = [(net(x).argmax(1) == y).double().mean() for x, y in (rows(t.test) for t in alone.tasks)]
        expected.append(torch.stack(scores).mean())
    other = torch.stack(expected)
    gap = float(found.mean() - other.mean())
    error = math.sqrt(float(found.var() + other.var()) / len(SEEDS))
    print(f"ours {found.mean():.3f}, Avalanche {other.mean():.3f}, difference {gap:.3f} ± {error:.3f}")
    assert abs(gap) + 1.76 * error < MARGIN  # t quantile at 14 degrees of freedom
    assert found.mean() - naive.mean() > 5 * MARGIN  # so that the margin means something


def test_the_benchmark_against_avalanche_runs(avalanche: Any, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    script = Path(__file__).parent / "benchmarks" / "versus_avalanche.py"
    main = runpy.run_path(str(script))["main"]
    lines = main(
        ["--dataset", "digits", "--feed", "tensors", "--rounds", "1", "--widths", "10", "--threads", str(threads)]
    )
    assert [line.method for line in lines] == ["naive", "replay", "ewc"]
    assert all(line.ratio > 0 and 0 <= min(line.accuracy) <= max(line.accuracy) <= 1 for line in lines)
    assert capsys.readouterr().out.count("10-10") == 3
