"""The learner against hand-written PyTorch, one net per seed, and loops over single rows."""

import io
import itertools
import math
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness import loop, rng, tree
from harness.learner import Budget, Learner
from harness.models.cnn import CNN
from harness.models.mlp import MLP
from harness.models.resnet18 import ResNet18
from harness.optim import SGD, Adam
from harness.rows import Rows
from harness.strategy import Chain
from harness.types import BEFORE, INPUTS, Aux, Batch, Out, Params, Source, Step, Stream, Task, cat
from tasks.datasets import Dataset
from tasks.permuted import permuted
from tasks.split import split
from tests.observer import Blind

CLASSES = 6
SEEDS = (0, 1, 2)


@cache
def data() -> Dataset:
    """Equal classes to train on; unequal ones to test on, so that a split gives every seed another number of rows."""
    counts = torch.full((CLASSES,), 7), torch.arange(1, 1 + CLASSES), torch.arange(4, 4 + CLASSES)
    labels = [torch.arange(CLASSES).repeat_interleave(n) for n in counts]
    y = torch.cat(labels)
    key = rng.keys([0], "toy")
    x = rng.normal(key, len(y), 1, 2, 4)[0] + rng.normal(rng.fold(key, "centre"), CLASSES, 1, 2, 4)[0, y]
    ends = torch.tensor([0, *map(len, labels)]).cumsum(0).tolist()
    train, val, test = (torch.arange(a, b) for a, b in itertools.pairwise(ends))
    return Dataset("toy", x, y, train, val, test, CLASSES, "digest")


def stream(scenario: str = "class", seeds: tuple[int, ...] = SEEDS, **options: Any) -> Stream:
    return split(dataset=data(), seeds=seeds, n_tasks=3, fixed=False, scenario=scenario, **options)


def regression(seeds: tuple[int, ...] = SEEDS) -> Stream:
    """Two outputs to be fitted by squared error on 7 rows; 5, 9 and 7 rows to test on."""
    size = torch.tensor([{0: 5, 1: 9, 2: 7}[s] for s in seeds])
    key = rng.keys(seeds, "regression")
    rows = Rows(
        data().x.double(),
        rng.integers(key, len(data().x), 9),
        rng.normal(rng.fold(key, 1), 9, 2, dtype=torch.float64),
        torch.zeros(len(seeds), 1, dtype=torch.int64),
        size,
    )
    return Stream(
        "regression",
        1,
        "domain",
        (Task(0, replace(rows, size=torch.full_like(size, 7)), rows, rows),),
        (1, 2, 4),
        2,
        seeds,
        "hash",
        loss="mse",
    )


def make(s: Stream, widths: tuple[int, ...] = (7, 5), **options: Any) -> Learner:
    defaults: dict[str, Any] = {"dtype": torch.float64, "optimizer": SGD(lr=0.1), "budget": Budget(batch_size=4)}
    options = defaults | options
    model = options.pop("model", None) or MLP(s.shape, s.outputs, widths)
    return Learner(model, s, options.pop("optimizer"), options.pop("budget"), **options)


def net_of(params: Params, s: int) -> nn.Sequential:
    """Seed s of the MLP as a torch module of its own."""
    names = [k[: -len(".weight")] for k in params if k.endswith(".weight")]
    net = nn.Sequential(nn.Flatten())
    for name in names:
        w, b = params[f"{name}.weight"][s], params[f"{name}.bias"][s]
        layer = nn.Linear(w.shape[1], w.shape[0], dtype=w.dtype)
        with torch.no_grad():
            layer.weight.copy_(w)
            layer.bias.copy_(b)
        net.append(layer)
        if name != names[-1]:
            net.append(nn.ReLU())
    return net


def nll(z: Tensor, y: int, allowed: list[int]) -> Tensor:
    """Cross-entropy of one row when only `allowed` outputs exist."""
    return -F.log_softmax(z[allowed], 0)[allowed.index(y)]


def read(source: Source, s: int) -> tuple[Tensor, Tensor, Tensor]:
    """All rows of seed s, one at a time."""
    found = [
        source.take(torch.full((len(source.size), 1), i).minimum(source.size[:, None] - 1))
        for i in range(int(source.size[s]))
    ]
    x, y, t = zip(*found)
    return torch.cat(x, 1)[s], torch.cat(y, 1)[s], torch.cat(t, 1)[s]


def own(scenario: str, t: int, now: int) -> list[int]:
    """Outputs that compete for a row of task t while task `now` is current; two classes a task."""
    return {"task": [2 * t, 2 * t + 1], "domain": [0, 1], "class": list(range(2 * now + 2)), "all": list(range(6))}[
        scenario
    ]


# --- loss and gradient ----------------------------------------------------------------------------


