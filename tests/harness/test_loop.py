"""The training loop: the order of its phases, how strategies compose in it, and that it knows none of them."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from harness import loop, tree
from harness.learner import Budget, Learner
from harness.loop import prepare, train
from harness.models.mlp import MLP
from harness.optim import SGD
from harness.strategy import Chain, Strategy
from harness.types import BEFORE, Aux, Batch, GradFn, Net, Out, Params, Step, Stream, Task, cat
from tasks.datasets import load
from tasks.split import split
from tests.even import even
from tests.observer import Blind

ROOT = Path(loop.__file__).parents[1]


def stream(seeds: tuple[int, ...] = (0, 1)) -> Stream:
    return split(dataset=even(load("digits")), seeds=seeds, scenario="domain", n_tasks=5, fixed=False)


def learner_of(s: Stream, steps: int = 2, **options: Any) -> Learner:
    model = MLP(s.shape, s.outputs, (6,))
    return Learner(model, s, SGD(lr=0.1), Budget(steps=steps, batch_size=5), dtype=torch.float64, **options)


def test_the_loop_names_no_strategy_and_fits_on_a_screen() -> None:
    source = Path(loop.__file__).read_text()
    names = {p.stem for p in (ROOT / "strategies").glob("*.py")} - {"__init__"}
    words = set(re.findall(r"[a-z0-9]+(?:_[a-z0-9]+)*", source.lower()))
    assert names and not names & words
    assert "strategies" not in re.findall(r"^(?:from|import) (\w+)", source, re.MULTILINE)
    assert len(source.splitlines()) <= 60


class Diary(Strategy):
    """Writes down every call."""

    def __init__(self, lines: list[str]) -> None:
        self.lines = lines

    def setup(self, learner: Learner) -> None:
        self.lines.append("setup")

    def begin(self, learner: Learner, task: Task) -> Task:
        self.lines.append(f"begin {task.index} now {learner.now} steps {learner.steps}")
        return task

    def batch(self, learner: Learner, batch: Batch) -> Batch:
        self.lines.append("batch")
        return batch

    def loss(self, learner: Learner, params: Params, batch: Batch, out: Out) -> float:
        self.lines.append("loss")
        return 0.0

    def grad(self, learner: Learner, inner: GradFn) -> GradFn:
        self.lines.append("grad")
        return inner

    def step(self, learner: Learner, step: Step) -> None:
        self.lines.append(f"step {learner.steps} graph {torch.is_grad_enabled()}")

    def end(self, learner: Learner, task: Task) -> None:
        self.lines.append(f"end {task.index}")


class Witness(Blind):
    def __init__(self, lines: list[str]) -> None:
        self.lines = lines

    def start(self, task: Task) -> None:
        self.lines.append(f"observer start {task.index}")

    def step(self, step: Step, aux: Aux) -> None:
        self.lines.append("observer step")

    def end(self, task: Task) -> None:
        self.lines.append(f"observer end {task.index}")


def test_phases_come_in_their_order() -> None:
    lines: list[str] = []
    learner, diary = learner_of(stream()), Diary(lines)
    prepare(learner, diary)
    train(learner, diary, Witness(lines), start=3)
    each = ["batch", "loss", "step {} graph False", "observer step"]
    expected = ["setup", "grad"]
    for i in (3, 4):
        expected += [f"begin {i} now {i} steps 0", f"observer start {i}"]
        expected += [line.format(n) for n in (1, 2) for line in each]
        expected += [f"end {i}", f"observer end {i}"]
    assert lines == expected


class Watcher(Strategy):
    """Checks what a step is told against the learner's own memory."""

    needs = frozenset({BEFORE})

    def setup(self, learner: Learner) -> None:
        self.after = tree.copy(learner.params)
        self.checked = 0

    def batch(self, learner: Learner, batch: Batch) -> Batch:
        return cat(batch, batch).batch

    def step(self, learner: Learner, step: Step) -> None:
        for k, v in learner.params.items():
            assert torch.equal(step.before[k], self.after[k])
            torch.testing.assert_close(v, step.before[k] - 0.1 * step.grads[k])
        assert step.batch.w.shape[1] == 2 * step.fresh.w.shape[1] == 10
        forward = learner.apply(step.before, learner.buffers, step.batch.x, step.batch.t)
        torch.testing.assert_close(step.out.logits.detach(), forward.logits)
        self.after = tree.copy(learner.params)
        self.checked += 1


def test_a_step_is_told_what_the_optimizer_received_and_the_pass_before_it() -> None:
    learner, watcher = learner_of(stream()), Watcher()
    prepare(learner, watcher)
    train(learner, watcher, Blind())
    assert watcher.checked == 10


class Sharp(Strategy):
    """Sharpness-aware minimisation with radius rho: the gradient at a point uphill (Foret et al. 2021)."""

    def __init__(self, rho: float) -> None:
        self.rho = rho

    def grad(self, learner: Learner, inner: GradFn) -> GradFn:
        def uphill(params: Params, batch: Batch) -> tuple[Params, Aux]:
            g, aux = inner(params, batch)
            return inner(tree.add(params, g, self.rho / tree.norm(g)), batch)[0], aux

        return uphill


class Decay(Strategy):
    """Half the squared distance from zero, times `strength`."""

    def __init__(self, strength: float) -> None:
        self.strength = strength

    def loss(self, learner: Learner, params: Params, batch: Batch, out: Out) -> Tensor:
        return 0.5 * self.strength * tree.dot(params, params)


