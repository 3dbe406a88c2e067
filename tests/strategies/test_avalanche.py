"""Avalanche's strategies in our harness: Naive is our naive, and what is handed over is what it should be."""

import random as python_random
import re
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from harness import loop, rows
from harness import rng as draws
from harness.config.catalogue import CONF
from harness.learner import Budget, Learner
from harness.models.mlp import MLP
from harness.optim import SGD, Adam, AdamW, Optimizer
from harness.record.costs import held
from harness.strategy import Chain
from harness.toolbox.avalanche_bridge import Criterion, benchmark, network
from harness.types import Stream
from strategies.avalanche import FAIL, GIVEN, OWN_LOSS, WORK, Avalanche
from strategies.replay import Replay
from tasks.datasets import load
from tasks.split import split
from tests.avalanche_table import NOT_TRIED, OPTIONS, PAGE, names, row
from tests.observer import Blind
from tests.toy import MODELS, stream


def learner_of(
    made: Stream,
    model: str = "mlp",
    optimizer: Optimizer | None = None,
    budget: Budget | None = None,
    dtype: torch.dtype = torch.float64,
) -> Learner:
    budget = budget or Budget(steps=4, batch_size=8)
    return Learner(MODELS[model](made), made, optimizer or SGD(lr=0.05), budget, dtype=dtype)


def trained(learner: Learner, *parts: Any) -> Learner:
    chain = Chain(list(parts))
    loop.prepare(learner, chain)
    loop.train(learner, chain, Blind())
    return learner


def theirs(name: str = "Naive", **options: Any) -> Avalanche:
    return Avalanche(name=name, options=options or OPTIONS.get(name, {}))


def distance(a: Learner, b: Learner, row: int | None = None) -> float:
    pick = slice(None) if row is None else slice(row, row + 1)
    pairs = [(a.params[k][pick], v) for k, v in b.params.items()] + [
        (a.buffers[k][pick], v) for k, v in b.buffers.items()
    ]
    return max(float((x - y).abs().max()) for x, y in pairs)


@pytest.mark.parametrize("scenario", ["task", "domain", "class"])
@pytest.mark.parametrize("model", ["mlp", "residual"])
def test_its_naive_is_ours_in_every_scenario(scenario: str, model: str) -> None:
    """Same rows in the same order, same masks, same weights, buffers of batch norm included; seeds are ragged."""
    made = stream(scenario, (0, 1, 2))
    ours, other = (trained(learner_of(made, model), *parts) for parts in ([], [theirs()]))
    assert distance(ours, other) < 1e-12
    assert distance(ours, learner_of(made, model)) > 1e-3


