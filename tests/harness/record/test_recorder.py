"""What a run records, against measurements taken by hand beside it."""

import io
import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from harness import loop, tree
from harness.boundary import Boundary
from harness.landscape.curvature import Hessian
from harness.learner import Budget, Learner
from harness.metrics import crossed
from harness.metrics.plasticity import plasticity
from harness.models.mlp import MLP
from harness.optim import SGD
from harness.record import costs
from harness.record.evaluation import Evaluation, trained_plainly
from harness.record.layout import CURVE_BINS
from harness.record.recorder import Recorder
from harness.record.sinks import InMemory
from harness.run import Result, fresh_accuracy, run
from harness.strategy import Chain, Strategy
from harness.types import Batch, Net, Out, Params, Reading, Step, Stream, Task, cat
from tasks.datasets import load
from tasks.split import split
from tests.even import even
from tests.observer import Blind

SEEDS = (0, 1)


def stream(scenario: str = "class", seeds: tuple[int, ...] = SEEDS, n_tasks: int = 5, **options: Any) -> Stream:
    return split(
        dataset=even(load("digits", normalise="standard")),
        seeds=seeds,
        scenario=scenario,
        n_tasks=n_tasks,
        fixed=False,
        **options,
    )


def settings(s: Stream, steps: int = 4, **options: Any) -> dict[str, Any]:
    """A model with dropout under momentum, so that anything forgotten shows."""
    return {
        "model": MLP(s.shape, s.outputs, (8,), dropout=0.2),
        "optimizer": SGD(lr=0.1, momentum=0.9),
        "budget": Budget(steps=steps, batch_size=10),
        **options,
    }


class Pull(Strategy):
    """Pulls towards the last boundary's parameters and replays the last fresh batch: state and draws of its own."""

    def setup(self, learner: Learner) -> None:
        self.anchor, self.jitter = tree.copy(learner.params), torch.zeros(learner.S)
        self.held: dict[str, Tensor] | None = None

    def batch(self, learner: Learner, batch: Batch) -> Batch:
        self.jitter = self.random.key() % 7
        return batch if self.held is None else cat(batch, learner.make_batch(**self.held)).batch

    def loss(self, learner: Learner, params: Params, batch: Batch, out: Out) -> Tensor:
        shift = tree.sub(params, self.anchor)
        return 0.1 * (1 + self.jitter) * tree.dot(shift, shift)

    def step(self, learner: Learner, step: Step) -> None:
        self.held = {"x": step.fresh.x, "y": step.fresh.y, "t": step.fresh.t}

    def end(self, learner: Learner, task: Task) -> None:
        self.anchor = tree.copy(learner.params)


class Seen:
    """A metric that keeps what it was shown."""

    def __init__(self, look: Callable[[Boundary], Any]) -> None:
        self.look = look
        self.found: dict[tuple[int, str], Any] = {}

    def __call__(self, b: Boundary) -> dict[str, Tensor | Reading]:
        self.found[b.t, b.phase] = self.look(b)
        return {}


def column(table: dict[str, list[Any]], value: str, **where: Any) -> list[Any]:
    rows = zip(*(table[k] for k in (value, *where)))
    return [v for v, *keys in rows if keys == list(where.values())]


def test_a_loaded_state_holds_what_was_tested_and_is_saved_again_unchanged() -> None:
    """After three of five tasks, each tested with its neighbours: a second interruption must lose nothing either."""
    s = stream("domain")
    learner = Learner(settings(s)["model"], s, SGD(lr=0.1), Budget(steps=2, batch_size=10))
    whole, other = (
        Recorder(learner, Chain([]), {}, Evaluation(tasks=2, samples=20), InMemory(), gap=False) for _ in range(2)
    )
    loop.prepare(learner, Chain([]))
    whole.initial()
    for _, _ in zip(range(3), loop.by_task(learner, Chain([]), whole)):
        pass
    state = whole.state_dict()
    known = [(0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2), (3, 1), (3, 2), (3, 3)]
    assert state["tested"].tolist() == [list(cell) for cell in known]
    assert state["accuracy"].shape == state["loss"].shape == (len(SEEDS), len(known))
    other.load_state_dict(state)
    for name in ("accuracy", "loss", "least"):
        torch.testing.assert_close(getattr(other, name), getattr(whole, name), rtol=0, atol=0, equal_nan=True)
    again = other.state_dict()
    assert all(torch.equal(again[name], state[name]) for name in ("tested", "accuracy", "loss"))


