"""Agreement with Avalanche 0.6 where it is right, and its faults by name where it is not.

Importing it takes seconds and warns about newer libraries than its own, hence one file, and filters here alone.
"""

import math
import warnings
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from scipy.optimize import nnls
from torch import Tensor, nn

from harness import loop
from harness.landscape.fisher import diagonal
from harness.learner import Budget, Learner
from harness.models.mlp import MLP
from harness.optim import SGD
from harness.record.evaluation import Evaluation
from harness.run import run
from harness.strategy import Chain, Strategy
from harness.toolbox.avalanche_bridge import benchmark
from harness.toolbox.avalanche_bridge import rows as rows_of
from harness.toolbox.projection import RIDGE
from harness.types import Params, Stream
from strategies.agem import AGEM
from strategies.avalanche import Avalanche
from strategies.cumulative import Cumulative
from strategies.er_ace import ERACE
from strategies.ewc import EWC
from strategies.gdumb import GDumb
from strategies.gem import GEM
from strategies.icarl import ICaRL
from strategies.lwf import LwF
from strategies.mas import MAS
from strategies.mir import MIR
from strategies.replay import Replay
from strategies.si import SI
from tasks.datasets import Dataset, load
from tasks.permuted import permuted
from tasks.split import split
from tests.benchmarks import versus_avalanche
from tests.observer import Blind
from tests.toy import OneStage

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
    loop.train(learner, chain, Blind())
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


