"""boundaries=hidden: no signal reaches a strategy, what needs one is refused, and what is measured is measured."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from harness import rng
from harness.learner import Budget
from harness.models.mlp import MLP
from harness.optim import SGD, Optimizer
from harness.rows import Rows
from harness.run import check_boundaries, run
from harness.types import Stream, Task
from strategies.naive import Naive
from strategies.replay import Replay
from strategies.shrink_perturb import ShrinkPerturb
from tests.toy import FILES, make

STEPS, BATCH = 12, 4


def stream(cut: int, scenario: str = "domain", **options: Any) -> Stream:
    """The same 12 batches in the same order, with the boundary behind batch `cut`."""
    n, key = STEPS * BATCH, rng.keys([3, 4], "rows")
    x = rng.normal(key, n, 6)[0]
    y = (x[:, 0] > 0).long().expand(2, -1)

    def rows(a: int, b: int) -> Rows:
        index = torch.arange(a, b).expand(2, -1)
        return Rows(x, index, y[:, a:b], torch.zeros(2, 1).long(), torch.full((2,), b - a))

    parts = [rows(0, cut * BATCH), rows(cut * BATCH, n)]
    tasks = tuple(Task(i, p, p, p, p.index.shape[1], ordered=True) for i, p in enumerate(parts))
    settings = {"announced": False, **options}
    return Stream("toy", 1, scenario, tasks, (6,), 2, (3, 4), "", **settings)


def trained(name: str, cut: int) -> dict[str, Tensor]:
    told = stream(cut)
    result = run(
        told,
        [make(name)],
        model=MLP(told.shape, 2, widths=(7,)),
        optimizer=SGD(lr=0.1),
        budget=Budget(epochs=1, batch_size=BATCH),
        gap=False,
    )
    assert result.accuracy[:, 1:].diagonal(dim1=1, dim2=2).isfinite().all()  # measured all the same
    return result.learner.params


FREE = [name for name in FILES if not make(name).needs_boundaries and "domain" in make(name).scenarios]


@pytest.mark.parametrize("name", FREE)
def test_where_a_hidden_boundary_lies_changes_nothing(name: str) -> None:
    early, late = trained(name, 3), trained(name, 8)
    for k, v in early.items():
        assert torch.equal(v, late[k]), k


def test_what_runs_without_boundaries_is_what_is_known_to() -> None:
    assert {"naive", "replay", "der", "derpp", "cbp", "sam", "upgd", "l2_init"} <= set(FREE)
    assert not {"ewc", "lwf", "reset", "si", "head_reset", "gdumb"} & set(FREE)


@pytest.mark.parametrize("name", [name for name in FILES if make(name).needs_boundaries])
def test_what_acts_at_boundaries_is_refused_in_one_sentence(name: str) -> None:
    with pytest.raises(ValueError, match=r"^boundaries=hidden: .* acts at task boundaries") as caught:
        check_boundaries(stream(3), [make(name)], SGD(lr=0.1))
    assert "\n" not in str(caught.value)
    check_boundaries(stream(3, announced=True), [make(name)], SGD(lr=0.1))


def test_a_strategy_with_and_without_a_boundary_mode_is_judged_by_its_settings() -> None:
    replay = {"capacity": 5, "batch_size": 2, "policy": "reservoir", "weighting": "sum", "fill": "step"}
    assert not Replay(**replay, replacement=False).needs_boundaries
    for change in ({"fill": "end"}, {"weighting": "share"}, {"policy": "ring"}):
        assert Replay(**{**replay, **change}, replacement=False).needs_boundaries, change
    shrink = {"shrink": 0.9, "sigma": 0.1, "noise": "gaussian"}
    assert ShrinkPerturb(mode="boundary", **shrink).needs_boundaries
    assert not ShrinkPerturb(mode="step", **shrink).needs_boundaries


@pytest.mark.parametrize(
    ("scenario", "classes", "optimizer", "said"),
    [
        ("task", "seen", SGD(lr=0.1), "scenario=task reveals each example's task; use scenario=domain or class"),
        ("class", "seen", SGD(lr=0.1), "classes=seen adds a task's classes at its boundary; use classes=all"),
        ("domain", "seen", SGD(lr=0.1, reset=True), "optimizer.reset=true"),
        ("domain", "seen", SGD(lr=0.1, schedule="cosine"), "optimizer.schedule=cosine restarts at each task"),
        ("domain", "seen", SGD(lr=0.1, schedule="task", scope="stream"), "optimizer.schedule=task"),
    ],
)
def test_what_else_would_tell_of_a_boundary_is_refused(
    scenario: str, classes: str, optimizer: Optimizer, said: str
) -> None:
    with pytest.raises(ValueError, match=f"^boundaries=hidden: {said}") as caught:
        check_boundaries(stream(3, scenario, classes=classes), [Naive()], optimizer)
    assert "\n" not in str(caught.value)


def test_a_schedule_over_the_whole_stream_and_all_classes_pass() -> None:
    check_boundaries(stream(3, "class", classes="all"), [Naive()], SGD(lr=0.1, schedule="cosine", scope="stream"))


def test_announced_boundaries_call_begin_and_end_and_hidden_ones_do_not() -> None:
    class Listens(Naive):
        needs_boundaries = False  # says so, falsely
        heard: list[str] = []

        def begin(self, learner: Any, task: Task) -> Task:
            self.heard.append("begin")
            return task

        def end(self, learner: Any, task: Task) -> None:
            self.heard.append("end")

    for announced, expected in ((True, ["begin", "end"] * 2), (False, [])):
        Listens.heard.clear()
        told = replace(stream(3), announced=announced)
        run(
            told,
            [Listens()],
            model=MLP((6,), 2, widths=(3,)),
            optimizer=SGD(lr=0.1),
            budget=Budget(epochs=1, batch_size=BATCH),
        )
        assert Listens.heard == expected
