"""Continual evaluation: scores within a task against hand-run ones, and the three numbers made of them."""

import copy
import math
import time
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

from harness import loop
from harness.boundary import Boundary, Inside
from harness.learner import Budget, Learner
from harness.metrics.stability import COLUMNS, stability
from harness.models.mlp import MLP
from harness.optim import SGD
from harness.record import recorder
from harness.record.evaluation import Evaluation
from harness.record.sinks import InMemory
from harness.run import Result, run
from harness.strategy import Chain, Strategy
from harness.types import Aux, Net, Reading, Step, Stream
from tasks.datasets import load
from tasks.permuted import permuted
from tests.observer import Blind

F64 = torch.float64


def value(r: Tensor | Reading) -> Tensor:
    return r if isinstance(r, Tensor) else r.value


def test_the_numbers_by_hand(boundary) -> None:  # type: ignore[no-untyped-def]
    # two old tasks and the present one at steps 5, 10, 12; the least includes earlier tasks' steps
    score = torch.tensor([[[0.5, 0.9, 0.1], [0.2, 0.8, 0.6], [0.6, 0.7, 0.9]]], dtype=F64).repeat(2, 1, 1)
    score = torch.cat([score, torch.full((2, 3, 1), math.nan, dtype=F64)], 2)
    least = torch.tensor([[0.1, 0.7, math.inf, math.inf]], dtype=F64).repeat(2, 1)
    b: Boundary = boundary(t=2, inside=Inside((5, 10, 12), score, least))
    found = stability(b)
    assert set(found) == set(COLUMNS)
    assert value(found["min_accuracy"]).tolist() == pytest.approx([0.4, 0.4])
    assert value(found["min_accuracy_task"])[0].tolist() == [0.1, 0.7]
    assert value(found["wc_accuracy"]).tolist() == pytest.approx([0.9 / 3 + 2 / 3 * 0.4] * 2)
    assert value(found["stability_gap_task"])[0].tolist() == pytest.approx([0.4, 0.0])
    assert value(found["stability_gap"]).tolist() == pytest.approx([0.2, 0.2])
    curve = found["score_inside"]
    assert isinstance(curve, Reading) and curve.axis == "step"
    cells = dict(zip(zip(curve.coords, curve.tasks), curve.value[1].tolist()))
    assert len(cells) == 9 and cells[5, 1] == 0.9 and cells[10, 0] == 0.2 and cells[12, 2] == 0.9
    first = stability(boundary(t=0, inside=Inside((5,), score[:, :1], least)))
    assert value(first["wc_accuracy"]).tolist() == [0.5, 0.5] and value(first["min_accuracy"]).isnan().all()
    assert stability(boundary()) == {} and stability(boundary(phase="start", inside=Inside((5,), score, least))) == {}


def digits() -> Stream:
    return permuted(dataset=load("digits"), seeds=[0, 1], n_tasks=3, fixed=False)


class Halved(Strategy):
    """Deploys half the weights of the head, so that which net is tested shows."""

    def deploy(self, learner: Learner, net: Net) -> Net:
        return Net({k: v * 0.5 if k == "head.weight" else v for k, v in net.params.items()}, net.buffers, net.apply)


def go(strategies: list[Strategy] | None = None, metric: Any = stability, **evaluation: Any) -> Result:
    s = digits()
    return run(
        s,
        strategies or [],
        model=MLP(s.shape, s.outputs, (12,), dropout=0.2),
        optimizer=SGD(lr=0.3, momentum=0.9),
        budget=Budget(steps=7, batch_size=10),
        metrics={"stability": metric},
        evaluation=Evaluation(**evaluation),
        gap=False,
        sink=InMemory(),
    )


