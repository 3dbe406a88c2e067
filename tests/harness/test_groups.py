"""Seeds whose tasks differ in size: an epoch is a pass for each of them, and no seed depends on its companions."""

from __future__ import annotations

import io
import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

import pandas as pd
import pytest
import torch

from harness import rng
from harness.groups import groups, joined, stream_of, taken
from harness.learner import Budget, Learner
from harness.metrics.collapse import collapse
from harness.models.mlp import MLP
from harness.optim import Adam
from harness.record.sinks import InMemory
from harness.run import Result, run
from harness.strategy import Strategy
from harness.types import Batch, Net, Step, Stream
from strategies.ewc import EWC
from strategies.gdumb import GDumb
from strategies.ncm import NCM
from strategies.replay import Replay
from tasks.datasets import Dataset
from tasks.growing import growing
from tasks.permuted import permuted
from tasks.repeated import repeated
from tasks.split import split

SEEDS = (1, 0, 7)  # the first and the last train together
COUNTS = (90, 30, 12, 6, 3, 2)  # training rows of each class


@cache
def data() -> Dataset:
    """Very uneven classes. A row's first input is its number."""
    counts = [torch.tensor(COUNTS), torch.full((6,), 2), torch.full((6,), 5)]
    y = torch.cat([torch.arange(6).repeat_interleave(n) for n in counts])
    x = rng.normal(rng.keys([0], "x"), len(y), 3)[0]
    x[:, 0] = torch.arange(len(y))
    ends = [0, *torch.tensor([int(n.sum()) for n in counts]).cumsum(0).tolist()]
    train, val, test = (torch.arange(a, b) for a, b in itertools.pairwise(ends))
    return Dataset("uneven", x, y, train, val, test, 6, "digest")


def stream(seeds: Sequence[int] = SEEDS, make: Callable[..., Stream] = split, **options: Any) -> Stream:
    return make(**{"dataset": data(), "seeds": seeds, "n_tasks": 3, "fixed": False, **options})


class Counts(Strategy):
    """Its state is one number for all seeds, and it draws in every step."""

    def setup(self, learner: Learner) -> None:
        self.steps = 0

    def step(self, learner: Learner, step: Step) -> None:
        self.steps += 1
        noise = self.random.key() % 3
        for v in learner.params.values():
            v.add_(noise.view(-1, *[1] * (v.dim() - 1)), alpha=1e-3 * self.steps)


def replay(**options: Any) -> Replay:
    how = {"capacity": 20, "batch_size": 4, "policy": "reservoir", "weighting": "mean", "replacement": False}
    return Replay(**{**how, "fill": "end", **options})


METHODS: dict[str, Callable[[], list[Strategy]]] = {
    "counts": lambda: [Counts()],
    "ewc": lambda: [EWC(strength=1.0, mode="separate", gamma=1.0, fisher="exact", samples=None)],
    "replay": lambda: [replay(), Counts()],
}


def trained(s: Stream, parts: list[Strategy], **options: Any) -> Result:
    defaults: dict[str, Any] = {
        "model": MLP(s.shape, s.outputs, (5,), dropout=0.2),
        "optimizer": Adam(lr=0.01, schedule="cosine"),
        "budget": Budget(epochs=1, batch_size=8),
        "metrics": {"collapse": partial(collapse, size=64, tasks=3)},
        "control": torch.zeros(len(s.seeds), len(s.tasks)),
        "dtype": torch.float64,
    }
    return run(s, parts, **(defaults | options))


def rows(result: Result, table: str) -> pd.DataFrame:
    """A table in an order that does not depend on the groups, without times."""
    frame = result.frame(table)
    keys = [c for c in frame if c not in ("value", "stderr", "accuracy", "loss", "online_accuracy")]
    return frame.sort_values(keys, kind="stable").reset_index(drop=True)


def test_only_seeds_with_the_same_sizes_train_together() -> None:
    ragged = stream()
    sizes = torch.stack([task.train.size for task in ragged.tasks], 1).tolist()
    found = groups(ragged)
    assert len(found) > 1 and sorted(place for group in found for place in group) == [0, 1, 2]
    for group in found:
        assert all(sizes[place] == sizes[group[0]] for place in group)
    assert len({tuple(sizes[group[0]]) for group in found}) == len(found)
    for alike in (stream(fixed=True), stream(make=permuted), stream(shuffle=False)):
        assert groups(alike) == [[0, 1, 2]]
    assert len(groups(stream(make=growing))) > 1 and len(groups(stream(make=repeated, width=2))) > 1


@pytest.mark.parametrize("method", METHODS)
def test_a_seed_is_the_run_of_that_seed_alone(method: str) -> None:
    """Also with one counter for all seeds, dropout, Adam's age and a schedule over the task."""
    together = trained(stream(), METHODS[method]())
    assert len(together.parts) > 1
    for s, seed in enumerate(SEEDS):
        alone = trained(stream((seed,)), METHODS[method]())
        torch.testing.assert_close(together.accuracy[s], alone.accuracy[0], equal_nan=True)
        for table in ("metrics", "accuracy", "curves"):
            mine = rows(together, table)
            mine = mine[mine.seed == seed].reset_index(drop=True)
            mine, own = (f[~f.metric.isin(["memory"])] if "metric" in f else f for f in (mine, rows(alone, table)))
            pd.testing.assert_frame_equal(mine.reset_index(drop=True), own.reset_index(drop=True), rtol=1e-7)
        for boundary in (-1, 0, 2):
            kept, own = (r.parts[0].sink.sink.net(boundary)["params"] for r in (together, alone))  # type: ignore[attr-defined]
            assert all(len(v) == len(SEEDS) for v in kept.values())
            torch.testing.assert_close({k: v[s] for k, v in kept.items()}, {k: v[0] for k, v in own.items()})