def test_synaptic_intelligence_with_its_faults_mended_ends_at_the_same_weights(
    avalanche: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anchors that are copies, no cap of 0.001 on importances and none below 0: then it is ours, its λ having a ½."""
    from avalanche.training.plugins.synaptic_intelligence import SynapticIntelligencePlugin as Plugin

    update = Plugin.update_ewc_data

    def copied(model: nn.Module, target: Any, excluded: Any) -> None:
        for name, v in Plugin.allowed_parameters(model, excluded):
            target[name].data = v.detach().clone().flatten()

    def mended(net: nn.Module, kept: Any, path: Any, cap: float, *rest: Any, **options: Any) -> None:
        update(net, kept, path, math.inf, *rest, **options)
        for name, v in kept[1].items():
            v.data = v.data.clamp(min=0)
            path["cum_trajectory"][name].data = -v.data

    monkeypatch.setattr(Plugin, "extract_weights", staticmethod(copied))
    monkeypatch.setattr(Plugin, "update_ewc_data", staticmethod(mended))
    for stream in streams().values():
        learner = ours(stream, SI(strength=0.5, xi=0.1, gradient="total"))
        _, net = theirs(avalanche, stream, "SynapticIntelligence", si_lambda=1.0, eps=0.1)
        assert distance(learner, net) < 5e-6
        assert distance(ours(stream), net) > 0.01


def test_gem_ends_at_the_same_weights_with_the_same_solver(avalanche: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The memories hold whole tasks, so that nothing is drawn.

    Avalanche asks for quadprog, which is no dependency (GPL); here scipy solves its problems, with our ridge in the
    place of its 1e-3 whatever the gradients' lengths.
    """
    problems = []

    def solve_qp(P: Any, q: Any, G: Any, h: Any, solver: str) -> Any:
        P = torch.as_tensor(P) - 1e-3 * torch.eye(len(P))
        P = P + RIDGE * P.diagonal().diag()
        problems.append(len(P))
        low, L = torch.as_tensor(-h), torch.linalg.cholesky(P)  # v = low + u, u >= 0
        pull = torch.linalg.solve_triangular(L, (torch.as_tensor(q) + P @ low)[:, None], upper=False)[:, 0]
        return (low + torch.as_tensor(nnls(L.T.numpy(), -pull.numpy())[0])).numpy()

    monkeypatch.setattr("avalanche.training.plugins.gem.qpsolvers.solve_qp", solve_qp)
    stream = streams()["permuted"]
    for margin in (0.0, 0.5):
        learner = ours(stream, GEM(per_task=300, margin=margin))
        _, net = theirs(avalanche, stream, "GEM", patterns_per_exp=300, memory_strength=margin)
        assert distance(learner, net) < 2e-5
        assert distance(ours(stream), net) > 0.01
    assert set(problems) == {1, 2}


def inside(name: str, learner: Learner, **options: Any) -> tuple[Learner, Any]:
    """The learner after strategy=avalanche, and the first seed's Avalanche object."""
    part = Avalanche(name=name, options=options)
    chain = Chain([part])
    loop.prepare(learner, chain)
    loop.train(learner, chain, Blind())
    return learner, part.agents[0]


def residual(stream: Stream) -> Learner:
    """With batch norm, so that training mode shows."""
    return Learner(OneStage(stream.shape, stream.outputs), stream, SGD(lr=LR), Budget(steps=3, batch_size=16))


def split_of(scenario: str, n_tasks: int = 5, **how: Any) -> Stream:
    made = split(dataset=digits(), seeds=(3,), fixed=False, n_tasks=n_tasks, scenario=scenario, **how)
    return replace(made, tasks=made.tasks[:3])


@pytest.mark.parametrize("name", ["permuted", "split"])
def test_mas_with_importance_batches_of_one_row_ends_at_the_same_weights(avalanche: Any, name: str) -> None:
    """Where all outputs compete, and without batch norm or dropout: its training mode then is evaluation mode."""
    stream, strength = streams()[name], 0.5 if name == "permuted" else 0.05  # with 0.5 both diverge on split
    learner = ours(stream, MAS(strength=strength, alpha=0.3, samples=None))
    _, net = theirs(avalanche, stream, "MAS", train_mb_size=1, lambda_reg=strength, alpha=0.3)
    assert distance(learner, net) < 5e-6
    assert distance(ours(stream), net) > 0.01


def test_avalanche_s_importances_in_mas_shrink_as_rows_of_a_batch_cancel(avalanche: Any) -> None:
    """It takes the absolute value of the batch's gradient, the paper that of each row's."""
    stream = streams()["permuted"]
    total = {}
    for size in (1, 100):
        strategy, _ = theirs(avalanche, stream, "MAS", train_mb_size=size, lambda_reg=0.0)
        (plugin,) = (p for p in strategy.plugins if type(p).__name__ == "MASPlugin")
        total[size] = float(sum(v.data.sum() for v in plugin.importance.values()))
    assert total[1] > 1.2 * total[100]


def test_avalanche_s_mas_estimates_in_training_mode_and_ours_does_not(avalanche: Any) -> None:
    """Without a penalty its weights are naive's, but a second pass has gone into the running statistics."""
    stream = split_of("class")
    naive, _ = inside("Naive", residual(stream))
    found, _ = inside("MAS", residual(stream), lambda_reg=0.0)
    moved = max(float((naive.buffers[k] - v).abs().max()) for k, v in found.buffers.items())
    assert moved > 1e-3
    learner, part = residual(stream), Chain([MAS(strength=0.0, alpha=0.5, samples=None)])
    loop.prepare(learner, part)
    loop.train(learner, part, Blind())
    for k, v in learner.buffers.items():
        torch.testing.assert_close(v, naive.buffers[k])


@pytest.mark.parametrize("scenario", ["task", "domain", "class"])
def test_lwf_ends_at_the_same_weights_in_every_scenario(avalanche: Any, scenario: str) -> None:
    """Ours adds up the old heads where there are several, as Avalanche's does with a MultiTaskModule."""
    stream = split_of(scenario)
    part = LwF(strength=1.5, temperature=2.0, t_squared=False, weighting="heads", student="old")
    learner = ours(stream, part)
    other, _ = inside("LwF", learner_of(stream), alpha=1.5, temperature=2.0)
    assert max(float((v - other.params[k]).abs().max()) for k, v in learner.params.items()) < 5e-6
    naive = ours(stream)
    assert max(float((v - naive.params[k]).abs().max()) for k, v in learner.params.items()) > 0.01


def test_avalanche_s_teacher_in_lwf_stays_in_training_mode_and_ours_does_not(avalanche: Any) -> None:
    """It distils with the statistics of the new batch, and its running ones drift through the task."""
    stream = replace(split_of("class"), tasks=split_of("class").tasks[:2])
    first, _ = inside("Naive", residual(replace(stream, tasks=stream.tasks[:1])))
    learner, part = residual(stream), Avalanche(name="LwF", options={"alpha": 1.0, "temperature": 2.0})
    chain, seen = Chain([part]), []

    class Look(Blind):
        def end(self, task: Any) -> None:
            (plugin,) = (p for p in part.agents[0].plugins if type(p).__name__ == "LwFPlugin")
            seen.append(plugin.lwf.prev_model)

    loop.prepare(learner, chain)
    loop.train(learner, chain, Look())
    assert seen[0].training
    drift = max(float((first.buffers[k][0] - v).abs().max()) for k, v in seen[0].named_buffers())
    assert drift > 1e-3
    mine, own = residual(stream), LwF(strength=1.0, temperature=2.0, t_squared=False, weighting="heads", student="old")
    chain = Chain([own])
    loop.prepare(mine, chain)
    batch, loss = own.batch, []

    def watched(learner: Learner, b: Any) -> Any:
        loss.append({k: v.clone() for k, v in own.teacher.buffers.items()})
        return batch(learner, b)

    own.batch = watched  # type: ignore[method-assign]
    chain.active["batch"] = [own]
    loop.train(mine, chain, Blind())
    for k, v in loss[-1].items():  # throughout the second task those of the first task's end
        torch.testing.assert_close(v, first.buffers[k])


def test_a_gem_with_the_whole_memory_in_a_batch_ends_at_the_same_weights(avalanche: Any) -> None:
    """Then nothing is drawn. Avalanche's sample is an equal share of each buffer, here all of it."""
    whole = streams()["permuted"]
    stream = replace(whole, tasks=whole.tasks[:2])
    learner = ours(stream, AGEM(per_task=300, batch_size=300))
    _, net = theirs(avalanche, stream, "AGEM", patterns_per_exp=300, sample_size=300)
    assert distance(learner, net) < 5e-6
    assert distance(ours(stream), net) > 0.01


def test_avalanche_s_a_gem_fails_with_more_tasks_than_its_sample_has_rows_and_ours_does_not(avalanche: Any) -> None:
    stream = streams()["permuted"]
    with pytest.raises(ValueError, match="batch_size should be a positive integer"):
        theirs(avalanche, stream, "AGEM", patterns_per_exp=10, sample_size=1)
    learner = ours(stream, AGEM(per_task=10, batch_size=1))
    assert all(bool(v.isfinite().all()) for v in learner.params.values())


def test_cumulative_in_one_batch_ends_at_the_same_weights(avalanche: Any) -> None:
    """A batch as large as the union holds each row once (the first task's twice), so that no order matters."""
    whole = streams()["permuted"]
    stream = replace(whole, tasks=whole.tasks[:2])

    def learner() -> Learner:
        model = MLP(stream.shape, stream.outputs, (20,))
        return Learner(model, stream, SGD(lr=LR, momentum=MOMENTUM), Budget(epochs=6, batch_size=600))

    mine, chain = learner(), Chain([Cumulative(steps="proportional")])
    loop.prepare(mine, chain)
    loop.train(mine, chain, Blind())
    other, _ = inside("Cumulative", learner())
    assert max(float((v - other.params[k]).abs().max()) for k, v in mine.params.items()) < 5e-6


def test_avalanche_s_mir_leaves_out_the_classes_of_its_last_batch_and_ours_does_not(avalanche: Any) -> None:
    """With two classes a task it never replays the latest task, so that two tasks are naive's."""
    whole = streams()["split"]
    stream = replace(whole, tasks=whole.tasks[:2])
    _, net = theirs(avalanche, stream, "MIR", mem_size=100, subsample=50, batch_size_mem=10)
    naive = ours(stream)
    assert distance(naive, net) < 1e-6
    assert distance(ours(stream, MIR(capacity=100, batch_size=10, candidates=50)), net) > 0.01


def test_avalanche_s_er_ace_is_nan_where_a_logit_is_far_behind_and_ours_is_not(avalanche: Any) -> None:
    """Its cross-entropy is the logarithm of a softmax that has become 0, times 0."""
    from avalanche.training.regularization import ACECriterion

    logits, y = torch.tensor([[200.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), torch.tensor([0, 1])
    assert ACECriterion()(logits, y, logits, y).isnan()
    stream = streams()["split"]
    learner, part = learner_of(stream), ERACE(capacity=20, batch_size=4)
    loop.prepare(learner, Chain([part]))
    learner.enter(stream.tasks[1])
    part.memory.add(**dict(zip("xyt", stream.tasks[0].train.take(torch.arange(8)[None]))))
    x, y, t = stream.tasks[1].train.take(torch.arange(8)[None])
    batch = part.batch(learner, learner.make_batch(x, y, t))
    far = torch.zeros(*batch.w.shape, stream.outputs).index_fill(2, y[0, :1], 200.0)
    assert bool(learner.row_loss(far, batch).isfinite().all())


def test_avalanche_s_er_ace_replays_rows_that_the_stream_has_yet_to_show_and_ours_does_not(avalanche: Any) -> None:
    """It puts the whole task into its memory before the task's first step."""
    stream = replace(split_of("class", classes="all"), tasks=split_of("class", classes="all").tasks[:2])
    budget = Budget(steps=1, batch_size=4)
    model = MLP(stream.shape, stream.outputs, (20,))
    new = set(stream.tasks[1].train.labels()[0].tolist()) - {-1}
    _, agent = inside("ER_ACE", Learner(model, stream, SGD(lr=LR), budget), mem_size=40, batch_size_mem=4)
    held = [int(v) for v in agent.storage_policy.buffer.targets]
    assert sum(c in new for c in held) == 20  # after a single step of four rows
    learner, part = Learner(model, stream, SGD(lr=LR), budget), ERACE(capacity=40, batch_size=4)
    chain = Chain([part])
    loop.prepare(learner, chain)
    loop.train(learner, chain, Blind())
    assert sum(int(c) in new for c in part.memory.rows()["y"][0]) == 4


def test_avalanche_s_riemannian_walk_trains_in_evaluation_mode(avalanche: Any) -> None:
    """Its plugin calls model.eval() before every step and never goes back: batch norm stands still."""
    plugin = avalanche.training.plugins.RWalkPlugin()
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.BatchNorm1d(10), nn.Linear(10, 10))
    strategy = avalanche.training.supervised.Naive(
        model=net,
        optimizer=torch.optim.SGD(net.parameters(), lr=LR),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=50,
        plugins=[plugin],
        evaluator=avalanche.training.plugins.EvaluationPlugin(),
    )
    strategy.train(benchmark_of(avalanche, streams()["split"]).train_stream[0])
    assert int(net[2].num_batches_tracked) == 0


def test_avalanche_drops_classes_that_do_not_divide_and_ours_keeps_them(avalanche: Any) -> None:
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
    ours = split(dataset=data, seeds=(0,), n_tasks=3, fixed=False, scenario="class")
    assert {int(c) for task in ours.tasks for c in task.train.labels().unique()} == set(range(10))


SEEDS = tuple(range(8))
MARGIN = 0.06


@pytest.mark.nightly
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
    assert_equivalent(found, other, naive)


def assert_equivalent(found: Tensor, other: Tensor, naive: Tensor) -> None:
    """Two one-sided tests at 5 %: the means of 8 seeds each lie within MARGIN of each other, and far from naive's."""
    gap = float(found.mean() - other.mean())
    error = math.sqrt(float(found.var() + other.var()) / len(found))
    print(f"ours {found.mean():.3f}, Avalanche {other.mean():.3f}, difference {gap:.3f} ± {error:.3f}")
    assert abs(gap) + 1.76 * error < MARGIN  # t quantile at 14 degrees of freedom
    assert found.mean() - naive.mean() > 5 * MARGIN


def last(stream: Stream, parts: list[Strategy], budget: Budget, lr: float = LR) -> Tensor:
    """Mean accuracy over tasks at the end: [S]."""
    model = MLP(stream.shape, stream.outputs, (50,))
    done = run(stream, parts, model=model, optimizer=SGD(lr=lr), budget=budget, evaluation=Evaluation("seen"))
    return done.accuracy[:, -1].mean(1)


@pytest.mark.nightly
def test_gdumb_reaches_the_same_accuracy_to_within_a_margin(avalanche: Any) -> None:
    """Other draws and other initial weights: 10 passes over 96 rows, equal shares of the classes.

    96 is a multiple of the batch: Avalanche would end every pass with a batch of the few rows that are left over. At
    100 rows ours reaches .836 ± .003, ours with such batches .809 ± .015, Avalanche's .787 ± .008 (standard errors).
    """
    data, budget = load("digits", val=0.0), Budget(epochs=10, batch_size=16)
    stream = split(dataset=data, seeds=SEEDS, scenario="class", classes="all", n_tasks=5, fixed=False)
    found = last(stream, [GDumb(capacity=96, epochs=10, batch_size=16)], budget)
    other = last(stream, [Avalanche(name="GDumb", options={"mem_size": 96})], budget)
    assert_equivalent(found, other, last(stream, [], budget))


@pytest.mark.nightly
def test_icarl_reaches_the_same_accuracy_to_within_a_margin(avalanche: Any) -> None:
    """Avalanche's loss is a mean over the 10 outputs where ours is a sum over the classes seen, hence ten times the lr.

    Flat inputs keep it from mirroring digits. It trains on the union of rows and exemplars, ours on the same mixture in
    every batch, which makes 13 steps an epoch there where ours takes 9. That is most of the difference: on these seeds
    -.023 ± .004, with as many steps -.013 ± .004; on seeds 8-19, looked at afterwards, -.011 ± .005 and -.002 ± .004.
    """
    data, budget = load("digits", val=0.0), Budget(epochs=4, batch_size=32)
    flat = replace(data, x=data.x.flatten(1))
    stream = split(dataset=flat, seeds=SEEDS, scenario="class", classes="all", n_tasks=5, fixed=False)
    found = last(stream, [ICaRL(capacity=100, batch_size=32, shares="seen", temperature=1.0)], budget)
    other = []
    for s, seed in enumerate(SEEDS):
        torch.manual_seed(seed)
        features, classifier = nn.Sequential(nn.Linear(64, 50), nn.ReLU()), nn.Linear(50, 10)
        strategy = avalanche.training.supervised.ICaRL(
            feature_extractor=features,
            classifier=classifier,
            optimizer=torch.optim.SGD([*features.parameters(), *classifier.parameters()], lr=10 * LR),
            memory_size=100,
            buffer_transform=None,
            fixed_memory=True,
            train_mb_size=32,
            train_epochs=4,
            evaluator=avalanche.training.plugins.EvaluationPlugin(),
        )
        for experience in benchmark(stream, s).train_stream:
            strategy.train(experience)
        net = strategy.model.eval()
        with torch.no_grad():
            scores = [(net(x).argmax(1) == y).double().mean() for x, y in (rows_of(t.test, s) for t in stream.tasks)]
        other.append(torch.stack(scores).mean())
    assert_equivalent(found, torch.stack(other), last(stream, [], budget))


def test_the_benchmark_against_avalanche_runs(avalanche: Any, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    lines = versus_avalanche.main(
        ["--dataset", "digits", "--feed", "tensors", "--rounds", "1", "--widths", "10", "--threads", str(threads)]
    )
    assert [line.method for line in lines] == ["naive", "replay", "ewc"]
    assert all(line.ratio > 0 and 0 <= min(line.accuracy) <= max(line.accuracy) <= 1 for line in lines)
    assert capsys.readouterr().out.count("10-10") == 3
