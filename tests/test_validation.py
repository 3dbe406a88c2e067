"""eval.split=val: scores are of the validation rows, and nothing of the run sees a test row."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from harness import store
from harness.config.preflight import composed
from harness.jobs.setting import build
from harness.learner import Budget, Learner
from harness.models.mlp import MLP
from harness.optim import SGD
from harness.record.evaluation import Evaluation
from harness.run import run
from tasks.datasets import Dataset, load
from tasks.permuted import permuted
from tasks.split import split
from tasks.stream import on_validation
from tests.command import harness
from tests.even import even

SEEDS = (3, 4)


def poisoned(data: Dataset) -> Dataset:
    """The same data set with test rows that betray every look at them: not a number."""
    x = torch.as_tensor(data.x).clone()
    x[data.test] = float("nan")
    return replace(data, x=x)


def tables(data: Dataset) -> dict[str, Any]:
    """All that the standard measures say of a run scored on its validation rows."""
    stream = on_validation(permuted(dataset=data, seeds=SEEDS, n_tasks=2, fixed=False))
    metrics = {name: build(node) for name, node in composed(["metrics=standard"])["metrics"].items()}
    found = run(
        stream,
        [],
        model=MLP(stream.shape, stream.outputs, (8,)),
        optimizer=SGD(lr=0.1),
        budget=Budget(steps=5),
        metrics=metrics,
        control=torch.full((2, 2), 0.5, dtype=torch.float64),
        evaluation=Evaluation(every=2),
    )
    return {name: found.frame(name) for name in ("metrics", "accuracy", "curves")}


def test_nothing_of_a_run_depends_on_the_test_rows() -> None:
    data = load("digits")
    clean, blind = tables(data), tables(poisoned(data))
    for name, frame in clean.items():
        pd.testing.assert_frame_equal(frame, blind[name], check_exact=True, obj=name)
    assert set(clean["accuracy"].split) == {"val"}


@pytest.mark.parametrize("scenario", ["task", "domain", "class"])
def test_scores_are_those_of_the_validation_rows(scenario: str) -> None:
    plain = split(dataset=even(load("digits")), seeds=SEEDS, n_tasks=5, scenario=scenario, fixed=False)
    stream = on_validation(plain)
    how = {"model": MLP(stream.shape, stream.outputs, (8,)), "optimizer": SGD(lr=0.1), "budget": Budget(steps=5)}
    found = run(stream, [], **how)
    judge = Learner(how["model"], plain, SGD(lr=0.1), Budget())
    judge.now = 4
    for t, task in enumerate(plain.tasks):
        score, _ = judge.evaluate(found.learner.net, task.val)
        assert torch.equal(found.accuracy[:, 5, t], score)
    for name, trained in run(plain, [], **how).learner.params.items():  # what is learnt is the same
        assert torch.equal(trained, found.learner.params[name])
    rows = found.frame("accuracy")
    assert rows[(rows.boundary == 4) & (rows.task == 1)].n.tolist() == plain.tasks[1].val.size.expand(2).tolist()


def test_a_data_set_without_validation_rows_is_refused_by_name() -> None:
    with pytest.raises(
        ValueError, match=r"eval\.split=val: permuted_digits has no validation rows; use dataset\.val=0\.1"
    ):
        on_validation(permuted(dataset=load("digits", val=0.0), seeds=[0], n_tasks=1, fixed=False))


def test_runs_of_the_two_splits_stand_apart(tmp_path: Path) -> None:
    few = ["tasks.n_tasks=2", "train.steps=2", "seeds=[0,1]", "metrics=off", "tracker.mode=disabled", "results=results"]
    said(tmp_path, *few)
    said(tmp_path, *few, "eval.split=val")  # its control is trained anew: a control of test rows will not do
    runs = list(store.find_runs(tmp_path / "results"))
    assert sorted((one.manifest["purpose"], one.manifest["split"]) for one in runs) == [
        *(("control", "test"), ("control", "val"), ("run", "test"), ("run", "val"))
    ]
    assert len({one.manifest["setting"] for one in runs}) == 2
    for one in runs:
        assert set(pd.read_parquet(one.path / "accuracy.parquet").split) == {one.manifest["split"]}
    board = said(tmp_path, "leaderboard")
    assert board.count("naive") >= 2 and "on the val split" in board
    assert "eval.split=validation: must be test or val" in said(tmp_path, *few, "eval.split=validation", code=2)


def said(folder: Path, *words: str, code: int = 0) -> str:
    done = harness(*words, cwd=folder)
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr
