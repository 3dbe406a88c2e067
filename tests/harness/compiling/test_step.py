"""A compiled step does what the eager one does, with few graphs; what cannot be compiled is eager, and is said once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.compiling.step import CompiledStep, form_of, tracing
from harness.contract.toy import MODELS, OPTIMIZERS, SEEDS, Saver, begin, digits, go
from harness.learner import Budget, Learner
from harness.loop import prepare, train
from harness.optim import SGD, Adam, Optimizer
from harness.strategy import Chain, Strategy
from harness.types import Batch, Out, Params
from tasks.permuted import permuted
from tests.toy import FILES, make, strategy_class

BY_DAY = ("hat", "sam", "si")
EAGER = ("gem",)  # its quadratic programme looks at values


def replayed(graph: Any, inputs: Any) -> Any:
    """A graph that replays its operations. The import costs two seconds, also where none of this file's tests runs."""
    from torch._dynamo.backends.debugging import aot_eager

    return aot_eager(graph, inputs)


def traced(
    parts: list[Strategy], scenario: str = "domain", optimizer: Optimizer | None = None, **how: Any
) -> tuple[Learner, CompiledStep, list[str]]:
    """A toy run under graphs that replay their operations: what differs from eager is the tracing's fault."""
    said: list[str] = []
    compiler = how.pop("compiler", replayed)
    learner, chain = begin(parts, scenario, MODELS[how.pop("model", "mlp")], optimizer or SGD(lr=0.05), **how)
    learner.compiled = step = CompiledStep(learner, said.append, compiler)
    with tracing():
        train(learner, chain, Saver(learner, chain))
    return learner, step, said


def assert_close(a: Learner, b: Learner) -> None:
    """To rounding in float64: torch takes some operations apart."""
    for k, v in {**b.params, **b.buffers}.items():
        torch.testing.assert_close({**a.params, **a.buffers}[k], v, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in BY_DAY else pytest.mark.nightly) for n in FILES if n != "avalanche"]
)
def test_every_strategy_trains_to_the_same_nets_with_few_graphs(name: str) -> None:
    scenario = strategy_class(name).scenarios[0]
    eager = go([make(name)], scenario, MODELS["mlp"], OPTIMIZERS["adam"]())
    learner, step, said = traced([make(name)], scenario, OPTIMIZERS["adam"]())
    assert_close(learner, eager.learner)
    assert (step.fallen_back, len(said)) == ((True, 1) if name in EAGER else (False, 0)), said
    assert step.graphs <= 3


@pytest.mark.nightly
def test_batch_norm_keeps_its_statistics() -> None:
    eager = go([], "class", MODELS["residual"], SGD(lr=0.05), seeds=SEEDS[:2])
    learner, step, said = traced([], "class", model="residual", seeds=SEEDS[:2])
    assert_close(learner, eager.learner)
    assert learner.buffers and not said and step.graphs


@pytest.mark.parametrize(
    "names",
    [("lwf",), *(pytest.param(n, marks=pytest.mark.nightly) for n in (("ewc",), ("replay", "l2")))],
    ids="+".join,
)
def test_twenty_tasks_need_no_more_graphs_than_three(names: tuple[str, ...]) -> None:
    stream = permuted(dataset=digits(), seeds=SEEDS, n_tasks=20, fixed=False)
    counts = []

    class Counts(Saver):
        def end(self, task: Any) -> None:
            counts.append(step.graphs)

    learner = Learner(MODELS["mlp"](stream), stream, SGD(lr=0.05), Budget(steps=4, batch_size=8))
    chain = Chain([make(n) for n in names])
    prepare(learner, chain)
    learner.compiled = step = CompiledStep(learner, lambda line: pytest.fail(line), replayed)
    with tracing():
        train(learner, chain, Counts(learner, chain))
    assert len(counts) == 20 and counts[0] > 0 and counts[2] == counts[-1] <= 4


@pytest.mark.parametrize(
    "optimizer", [lambda: Adam(lr=0.01, schedule="cosine"), lambda: SGD(lr=0.1, momentum=0.9, schedule="step")]
)
def test_a_schedule_is_an_input_of_one_graph(optimizer: Callable[[], Optimizer]) -> None:
    eager = go([], "domain", MODELS["mlp"], optimizer(), steps=9)
    learner, step, _ = traced([], optimizer=optimizer(), steps=9)
    assert_close(learner, eager.learner)
    assert step.graphs == 1


@pytest.mark.parametrize("compiler", ["operations", pytest.param("C++", marks=pytest.mark.nightly)])
def test_what_torch_compiles_is_the_eager_step_to_rounding(compiler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With torch's compiler, which makes no C++ by day: momentum, weight decay and three seeds."""
    if compiler == "operations":
        monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", replayed)
    settings: Any = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}
    eager = go([], "domain", MODELS["mlp"], SGD(**settings), steps=6)
    learner, step, said = traced([], optimizer=SGD(**settings), compiler=None, steps=6)
    assert_close(learner, eager.learner)
    assert step.graphs == 1 and not said and step.seconds > 0