def test_a_double_pass_with_a_penalty_inside_is_the_hand_written_one() -> None:
    """SAM around a penalised loss, against plain torch for each seed."""
    learner = learner_of(stream(), steps=3)
    start = tree.copy(learner.params)
    seen: list[Batch] = []

    class Keep(Blind):
        def step(self, step: Step, aux: Aux) -> None:
            seen.append(step.fresh)

    chain = Chain([Decay(0.3), Sharp(0.05)])
    prepare(learner, chain)
    train(learner, chain, Keep())
    for s in range(2):
        p = [v[s].clone().requires_grad_() for v in start.values()]

        def gradient(p: list[Tensor], batch: Batch, s: int = s) -> list[Tensor]:
            z = F.linear(torch.relu(F.linear(batch.x[s].flatten(1).double(), p[0], p[1])), p[2], p[3])
            loss = F.cross_entropy(z, batch.y[s]) + 0.15 * sum(v.square().sum() for v in p)
            return list(torch.autograd.grad(loss, p))

        for batch in seen:
            g = gradient(p, batch)
            length = torch.cat([v.flatten() for v in g]).norm()
            uphill = [(v + 0.05 * d / length).detach().requires_grad_() for v, d in zip(p, g)]
            p = [(v - 0.1 * d).detach().requires_grad_() for v, d in zip(p, gradient(uphill, batch))]
        for (name, v), expected in zip(learner.params.items(), p):
            torch.testing.assert_close(v[s], expected.detach(), msg=f"{name} of seed {s}")


@pytest.mark.parametrize("order", [1, -1])
def test_where_one_part_takes_no_step_no_later_part_brings_steps_back(order: int) -> None:
    class Still(Strategy):
        def begin(self, learner: Learner, task: Task) -> Task:
            return replace(task, epoch=0) if task.index else task

    class More(Strategy):
        def begin(self, learner: Learner, task: Task) -> Task:
            return replace(task, epoch=2 * learner.stream.tasks[task.index].rows)

    learner = learner_of(stream())
    chain = Chain([Still(), More()][::order])
    first, second, *_ = (chain.begin(learner, task).epoch for task in learner.stream.tasks)
    assert first == 2 * learner.stream.tasks[0].rows and second == 0


def test_a_chain_threads_left_to_right_sums_losses_and_nests_gradients_last_outermost() -> None:
    calls: list[str] = []

    def link(name: str, penalty: float) -> Strategy:
        class Link(Strategy):
            def begin(self, learner: Learner, task: Task) -> Task:
                calls.append(f"begin {name}")
                return task

            def batch(self, learner: Learner, batch: Batch) -> Batch:
                calls.append(f"batch {name}")
                return batch

            def loss(self, learner: Learner, params: Params, batch: Batch, out: Out) -> Tensor:
                return penalty + 0 * params["head.bias"].sum(1)

            def grad(self, learner: Learner, inner: GradFn) -> GradFn:
                def wrapped(params: Params, batch: Batch) -> tuple[Params, Aux]:
                    calls.append(f"grad {name}")
                    return inner(params, batch)

                return wrapped

            def step(self, learner: Learner, step: Step) -> None:
                calls.append(f"step {name}")

            def deploy(self, learner: Learner, net: Net) -> Net:
                calls.append(f"deploy {name}")
                return net

            def end(self, learner: Learner, task: Task) -> None:
                calls.append(f"end {name}")

        Link.__name__ = name
        return Link()

    losses: dict[str, list[Tensor]] = {}
    for label, parts in {"plain": [], "both": [link("A", 1.0), link("B", 0.25)]}.items():
        s = stream()
        learner, chain = learner_of(s, steps=1), Chain(parts)

        class Keep(Blind):
            def step(self, step: Step, aux: Aux, label: str = label) -> None:
                losses.setdefault(label, []).append(aux.loss)

        prepare(learner, chain)
        train(learner, chain, Keep(), start=4)
        chain.deploy(learner, learner.net)
        assert chain.plain == (label == "plain")
    each = ["begin A", "begin B", "batch A", "batch B", "grad B", "grad A", "step A", "step B", "end A", "end B"]
    assert calls == [*each, "deploy A", "deploy B"]
    torch.testing.assert_close(losses["both"][0] - losses["plain"][0], torch.full((2,), 1.25, dtype=torch.float64))


def test_a_name_twice_is_refused_and_a_known_wrong_order_named() -> None:
    with pytest.raises(ValueError, match=r"^strategy=\[decay,sharp,decay\]: decay is listed twice$"):
        Chain([Decay(1.0), Sharp(0.1), Decay(2.0)])

    class First(Sharp):
        order = {"grad": 1}

    class Last(Sharp):
        order = {"grad": 2}

    assert Chain([First(0.1), Last(0.1)]).disorder() == []
    (line,) = Chain([Last(0.1), First(0.1)]).disorder()
    assert line.startswith("first should come before last")


class Appender(Strategy):
    """Draws from its own randomness and throws the draw away."""

    def batch(self, learner: Learner, batch: Batch) -> Batch:
        self.random.key()
        return batch


@pytest.mark.parametrize("parts", [lambda: [Appender()], lambda: [Appender(), Diary([])]])
def test_a_strategy_that_only_draws_is_bitwise_naive(parts: Callable[[], list[Strategy]]) -> None:
    final = []
    for chain in (Chain([]), Chain(parts())):
        learner = learner_of(stream())
        prepare(learner, chain)
        train(learner, chain, Blind())
        final.append(learner.params)
    assert all(torch.equal(v, final[1][k]) for k, v in final[0].items())
