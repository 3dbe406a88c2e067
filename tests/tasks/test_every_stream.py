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
from torch import Tensor

from harness.config import catalogue
from harness.learner import Budget
from harness.models.mlp import MLP
from harness.optim import SGD
from harness.record.evaluation import Evaluation
from harness.rng import keys, normal
from harness.rows import Rows
from harness.run import run
from harness.types import Source, Stream
from strategies.naive import Naive
from strategies.replay import Replay
from tasks.datasets import Dataset
from tasks.stream import PARTS, SCENARIOS

BRING_THEIR_OWN = {"avalanche"}  # data of a benchmark: tested where that is
NAMES = sorted(set(catalogue.options("tasks")) - BRING_THEIR_OWN)
CLASSES = 8
ONCE = ("split", "repeated", "five_plus_one")  # no training sample twice in the whole stream
GENERATED = ("slowly_changing_regression",)  # rows are no samples of a data set
MEMORISED = ("random_labels",)  # tested on the training rows, as published
RELABELLED = ("random_labels", "noisy_labels")  # a training target is not its class's


@cache
def data(name: str = "toy", classes: int = CLASSES, side: int = 5) -> Dataset:
    """Class c has 4 + c % 3 training, 1 validation and 2 test samples; no two inputs are equal."""
    counts = [[4 + c % 3 for c in range(classes)], [1] * classes, [2] * classes]
    labels = [torch.arange(classes).repeat_interleave(torch.tensor(n)) for n in counts]
    labels = [y[torch.randperm(len(y), generator=torch.Generator().manual_seed(i))] for i, y in enumerate(labels)]
    y = torch.cat(labels)
    ends = torch.tensor([len(part) for part in labels]).cumsum(0).tolist()
    x = normal(keys([0], name), len(y), 1, side, side)[0]
    return Dataset(name, x, y, *(torch.arange(a, b) for a, b in zip([0, *ends], ends)), classes, name)


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


def read(source: Source, s: int) -> tuple[Tensor, Tensor, Tensor]:
    """All rows of seed s."""
    n = int(source.size[s])
    x, y, t = source.take(torch.arange(n).expand(len(source.size), -1).minimum((source.size[:, None] - 1).clamp_min(0)))
    return x[s], y[s], t[s]


def samples(source: Source, s: int) -> Tensor:
    assert isinstance(source, Rows)
    return source.index[s, : int(source.size[s])]


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


def drawn(name: str, scenario: str, source: Any) -> tuple[Stream, dict[str, Any]]:
    o = source.draw(options(name))
    if scenario == "task" and "blur" in o:
        o["blur"] = 0.0
    return make(name, scenario, **o), o


few = settings(max_examples=6, deadline=None)


@each
@few
@given(source=st.data())
def test_no_sample_is_lost_leaked_or_doubled(name: str, scenario: str, source: Any) -> None:
    if name in GENERATED:
        pytest.skip("rows are made, not taken")
    stream, _ = drawn(name, scenario, source)
    sets = [data(), data("other", 6, 3)] if name == "sequence" else [data()]
    y, start = torch.cat([d.y + 100 * i for i, d in enumerate(sets)]), 0
    pool: dict[str, list[Tensor]] = {part: [] for part in PARTS}
    for d in sets:
        for part in PARTS:
            pool[part].append(getattr(d, part) + start)
        start += len(d.y)
    for s in range(len(stream.seeds)):
        for part in PARTS:
            allowed = torch.cat(pool["train" if name in MEMORISED else part])
            found = [samples(getattr(task, part), s) for task in stream.tasks]
            for index in found:
                assert len(index.unique()) == len(index)
                assert torch.isin(index, allowed).all()
            every = torch.cat(found)
            used = torch.cat([samples(task.train, s) for task in stream.tasks])
            # of every class that the stream has, each sample comes
            of_these = allowed[torch.isin(y[allowed], y[used])]
            assert torch.equal(every.unique(), of_these.sort().values)
            if name in ONCE and part == "train":
                assert len(every) == len(every.unique())
    if name not in ("five_plus_one", "class_pairs"):
        assert len(y[used].unique()) == len(y.unique())