def test_scores_are_the_deployed_nets_at_these_steps_and_the_run_stays_what_it_is() -> None:
    result, plain = go([Halved()], every=3, samples=50), go([Halved()], samples=50)
    assert torch.equal(result.accuracy.nan_to_num(), plain.accuracy.nan_to_num())
    assert all(torch.equal(v, plain.learner.params[k]) for k, v in result.learner.params.items())
    table = result.frame()
    assert "score_inside" not in set(plain.frame().metric)

    truth: dict[tuple[int, int, int], list[float]] = {}

    class Watch(Blind):
        def step(self, step: Step, aux: Aux) -> None:
            if learner.steps in (3, 6, 7):
                net = chain.deploy(learner, learner.net)
                for j in range(learner.now + 1):
                    score, _ = learner.evaluate(net, learner.stream.tasks[j].test, samples=50)
                    truth[learner.now, learner.steps, j] = score.tolist()

    s, chain = digits(), Chain([Halved()])
    model = MLP(s.shape, s.outputs, (12,), dropout=0.2)
    learner = Learner(model, s, SGD(lr=0.3, momentum=0.9), Budget(steps=7, batch_size=10))
    loop.prepare(learner, chain)
    loop.train(learner, chain, Watch())

    inside = table[table.metric == "score_inside"]
    assert set(inside.axis) == {"step"} and set(inside.net) == {"deployed"} and len(inside) == 2 * 3 * (1 + 2 + 3)
    for (t, step, task), each in truth.items():
        rows = inside[(inside.boundary == t) & (inside.coord == str(step)) & (inside.task == task)]
        assert rows.sort_values("seed").value.tolist() == each
    # the lowest of task 0 over both later tasks, recomputed from the curve
    lowest = inside[(inside.task == 0) & (inside.boundary > 0)].groupby("seed").value.min()
    kept = table[(table.metric == "min_accuracy_task") & (table.boundary == 2) & (table.task == 0)].set_index("seed")
    pd.testing.assert_series_equal(kept.value, lowest, check_names=False)


def test_a_task_outside_the_window_is_not_measured() -> None:
    table = go(every=4, tasks=2).frame()
    rows = table[(table.boundary == 2) & (table.seed == 0)]
    least = rows[rows.metric == "min_accuracy_task"].set_index("task").value
    assert math.isnan(least[0]) and least[1] >= 0
    assert math.isnan(rows[rows.metric == "wc_accuracy"].value.iloc[0])


def test_tasks_to_come_are_not_looked_at() -> None:
    looked: dict[int, Tensor] = {}

    def kept(b: Boundary) -> dict[str, Tensor]:
        if b.inside is not None and b.phase == "end":
            looked[b.t] = b.inside.score.isfinite().all(0).all(0)
        return {}

    go(metric=kept, every=7)
    assert [looked[t].tolist() for t in range(3)] == [[True, False, False], [True, True, False], [True, True, True]]


def test_a_fixed_number_of_rows_is_looked_at_unless_it_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "INSIDE", 30)
    curves = []
    for how in ({}, {"samples": 30}, {"samples": 200}):
        table = go(every=7, **how).frame()
        curves.append(table[table.metric == "score_inside"].value.tolist())
    assert curves[0] == curves[1] != curves[2]


def test_the_time_of_looking_is_a_part_of_its_own() -> None:
    class Slow(Strategy):
        def deploy(self, learner: Learner, net: Net) -> Net:
            time.sleep(0.05 * (learner.now == 2))
            return net

    timing = go([Slow()], every=1).frame("timing")
    seconds = timing[timing.boundary == 2].set_index("part").seconds
    assert seconds["evaluate inside"] > 7 * 0.05 and 0 < seconds["train"] < seconds["evaluate inside"]
    assert "evaluate inside" not in set(go().frame("timing").part)


def test_a_resumed_run_knows_the_lowest_score_of_before() -> None:
    states: dict[int, Any] = {}

    class Keeping(InMemory):
        def commit(self, boundary: int, checkpoint: Any, net: Net) -> None:
            super().commit(boundary, checkpoint, net)
            states[boundary] = copy.deepcopy(checkpoint())

    def lowest(**how: Any) -> list[float]:
        table = run(
            s,
            [],
            model=MLP(s.shape, s.outputs, (12,), dropout=0.2),
            optimizer=SGD(lr=0.3, momentum=0.9),
            budget=Budget(steps=7, batch_size=10),
            metrics={"stability": stability},
            evaluation=Evaluation(every=2),
            gap=False,
            **how,
        ).frame()
        return table[(table.metric == "min_accuracy_task") & (table.boundary == 2)].value.tolist()

    s, sink = digits(), Keeping()
    whole = lowest(sink=sink)
    assert lowest(sink=InMemory(nets=sink.nets), resume=(1, states[1])) == whole
    assert states[1]["least"][:, 0].isfinite().all() and states[1]["least"][:, 1:].isinf().all()


@pytest.mark.parametrize("every", [0, -1])
def test_a_value_out_of_range_is_refused(every: int) -> None:
    with pytest.raises(ValueError, match=rf"eval\.every={every}: must be at least 1, or null"):
        Evaluation(every=every)