class Watch(Strategy):
    """Notes the rows that each seed trains on."""

    def __init__(self) -> None:
        self.note: list[tuple[int, int, list[int]]] = []

    def batch(self, learner: Learner, batch: Batch) -> Batch:
        for seed, x in zip(learner.seeds, batch.x[..., 0].int().tolist()):
            self.note.append((seed, learner.now, x))
        return batch

    transient = ("note",)


@pytest.mark.parametrize("make", [split, growing, partial(repeated, width=2)])
def test_an_epoch_is_one_pass_over_the_task_s_own_rows(make: Callable[..., Stream]) -> None:
    s, epochs, size = stream(make=make), 3, 8
    result = trained(s, [Watch()], budget=Budget(epochs=epochs, batch_size=size), metrics={})
    watched = 0
    for part in result.parts:
        (watch,) = part.strategy.parts
        assert isinstance(watch, Watch)
        for task in part.learner.stream.tasks:
            for place, seed in enumerate(part.learner.seeds):
                batches = [x for other, t, x in watch.note if (other, t) == (seed, task.index)]
                own = task.train.take(torch.arange(task.rows).expand(part.learner.S, -1))[0][place, :, 0].int().tolist()
                assert len(batches) == epochs * -(-task.rows // size)
                count = Counter(i for batch in batches for i in batch)
                assert set(count) == set(own) and len(set(own)) == task.rows
                drawn = len(batches) * min(size, task.rows)  # the last batch of a pass begins the next one
                assert set(count.values()) <= {drawn // task.rows, -(-drawn // task.rows)}
                if task.rows < size:
                    assert all(sorted(batch) == sorted(own) for batch in batches)
                watched += 1
    assert watched == len(SEEDS) * 3


def test_memories_hold_each_row_of_a_task_once() -> None:
    parts: list[Callable[[], Any]] = [
        lambda: replay(capacity=200),
        lambda: NCM(means="memory", capacity=200, normalise=True),
        lambda: GDumb(capacity=200, epochs=1, batch_size=8),
    ]
    for make in parts:
        for part in trained(stream(), [make()], metrics={}).parts:
            (held,) = part.strategy.parts
            for row in held.memory.rows()["x"][:, :, 0].int().tolist():  # type: ignore[attr-defined]
                assert sorted(row) == data().train.tolist()


def test_a_run_of_several_groups_resumes_where_it_stopped() -> None:
    class Kept(InMemory):
        def commit(self, boundary: int, checkpoint: Callable[[], dict[str, Any]], net: Net) -> None:
            super().commit(boundary, checkpoint, net)
            file = io.BytesIO()
            torch.save(checkpoint(), file)
            states[boundary] = file.getvalue()

    states: dict[int, bytes] = {}
    whole = trained(stream(), METHODS["replay"](), sink=Kept())
    nets = {-1: {}, 0: {}}
    for boundary in nets:
        nets[boundary] = whole.parts[0].sink.sink.nets[boundary]  # type: ignore[attr-defined]
    state = torch.load(io.BytesIO(states[0]), weights_only=True)
    rest = trained(stream(), METHODS["replay"](), resume=(0, state), sink=InMemory(nets=nets))
    assert torch.equal(rest.accuracy.nan_to_num(-1), whole.accuracy.nan_to_num(-1))
    assert rest.tables["curves"]["loss"] == [
        v for v, t in zip(whole.tables["curves"]["loss"], whole.tables["curves"]["boundary"]) if t > 0
    ]


def test_the_parts_of_a_stream_are_the_streams_of_their_seeds() -> None:
    for make in (split, growing, partial(repeated, width=2)):
        whole = stream(make=make)
        for places in groups(whole):
            part, own = stream_of(whole, places), stream([SEEDS[i] for i in places], make=make)
            learner = Learner(MLP(part.shape, part.outputs, ()), part, Adam(lr=0.1), Budget())
            assert part.seeds == own.seeds and part.sizes is None
            assert part.masks is own.masks or torch.equal(part.masks, own.masks)  # type: ignore[arg-type]
            for a, b in zip(part.tasks, own.tasks):
                assert a.rows == b.rows == int(b.train.size[0])
                for name in ("train", "val", "test"):
                    for x, y in zip(*(learner.scan(getattr(t, name)) for t in (a, b)), strict=True):
                        assert torch.equal(x.x, y.x) and torch.equal(x.y, y.y) and torch.equal(x.w, y.w)


def test_rows_that_cannot_be_divided_are_refused() -> None:
    s = replace(stream(make=permuted), sizes=torch.tensor([[5], [6], [5]]))
    with pytest.raises(ValueError, match="seeds have different numbers of training rows, and its rows are generated"):
        _ = stream_of(s, [0, 2]).tasks[0]
    with pytest.raises(ValueError, match=r"task 0: has \d+ training rows for one seed and \d+ for another"):
        trained(replace(stream(), sizes=None), [])


def test_one_group_has_one_learner_and_several_have_not() -> None:
    assert trained(stream(fixed=True), []).learner.S == 3
    with pytest.raises(ValueError, match=r"the seeds were trained in \d groups; see Result.parts"):
        _ = trained(stream(), []).learner


def test_joining_is_the_inverse_of_taking() -> None:
    params = {"w": torch.arange(10).view(5, 2), "b": torch.arange(5)}
    places = [[3, 0], [4], [1, 2]]
    back = joined((p, taken(params, p)) for p in places)
    assert all(torch.equal(back[k], v) for k, v in params.items())