@each
@few
@given(source=st.data())
def test_targets_compete_and_a_class_has_one_target_in_all_parts_of_a_task(
    name: str, scenario: str, source: Any
) -> None:
    stream, o = drawn(name, scenario, source)
    assert [[int(task.train.size[s]) for task in stream.tasks] for s in range(len(stream.seeds))] == (
        [[task.rows for task in stream.tasks]] * len(stream.seeds) if stream.sizes is None else stream.sizes.tolist()
    )
    for s in range(len(stream.seeds)):
        for i, task in enumerate(stream.tasks):
            assert task.index == i and int(task.train.size[s]) > 0
            if stream.loss == "mse":
                continue
            target: dict[int, int] = {}
            for part in PARTS:
                _, y, t = read(getattr(task, part), s)
                assert (t == (i if scenario == "task" else 0)).all()
                assert int(y.min()) >= 0 and int(y.max()) < stream.outputs
                mask = stream.mask(t.expand(len(stream.seeds), -1), i)
                if mask is not None:
                    one = mask[min(s, len(mask) - 1)].expand(len(y), -1)
                    assert one.gather(1, y[:, None]).all()
                if name not in RELABELLED and name != "sequence" and not (o.get("blur") and part == "train"):
                    label = data().y[samples(getattr(task, part), s)]
                    for c, v in zip(label.tolist(), y.tolist()):
                        assert target.setdefault(c, v) == v
            assert len(set(target.values())) == len(target)


@each
@few
@given(source=st.data())
def test_a_seed_s_rows_repeat_and_depend_on_no_companion_and_fixed_gives_all_seeds_the_same(
    name: str, scenario: str, source: Any
) -> None:
    stream, o = drawn(name, scenario, source)
    again = make(name, scenario, **o)
    assert stream.hash == again.hash and (stream.name, stream.version) == (again.name, again.version)
    for s, seed in enumerate(o["seeds"]):
        alone = make(name, scenario, **{**o, "seeds": (seed,)})
        for a, b, c in zip(stream.tasks, again.tasks, alone.tasks):
            assert a.ordered == b.ordered == c.ordered and (a.epoch, b.epoch, c.epoch) == (None,) * 3
            for part in PARTS:
                mine = read(getattr(a, part), s)
                assert all(torch.equal(u, v) for u, v in zip(mine, read(getattr(b, part), s)))
                assert all(torch.equal(u, v) for u, v in zip(mine, read(getattr(c, part), 0)))
                if o["fixed"]:
                    assert all(torch.equal(u, v) for u, v in zip(mine, read(getattr(a, part), 0)))


@pytest.mark.parametrize("name", NAMES)
def test_seeds_have_streams_of_their_own_and_the_digest_says_so(name: str) -> None:
    scenario = module(name).SCENARIOS[0]
    own, other = (make(name, scenario, seeds=(s,)) for s in (0, 1))
    draws = any(k in defaults(name) for k in ("fixed",)) and name != "sequence"  # it draws with rows or order alone
    assert (own.hash != other.hash) == draws
    pinned = [make(name, scenario, seeds=(s,), pin=5).hash for s in (0, 1)]
    assert pinned[0] == pinned[1]
    elsewhere = make(name, scenario, seeds=(0,), dataset=data("third"))
    assert (own.hash != elsewhere.hash) == (name not in GENERATED)
    if "n_tasks" in defaults(name):
        assert own.hash != make(name, scenario, seeds=(0,), n_tasks=3 if name == "repeated" else 1).hash


@pytest.mark.parametrize("name", NAMES)
def test_a_scenario_without_a_meaning_is_refused_with_the_reason(name: str) -> None:
    for scenario in set(SCENARIOS) - set(module(name).SCENARIOS):
        with pytest.raises(
            ValueError, match=f"^scenario={scenario}: not supported by {name}, because .*; use "
        ) as caught:
            make(name, scenario)
        assert "\n" not in str(caught.value) and module(name).WHY in str(caught.value)


@each
@pytest.mark.parametrize("method", ["naive", "replay"])
def test_two_tiny_tasks_run(name: str, scenario: str, method: str) -> None:
    stream = make(name, scenario)
    replay = Replay(capacity=6, batch_size=3, policy="reservoir", weighting="sum", fill="step", replacement=False)
    result = run(
        stream,
        [Naive() if method == "naive" else replay],
        model=MLP(stream.shape, stream.outputs, widths=(4,)),
        optimizer=SGD(lr=0.01),
        budget=Budget(steps=3, batch_size=4),
        evaluation=Evaluation(),
        gap=False,
    )
    accuracy = result.accuracy[:, 1:].diagonal(dim1=1, dim2=2)  # on each task after it
    assert accuracy.shape == (2, len(stream.tasks)) and accuracy.isfinite().all() and len(stream.tasks) == 2
    assert all(v.isfinite().all() for part in result.parts for v in part.learner.params.values())
    online = torch.tensor(result.tables["curves"]["loss"])
    assert len(online) and online.isfinite().all()