# --- accuracy -------------------------------------------------------------------------------------


@pytest.mark.parametrize("scenario", ["task", "domain", "class"])
def test_row_i_plus_1_of_the_accuracy_matrix_is_the_net_after_task_i(scenario: str) -> None:
    s = stream(scenario)
    sink = InMemory()
    result = run(s, [Pull()], sink=sink, **settings(s))
    ahead = scenario != "class"  # unseen classes have no outputs yet
    judge = Learner(settings(s)["model"], s, SGD(lr=1.0), Budget())
    for i in range(-1, 5):
        net = Net(sink.nets[i]["params"], {}, judge.apply)
        judge.now = max(i, 0)
        for j in range(5):
            found = result.accuracy[:, i + 1, j]
            measured = j <= i or (ahead and (j == i + 1 or i < 0))
            assert bool(found.isnan().all()) != measured and bool(found.isnan().any()) != measured
            if measured:
                accuracy, loss = judge.evaluate(net, s.tasks[j].test)
                assert torch.equal(found, accuracy), (i, j)
                table = sink.tables["accuracy"]
                assert column(table, "accuracy", boundary=i, task=j) == accuracy.tolist()
                assert column(table, "loss", boundary=i, task=j) == pytest.approx(loss.tolist())
                assert column(table, "n", boundary=i, task=j) == s.tasks[j].test.size.tolist()
                assert column(table, "seed", boundary=i, task=j) == list(SEEDS)


@pytest.mark.parametrize(
    ("tasks", "now", "ahead", "expected"),
    [
        ("seen", -1, True, [0, 1, 2, 3]),
        ("seen", 0, True, [0, 1]),
        ("seen", 2, True, [0, 1, 2, 3]),
        ("seen", 3, True, [0, 1, 2, 3]),
        ("seen", -1, False, []),
        ("seen", 2, False, [0, 1, 2]),
        ("all", 0, True, [0, 1, 2, 3]),
        ("all", 1, False, [0, 1]),
        (2, 3, True, [2, 3]),
        (2, 2, True, [1, 2, 3]),
        (2, 2, False, [1, 2]),
        (1, 0, False, [0]),
        (2, -1, True, [0]),
    ],
)
def test_which_tasks_are_tested(tasks: str | int, now: int, ahead: bool, expected: list[int]) -> None:
    assert list(Evaluation(tasks).tested(now, 4, ahead)) == expected


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"tasks": "some"}, "eval.tasks=some"),
        ({"tasks": 0}, "eval.tasks=0"),
        ({"samples": 0}, "eval.samples=0"),
        ({"batch_size": 0}, "eval.batch_size=0"),
    ],
)
def test_an_evaluation_of_nothing_is_refused_by_name(options: dict[str, Any], key: str) -> None:
    with pytest.raises(ValueError, match=key):
        Evaluation(**options)


def test_accuracy_is_the_deployed_net_s() -> None:
    class Blank(Strategy):
        def deploy(self, learner: Learner, net: Net) -> Net:
            return Net(tree.zeros(net.params), net.buffers, net.apply)

    s = stream("domain")
    result = run(s, [Blank()], **settings(s))
    shares = [(t.test.labels() == 0).sum(1) / t.test.size for t in s.tasks]  # the first output wins all ties
    torch.testing.assert_close(result.accuracy[:, 5], torch.stack(shares, 1).double())


# --- what a measure costs -------------------------------------------------------------------------