@pytest.mark.parametrize("scenario", ["task", "domain", "class", "all"])
def test_loss_and_gradient_are_those_of_a_torch_net_per_seed_on_fresh_and_replayed_rows(scenario: str) -> None:
    s = stream("class", classes="all") if scenario == "all" else stream(scenario)
    learner = make(s)
    learner.enter(s.tasks[1])
    position = torch.tensor([[0, 3, 2], [1, 1, 4], [5, 0, 2]])
    weight = rng.uniform(rng.keys(SEEDS, "w"), 3, dtype=torch.float64)
    fresh = learner.make_batch(*s.tasks[1].train.take(position), weight)
    replayed = learner.make_batch(*s.tasks[0].train.take(position[:, :2]))
    batch, rows = cat(fresh, replayed)
    assert rows == slice(3, 5) and torch.equal(batch.x[:, rows], replayed.x)
    grads, aux = learner.value_and_grad(lambda *_: 0.0)(learner.params, batch)
    task = [1, 1, 1, 0, 0]  # of each row
    for i in range(3):
        net = net_of(learner.params, i)
        z = net(batch.x[i].double())
        losses = [nll(z[b], int(batch.y[i, b]), own(scenario, task[b], 1)) for b in range(5)]
        loss = sum(w * row for w, row in zip([*weight[i], 0.5, 0.5], losses))
        loss.backward()
        torch.testing.assert_close(aux.loss[i], loss.detach(), rtol=1e-12, atol=0)
        for (name, g), p in zip(grads.items(), net.parameters()):
            torch.testing.assert_close(g[i], p.grad, rtol=1e-9, atol=1e-12, msg=f"{name} of seed {i}")
    assert aux.loss.shape == (3,) and not aux.loss.requires_grad
    torch.testing.assert_close(learner.task_loss(learner.params, batch)[0], aux.loss)
    assert all(torch.equal(g, grads[k]) for k, g in learner.task_grad(learner.params, batch).items())


def test_rows_that_share_one_mask_keep_it_and_others_get_a_row_each() -> None:
    s = stream("class")
    learner = make(s)
    learner.enter(s.tasks[1])
    position = torch.tensor([[0, 3, 2], [1, 1, 4], [5, 0, 2]])
    fresh, held = (learner.make_batch(*s.tasks[i].train.take(position)) for i in (1, 0))
    assert cat(fresh, held).batch.mask is fresh.mask
    learner.enter(s.tasks[2])
    later = learner.make_batch(*s.tasks[2].train.take(position))
    for a, b in ((fresh, later), (later, fresh), (fresh, replace(held, mask=None))):
        mask = cat(a, b).batch.mask
        assert mask is not None and mask.shape == (3, 6, 6)
        for part, rows in ((a, slice(0, 3)), (b, slice(3, 6))):
            expected = torch.ones(3, 3, 6, dtype=torch.bool) if part.mask is None else part.mask.expand(3, 3, 6)
            assert torch.equal(mask[:, rows], expected)
    own_rows = stream("task")  # here each row has a mask; one batch joined with itself has twice as many
    learner = make(own_rows)
    batch = learner.make_batch(*own_rows.tasks[1].train.take(position))
    assert batch.mask is not None and cat(batch, batch).batch.mask.shape == (3, 6, 6)  # type: ignore[union-attr]


def test_mean_squared_error_is_the_mean_over_outputs() -> None:
    s = regression()
    learner = make(s)
    batch = learner.make_batch(*s.tasks[0].train.take(torch.tensor([[0, 1], [8, 2], [6, 6]])))
    grads, aux = learner.value_and_grad(lambda *_: 0.0)(learner.params, batch)
    for i in range(3):
        net = net_of(learner.params, i)
        loss = F.mse_loss(net(batch.x[i]), batch.y[i])
        loss.backward()
        torch.testing.assert_close(aux.loss[i], loss.detach())
        for g, p in zip(grads.values(), net.parameters()):
            torch.testing.assert_close(g[i], p.grad)


def test_a_penalty_adds_its_own_gradient_and_a_parameter_without_one_gets_zero() -> None:
    s = stream()
    learner = make(s)
    learner.params["unused"] = torch.ones(3, 2, dtype=torch.float64)
    batch = learner.make_batch(*s.tasks[0].train.take(torch.tensor([[0], [1], [2]])))
    strength = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)

    def penalty(_: Learner, params: Params, batch: Batch, out: Out) -> Tensor:
        return strength * params["head.bias"].square().sum(1)

    plain, before = learner.value_and_grad(lambda *_: 0.0)(learner.params, batch)
    grads, aux = learner.value_and_grad(penalty)(learner.params, batch)
    bias = learner.params["head.bias"]
    torch.testing.assert_close(aux.loss - before.loss, strength * bias.square().sum(1))
    torch.testing.assert_close(grads["head.bias"] - plain["head.bias"], 2 * strength[:, None] * bias)
    torch.testing.assert_close(grads["fc1.weight"], plain["fc1.weight"])
    assert torch.equal(grads["unused"], torch.zeros(3, 2, dtype=torch.float64))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_training_is_a_torch_loop_per_seed(momentum: float) -> None:
    s = stream()
    learner = make(s, optimizer=SGD(lr=0.1, momentum=momentum), budget=Budget(steps=12, batch_size=4))
    nets = [net_of(learner.params, i) for i in range(3)]
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.1, momentum=momentum) for net in nets]

    class Shadow(Blind):
        """Trains the torch nets on the batches that the loop saw."""

        def step(self, step: Step, aux: Aux) -> None:
            fresh = step.fresh
            for i, (net, optimizer) in enumerate(zip(nets, optimizers)):
                optimizer.zero_grad()
                z = net(fresh.x[i].double())[:, : 2 * learner.now + 2]  # classes seen so far
                loss = F.cross_entropy(z, fresh.y[i])
                torch.testing.assert_close(aux.loss[i], loss.detach())
                loss.backward()
                optimizer.step()

    chain = Chain([])
    loop.prepare(learner, chain)
    loop.train(learner, chain, Shadow())
    for i, net in enumerate(nets):
        for (name, v), p in zip(learner.params.items(), net.parameters()):
            torch.testing.assert_close(v[i], p.detach(), rtol=1e-9, atol=1e-12, msg=f"{name} of seed {i}")


