"""A strategy's one name: its key in the configuration."""

from __future__ import annotations

import pytest
import torch

from harness.jobs.setting import build_strategies
from harness.optim import SGD
from harness.strategy import Chain, Strategy
from strategies.ewc import EWC
from strategies.joint import Joint
from tests.toy import FILES, begin, make, node


@pytest.mark.parametrize("name", FILES)
def test_a_strategy_is_called_as_its_file_is(name: str) -> None:
    assert make(name).name == name


def test_without_a_configuration_the_name_is_the_class_in_snake_case() -> None:
    class MyOwnMethod2(Strategy): ...

    class Other(MyOwnMethod2): ...

    class Named(Strategy):
        name = "said"

    assert [MyOwnMethod2().name, Other().name, Named().name] == ["my_own_method2", "other", "said"]


def test_a_configuration_names_its_parts_by_their_keys_and_nothing_else_changes() -> None:
    spec = {"mine": node("ewc"), "joint": {**node("joint"), "steps": "equal"}}
    made = build_strategies(spec)
    assert [p.name for p in made.values()] == [p.label for p in made.values()] == ["mine", "joint"]
    assert [p.purpose for p in made.values()] == ["EWC", "Joint[equal]"]
    assert isinstance(made["mine"], EWC) and isinstance(made["joint"], Joint)
    assert "name" not in made["mine"].state_dict()
    assert list(Chain(list(made.values())).state_dict()) == ["EWC", "Joint[equal]"]


def test_a_bad_value_is_named_by_the_key_that_is_typed() -> None:
    with pytest.raises(ValueError, match=r"^strategy\.mine\.gamma=2: must be in \[0, 1\]$"):
        build_strategies({"mine": {**node("online_ewc"), "gamma": 2}})
    with pytest.raises(ValueError, match=r"^strategy\.generative_replay\.widths=\[0\]: each must be at least 1"):
        build_strategies({"generative_replay": {**node("generative_replay"), "widths": [0]}})


def test_what_only_the_stream_shows_to_be_wrong_has_its_full_key_too() -> None:
    learner, _ = begin((), "class", "mlp", SGD(lr=0.1), (0,), torch.float64, 1)
    part = build_strategies({"mine": {**node("icarl"), "capacity": 5}})["mine"]
    with pytest.raises(ValueError, match=r"^strategy\.mine\.capacity=5: must be at least 10, one row for each class$"):
        Chain([part]).setup(learner)


def test_two_names_of_one_method_share_their_draws_and_are_refused() -> None:
    first, second = build_strategies({"ewc": node("ewc"), "mine": node("ewc")}).values()
    with pytest.raises(ValueError, match=r"^strategy=\[ewc,mine\]: ewc and mine cannot be combined: both are EWC$"):
        Chain([first, second])


def test_other_errors_of_setup_pass_unchanged() -> None:
    class Broken(Strategy):
        def setup(self, learner: object) -> None:
            raise ValueError("a library's words")

    learner, _ = begin((), "class", "mlp", SGD(lr=0.1), (0,), torch.float64, 1)
    with pytest.raises(ValueError, match=r"^a library's words$"):
        Chain([Broken()]).setup(learner)
