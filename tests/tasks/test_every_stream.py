"""What every stream in conf/tasks keeps: no sample lost or leaked, the same rows for a seed whatever runs beside it."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest
import torch
from hydra.utils import get_method
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from harness.config import catalogue
from harness.contract.streams import (
    CHECKS,
    Case,
    alone,
    apart,
    complete,
    draws,
    fits,
    labelled,
    pins,
    repeats,
    says,
    targets,
    toy_data,
    trains,
)
from harness.groups import groups, stream_of
from harness.learner import Budget, Learner
from harness.models.mlp import MLP
from harness.optim import SGD
from harness.record.evaluation import Evaluation
from harness.run import run
from harness.types import Batch, Stream
from strategies.replay import Replay
from tasks.datasets import Dataset
from tasks.stream import SCENARIOS

BRING_THEIR_OWN = {"avalanche"}  # data of a benchmark: tested where that is
NAMES = sorted(set(catalogue.options("tasks")) - BRING_THEIR_OWN)
CLASSES = 8
ONCE = ("split", "repeated", "five_plus_one")  # no training sample twice in the whole stream
GENERATED = ("slowly_changing_regression",)  # rows are no samples of a data set


@cache
def data(name: str = "toy", classes: int = CLASSES, side: int = 5) -> Dataset:
    return toy_data(name, classes, (1, side, side))


@cache
def defaults(name: str) -> dict[str, Any]:
    node: Any = OmegaConf.to_container(OmegaConf.load(catalogue.CONF / "tasks" / f"{name}.yaml"))
    return dict(node)


def module(name: str) -> Any:
    return importlib.import_module(defaults(name)["_target_"].rpartition(".")[0])


def make(name: str, scenario: str, **options: Any) -> Stream:
    """A stream as its file has it, with little data."""
    small: dict[str, dict[str, Any]] = {
        "repeated": {"width": 5},
        "sequence": {"then": [data("other", 6, 3)]},
        "slowly_changing_regression": {"rows": 12},
    }
    own = {k: v for k, v in defaults(name).items() if k != "_target_"}
    given = {"dataset": data(), "seeds": (0, 1), **({"n_tasks": 2} if "n_tasks" in own else {}), **options}
    if "fixed" not in own:
        given.pop("fixed", None)
    if "n_tasks" not in own:
        given.pop("n_tasks", None)
    made: Stream = get_method(defaults(name)["_target_"])(scenario=scenario, **{**own, **small.get(name, {}), **given})
    return made


CASES = [(name, scenario) for name in NAMES for scenario in module(name).SCENARIOS]
each = pytest.mark.parametrize(("name", "scenario"), CASES)
DRAWS = {
    "seeds": st.lists(st.integers(0, 2**40), min_size=1, max_size=3, unique=True).map(tuple),
    "n_tasks": st.integers(2, 3),
    "fixed": st.booleans(),
}


def options(name: str) -> Any:
    """Settings of the stream that may vary in a property."""
    more: Mapping[str, Mapping[str, Any]] = {
        "split": {
            "initial": st.sampled_from([None, 4]),
            "order": st.none(),
            "blur": st.sampled_from([0.0, 0.3, 1.0, 9.0]),
            "shuffle": st.booleans(),
        },
        "permuted": {"identity_first": st.booleans()},
        "rotated": {"angles": st.sampled_from(["uniform", "bands", "steps"])},
        "growing": {"initial": st.sampled_from([None, 3])},
        "class_pairs": {"redraw": st.booleans(), "n_tasks": st.integers(1, 9)},
        "five_plus_one": {"n_tasks": st.integers(1, 2)},
        "noisy_labels": {"kind": st.sampled_from(["symmetric", "pair"])},
        "corrupted": {"severity": st.sampled_from(["rising", "falling", "random", 3])},
        "sequence": {"fit": st.sampled_from(["resize", "pad"])},
        "warm_start": {"fraction": st.floats(0.01, 1.0)},
    }
    return st.fixed_dictionaries({**DRAWS, **more.get(name, {})})


def drawn(name: str, scenario: str, source: Any) -> dict[str, Any]:
    o: dict[str, Any] = source.draw(options(name))
    if scenario == "task" and "blur" in o:
        o["blur"] = 0.0
    return o


few = settings(max_examples=4, deadline=None)


def case(name: str, scenario: str, o: Mapping[str, Any]) -> Case:
    """A stream as the contract takes it, with these settings."""
    sets = (data(), data("other", 6, 3)) if name == "sequence" else (data(),)
    changing = {"n_tasks": 2, "fixed": False, **o}
    return Case(
        lambda **changes: make(name, scenario, **{**o, **changes}),
        scenario,
        sets,
        seeds=o.get("seeds", (0, 1)),
        arguments={k: v for k, v in changing.items() if k in defaults(name)},
        exempt=getattr(module(name), "EXEMPT", {}),
    )


@each
@few
@given(source=st.data())
@pytest.mark.parametrize("check", [fits, apart, complete, targets, labelled], ids=lambda check: check.__name__)
def test_its_rows_are_those_of_the_data_set(check: Any, name: str, scenario: str, source: Any) -> None:
    o = drawn(name, scenario, source)
    if check.__name__ not in case(name, scenario, o).exempt:
        check(case(name, scenario, o))


@each
@few
@given(source=st.data())
def test_no_sample_comes_twice_and_every_class_comes(name: str, scenario: str, source: Any) -> None:
    if name in GENERATED:
        pytest.skip("rows are made, not taken")
    one = case(name, scenario, drawn(name, scenario, source))
    for s in range(len(one.seeds)):
        found = [one.samples(task.train, s) for task in one.stream.tasks]
        every = torch.cat([index for index in found if index is not None])
        if name in ONCE:
            assert len(every) == len(every.unique())
        if name not in ("five_plus_one", "class_pairs"):
            assert len(one.y[every].unique()) == len(one.y.unique())


@each
@few
@given(source=st.data())
@pytest.mark.parametrize("check", [repeats, alone, pins], ids=lambda check: check.__name__)
def test_a_seed_s_rows_repeat_and_depend_on_no_companion_and_fixed_gives_all_seeds_the_same(
    check: Any, name: str, scenario: str, source: Any
) -> None:
    check(case(name, scenario, drawn(name, scenario, source)))


@pytest.mark.parametrize("name", NAMES)
def test_making_it_moves_no_global_generator(name: str) -> None:
    draws(case(name, module(name).SCENARIOS[0], {}))


@pytest.mark.parametrize("name", NAMES)
def test_seeds_have_streams_of_their_own_and_the_digest_says_so(name: str) -> None:
    scenario = module(name).SCENARIOS[0]
    says(case(name, scenario, {}))
    own, other = (make(name, scenario, seeds=(s,)) for s in (0, 1))
    assert (own.hash != other.hash) == ("fixed" in defaults(name) and name != "sequence")  # that draws with rows alone
    elsewhere = make(name, scenario, seeds=(0,), dataset=data("third"))
    assert (own.hash != elsewhere.hash) == (name not in GENERATED)


@pytest.mark.parametrize("name", NAMES)
def test_a_scenario_without_a_meaning_is_refused_with_the_reason(name: str) -> None:
    for scenario in set(SCENARIOS) - set(module(name).SCENARIOS):
        with pytest.raises(
            ValueError, match=f"^scenario={scenario}: not supported by {name}, because .*; use "
        ) as caught:
            make(name, scenario)
        assert "\n" not in str(caught.value) and module(name).WHY in str(caught.value)


@each
def test_two_tiny_tasks_run(name: str, scenario: str) -> None:
    trains(case(name, scenario, {}))


@each
def test_replay_runs_on_two_tiny_tasks(name: str, scenario: str) -> None:
    stream = make(name, scenario)
    replay = Replay(capacity=6, batch_size=3, policy="reservoir", weighting="sum", fill="step", replacement=False)
    result = run(
        stream,
        [replay],
        model=MLP(stream.shape, stream.outputs, widths=(4,)),
        optimizer=SGD(lr=0.01),
        budget=Budget(steps=3, batch_size=4),
        evaluation=Evaluation(),
        gap=False,
    )
    assert result.accuracy[:, 1:].diagonal(dim1=1, dim2=2).isfinite().all() and len(stream.tasks) == 2
    assert all(v.isfinite().all() for part in result.parts for v in part.learner.params.values())


def test_what_is_exempt_is_a_promise_and_has_a_reason() -> None:
    known = {check.__name__ for check in CHECKS.values()}
    exempt = {name: getattr(module(name), "EXEMPT", {}) for name in NAMES}
    assert {name: set(found) for name, found in exempt.items() if found} == {
        "random_labels": {"apart", "targets", "labelled"},
        "noisy_labels": {"labelled"},
        "slowly_changing_regression": {"apart"},
    }
    assert all(key in known and reason for found in exempt.values() for key, reason in found.items())


@each
def test_steps_gathered_together_are_the_same_batches_as_steps_gathered_alone(
    name: str, scenario: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last bit and in the same layout, for one seed and for two, across the ends of epochs."""

    def batches(stream: Stream, most: int) -> list[Batch]:
        monkeypatch.setattr("harness.learner.STEPS", most)
        learner = Learner(MLP(stream.shape, stream.outputs, (4,)), stream, SGD(lr=0.1), Budget(steps=12, batch_size=3))
        learner.enter(stream.tasks[-1])
        learner.plan(stream.tasks[-1])
        return list(learner.batches(stream.tasks[-1]))

    both = make(name, scenario)
    for stream in (make(name, scenario, seeds=(4,)), *(stream_of(both, places) for places in groups(both))):
        alone, together = batches(stream, 1), batches(stream, 5)
        assert len(alone) == len(together) == 12
        for a, b in zip(alone, together):
            for field in ("x", "y", "t", "w", "mask"):
                one, other = getattr(a, field), getattr(b, field)
                assert (one is None) == (other is None)
                if one is not None:
                    assert torch.equal(one, other) and one.stride() == other.stride(), field
            assert a.mask is None or a.mask.shape[1] > 1 or (a.mask is alone[0].mask and b.mask is together[0].mask)