def test_layer_inputs_are_recorded_only_where_a_strategy_asks() -> None:
    s = stream()
    learner = make(s)
    batch = learner.make_batch(*s.tasks[0].train.take(torch.zeros(3, 2, dtype=torch.int64)))
    assert not learner.task_loss(learner.params, batch)[1].inputs
    learner.needs = frozenset({INPUTS})
    assert learner.task_loss(learner.params, batch)[1].inputs.keys() == {"fc1", "fc2", "head"}
    assert not learner.task_loss(learner.params, batch, train=False)[1].inputs


# --- batches --------------------------------------------------------------------------------------


def positions(learner: Learner, task: Task) -> Tensor:
    """Sample numbers of all batches in a row: [S, steps * batch_size], found out by value."""
    learner.enter(task)
    learner.plan(task)
    taken = torch.cat([b.x for b in learner.batches(task)], 1).flatten(2)
    return torch.cdist(taken, data().x.flatten(1)[None].expand(len(taken), -1, -1)).argmin(2)


def test_an_epoch_is_a_pass_over_the_task_s_own_rows() -> None:
    s = stream()
    learner = make(s, budget=Budget(epochs=3, batch_size=4))
    steps = 3 * math.ceil(14 / 4)  # two classes of 7 rows
    for task in s.tasks:
        found = positions(learner, task)
        assert learner.planned == steps and found.shape == (3, 4 * steps)
        for i, n in enumerate(task.train.size.tolist()):
            rows = set(read_numbers(task, i))
            for start in range(0, found.shape[1] - n, n):
                assert set(found[i, start : start + n].tolist()) == rows, (task.index, i)