OPTIMIZERS = {
    "momentum": lambda: SGD(lr=0.05, momentum=0.9, weight_decay=0.01),
    "nesterov": lambda: SGD(lr=0.05, momentum=0.9, nesterov=True),
    "reset": lambda: SGD(lr=0.05, momentum=0.9, reset=True),
    "adam": lambda: Adam(lr=0.01, betas=(0.8, 0.9), eps=1e-4, weight_decay=0.01),
    "adamw": lambda: AdamW(lr=0.01, weight_decay=0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_setting_of_the_optimizer_is_handed_over(name: str) -> None:
    made = stream("class", (4,))
    ours, other = (trained(learner_of(made, optimizer=OPTIMIZERS[name]()), *parts) for parts in ([], [theirs()]))
    assert distance(ours, other) < 1e-10


def test_epochs_are_handed_over() -> None:
    made = stream("class", (0, 1))
    budget = Budget(epochs=3, batch_size=7)
    ours, other = (trained(learner_of(made, budget=budget), *parts) for parts in ([], [theirs()]))
    assert distance(ours, other) < 1e-12


@pytest.mark.parametrize(
    ("name", "budget", "expected"),
    [
        ("Replay", Budget(steps=5, batch_size=8), [5, 5, 5]),
        ("Replay", Budget(epochs=2, batch_size=8), [24, 24, 24]),  # 90 rows
        ("GDumb", Budget(steps=5, batch_size=8), [5, 5, 5]),
        ("GDumb", Budget(epochs=2, batch_size=8), [6, 6, 6]),  # 20 rows held
        ("Cumulative", Budget(epochs=1, batch_size=8), [12, 23, 34]),
    ],
)
def test_an_epoch_is_a_pass_over_what_it_trains_on(name: str, budget: Budget, expected: list[int]) -> None:
    learner, part = learner_of(stream("domain", (0,)), budget=budget), theirs(name)
    chain = Chain([part])
    loop.prepare(learner, chain)
    found = []
    for task in learner.stream.tasks:
        learner.enter(task)
        chain.begin(learner, task)
        chain.end(learner, task)
        found.append(part.agents[0].clock.train_exp_iterations)
    assert found == expected


def settings() -> list[Any]:
    """Scenario and name, one scenario by turns for each name; the others nightly."""
    found = []
    for at, name in enumerate(WORK):
        scenarios = ("domain",) if name in OWN_LOSS else ("task", "domain", "class")
        for i, scenario in enumerate(scenarios):
            marks = [] if i == at % len(scenarios) else [pytest.mark.nightly]
            found.append(pytest.param(scenario, name, marks=marks))
    return found


@pytest.mark.parametrize(("scenario", "name"), settings())
def test_each_runs_acts_keeps_to_itself_and_knows_no_other_seed(
    scenario: str, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    stream(scenario, (0, 1))  # what it imports may draw
    before = torch.get_rng_state(), python_random.getstate(), np.random.get_state()[1].copy()  # type: ignore[index]
    idle = name == "SynapticIntelligence"  # a fault of Avalanche's, said in a line; float32 is another
    how: Any = {"dtype": torch.float32 if idle else torch.float64}
    error = 1e-6 if idle else 1e-12
    together = trained(learner_of(stream(scenario, (0, 1)), **how), theirs(name))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert python_random.getstate() == before[1]
    assert (np.random.get_state()[1] == before[2]).all()  # type: ignore[index]
    printed = capfd.readouterr()
    assert (printed.out, printed.err.count("\n")) == ("", int(idle))
    alone = trained(learner_of(stream(scenario, (1,)), **how), theirs(name))
    assert distance(together, alone, row=1) < error
    naive = trained(learner_of(stream(scenario, (1,)), **how))
    assert (distance(naive, alone) < error) == (idle or name == "Naive")


def test_dropout_draws_from_the_seed_s_own_generator() -> None:
    def run(seeds: tuple[int, ...]) -> Learner:
        made = stream("class", seeds)
        model = MLP(made.shape, made.outputs, (8,), dropout=0.5)
        learner = Learner(model, made, SGD(lr=0.05), Budget(steps=4, batch_size=8), dtype=torch.float64)
        return trained(learner, theirs())

    assert distance(run((0, 1)), run((1,)), row=1) < 1e-12


@pytest.mark.parametrize("scenario", ["task", "domain", "class"])
def test_the_criterion_is_our_masked_loss(scenario: str) -> None:
    made = stream(scenario, (0, 1))
    learner, criterion = learner_of(made), Criterion(made, 1)
    for task in made.tasks:
        learner.enter(task)
        criterion.now = task.index
        position = torch.arange(7).expand(2, -1)
        batch = learner.make_batch(*task.train.take(position))
        logits = draws.normal(draws.keys([0, 1], "z"), 7, made.outputs, dtype=torch.float64)
        torch.testing.assert_close(criterion(logits[1], batch.y[1]), learner.row_loss(logits, batch)[1].mean())


def test_with_task_labels_a_net_answers_for_one_head_and_without_for_each() -> None:
    made = stream("task", (0, 1))
    net: Any = network(learner_of(made), 1)
    x, t = made.tasks[0].train.take(torch.arange(6).expand(2, -1))[0][1], torch.tensor([0, 1, 2, 2, 1, 0])
    net.known_train_tasks_labels = {0, 2}
    logits, heads = net(x, t), net(x, None)
    assert list(heads) == [0, 2]
    assert made.masks is not None
    for i, label in enumerate(t.tolist()):
        assert torch.equal(logits[i] != 0, made.masks[0, label])
        if label in heads:
            assert torch.equal(heads[label][i], logits[i])


@pytest.mark.parametrize(("scenario", "labels"), [("task", [0, 1, 2]), ("class", [0, 0, 0])])
def test_a_benchmark_holds_each_seed_s_rows(scenario: str, labels: list[int]) -> None:
    made = stream(scenario, (0, 1))
    for s in (0, 1):
        there = benchmark(made, s)
        assert [e.task_labels for e in there.train_stream] == [[t] for t in labels]
        assert there.n_classes_per_exp == [2, 2, 2] and sorted(there.classes_order) == list(range(6))
        for part in ("train", "test"):
            for task, experience in zip(made.tasks, getattr(there, f"{part}_stream")):
                source = getattr(task, part)
                n = int(source.size[s])
                x, y, t = source.take(torch.arange(n).expand(2, -1))
                data = experience.dataset
                assert len(data) == n
                assert torch.equal(torch.stack([data[i][0] for i in range(n)]), x[s])
                assert [int(data[i][1]) for i in range(n)] == y[s].tolist()
                assert {int(data[i][2]) for i in range(n)} == {int(t[s, 0])}


def test_regression_is_no_benchmark() -> None:
    with pytest.raises(ValueError, match="support classification only"):
        benchmark(replace(stream("domain", (0,)), loss="mse"))


def test_importing_it_imports_avalanche_not() -> None:
    code = "import sys, strategies.avalanche, tasks.avalanche; assert 'avalanche' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


ROWS = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if re.match(r"\| [A-Z]", line)]


@pytest.mark.parametrize("line", ROWS, ids=lambda line: line.split()[1])
def test_every_row_of_the_page_is_what_happens(line: str) -> None:
    """Tried again under the versions that are installed, refusals of ours apart."""
    assert row(line.split()[1]) == line, "python -m tests.avalanche_table > strategies/AVALANCHE.md"


def test_the_page_has_a_row_for_every_strategy_of_avalanche_s() -> None:
    assert [line.split()[1] for line in ROWS] == names() and set(names()) == {*WORK, *FAIL}
    assert set(NOT_TRIED) == {"AR1"} and not any("| ?" in line for line in ROWS)


@pytest.mark.parametrize("name", FAIL)
def test_what_does_not_run_says_why(name: str) -> None:
    with pytest.raises(ValueError, match=rf"name={name}: does not run here, because "):
        Avalanche(name=name, options={})


def test_unknown_names_and_options_are_refused() -> None:
    with pytest.raises(ValueError, match=r"name=Mas: choose one of Naive, "):
        Avalanche(name="Mas", options={})
    with pytest.raises(ValueError, match=r"^options\.train_epochs: the run sets it"):
        Avalanche(name="MAS", options={"train_epochs": 3})
    with pytest.raises(ValueError, match=r"options\.lambda: not an argument of MAS; use one of lambda_reg, alpha"):
        trained(learner_of(stream("domain", (0,))), Avalanche(name="MAS", options={"lambda": 3}))


@pytest.mark.parametrize("name", OWN_LOSS)
@pytest.mark.parametrize("scenario", ["task", "class"])
def test_a_loss_that_knows_no_mask_is_refused_where_there_is_one(name: str, scenario: str) -> None:
    made = stream(scenario, (0,))
    with pytest.raises(ValueError, match="its loss lets all outputs compete"):
        trained(learner_of(made), theirs(name))
    if scenario == "class":
        trained(learner_of(replace(made, classes="all")), theirs(name))


def test_null_is_avalanche_s_default_and_what_has_none_is_asked_for() -> None:
    part = Avalanche(name="MAS", options={"lambda_reg": None, "alpha": 0.25, "mem_size": None})
    trained(learner_of(stream("domain", (0,))), part)
    plugin = next(p for p in part.agents[0].plugins if type(p).__name__ == "MASPlugin")
    assert (plugin._lambda, plugin.alpha) == (1.0, 0.25)
    with pytest.raises(ValueError, match=r"options\.ewc_lambda=null: EWC needs a value"):
        trained(learner_of(stream("domain", (0,))), Avalanche(name="EWC", options={"ewc_lambda": None}))


def test_the_file_offers_every_argument_of_what_runs() -> None:
    import inspect

    from avalanche.training import supervised

    node: Any = OmegaConf.load(CONF / "strategy" / "avalanche.yaml")
    taken = {k for n in WORK for k in inspect.signature(getattr(supervised, n)).parameters}
    assert set(node.avalanche.options) == taken - {*GIVEN, "base_kwargs", "kwargs", "verbose"}


@pytest.mark.parametrize(
    ("name", "rows_held", "nets"),
    [
        ("Naive", 0, 0), ("Replay", 20, 0), ("GDumb", 20, 1), ("MIR", 20, 0), ("ER_ACE", 20, 0), ("AGEM", 30, 1),
        ("EWC", 0, 4.5), ("MAS", 0, 1.5), ("LwF", 0, 1),
    ],
)  # fmt: skip
def test_its_memory_is_what_it_holds(name: str, rows_held: int, nets: float) -> None:
    """Rows in buffers (AGEM: 10 of each task, and a gradient), anchors, float32 importances, first net, teacher."""
    learner, part = learner_of(stream("domain", (0, 1))), theirs(name)
    trained(learner, part)
    net = sum(v[0].nbytes for v in learner.params.values())
    row = learner.stream.tasks[0].train.take(torch.zeros(2, 1, dtype=torch.int64))[0][0, 0].nbytes + 16
    assert held(part.holds()) == pytest.approx(2 * (rows_held * row + nets * net), rel=0.02)


def test_it_is_called_by_its_method_in_tables() -> None:
    assert [theirs(n).label for n in ("Naive", "EWC")] == ["avalanche_Naive", "avalanche_EWC"]


def test_augmented_rows_are_refused() -> None:
    made = split(dataset=load("digits", augment=["flip"]), seeds=[0], n_tasks=2, fixed=False)
    with pytest.raises(ValueError, match=r"dataset\.augment: Avalanche trains on a copy of the unaugmented data"):
        trained(learner_of(made), theirs())


def test_a_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^optimizer\.schedule=cosine: SGD with it has no counterpart in Avalanche"):
        trained(learner_of(stream("domain", (0,)), optimizer=SGD(lr=0.1, schedule="cosine")), theirs())


def test_a_state_in_float32_is_said() -> None:
    with pytest.raises(ValueError, match="SynapticIntelligence: keeps its state in float32; use dtype=float32"):
        trained(learner_of(stream("domain", (0,))), theirs("SynapticIntelligence"))


def test_nothing_stands_beside_it() -> None:
    replay = Replay(capacity=9, batch_size=3, policy="reservoir", weighting="sum", fill="step", replacement=False)
    with pytest.raises(ValueError, match=r"avalanche replaces the training loop; use strategy=avalanche alone$"):
        Chain([theirs(), replay])


def test_its_own_errors_name_seed_and_task() -> None:
    """A-GEM takes sample_size // tasks rows of each, which becomes 0."""
    with pytest.raises(ValueError, match=r"^strategy\.avalanche\.name=AGEM: failed at seed 0, task 2: batch_size"):
        trained(learner_of(stream("domain", (0,))), theirs("AGEM", patterns_per_exp=10, sample_size=1))


def test_resuming_under_other_weights_is_refused() -> None:
    learner = learner_of(stream("domain", (0,)))
    chain = Chain([theirs("Replay")])
    loop.prepare(learner, chain)
    learner.params["head.bias"] += 1.0  # as from a checkpoint of another machine
    with pytest.raises(ValueError, match="did not reproduce the checkpoint's weights; use force=true"):
        loop.train(learner, chain, Blind(), start=1)


def test_positions_are_those_of_the_learner() -> None:
    """The feed draws no key of the run: the learner's streams stand where naive leaves them."""
    learner = trained(learner_of(stream("class", (0, 1))), theirs())
    assert {k: s.count for k, s in learner.streams.items()} == {"strategy/Avalanche[Naive]": 0}
    key: Tensor = draws.fold(learner.key("order"), 0)
    task = learner.stream.tasks[0]
    alone = rows.order(key[1:], task.train.size[1:], 0, 32)
    assert torch.equal(rows.order(key, task.train.size, 0, 32)[1:], alone)
