"""MC-SGD: its gradient against finite differences and a re-enactment, and which net trains and which is deployed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from harness import tree
from harness.learner import Budget, Learner
from harness.loop import prepare, train
from harness.models.mlp import MLP
from harness.optim import SGD
from harness.rows import Rows
from harness.strategy import Chain, Strategy
from harness.types import Batch, Params, Stream, Task
from strategies.mcsgd import MCSGD
from tests.observer import Blind

DEFAULT: dict[str, Any] = {
    "per_task": 3,
    "current": 6,
    "batch_size": 4,
    "steps": 5,
    "lr": 0.05,
    "momentum": 0.8,
    "points": 5,
    "init": 0.25,
    "line_grad": "exact",
    "continue_from": "sequential",
}


def mcsgd(**changed: Any) -> MCSGD:
    return MCSGD(**{**DEFAULT, **changed})


def learner(tasks: int = 3) -> Learner:
    draw = torch.Generator().manual_seed(2)
    S, n = 2, 24
    made = []
    for i in range(tasks):
        x = torch.randn(n, 4, generator=draw, dtype=torch.float64)
        x[:, 0] = 100 * i + torch.arange(n)  # a name
        y = (torch.arange(n) % 3).expand(S, n)
        rows = Rows(x, torch.arange(n).expand(S, n), y, torch.zeros(S, 1, dtype=torch.int64), torch.full((S,), n))
        made.append(Task(i, rows, rows, rows, n))
    stream = Stream("toy", 1, "domain", tuple(made), (4,), 3, (0, 1), "")
    return Learner(MLP((4,), 3, (5,), "tanh"), stream, SGD(lr=0.05), Budget(steps=4, batch_size=8), dtype=torch.float64)


def points(made: Learner) -> tuple[Params, Params, Batch]:
    draw = torch.Generator().manual_seed(4)
    start, w = (
        {k: torch.randn(v.shape, generator=draw, dtype=v.dtype) for k, v in made.params.items()} for _ in range(2)
    )
    x = torch.randn(2, 7, 4, generator=draw, dtype=torch.float64)
    y = torch.randint(0, 3, (2, 7), generator=draw)
    return start, w, made.make_batch(x, y, torch.zeros_like(y))


def task_loss(made: Learner, params: Params, batch: Batch) -> Tensor:
    return made.task_loss(params, batch, train=False)[0]


@pytest.mark.parametrize("n", [1, 3])
def test_exact_gradient_is_that_of_the_mean_loss_along_the_line(n: int) -> None:
    made, part = learner(), mcsgd(points=n)
    start, w, batch = points(made)

    def objective(w: Params) -> Tensor:
        losses = [task_loss(made, tree.lerp(start, w, s / n), batch) for s in range(n + 1)]
        return torch.stack(losses).mean(0)

    grad = part.line(made, start, w, batch)
    draw = torch.Generator().manual_seed(6)
    for _ in range(4):
        d = {k: torch.randn(v.shape, generator=draw, dtype=v.dtype) for k, v in w.items()}
        slope = (objective(tree.add(w, d, 1e-5)) - objective(tree.add(w, d, -1e-5))) / 2e-5
        torch.testing.assert_close(tree.dot(grad, d), slope, rtol=1e-7, atol=1e-9)


def test_paper_code_gradient_is_never_cleared_between_points() -> None:
    made, part = learner(), mcsgd(line_grad="paper_code", points=3)
    start, w, batch = points(made)
    got = part.line(made, start, w, batch)
    for s in range(2):  # seed by seed, one network whose .grad fields fill up
        net = {k: torch.nn.Parameter(v[s].clone()) for k, v in w.items()}
        summed = {k: torch.zeros_like(v[s]) for k, v in w.items()}
        for a in (0.0, 1 / 3, 2 / 3, 1.0):
            with torch.no_grad():
                for k, v in net.items():
                    v.copy_(start[k][s] + a * (w[k][s] - start[k][s]))
            hidden = torch.tanh(batch.x[s] @ net["fc1.weight"].T + net["fc1.bias"])
            logits = hidden @ net["head.weight"].T + net["head.bias"]
            loss = torch.nn.functional.cross_entropy(logits, batch.y[s]) / len(logits)
            loss.backward()
            for k, v in net.items():
                summed[k] += v.grad
        for k in summed:
            torch.testing.assert_close(got[k][s], summed[k], rtol=1e-10, atol=1e-12)


def test_the_two_differ_in_direction() -> None:
    made = learner()
    start, w, batch = points(made)
    a, b = (mcsgd(line_grad=g).line(made, start, w, batch) for g in ("exact", "paper_code"))
    assert (tree.dot(a, b) / (tree.norm(a) * tree.norm(b)) < 0.99).all()


class Watch(Strategy):
    """The weights as trained, and those after `end`; what is deployed."""

    def __init__(self, part: MCSGD) -> None:
        self.part = part
        self.trained: list[Params] = []
        self.kept: list[Params] = []
        self.deployed: list[Params] = []

    def end(self, learner: Learner, task: Task) -> None:
        self.kept.append(tree.copy(learner.params))
        self.deployed.append(tree.copy(self.part.deploy(learner, learner.net).params))


class Before(Watch):
    def end(self, learner: Learner, task: Task) -> None:
        self.trained.append(tree.copy(learner.params))


def run(part: MCSGD, made: Learner | None = None) -> tuple[list[Params], list[Params], list[Params], Learner]:
    made = made or learner()
    first, last = Before(part), Watch(part)
    chain = Chain([first, part, last])
    prepare(made, chain)
    train(made, chain, Blind())
    return first.trained, last.kept, last.deployed, made


def same(a: Params, b: Params) -> bool:
    return all(torch.equal(v, b[k]) for k, v in a.items())


def test_sequential_trains_as_naive_and_deploys_the_merged_net() -> None:
    trained, kept, deployed, made = run(mcsgd())
    assert all(same(a, b) for a, b in zip(trained, kept))
    naive = learner()
    train(naive, Chain([]), Blind())
    assert same(made.params, naive.params)
    assert same(deployed[0], trained[0]) and not same(deployed[1], trained[1])


def test_each_merge_starts_between_the_last_merged_net_and_the_new_one() -> None:
    trained, _, deployed, _ = run(mcsgd(lr=1e-300))  # and does not move from there
    old = trained[0]
    for new, merged in zip(trained[1:], deployed[1:]):
        old = tree.lerp(old, new, 0.25)
        for k, v in merged.items():
            torch.testing.assert_close(v, old[k], rtol=1e-12, atol=0)


def test_merged_goes_on_from_the_merged_net() -> None:
    trained, kept, deployed, _ = run(mcsgd(continue_from="merged"))
    assert same(kept[0], trained[0]) and not same(kept[1], trained[1])
    assert all(same(a, b) for a, b in zip(kept, deployed))


def test_memory_holds_stratified_rows_of_every_task() -> None:
    part = mcsgd()
    run(part)
    held = part.memory.rows()
    for s in range(2):
        assert (held["x"][s, :, 0] // 100).tolist() == [0] * 3 + [1] * 3 + [2] * 3
        for task in range(3):
            assert sorted(held["y"][s, 3 * task : 3 * task + 3].tolist()) == [0, 1, 2]
        assert held["x"][s, :, 0].unique().numel() == 9
    assert not torch.equal(held["x"][0], held["x"][1])


def test_the_merge_descends_its_objective_from_init() -> None:
    made = learner(2)
    old, new, _ = points(made)
    part = mcsgd(per_task=24, current=24, batch_size=24, steps=60, momentum=0.5, points=4)
    prepare(made, Chain([part]))
    for task in made.stream.tasks:  # the input that names a row would drown the others
        task.train.data[:, 0] = 0
    part.memory.add(**part.pick(made, made.stream.tasks[0], 24))

    def objective(w: Params) -> Tensor:
        total = torch.zeros(2, dtype=torch.float64)
        for start, task in ((old, 0), (new, 1)):
            batch = made.make_batch(*made.stream.tasks[task].train.take(torch.arange(24).expand(2, 24)))
            total += torch.stack([task_loss(made, tree.lerp(start, w, s / 4), batch) for s in range(5)]).mean(0)
        return total

    start = tree.lerp(old, new, 0.25)
    merged = part.merge(made, old, new, made.stream.tasks[1])
    assert (objective(merged) < objective(start) - 0.05).all()

    part.steps = 3  # both memories hold every row, so that each step is heavy-ball descent on the objective
    w, velocity = start, tree.zeros(start)
    for _ in range(3):
        leaves = {k: v.requires_grad_() for k, v in w.items()}
        g = dict(zip(leaves, torch.autograd.grad(objective(leaves).sum(), list(leaves.values()))))
        velocity = tree.add(tree.scale(velocity, 0.5), g)
        w = tree.detach(tree.add(w, velocity, -0.05))
    merged = part.merge(made, old, new, made.stream.tasks[1])
    for k, v in w.items():
        torch.testing.assert_close(merged[k], v, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"per_task": 0}, "per_task=0"),
        ({"points": 0}, "points=0"),
        ({"lr": 0.0}, "lr=0.0"),
        ({"momentum": 1.5}, "momentum=1.5"),
        ({"init": -0.5}, "init=-0.5"),
        ({"line_grad": "true"}, "line_grad=true"),
        ({"continue_from": "bar"}, "continue_from=bar"),
    ],
)
def test_bad_values_are_named(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        mcsgd(**changed)
