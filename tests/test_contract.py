"""What every strategy of conf/strategy promises. A new one is tested by being there: no name stands in a test.

Toy runs (tests/toy.py) of an MLP under every optimizer, and of a residual net with batch norm, in every
scenario that the strategy declares.
"""

from __future__ import annotations

import inspect
import io
from functools import cache
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from torch import Tensor

from harness.learner import Learner
from harness.loop import train
from harness.strategy import HOOKS, Chain
from tests.toy import (
    FILES,
    MODELS,
    OPTIMIZERS,
    SEEDS,
    Run,
    Saver,
    begin,
    go,
    make,
    node,
    once,
    same,
    state,
    strategy_class,
)


def settings() -> list[Any]:
    """Strategy, scenario, model, optimizer: all optimizers on the MLP in the first scenario, one by turns elsewhere.

    By day each scenario and each optimizer once on the MLP, and the residual net in one scenario; the rest nightly.
    """
    found = []
    for at, name in enumerate(FILES):
        scenarios, optimizers = strategy_class(name).scenarios, list(OPTIMIZERS)
        elsewhere = optimizers[1 : len(scenarios)]  # what the scenarios after the first take
        for i, scenario in enumerate(scenarios):
            on_mlp = optimizers if i == 0 else [optimizers[i]]
            pairs = [*(("mlp", o) for o in on_mlp), ("residual", optimizers[i])]
            for model, optimizer in pairs:
                again = i == 0 and optimizer in elsewhere if model == "mlp" else i != at % len(scenarios)
                marks = [pytest.mark.nightly] if again else []
                setting = (name, scenario, model, optimizer)
                found.append(pytest.param(*setting, id="-".join(setting), marks=marks))
    return found


def copy_of(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {k: copy_of(v) for k, v in value.items()}
    return [copy_of(v) for v in value] if isinstance(value, (list, tuple)) else value


def leaves(values: Any, prefix: str = "") -> list[str]:
    """Dotted names of what has no names below it."""
    pairs = [(f"{prefix}{k}", v) for k, v in values.items()]
    return [p for k, v in pairs for p in (leaves(v, f"{k}.") if isinstance(v, dict) and v else [k])]


@pytest.mark.parametrize("name", FILES)
def test_the_yaml_gives_every_argument_a_commented_default_that_a_preset_can_change(name: str) -> None:
    text = FILES[name].read_text(encoding="utf-8").splitlines()
    keys = [k for k in node(name) if k != "_target_"]
    parameters = list(inspect.signature(strategy_class(name)).parameters.values())
    assert keys == [p.name for p in parameters]
    assert all(p.kind is p.KEYWORD_ONLY and p.default is p.empty for p in parameters)
    for path in leaves({k: node(name)[k] for k in keys}):
        indent = "  " * (1 + path.count("."))
        (line,) = (i for i, row in enumerate(text) if row.startswith(f"{indent}{path.rpartition('.')[2]}: "))
        assert f"${{oc.select:tuned.{name}.{path}," in text[line]
        assert text[line - 1].startswith(f"{indent}# ")
    assert isinstance(instantiate(node(name)), strategy_class(name))


@pytest.mark.parametrize(("name", "scenario", "model", "optimizer"), settings())
def test_a_repeat_is_bitwise_equal(name: str, scenario: str, model: str, optimizer: str) -> None:
    first, second = once(name, scenario, model, optimizer), go((name,), scenario, model, optimizer)
    assert same(state(first.learner, first.chain), state(second.learner, second.chain))
    assert same(first.logits(), second.logits())


@pytest.mark.parametrize(("name", "scenario", "model", "optimizer"), settings())
def test_row_s_is_the_run_of_seed_s_alone(name: str, scenario: str, model: str, optimizer: str) -> None:
    together = once(name, scenario, model, optimizer)
    alone = go((name,), scenario, model, optimizer, seeds=SEEDS[-1:])
    for k, v in alone.learner.params.items():
        assert torch.allclose(together.learner.params[k][-1], v[0], rtol=1e-9, atol=1e-10), k
    assert torch.allclose(together.logits()[-1], alone.logits()[0], rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", FILES)
def test_row_s_is_the_run_of_seed_s_alone_in_float32(name: str, model: str) -> None:
    # plain SGD: Adam divides rounding errors by gradients that are nearly 0
    setting: Any = ((name,), strategy_class(name).scenarios[0], model, "sgd")
    together = go(*setting, dtype=torch.float32, steps=2)
    alone = go(*setting, seeds=SEEDS[1:2], dtype=torch.float32, steps=2)
    for k, v in alone.learner.params.items():
        assert torch.allclose(together.learner.params[k][1], v[0], rtol=1e-5, atol=1e-6), k


def resumed(name: str, scenario: str, model: str, optimizer: str) -> tuple[Learner, Chain]:
    """A new process's learner and strategy with the state that was saved after task 1."""
    saved = load(once(name, scenario, model, optimizer))
    learner, chain = begin((name,), scenario, model, OPTIMIZERS[optimizer](), SEEDS, torch.float64, 4)
    learner.load_state_dict(saved["learner"])
    chain.load_state_dict(saved["strategy"])
    return learner, chain


def load(run: Run) -> dict[str, Any]:
    assert run.saved is not None
    saved: dict[str, Any] = torch.load(io.BytesIO(run.saved), weights_only=True)
    return saved


@pytest.mark.parametrize(("name", "scenario", "model", "optimizer"), settings())
def test_loss_is_pure(name: str, scenario: str, model: str, optimizer: str) -> None:
    learner, chain = resumed(name, scenario, model, optimizer)
    learner.enter(learner.stream.tasks[2])
    data = chain.begin(learner, learner.stream.tasks[2])
    batch = chain.batch(learner, next(iter(learner.batches(data))))
    before = copy_of(state(learner, chain))
    _, out = learner.task_loss(learner.params, batch)
    first, second = (torch.as_tensor(chain.loss(learner, learner.params, batch, out)) for _ in range(2))
    assert torch.equal(first, second)
    assert first.shape in ((), (len(SEEDS),))
    assert same(state(learner, chain), before)


@pytest.mark.parametrize(("name", "scenario", "model", "optimizer"), settings())
def test_deploying_changes_nothing(name: str, scenario: str, model: str, optimizer: str) -> None:
    run = once(name, scenario, model, optimizer)
    before = copy_of(state(run.learner, run.chain))
    assert same(run.logits(), run.logits())
    assert same(state(run.learner, run.chain), before)


@pytest.mark.parametrize(("name", "scenario", "model", "optimizer"), settings())
def test_a_run_that_was_cut_short_resumes_bitwise(name: str, scenario: str, model: str, optimizer: str) -> None:
    whole = once(name, scenario, model, optimizer)
    learner, chain = resumed(name, scenario, model, optimizer)
    assert same(state(learner, chain), load(whole))
    train(learner, chain, Saver(learner, chain), start=2)
    assert same(state(learner, chain), state(whole.learner, whole.chain))
    assert same(Run(learner, chain, None).logits(), whole.logits())


@cache
def plain(scenario: str) -> list[Tensor]:
    return go((), scenario, "mlp", "adam").logits()


@pytest.mark.parametrize("name", FILES)
def test_it_is_not_naive_unless_it_has_no_hook(name: str) -> None:
    scenarios = strategy_class(name).scenarios
    acts = any(make(name).overrides(hook) for hook in HOOKS)
    changed = []
    for scenario in scenarios:
        changed.append(not same(once(name, scenario, "mlp", "adam").logits(), plain(scenario)))
    assert any(changed) == acts