@pytest.mark.parametrize(
    ("bytes_", "steps", "sizes"), [(2**20, 3, [4, 12, 12]), (3100, 9, [4, 24]), (3000, 9, [4] * 7)]
)
def test_so_many_steps_are_gathered_at_once_as_their_bytes_allow(
    monkeypatch: pytest.MonkeyPatch, bytes_: int, steps: int, sizes: list[int]
) -> None:
    monkeypatch.setattr("harness.learner.CHUNK", bytes_)  # a step has 3 seeds * 4 rows * 8 inputs * 4 bytes = 384
    monkeypatch.setattr("harness.learner.STEPS", steps)
    taken = []

    class Watched(Rows):
        def take(self, position: Tensor, key: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
            taken.append(position.shape[1])
            return super().take(position, key)

    s = permuted(dataset=data(), seeds=SEEDS, n_tasks=1, fixed=False, scenario="domain", rows=28)
    (task,) = (replace(t, train=Watched(**vars(t.train))) for t in s.tasks)
    learner = make(s, budget=Budget(epochs=1, batch_size=4))
    learner.plan(task)
    assert len(list(learner.batches(task))) == 7 and taken == sizes


def test_a_sample_is_sorted_out_once_and_belongs_to_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    sorted_out = []

    class Watched(Rows):
        def labels(self) -> Tensor:
            sorted_out.append(self)
            return super().labels()

    s = permuted(dataset=data(), seeds=SEEDS, n_tasks=3, fixed=False, scenario="domain")
    first, second, third = (replace(t, train=Watched(**vars(t.train))) for t in s.tasks)
    assert isinstance(first.train, Rows)
    other = replace(first, train=replace(first.train, index=first.train.index.flip(1), y=first.train.y.flip(1)))
    learner, plain = make(s), make(s)
    for task in (first, second, first, other, first):
        assert torch.equal(learner.probe(task, 12).x, make(s).probe(task, 12).x)
    assert not torch.equal(learner.probe(other, 12).x, learner.probe(first, 12).x)
    assert not torch.equal(learner.sub("twin", learner.model, SGD(lr=0.1)).probe(first, 12).x, plain.probe(first, 12).x)
    sorted_out.clear()
    for task in (first, second, other, first):
        learner.probe(task, 12)
    learner.clone().probe(first, 12)
    assert not sorted_out
    learner.probe(first, 11)
    learner.probe(third, 12)
    monkeypatch.setattr("harness.learner.KEPT", 1)
    learner.probe(first, 10)
    learner.probe(first, 12)
    assert len(sorted_out) == 4


def read_numbers(task: Task, s: int) -> list[int]:
    assert isinstance(task.train, Rows)
    return task.train.index[s, : int(task.train.size[s])].tolist()


def test_a_seed_s_batches_do_not_depend_on_its_companions_and_differ_from_theirs() -> None:
    budget = Budget(steps=20, batch_size=4)
    together = make(stream(), budget=budget)
    for i, seed in enumerate(SEEDS):
        alone = make(stream(seeds=(seed,)), budget=budget)
        for a, b in zip(together.stream.tasks, alone.stream.tasks):
            assert torch.equal(positions(together, a)[i], positions(alone, b)[0])
    domain = make(permuted(dataset=data(), seeds=SEEDS, n_tasks=2, fixed=True, scenario="domain"), budget=budget)
    found = []
    for task in domain.stream.tasks:
        domain.plan(task)
        found.append(torch.cat([b.y for b in domain.batches(task)], 1))
    assert len(torch.cat(found).unique(dim=0)) == 6  # every seed and every task has its own order


def test_a_pinned_purpose_is_one_for_all_seeds_and_moves_no_other() -> None:
    s = permuted(dataset=data(), seeds=SEEDS, n_tasks=1, fixed=True, scenario="domain")
    free = make(s)
    for pinned in ("init", "order", "probe"):
        learner = make(s, pin={pinned: 7, "dropout": None})
        alike = {
            "init": torch.equal(learner.params["fc1.weight"][0], learner.params["fc1.weight"][2]),
            "order": bool((positions(learner, s.tasks[0])[0] == positions(learner, s.tasks[0])[2]).all()),
            "probe": torch.equal(learner.probe(s.tasks[0], 20).x[0], learner.probe(s.tasks[0], 20).x[2]),
        }
        assert alike == {k: k == pinned for k in alike}
        if pinned != "init":
            assert torch.equal(learner.params["fc1.weight"], free.params["fc1.weight"])
    assert torch.equal(make(s, pin={"init": 1}).params["head.bias"][0], free.params["head.bias"][1])


def test_one_stream_of_randomness_per_purpose() -> None:
    learner = make(stream())
    a = learner.random("strategy/A")
    first = a.key()
    assert learner.random("strategy/A") is a
    again = make(stream())
    for _ in range(5):
        again.random("strategy/B").key()
    assert torch.equal(again.random("strategy/A").key(), first)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, r"train\.batch_size=0"),
        ({"epochs": 0}, r"train\.epochs=0"),
        ({"steps": 0}, r"train\.steps=0"),
        ({"steps": -3}, r"train\.steps=-3"),
    ],
)
def test_an_empty_budget_is_refused_by_name(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Budget(**options)


def test_steps_take_the_place_of_epochs() -> None:
    task = stream().tasks[0]
    assert Budget(epochs=2, batch_size=4).of(task) == 8
    assert Budget(epochs=2, batch_size=14).of(task) == 2
    assert Budget(epochs=2, steps=5, batch_size=4).of(task) == 5


# --- evaluation -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_scan_covers_every_row_once_and_its_weights_make_means(size: int) -> None:
    s = stream()
    learner = make(s)
    source = s.tasks[0].train
    total = torch.zeros(3, dtype=torch.float64)
    taken: list[list[float]] = [[], [], []]
    for batch in learner.scan(source, size):
        assert batch.w.shape[1] <= size
        total += (batch.w * batch.x.double().sum((2, 3, 4))).sum(1)
        for i in range(3):
            taken[i] += batch.x[i, batch.w[i] > 0].double().sum((1, 2, 3)).tolist()
    for i in range(3):
        rows = data().x[read_numbers(s.tasks[0], i)].double().sum((1, 2, 3))
        torch.testing.assert_close(total[i], rows.mean())
        assert taken[i] == pytest.approx(rows.tolist())


def test_a_seed_without_rows_has_no_score_and_disturbs_no_other() -> None:
    made = make(stream())
    whole = made.stream.tasks[0].train
    assert isinstance(whole, Rows)
    bare = replace(whole, size=torch.tensor([0, *whole.size.tolist()[1:]]))
    score, loss = made.evaluate(made.net, bare)
    expected, _ = made.evaluate(made.net, whole)
    assert score[0].isnan() and loss[0].isnan()
    assert torch.equal(score[1:], expected[1:])


def test_a_limited_scan_reads_the_first_rows_alone() -> None:
    s = regression()
    learner = make(s)
    batches = list(learner.scan(s.tasks[0].test, 4, limit=6))  # 5, 9 and 7 rows
    w = torch.cat([b.w for b in batches], 1)
    assert w.shape == (3, 6)
    torch.testing.assert_close(w.sum(1), torch.ones(3, dtype=torch.float64))
    assert (w > 0).sum(1).tolist() == [5, 6, 6]


@pytest.mark.parametrize("scenario", ["task", "domain", "class", "all"])
@pytest.mark.parametrize("size", [5, 2048])
def test_evaluate_is_a_loop_over_single_rows(scenario: str, size: int) -> None:
    s = stream("class", classes="all") if scenario == "all" else stream(scenario)
    learner = make(s)
    learner.enter(s.tasks[2])
    for task in s.tasks:
        accuracy, loss = learner.evaluate(learner.net, task.test, size=size)
        assert len(set(task.test.size.tolist())) > 1  # ragged
        for i in range(3):
            net = net_of(learner.params, i)
            allowed = own(scenario, task.index, 2)
            right, losses = [], []
            for x, y, _ in zip(*read(task.test, i)):
                z = net(x[None].double())[0].detach()
                losses.append(nll(z, int(y), allowed))
                right.append(allowed[int(z[allowed].argmax())] == int(y))
            assert accuracy[i].item() == pytest.approx(sum(right) / len(right), abs=1e-12)
            assert loss[i].item() == pytest.approx(float(sum(losses)) / len(losses), rel=1e-12)


@pytest.mark.parametrize("rows", [49, 360, 2000])
def test_an_accuracy_in_float32_is_a_count_of_rows(rows: int) -> None:
    """The float32 weights of 49 rows sum to 1 + 2e-8: all right would be more than 1."""
    index = torch.arange(rows).expand(1, -1)
    ones, none = torch.ones_like(index), torch.zeros(1, 1, dtype=torch.int64)
    for right in (rows, rows // 3):
        labels = ones.masked_fill(index < right, 0)  # 0 is what a net of zeros says
        part = Rows(torch.zeros(rows, 2), index, labels, none, torch.tensor([rows]))
        s = Stream("toy", 1, "domain", (Task(0, part, part, part, rows),), (2,), 2, (0,), "hash")
        learner = make(s, dtype=torch.float32)
        learner.params = {k: torch.zeros_like(v) for k, v in learner.params.items()}
        score, loss = learner.evaluate(learner.net, part, size=2048)
        assert score.item() == pytest.approx(right / rows, rel=1e-15) and score.item() <= 1
        assert loss.item() == pytest.approx(math.log(2), rel=1e-7)


def test_a_regression_net_scores_minus_its_squared_error() -> None:
    s = regression()
    learner = make(s)
    score, loss = learner.evaluate(learner.net, s.tasks[0].test, size=4)
    for i in range(3):
        x, y, _ = read(s.tasks[0].test, i)
        expected = F.mse_loss(net_of(learner.params, i)(x), y).item()
        assert loss[i].item() == pytest.approx(expected) and score[i].item() == pytest.approx(-expected)


def test_a_fixed_subset_of_the_test_rows_is_stratified_and_all_rows_are_all_rows() -> None:
    s = permuted(dataset=data(), seeds=SEEDS, n_tasks=1, fixed=True, scenario="domain")
    learner = make(s)
    whole = learner.evaluate(learner.net, s.tasks[0].test)
    everything = learner.evaluate(learner.net, s.tasks[0].test, samples=len(data().test))
    for a, b in zip(whole, everything):
        torch.testing.assert_close(a, b)
    some = learner.evaluate(learner.net, s.tasks[0].test, samples=13)
    assert all(torch.equal(a, b) for a, b in zip(some, learner.evaluate(learner.net, s.tasks[0].test, samples=13)))
    assert ((some[0] * 13).round() - some[0] * 13).abs().max() < 1e-9


def class_counts(batch: Batch, i: int) -> Tensor:
    return batch.y[i].bincount(minlength=CLASSES)


def test_a_probe_is_frozen_stratified_without_repeats_and_the_seed_s_own() -> None:
    s = permuted(dataset=data(), seeds=SEEDS, n_tasks=2, fixed=True, scenario="domain")
    learner = make(s)
    first = learner.probe(s.tasks[1], 30)
    chain = Chain([])
    loop.prepare(learner, chain)
    loop.train(learner, chain, Blind())
    again = learner.probe(s.tasks[1], 30)
    assert torch.equal(first.x, again.x) and torch.equal(first.y, again.y)
    share = 30 * data().y[data().train].bincount() / len(data().train)
    for i in range(3):
        assert ((class_counts(first, i) - share).abs() < 1).all()
        assert len(first.x[i].flatten(1).unique(dim=0)) == 30
    assert not torch.equal(first.x[0], first.x[1])
    torch.testing.assert_close(first.w, torch.full((3, 30), 1 / 30, dtype=torch.float64))
    alone = make(permuted(dataset=data(), seeds=(1,), n_tasks=2, fixed=True, scenario="domain"))
    assert torch.equal(alone.probe(alone.stream.tasks[1], 30).x[0], first.x[1])


def test_a_source_without_weak_references_is_probed_as_any_other() -> None:
    class Slotted:
        __slots__ = ("inner",)

        def __init__(self, inner: Source) -> None:
            self.inner = inner

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

    task = stream().tasks[1]
    learner, other = make(stream()), make(stream())
    slotted: Any = Slotted(task.train)
    for _ in range(2):
        assert torch.equal(learner.probe(replace(task, train=slotted), 12).x, other.probe(task, 12).x)


def test_a_probe_of_a_small_task_depends_on_its_own_seed_alone() -> None:
    """Seeds whose task holds fewer rows than were asked for."""
    s = stream()
    sizes = s.tasks[0].test.size
    assert len(sizes.unique()) > 1 and sizes.max() < 512
    together = make(s).probe(s.tasks[0], split="test")
    for i, seed in enumerate(SEEDS):
        alone = make(stream(seeds=(seed,)))
        own_probe = alone.probe(alone.stream.tasks[0], split="test")
        assert mean_input(together, i) == pytest.approx(mean_input(own_probe, 0), rel=1e-12)


def test_a_seed_without_rows_has_no_mean_and_takes_none_from_the_others() -> None:
    s = stream()
    learner = make(s)
    test = s.tasks[0].test
    assert isinstance(test, Rows)
    bare = replace(s.tasks[0], test=replace(test, size=test.size * torch.tensor([1, 0, 1])))
    some, whole = learner.probe(bare, split="test"), learner.probe(s.tasks[0], split="test")
    assert some.w[1].isnan().all() and torch.equal(some.w[[0, 2]], whole.w[[0, 2]])
    score, loss = learner.evaluate(learner.net, bare.test, samples=500)
    assert score.isnan().tolist() == loss.isnan().tolist() == [False, True, False]
    with pytest.raises(ValueError, match="there are no rows to sample"):
        learner.probe(replace(bare, test=replace(test, size=test.size * 0)), split="test")


@pytest.mark.parametrize("samples", [8, 11, 15, 500])
def test_a_subset_of_a_small_task_s_test_rows_depends_on_its_own_seed_alone(samples: int) -> None:
    """Where there are no more rows than asked for, all of them count once."""
    s = stream()
    learner = make(s)
    sizes = s.tasks[0].test.size.tolist()
    assert sizes == [9, 14, 15]
    some, whole = (learner.evaluate(learner.net, s.tasks[0].test, samples=n) for n in (samples, None))
    for i, seed in enumerate(SEEDS):
        alone = make(stream(seeds=(seed,)))
        for a, b in zip(some, alone.evaluate(alone.net, alone.stream.tasks[0].test, samples=samples)):
            torch.testing.assert_close(a[i], b[0])
        if samples >= sizes[i]:
            for a, b in zip(some, whole):
                torch.testing.assert_close(a[i], b[i])


def mean_input(batch: Batch, i: int) -> float:
    return float((batch.w[i] * batch.x[i].double().sum((1, 2, 3))).sum())


@pytest.mark.parametrize("scenario", ["task", "domain", "class"])
def test_an_objective_is_the_mean_loss_of_its_batches_under_one_boundary_s_mask(scenario: str) -> None:
    s = stream(scenario)
    learner = make(s)
    learner.enter(s.tasks[0])
    probes = [learner.probe(task, 9) for task in s.tasks[:2]]
    learner.enter(s.tasks[2])  # the objective's mask is that of `now`, not of the current task
    objective = learner.objective(probes, s, 1)
    elsewhere = {k: 1.5 * v for k, v in learner.params.items()}
    for i in range(3):
        net, losses = net_of(elsewhere, i), []
        for t, probe in enumerate(probes):
            z = net(probe.x[i].double()).detach()
            losses.append(sum(nll(z[b], int(probe.y[i, b]), own(scenario, t, 1)) for b in range(9)) / 9)
        assert objective(elsewhere)[i].item() == pytest.approx(float(sum(losses)) / 2)


def test_an_objective_can_be_differentiated_twice_and_knows_no_dropout() -> None:
    s = stream("domain")
    learner = make(s, model=MLP(s.shape, s.outputs, (5,), activation="tanh", dropout=0.5))
    objective = learner.objective([learner.probe(s.tasks[0], 9)], s, 0)
    assert torch.equal(objective(learner.params), objective(learner.params))
    leaf = {k: v.clone().requires_grad_() for k, v in learner.params.items()}
    (g,) = torch.autograd.grad(objective(leaf).sum(), [leaf["fc1.weight"]], create_graph=True)
    (h,) = torch.autograd.grad(g.square().sum(), [leaf["fc1.weight"]])
    assert h.abs().max() > 0


# --- update, copies and state ---------------------------------------------------------------------


NOTHING = Aux(torch.empty(0), Out(torch.empty(0), {}, {}))


def still(params: Params, batch: Batch) -> tuple[Params, Aux]:
    """A gradient of zero."""
    return tree.zeros(params), NOTHING


def run_steps(learner: Learner, task: Task, count: int) -> list[Tensor]:
    """Train on the first batches of a task; the losses."""
    learner.enter(task)
    learner.plan(task)
    gradient, losses = learner.value_and_grad(lambda *_: 0.0), []
    for _, batch in zip(range(count), learner.batches(task)):
        losses.append(learner.advance(gradient, batch).aux.loss)
    return losses


def batch_norm_learner(seeds: tuple[int, ...] = SEEDS, **options: Any) -> Learner:
    s = permuted(dataset=data(), seeds=seeds, n_tasks=2, fixed=False, scenario="domain")
    return make(s, model=ResNet18(s.shape, s.outputs, width=2), optimizer=Adam(lr=0.01), **options)


def dropout_learner(seeds: tuple[int, ...] = SEEDS) -> Learner:
    s = permuted(dataset=data(), seeds=seeds, n_tasks=2, fixed=False, scenario="domain")
    return make(s, model=MLP(s.shape, s.outputs, (6,), dropout=0.5), optimizer=SGD(lr=0.1, momentum=0.9))


@pytest.mark.parametrize("build", [batch_norm_learner, dropout_learner])
def test_a_clone_goes_the_same_way_and_leaves_the_original_alone(build: Any) -> None:
    learner = build()
    run_steps(learner, learner.stream.tasks[0], 3)
    frozen, counts = tree.copy(learner.params), {k: s.count for k, s in learner.streams.items()}
    buffers, state = tree.copy(learner.buffers), learner.optimizer.state_dict()
    state = {k: tree.copy(v) for k, v in state["state"].items()}
    copy = learner.clone()
    copied = run_steps(copy, learner.stream.tasks[1], 4)
    assert all(torch.equal(v, frozen[k]) for k, v in learner.params.items())
    assert all(torch.equal(v, buffers[k]) for k, v in learner.buffers.items())
    assert all(torch.equal(v, state[s][k]) for s, p in learner.optimizer.state.items() for k, v in p.items())
    assert {k: s.count for k, s in learner.streams.items()} == counts
    assert all(torch.equal(a, b) for a, b in zip(copied, run_steps(learner, learner.stream.tasks[1], 4)))
    assert all(torch.equal(v, copy.params[k]) for k, v in learner.params.items())
    assert all(torch.equal(v, copy.buffers[k]) for k, v in learner.buffers.items())


@pytest.mark.parametrize("build", [batch_norm_learner, dropout_learner])
def test_a_learner_read_from_a_file_goes_on_as_if_nothing_had_happened(build: Any) -> None:
    learner = build()
    run_steps(learner, learner.stream.tasks[0], 3)
    learner.alive[1] = False
    file = io.BytesIO()
    torch.save(learner.state_dict(), file)
    file.seek(0)
    other = build()
    other.load_state_dict(torch.load(file, weights_only=True))
    assert other.alive.tolist() == [True, False, True]
    for a, b in zip(*(run_steps(one, one.stream.tasks[1], 4) for one in (learner, other))):
        assert torch.equal(a, b)
    assert all(torch.equal(v, other.params[k]) for k, v in learner.params.items())
    assert all(torch.equal(v, other.buffers[k]) for k, v in learner.buffers.items())


@pytest.mark.parametrize("build", [batch_norm_learner, dropout_learner])
def test_a_row_is_its_seed_alone(build: Any) -> None:
    together = build()
    losses = run_steps(together, together.stream.tasks[0], 5)
    for i, seed in enumerate(SEEDS):
        alone = build((seed,))
        for a, b in zip(losses, run_steps(alone, alone.stream.tasks[0], 5)):
            torch.testing.assert_close(a[i], b[0], rtol=1e-9, atol=1e-12)
        for k, v in together.params.items():
            torch.testing.assert_close(v[i], alone.params[k][0], rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("optimizer", [SGD(lr=0.1, momentum=0.9), Adam(lr=0.01)], ids=["sgd", "adam"])
def test_a_seed_that_diverges_is_marked_and_the_others_finish_exactly_as_without_it(optimizer: Any) -> None:
    s = stream()
    twins = [make(s, optimizer=optimizer, dtype=torch.float32).clone() for _ in range(2)]
    twins[0].params["fc2.weight"][1] = math.inf
    for learner in twins:
        for task in s.tasks:
            run_steps(learner, task, 6)
            learner.mark_diverged()
    sick, sound = twins
    assert sick.alive.tolist() == [True, False, True] and sound.alive.all()
    assert all(torch.equal(v[[0, 2]], sound.params[k][[0, 2]]) for k, v in sick.params.items())
    for a, b in zip(sick.evaluate(sick.net, s.tasks[0].test), sound.evaluate(sound.net, s.tasks[0].test)):
        assert a[1].isnan() and not b[1].isnan()
        assert torch.equal(a[[0, 2]], b[[0, 2]])
    for v in sick.params.values():
        v[1] = 0.0  # a reset may make it finite again
    sick.mark_diverged()
    assert not sick.alive[1]


def test_parameters_before_the_update_are_kept_only_where_a_strategy_asks() -> None:
    s = stream()
    learner = make(s)
    run_steps(learner, s.tasks[0], 1)
    batch = next(learner.batches(s.tasks[0]))
    assert learner.advance(still, batch).before == {}
    learner.needs = frozenset({BEFORE})
    old = tree.copy(learner.params)
    before = learner.advance(lambda p, b: ({k: torch.ones_like(v) for k, v in p.items()}, NOTHING), batch).before
    assert all(torch.equal(v, old[k]) for k, v in before.items())
    torch.testing.assert_close(learner.params["head.bias"], old["head.bias"] - 0.1)


@pytest.mark.parametrize(("scope", "expected"), [("task", [1.0, 0.75, 0.25] * 3), ("stream", None)])
def test_a_schedule_spans_each_task_or_the_stream(scope: str, expected: list[float] | None) -> None:
    s = stream()
    learner = make(s, optimizer=SGD(lr=1.0, schedule="cosine", scope=scope), budget=Budget(steps=3, batch_size=4))
    rates = []
    for task in s.tasks:
        learner.enter(task)
        learner.plan(task)
        for _ in range(3):
            learner.advance(still, next(learner.batches(task)))
            rates.append(learner.optimizer.lr)
    if expected is None:
        expected = [0.5 * (1 + math.cos(math.pi * i / 9)) for i in range(9)]
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize("scope", ["task", "stream"])
def test_schedule_task_multiplies_the_learning_rate_at_each_new_task(scope: str) -> None:
    s = stream()
    optimizer = SGD(lr=2.0, schedule="task", gamma=0.5, scope=scope)
    learner = make(s, optimizer=optimizer, budget=Budget(steps=2, batch_size=4))
    rates = []
    for task in s.tasks:
        learner.enter(task)
        learner.plan(task)
        for _ in range(2):
            learner.advance(still, next(learner.batches(task)))
            rates.append(learner.optimizer.lr)
    assert rates == [2.0, 2.0, 1.0, 1.0, 0.5, 0.5][: len(rates)] and len(rates) == 2 * len(s.tasks)
    assert len(s.tasks) > 1


def test_optimizer_state_persists_across_tasks_unless_told_to_reset() -> None:
    s = stream()
    for reset in (False, True):
        learner = make(s, optimizer=SGD(lr=0.1, momentum=0.9, reset=reset))
        run_steps(learner, s.tasks[0], 2)
        assert learner.optimizer.state["momentum"]["head.bias"].abs().sum() > 0
        learner.enter(s.tasks[1])
        learner.plan(s.tasks[1])
        assert bool(learner.optimizer.state) != reset


def test_buffers_move_in_training_and_stay_in_evaluation() -> None:
    learner = batch_norm_learner()
    start = tree.copy(learner.buffers)
    learner.evaluate(learner.net, learner.stream.tasks[0].test)
    assert all(torch.equal(v, start[k]) for k, v in learner.buffers.items())
    run_steps(learner, learner.stream.tasks[0], 1)
    assert not any(torch.equal(v, start[k]) for k, v in learner.buffers.items())


def test_both_passes_of_a_batch_share_dropout_masks_and_batches_do_not() -> None:
    learner = dropout_learner()
    task = learner.stream.tasks[0]
    learner.enter(task)
    learner.plan(task)
    one, two, *_ = learner.batches(task)
    a, b, c = (learner.task_loss(learner.params, x)[0] for x in (one, one, replace(one, key=two.key)))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_double_precision_starts_from_the_same_weights() -> None:
    s = stream()
    single, double = make(s, dtype=torch.float32), make(s)
    assert all(torch.equal(v.double(), double.params[k]) for k, v in single.params.items())
    assert double.params["fc1.weight"].dtype == torch.float64


def test_a_fresh_start_depends_on_its_key_alone() -> None:
    learner = make(stream())
    key = learner.random("strategy/X").key()
    params, _ = learner.fresh(key)
    again, _ = learner.fresh(key)
    assert all(torch.equal(v, again[k]) and not torch.equal(v, learner.params[k]) for k, v in params.items())
    assert all(torch.equal(v[1:], learner.fresh(key[1:])[0][k]) for k, v in params.items())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_trains_and_scores_as_the_cpu_does() -> None:
    found = {}
    for device in ("cpu", "cuda"):
        s = split(dataset=data(), seeds=SEEDS, n_tasks=3, fixed=False, device=device)
        for name, model in (("mlp", MLP(s.shape, s.outputs, (7,))), ("cnn", CNN(s.shape, s.outputs, (3,)))):
            learner = make(s, model=model, device=device)
            losses = torch.stack(run_steps(learner, s.tasks[0], 5))
            found[name, device] = losses.cpu(), learner.evaluate(learner.net, s.tasks[0].test)[0].cpu()
            assert learner.clone().params["head.bias"].device.type == device
    for name in ("mlp", "cnn"):
        for a, b in zip(found[name, "cpu"], found[name, "cuda"]):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_a_sub_learner_has_parameters_draws_and_state_of_its_own() -> None:
    s = stream()
    main, twin = (make(s, optimizer=SGD(lr=0.1), budget=Budget(steps=1)) for _ in range(2))
    before = tree.copy(main.params)
    sub = main.sub("vae", MLP(s.shape, 3, (4,)), SGD(lr=0.5))
    again = twin.sub("vae", MLP(s.shape, 3, (4,)), SGD(lr=0.5))
    other = twin.sub("critic", MLP(s.shape, 3, (4,)), SGD(lr=0.5))
    assert all(torch.equal(sub.params[k], again.params[k]) for k in sub.params)
    assert not torch.equal(sub.params["head.weight"], other.params["head.weight"])
    assert not torch.equal(sub.random("order").key(), main.random("order").key())
    assert torch.equal(main.random("order").key(), [twin.random("order").key() for _ in range(2)][1])
    batch = next(iter(main.batches(s.tasks[0])))
    sub.params["head.weight"].add_(1)
    assert all(torch.equal(main.params[k], v) for k, v in before.items())
    again.load_state_dict(sub.state_dict())
    assert torch.equal(again.params["head.weight"], sub.params["head.weight"])
    assert sub.net(batch.x, batch.t).logits.shape[-1] == 3


def test_autocast_rounds_the_forward_pass_of_training_alone() -> None:
    s = stream()
    plain, mixed = (make(s, dtype=torch.float32, autocast=a) for a in (None, torch.bfloat16))
    batch = next(plain.batches(s.tasks[0]))

    def rounded(logits: Tensor) -> bool:
        return torch.equal(logits, logits.bfloat16().float())

    (loss, out), (wanted, exact) = mixed.task_loss(mixed.params, batch), plain.task_loss(plain.params, batch)
    assert rounded(out.logits) and not rounded(exact.logits)
    assert {v.dtype for v in (loss, out.logits, *out.acts.values())} == {torch.float32}
    torch.testing.assert_close(loss, wanted, rtol=0.02, atol=0.02)
    gradient = mixed.value_and_grad(lambda *_: 0.0)
    mixed.advance(gradient, batch)
    assert {v.dtype for v in mixed.params.values()} == {torch.float32}
    assert mixed.clone().autocast is torch.bfloat16  # a copy that is trained plainly is trained as the run is
    assert not rounded(mixed.net(batch.x, batch.t).logits)