@pytest.mark.nightly
def test_row_s_of_a_compiled_run_is_seed_s_alone() -> None:
    together, _, _ = traced([make("replay")], optimizer=Adam(lr=0.01), compiler=None)
    for s, seed in enumerate(SEEDS):
        alone, step, _ = traced([make("replay")], optimizer=Adam(lr=0.01), compiler=None, seeds=(seed,))
        assert step.graphs
        for k, v in alone.params.items():
            torch.testing.assert_close(together.params[k][s : s + 1], v, rtol=1e-10, atol=1e-13)


# --- what is eager --------------------------------------------------------------------------------------------------


class Spy(CompiledStep):
    """Notes at which steps of a task the graph was used."""

    def __init__(self, *how: Any) -> None:
        super().__init__(*how)
        self.used: list[tuple[int, int]] = []
        graph = self.graph

        def noted(*inputs: Any) -> Any:
            self.used.append((self.learner.now, self.learner.steps))
            return graph(*inputs)

        self.graph = noted


def test_the_first_step_of_a_task_and_one_with_another_form_are_eager() -> None:
    class Grows(Strategy):
        """In the second task, batches of 8, 8, 6, 6, 6, 5."""

        def batch(self, learner: Learner, batch: Batch) -> Batch:
            rows = (8, 8, 6, 6, 6, 5)[learner.steps] if learner.now == 1 else 8
            return replace(batch, **{k: getattr(batch, k)[:, :rows] for k in ("x", "y", "t", "w")})

    learner, chain = begin([Grows()], "domain", MODELS["mlp"], SGD(lr=0.05), steps=6)
    learner.compiled = spy = Spy(learner, lambda line: pytest.fail(line), replayed)
    with tracing():
        train(learner, chain, Saver(learner, chain))
    assert spy.used == [(0, s) for s in range(1, 6)] + [(1, 1), (1, 3), (1, 4)] + [(2, s) for s in range(1, 6)]
    assert spy.graphs == 2
    assert_close(learner, go([Grows()], "domain", MODELS["mlp"], SGD(lr=0.05), steps=6).learner)


class Counts(Strategy):
    """Its penalty reads a number that changes at every step."""

    number = 0

    def batch(self, learner: Learner, batch: Batch) -> Batch:
        self.number += 1
        return batch

    def loss(self, learner: Learner, params: Params, batch: Batch, out: Out) -> Tensor:
        return self.number * 1e-3 * params["head.bias"].square().sum(1)


class Looks(Strategy):
    """Its penalty depends on a value."""

    def loss(self, learner: Learner, params: Params, batch: Batch, out: Out) -> Tensor:
        norm = params["head.bias"].square().sum(1)
        return norm if float(norm.detach().sum()) > 0.01 else 2 * norm


@pytest.mark.parametrize(("part", "graphs", "why"), [(Counts, 2, "numbers that change"), (Looks, 0, "cannot compile")])
def test_what_cannot_be_compiled_is_said_once_and_the_rest_is_eager(
    part: type[Strategy],
    graphs: int,
    why: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("harness.compiling.step.GRAPHS", 2)
    learner, step, said = traced([part()], steps=6)
    assert step.graphs == graphs and step.fallen_back
    assert len(said) == 1 and why in said[0] and said[0].endswith("goes on with eager steps") and "\n" not in said[0]
    assert "recompile_limit" not in caplog.text  # torch's own lines
    assert_close(learner, go([part()], "domain", MODELS["mlp"], SGD(lr=0.05), steps=6).learner)


def test_no_compiler_is_said_once() -> None:
    def missing(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no C++ compiler found")

    learner, step, said = traced([], compiler=missing)
    assert len(said) == 1 and "no C++ compiler found" in said[0] and step.graphs == 0
    assert_close(learner, go([], "domain", MODELS["mlp"], SGD(lr=0.05)).learner)


def test_an_error_of_own_code_is_raised_as_it_is() -> None:
    class Fails(Strategy):
        def batch(self, learner: Learner, batch: Batch) -> Batch:
            if learner.steps == 2:
                raise ValueError("mine")
            return batch

    with pytest.raises(ValueError, match=r"^mine$"):
        traced([Fails()])


def test_copies_of_a_learner_step_eagerly() -> None:
    learner, _, _ = traced([])
    assert learner.compiled is not None
    assert learner.clone().compiled is None
    assert learner.sub("other", learner.model, SGD(lr=0.1)).compiled is None


def test_batches_of_one_form() -> None:
    learner, _ = begin([], "class", MODELS["mlp"], SGD(lr=0.05))
    batch = next(learner.batches(learner.stream.tasks[0]))
    assert batch.mask is not None
    again = replace(batch, y=batch.y + 1)
    others = [
        replace(batch, x=batch.x[:, 1:]),
        replace(batch, mask=None),
        replace(batch, mask=batch.mask.expand(-1, 8, -1)),
        replace(batch, key=torch.zeros(3)),
        batch.carry(mine=torch.zeros(3, 2)),
    ]
    assert form_of(again) == form_of(batch)
    assert len({form_of(b) for b in (batch, *others, batch.carry(mine=torch.zeros(3, 3)))}) == 7
