"""What every strategy of conf/strategy promises. A new one is tested by being there: no name stands in a test.

Toy runs (harness/contract) of an MLP under every optimizer, and of a residual net with batch norm, in every
scenario that the strategy declares.
"""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import pytest
import torch
from hydra.utils import instantiate

from harness.contract.strategies import CHECKS, Case, acts, alone, draws
from harness.contract.toy import Undefined
from tests.toy import FILES, MODELS, OPTIMIZERS, make, node, strategy_class


def settings() -> list[Any]:
    """Strategy, scenario, model, optimizer: all optimizers on the MLP in the first scenario, one by turns elsewhere.

    By day two scenarios of each strategy, by turns: one on the residual net, the next on the MLP. The rest nightly.
    """
    found = []
    for at, name in enumerate(FILES):
        scenarios, optimizers = strategy_class(name).scenarios, list(OPTIMIZERS)
        for i, scenario in enumerate(scenarios):
            on_mlp = optimizers if i == 0 else [optimizers[i]]
            pairs = [*(("mlp", o) for o in on_mlp), ("residual", optimizers[i])]
            for model, optimizer in pairs:
                turn = (at if model == "residual" else at + 1) % len(scenarios)
                marks = [] if i == turn and optimizer == optimizers[i] else [pytest.mark.nightly]
                setting = (name, scenario, model, optimizer)
                found.append(pytest.param(*setting, id="-".join(setting), marks=marks))
    return found


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


@cache
def case(name: str, scenario: str, model: str, optimizer: str) -> Case:
    """A setting, whose finished run several checks look at."""
    return Case(lambda: make(name), scenario, MODELS[model], optimizer)


def kept(check: Any, name: str, scenario: str, model: str, optimizer: str = "sgd", **how: Any) -> None:
    try:
        check(case(name, scenario, model, optimizer), **how)
    except Undefined as refusal:
        if model == "mlp":  # every method is defined for the MLP
            raise
        pytest.skip(str(refusal))


# the checks of a setting follow one another, so that one worker trains it once
@pytest.mark.parametrize("check", [pytest.param(c, id=c.__name__) for c in CHECKS.values() if c is not draws])
@pytest.mark.parametrize(("name", "scenario", "model", "optimizer"), settings())
def test_it_keeps_its_promise(name: str, scenario: str, model: str, optimizer: str, check: Any) -> None:
    kept(check, name, scenario, model, optimizer)


@pytest.mark.parametrize(
    ("name", "model"),
    [
        pytest.param(name, model, marks=[] if (at + i) % len(MODELS) == 0 else [pytest.mark.nightly])
        for at, name in enumerate(FILES)
        for i, model in enumerate(MODELS)
    ],
)
def test_row_s_is_the_run_of_seed_s_alone_in_float32(name: str, model: str) -> None:
    # plain SGD: Adam divides rounding errors by gradients that are nearly 0
    kept(alone, name, strategy_class(name).scenarios[0], model, dtype=torch.float32, steps=2)


@pytest.mark.parametrize("name", FILES)
def test_no_hook_moves_a_global_generator(name: str) -> None:
    kept(draws, name, strategy_class(name).scenarios[0], "mlp")


@pytest.mark.parametrize("name", FILES)
def test_it_is_not_naive_unless_it_has_no_hook(name: str) -> None:
    acts([case(name, scenario, "mlp", "adam") for scenario in strategy_class(name).scenarios])