def test_the_work_of_a_metric_is_counted_wherever_it_is_done() -> None:
    """Passes of the trained, deployed, earlier and copied net, gradients and Hessian products, by metric."""

    def curve(b: Boundary) -> dict[str, Tensor | Reading]:
        hessian = Hessian(b.loss([0, b.t], size=12), b.trained.params)  # one gradient, over two batches of 12
        for _ in range(3):
            hessian(b.trained.params)
        return {}

    def passes(b: Boundary) -> dict[str, Tensor | Reading]:
        probe = b.probe(b.t, 7)
        for net in (b.trained, b.deployed, b.nets.initial):
            net(probe.x, probe.t)
        copy = b.learner.clone()
        copy.task_grad(copy.params, replace(probe, key=copy.key("dropout")))
        return {}

    def idle(b: Boundary) -> dict[str, Tensor | Reading]:
        return {}

    s = stream("domain")
    sink = InMemory()
    seen = run(s, [Pull()], metrics={"curve": curve, "passes": passes, "idle": idle}, sink=sink, **settings(s))
    expected = {
        "hessian_products": {"curve": 3, "passes": 0},
        "gradients": {"curve": 1, "passes": 1},
        "forward_passes": {"curve": 2, "passes": 4},
        "forward_rows": {"curve": 24, "passes": 28},
    }
    for kind, each in expected.items():
        for name, value in each.items():
            at = {"metric": kind, "coord": name, "axis": "metric", "boundary": 3}
            assert column(sink.tables["metrics"], "value", phase="end", **at) == [value] * 2, (kind, name)
            assert column(sink.tables["metrics"], "value", phase="start", **at) == [value] * 2, (kind, name)
    assert "idle" not in sink.tables["metrics"]["coord"]
    plain = run(s, [Pull()], **settings(s))
    assert torch.equal(seen.accuracy.nan_to_num(), plain.accuracy.nan_to_num())
    assert seen.learner.apply == seen.learner.model.__call__  # the counting one is gone


def test_what_plasticity_is_measured_against_is_kept_whatever_is_measured() -> None:
    s, sink = stream("domain"), InMemory()
    control = torch.rand(len(SEEDS), 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    seen = Seen(lambda b: b.gap)
    run(s, [Pull()], metrics={"seen": seen}, control=control, sink=InMemory(), **settings(s))
    run(s, [Pull()], control=control, sink=sink, **settings(s))
    table = sink.tables["metrics"]
    for t in range(5):
        assert column(table, "value", metric="fresh_score", boundary=t) == control[:, t].tolist()
        assert column(table, "value", metric="plain_score", boundary=t) == seen.found[t, "end"].tolist()


# --- which boundaries -----------------------------------------------------------------------------


@pytest.mark.parametrize(("every", "expected"), [(1, [0, 1, 2, 3, 4]), (2, [0, 2, 4]), (3, [0, 3, 4]), (9, [0, 4])])
def test_metrics_are_taken_around_every_kth_task_the_first_and_the_last(every: int, expected: list[int]) -> None:
    """The gap is trained for there only; accuracy is recorded everywhere."""
    s, seen = stream("domain"), Seen(lambda b: None if b.gap is None else bool(b.gap.isfinite().all()))
    sink = InMemory()
    control = torch.zeros(len(SEEDS), 5)
    how = {"metrics": {"seen": seen}, "metrics_every": every, "control": control, "sink": sink}
    result = run(s, [Pull()], **how, **settings(s))
    assert seen.found == {(t, phase): known for t in expected for phase, known in (("start", None), ("end", True))}
    assert result.accuracy[:, 1:].diagonal(dim1=1, dim2=2).isfinite().all()
    timing = sink.tables["timing"]
    assert [t for t, part in zip(timing["boundary"], timing["part"]) if part == "gap"] == expected


# --- within a task --------------------------------------------------------------------------------


def by_hand(learner: Learner, steps: int) -> tuple[list[Tensor], list[Tensor]]:
    """Plain training of the current task: accuracy and loss on every batch before it is learnt from."""
    accuracy, losses = [], []
    for batch in learner.batches(learner.stream.tasks[learner.now]):
        leaf = {k: v.clone().requires_grad_() for k, v in learner.params.items()}
        logits = learner.apply(leaf, learner.buffers, batch.x, batch.t, train=True, key=batch.key).logits
        competing = logits[..., : 2 * learner.now + 2]  # classes seen so far; with shared outputs, all
        accuracy.append((competing.argmax(-1) == batch.y).double().mean(1))
        nll = torch.nn.functional.cross_entropy(competing.flatten(0, 1), batch.y.flatten(), reduction="none")
        loss = nll.view_as(batch.y).mean(1)
        grads = torch.autograd.grad(loss.sum(), list(leaf.values()))
        losses.append(loss.detach())
        learner.optimizer.update(learner.params, dict(zip(leaf, grads)))
    assert len(losses) == steps
    return accuracy, losses


@pytest.mark.parametrize("steps", [1, 7, 120])
def test_online_accuracy_is_taken_before_the_update_and_curves_are_its_means(steps: int) -> None:
    s = stream(n_tasks=5)
    shown, sink = Seen(lambda b: b.online), InMemory()
    how = settings(s, steps, dtype=torch.float64)  # the two loops round differently, and 120 steps amplify that
    run(s, [], metrics={"seen": shown}, sink=sink, **how)
    learner = Learner(stream=s, **settings(s, steps, dtype=torch.float64))
    for task in s.tasks[:3]:
        learner.enter(task)
        learner.plan(task)
        accuracy, losses = (torch.stack(v, 1) for v in by_hand(learner, steps))
        assert shown.found[task.index, "start"].shape == (2, 0)
        online = shown.found[task.index, "end"]
        torch.testing.assert_close(online, accuracy)
        for i, seed in enumerate(SEEDS):
            where = {"seed": seed, "boundary": task.index}
            ends = column(sink.tables["curves"], "step", **where)
            assert len(ends) == min(CURVE_BINS, steps) and ends[-1] == steps
            spans = list(zip([0, *ends], ends))
            assert all(b > a for a, b in spans)
            for name, whole in (("online_accuracy", accuracy), ("loss", losses)):
                expected = [float(whole[i, a:b].double().mean()) for a, b in spans]
                assert column(sink.tables["curves"], name, **where) == pytest.approx(expected, rel=1e-5)


def test_replayed_rows_do_not_count_as_online() -> None:
    class Echo(Strategy):
        """Appends rows whose targets are wrong, with no weight."""

        def batch(self, learner: Learner, batch: Batch) -> Batch:
            wrong = Batch(batch.x, (batch.y + 1) % 2, batch.t, 0 * batch.w, batch.mask)
            return cat(batch, wrong).batch

    s = stream("domain")
    shown = [Seen(lambda b: b.online) for _ in range(2)]
    for strategies, seen in zip(([], [Echo()]), shown):
        run(s, strategies, metrics={"seen": seen}, **{**settings(s), "model": MLP(s.shape, s.outputs, (8,))})
    for where, online in shown[0].found.items():
        torch.testing.assert_close(online, shown[1].found[where])


def test_a_regression_curve_is_minus_the_squared_error() -> None:
    plain = stream("domain")
    tasks = []
    for task in plain.tasks[:2]:
        target = torch.stack([task.train.labels() == c for c in range(2)], -1).float()
        rows = replace(task.train, y=target)  # type: ignore[type-var]
        tasks.append(Task(task.index, rows, rows, rows))
    s = replace(plain, tasks=tuple(tasks), loss="mse")
    shown, sink = Seen(lambda b: b.online), InMemory()
    result = run(s, [], metrics={"seen": shown}, sink=sink, **settings(s))
    loss = [column(sink.tables["curves"], "loss", seed=seed, boundary=0) for seed in SEEDS]
    torch.testing.assert_close(shown.found[0, "end"], -torch.tensor(loss))
    assert (result.accuracy[:, 1, 0] < 0).all()
    assert column(sink.tables["accuracy"], "loss", boundary=0, task=0) == (-result.accuracy[:, 1, 0]).tolist()


# --- controls and the trainability gap ------------------------------------------------------------


def control_run(s: Stream) -> Tensor:
    return fresh_accuracy(run(s, [], **settings(s)).accuracy)


def test_fresh_accuracy_is_that_just_after_each_task() -> None:
    s = stream()
    accuracy = run(s, [], **settings(s)).accuracy
    found = fresh_accuracy(accuracy)
    assert all(torch.equal(found[:, t], accuracy[:, t + 1, t]) for t in range(5))


@pytest.mark.parametrize("strategies", [lambda: [], lambda: [Pull()]], ids=["naive", "pull"])
def test_the_gap_is_a_copy_of_the_learner_plainly_trained(strategies: Callable[[], list[Strategy]]) -> None:
    """Against a copy taken when the task begins and trained by hand."""
    s = stream("domain")
    options = settings(s, 20, dtype=torch.float64)
    control = fresh_accuracy(run(s, [], **options).accuracy)
    copies = Seen(lambda b: b.learner.clone())
    gaps = Seen(lambda b: (b.gap, b.control.clone(), b.accuracy[:, b.t + 1, b.t].clone()))
    run(s, strategies(), metrics={"copy": copies, "gap": gaps}, control=control, **options)
    same = []
    for t in range(5):
        gap, shown, accuracy = gaps.found[t, "end"]
        assert torch.equal(shown[:, : t + 1], control[:, : t + 1]) and bool(shown[:, t + 1 :].isnan().all())
        copy = copies.found[t, "start"]
        assert torch.equal(gap, trained_plainly(copy, s.tasks[t], Evaluation()))
        by_hand(copy, 20)
        torch.testing.assert_close(gap, copy.evaluate(copy.net, s.tasks[t].test)[0], rtol=0, atol=1e-12)
        same.append(torch.equal(gap, accuracy))
    assert all(same) if not strategies() else not any(same)


class Halved(Strategy):
    """Gives out other parameters than it trains; from task 2 on the same."""

    def deploy(self, learner: Learner, net: Net) -> Net:
        return net if learner.now >= 2 else replace(net, params={k: v / 2 for k, v in net.params.items()})


def test_intransigence_is_of_the_trained_net_and_of_the_deployed_one(monkeypatch: pytest.MonkeyPatch) -> None:
    s = stream()
    by_hand = Seen(lambda b: b.learner.evaluate(b.trained, s.tasks[b.t].test)[0])
    own = Seen(lambda b: b.trained_score)
    metric = partial(plasticity, size=20, duplicates=False, rank=False, gradient=False)
    sink, control = InMemory(), control_run(s)
    result = run(
        s, [Halved()], metrics={"m": metric, "a": by_hand, "b": own}, control=control, sink=sink, **settings(s)
    )
    for t in range(5):
        at = {"boundary": t, "phase": "end"}
        trained, given_out = by_hand.found[t, "end"], result.accuracy[:, t + 1, t]
        assert (own.found[t, "end"] is None) == (t >= 2) and own.found[t, "start"] is None
        assert (
            column(sink.tables["metrics"], "value", metric="intransigence", **at) == (control[:, t] - trained).tolist()
        )
        deployed = column(sink.tables["metrics"], "value", metric="intransigence_deployed", **at)
        assert deployed == (control[:, t] - given_out).tolist()
        assert torch.equal(trained, given_out) == (t >= 2)
    nets = {
        name: set(column(sink.tables["metrics"], "net", metric=name)) for name in set(sink.tables["metrics"]["metric"])
    }
    assert nets["intransigence"] == {"trained"} and nets["intransigence_deployed"] == {"deployed"}
    assert nets["trainability_gap"] == nets["memory"] == nets["fresh_score"] == nets["forward_rows"] == {""}


def test_no_gap_is_measured_without_a_control_or_when_switched_off() -> None:
    s = stream()
    switches: tuple[dict[str, Any], ...] = ({}, {"control": control_run(s), "gap": False})
    for options in switches:
        gaps = Seen(lambda b: b.gap)
        run(s, [Pull()], metrics={"gap": gaps}, **settings(s), **options)
        assert set(gaps.found.values()) == {None}


def test_a_control_s_own_gap_and_control_are_its_accuracy() -> None:
    s = stream()
    shown = Seen(lambda b: (b.gap, b.control, b.accuracy[:, b.t + 1, b.t].clone()))
    run(s, [], metrics={"seen": shown}, is_control=True, **settings(s))
    for t in range(5):
        gap, control, accuracy = shown.found[t, "end"]
        assert torch.equal(gap, accuracy) and torch.equal(control[:, t], accuracy)


def test_measuring_changes_nothing_of_the_run() -> None:
    s = stream()
    learner = Learner(stream=s, **settings(s))
    pull = Pull()
    pull.random = learner.random("strategy/Pull")
    loop.prepare(learner, pull)
    loop.train(learner, pull, Blind())

    def draws(b: Boundary) -> dict[str, Tensor | Reading]:
        b.random.key()
        return {"probe": b.probe(0, 20).w.sum(1)}

    result = run(s, [Pull()], metrics={"draws": draws}, control=control_run(s), **settings(s))
    assert all(torch.equal(v, result.learner.params[k]) for k, v in learner.params.items())


# --- rows -----------------------------------------------------------------------------------------


def test_a_reading_becomes_one_row_per_seed_and_coordinate() -> None:
    def metric(b: Boundary) -> dict[str, Tensor | Reading]:
        value = torch.tensor([[1.0, 2.0], [3.0, math.nan]])
        return {
            "plain": torch.tensor([5.0, 6.0]),
            "layers": Reading(value, stderr=value / 10, axis="layer", coords=("fc1", "head")),
            "tasks": Reading(value, axis="task"),
            "both": crossed(value[..., None] + torch.tensor([0.0, 10.0, 20.0]), (2, 4), "alpha", (0, 0.5, 1)),
        }

    s = stream()
    sink = InMemory()
    run(s, [], metrics={"m": partial(metric)}, sink=sink, **settings(s))
    table = sink.tables["metrics"]
    at = {"boundary": 3, "phase": "end"}
    assert column(table, "value", metric="plain", **at) == [5, 6]
    assert column(table, "seed", metric="layers", **at) == [0, 0, 1, 1]
    assert column(table, "coord", metric="layers", **at) == ["fc1", "head"] * 2
    assert column(table, "task", metric="layers", **at) == [-1] * 4
    assert column(table, "task", metric="tasks", **at) == [0, 1, 0, 1]
    assert column(table, "coord", metric="tasks", **at) == [""] * 4
    assert column(table, "task", metric="both", **at) == [2, 2, 2, 4, 4, 4] * 2
    assert column(table, "coord", metric="both", **at) == ["0", "0.5", "1"] * 4
    assert column(table, "axis", metric="both", **at) == ["alpha"] * 12
    assert column(table, "value", metric="both", **at)[:7] == [1, 11, 21, 2, 12, 22, 3]
    values, errors = (column(table, k, metric="layers", **at) for k in ("value", "stderr"))
    assert values[:3] == [1, 2, 3] and math.isnan(values[3])
    assert errors[:3] == pytest.approx([0.1, 0.2, 0.3])
    assert all(math.isnan(v) for v in column(table, "stderr", metric="plain", **at))
    # (1 + 2 + 2 + 6 readings) * 2 phases, and what the strategy costs once, for 2 seeds and 5 tasks
    assert {len(v) for v in table.values()} == {(11 * 2 + len(costs.COLUMNS)) * 2 * 5}


def test_times_stand_in_their_own_table() -> None:
    s = stream()
    sink = InMemory()
    run(s, [Pull()], metrics={"nothing": lambda b: {}}, sink=sink, control=control_run(s), **settings(s))
    timing = sink.tables["timing"]
    assert set(column(timing, "part", boundary=1)) >= {"gap", "train", "evaluate", "metric/nothing"}
    assert all(v >= 0 for v in timing["seconds"]) and all(v > 1e6 for v in timing["peak_memory"])
    assert not [k for t in ("metrics", "accuracy", "curves") for k in sink.tables.get(t, {}) if "second" in k]
    step, whole = (column(timing, "seconds", part=part, boundary=1)[0] for part in ("step", "train"))
    assert 0 < 4 * step <= whole  # four steps a task


def test_what_a_strategy_costs_is_recorded() -> None:
    class Grow(Pull):
        def setup(self, learner: Learner) -> None:
            learner.params["gate"] = torch.zeros(learner.S, 3, 2)
            super().setup(learner)

        def step(self, learner: Learner, step: Step) -> None:
            time.sleep(0.01)

    s = stream()
    for part, extra in ((Pull(), 0), (Grow(), 6)):
        sink = InMemory()
        run(s, [part], sink=sink, **settings(s))
        table, timing = sink.tables["metrics"], sink.tables["timing"]
        own = 64 * 8 + 8 + 8 * 10 + 10
        at = {"boundary": 2, "phase": "end"}
        assert column(table, "value", metric="extra_parameters", **at) == [extra] * 2
        rows = 10 * (64 * 4 + 8) + 8 if not extra else 0  # ten rows of x in float32 and y; t is one 0, expanded
        jitter = 8  # the key's remainder, int64
        assert column(table, "value", metric="memory", **at) == [4 * (own + extra) + rows + jitter] * 2
    step, plain = (column(timing, "seconds", part=part, boundary=2)[0] for part in ("step", "plain step"))
    assert step > plain + 0.009


def test_a_plain_step_is_timed_on_a_copy() -> None:
    s = stream()
    learner = Learner(stream=s, **settings(s, steps=2))
    before, seen = tree.copy(learner.params), []
    ticks = iter(range(100))

    def clock() -> float:
        seen.append(1)
        return float(next(ticks))

    assert costs.plain_step(learner, s.tasks[0], clock) == 1 / costs.STEPS
    assert all(torch.equal(learner.params[k], v) for k, v in before.items())
    assert learner.planned == 1 and len(seen) == 3


class Weak(Pull):
    """Its penalty is `size` times the loss of a step, its rows weigh `weight`."""

    def __init__(self, size: float, weight: float) -> None:
        self.size, self.weight = size, weight

    def batch(self, learner: Learner, batch: Batch) -> Batch:
        return cat(batch, replace(batch, w=batch.w * self.weight)).batch if self.weight else batch

    def loss(self, learner: Learner, params: Params, batch: Batch, out: Out) -> Tensor:
        loss = learner.task_loss(params, batch)[0]
        return self.size * (loss.detach() + 0 * loss)


@pytest.mark.parametrize(
    ("size", "weight", "idle"), [(0, 0, True), (0.5e-4, 0, True), (2e-4, 0, False), (0, 0.5e-4, True), (0, 3e-4, False)]
)
def test_a_penalty_or_replay_that_does_nothing_is_warned_about_once(size: float, weight: float, idle: bool) -> None:
    s = stream()
    said: list[str] = []
    options = settings(s)
    chain = Chain([Weak(size, weight)])
    learner = Learner(stream=s, **options)
    recorder = Recorder(learner, chain, {}, Evaluation(), InMemory(), gap=False, warn=said.append)
    loop.prepare(learner, chain)
    recorder.initial()
    loop.train(learner, chain, recorder)
    assert len(said) == idle
    if idle:
        assert said[0].startswith("task 1: weak contributed less than 0.0001 of the loss")


def test_a_task_of_no_rows_takes_no_step_and_is_still_measured() -> None:
    class Idle(Strategy):
        def begin(self, learner: Learner, task: Task) -> Task:
            return replace(task, epoch=0) if task.index == 1 else task

    s = stream("domain")
    sink = InMemory()
    result = run(s, [Idle()], sink=sink, metrics={"seen": lambda b: {}}, **settings(s))
    assert torch.equal(result.accuracy[:, 1, :2], result.accuracy[:, 2, :2])
    assert not torch.equal(result.accuracy[:, 2, :2], result.accuracy[:, 3, :2])
    assert set(sink.tables["curves"]["boundary"]) == {0, 2, 3, 4}


class Poison(Strategy):
    """Makes seed 1 diverge in task 1."""

    def begin(self, learner: Learner, task: Task) -> Task:
        if task.index == 1:
            learner.params["head.weight"][1] = math.nan
        return task


def test_a_seed_that_diverges_is_nan_from_there_on_and_the_others_are_as_without_it() -> None:
    s = stream()

    def metric(b: Boundary) -> dict[str, Tensor | Reading]:
        return {"norm": tree.norm(b.trained.params).nan_to_num(7.0)}  # even a metric that hides it

    sinks = InMemory(), InMemory()
    sick, sound = (
        run(s, part, sink=sink, metrics={"norm": metric}, **settings(s)) for part, sink in zip(([Poison()], []), sinks)
    )
    assert sick.learner.alive.tolist() == [True, False]
    assert sick.accuracy[1, 2:, :].isnan().all() and not sick.accuracy[1, 1, 0].isnan()
    assert torch.equal(sick.accuracy[0].nan_to_num(-1), sound.accuracy[0].nan_to_num(-1))
    for name in ("accuracy", "curves", "metrics"):
        tables = [sink.tables[name] for sink in sinks]
        value = {"accuracy": "accuracy", "curves": "loss", "metrics": "value"}[name]
        a, b = (column(t, value, seed=0) for t in tables)
        assert a == b and len(a) > 0
    after = column(sinks[0].tables["metrics"], "value", seed=1, metric="norm", boundary=2, phase="end")
    assert all(math.isnan(v) for v in after)


# --- resuming -------------------------------------------------------------------------------------


class Disk(InMemory):
    """Writes every checkpoint as a run folder does, and reads the nets of an earlier attempt."""

    def __init__(self, before: "Disk | None" = None) -> None:
        super().__init__()
        self.files: dict[int, bytes] = {}
        self.nets = dict(before.nets) if before else {}

    def commit(self, boundary: int, checkpoint: Callable[[], dict[str, Any]], net: Net) -> None:
        super().commit(boundary, checkpoint, net)
        file = io.BytesIO()
        torch.save(checkpoint(), file)
        self.files[boundary] = file.getvalue()


@pytest.mark.parametrize("cut", [-1, 0, 3])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(cut: int) -> None:
    s = stream()

    def metric(b: Boundary) -> dict[str, Tensor | Reading]:
        first = b.nets.initial.params if b.t == 0 else b.nets[b.t - 1].params
        drawn = b.random.key() % 1000
        return {"drawn": drawn.double(), "moved": tree.norm(tree.sub(b.trained.params, first))}

    def go(sink: Disk, **options: Any) -> Result:
        metrics = {"m": metric}
        return run(s, [Pull()], metrics=metrics, sink=sink, control=torch.zeros(2, 5), **settings(s), **options)

    whole = Disk()
    uninterrupted = go(whole)
    checkpoint = torch.load(io.BytesIO(whole.files[cut]), weights_only=True)
    rest = Disk(whole)
    resumed = go(rest, resume=(cut, checkpoint))
    assert torch.equal(resumed.accuracy.nan_to_num(-1), uninterrupted.accuracy.nan_to_num(-1))
    assert all(torch.equal(v, resumed.learner.params[k]) for k, v in uninterrupted.learner.params.items())
    for name in ("accuracy", "curves", "metrics"):
        rows = [list(zip(*sink.tables[name].values())) for sink in (whole, rest)]
        at = list(whole.tables[name]).index("boundary")
        # repr, because NaN differs from itself
        assert [repr(r) for r in rows[0] if r[at] > cut] == [repr(r) for r in rows[1]]
        assert rows[1]
    assert sorted(rest.files) == list(range(cut + 1, 5))


def test_a_checkpoint_is_a_snapshot_that_later_steps_do_not_reach() -> None:
    """A sink may keep what `checkpoint()` returns only by writing it: it holds live tensors."""
    s = stream()
    sink = Disk()
    result = run(s, [], sink=sink, **settings(s))
    first = torch.load(io.BytesIO(sink.files[0]), weights_only=True)["learner"]["params"]
    assert not torch.equal(first["head.weight"], result.learner.params["head.weight"])
    assert torch.equal(first["head.weight"], sink.nets[0]["params"]["head.weight"])


def test_a_recorder_counts_steps_for_the_progress_bar() -> None:
    s = stream()
    seen: list[tuple[int, int, int]] = []
    run(s, [], progress=lambda *at: seen.append(at), **settings(s, 120))
    assert seen[:2] == [(0, 50, 120), (0, 100, 120)]
    assert {at[0] for at in seen} == set(range(5))


def test_an_observer_by_hand_is_the_run_s() -> None:
    """Recorder and loop without `run`, as a notebook may use them."""
    s = stream()
    learner = Learner(stream=s, **settings(s))
    chain, sink = Chain([]), InMemory()
    recorder = Recorder(learner, chain, {}, Evaluation(), sink)
    loop.prepare(learner, chain)
    recorder.initial()
    loop.train(learner, chain, recorder)
    expected = run(s, [], **settings(s)).accuracy
    assert torch.equal(recorder.accuracy.nan_to_num(-1), expected.nan_to_num(-1))


def test_a_strategy_that_acts_on_gradients_alone_is_not_called_idle() -> None:
    class Project(Strategy):
        def batch(self, learner: Learner, batch: Batch) -> Batch:
            return replace(batch, extra={"memory": 1})

    s = stream()
    said: list[str] = []
    learner, chain = Learner(stream=s, **settings(s)), Chain([Project()])
    recorder = Recorder(learner, chain, {}, Evaluation(), InMemory(), gap=False, warn=said.append)
    loop.prepare(learner, chain)
    recorder.initial()
    loop.train(learner, chain, recorder)
    assert not said
