"""LwF: which outputs are distilled in which scenario, with what weight, from a teacher that does not move."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from harness import tree
from harness.learner import Budget, Learner
from harness.loop import prepare, train
from harness.optim import SGD
from harness.strategy import Chain
from harness.types import Batch
from strategies.lwf import LwF, divergence
from strategies.replay import Replay
from tests import test_avalanche_agrees as bridge
from tests.observer import Blind
from tests.strategies.test_ewc import learner as regression
from tests.toy import MODELS, stream

DEFAULT: dict[str, Any] = {
    "strength": 1.0,
    "temperature": 2.0,
    "t_squared": False,
    "weighting": "heads",
    "student": "old",
}


def lwf(**changed: Any) -> LwF:
    return LwF(**{**DEFAULT, **changed})


def learner(scenario: str, model: str = "mlp", classes: str = "seen") -> Learner:
    source = replace(stream(scenario, (0, 1)), classes=classes)
    return Learner(MODELS[model](source), source, SGD(lr=0.1), Budget(steps=3, batch_size=8), dtype=torch.float64)


def at(made: Learner, part: LwF, task: int) -> Batch:
    """The first batch of a task, with the untrained net as the teacher."""
    prepare(made, Chain([part]))
    made.enter(made.stream.tasks[task])
    made.plan(made.stream.tasks[task])
    return part.batch(made, next(iter(made.batches(made.stream.tasks[task]))))


def penalty(made: Learner, part: LwF, batch: Batch, params: Any = None) -> tuple[Tensor, dict[str, Tensor]]:
    leaves = {k: v.detach().requires_grad_() for k, v in (params or made.params).items()}
    out = made.apply(leaves, made.buffers, batch.x, batch.t, train=True)
    value = torch.as_tensor(part.loss(made, leaves, batch, out))
    return value.detach(), dict(zip(leaves, torch.autograd.grad(value.sum(), list(leaves.values()), allow_unused=True)))


def moved(made: Learner, outputs: list[int], by: float) -> dict[str, Tensor]:
    """The biases of some outputs shifted."""
    params = tree.copy(made.params)
    params["head.bias"][:, outputs] += by
    return params


@pytest.mark.parametrize("scenario", ["task", "domain", "class"])
def test_at_the_teacher_value_and_gradient_are_zero(scenario: str) -> None:
    made, part = learner(scenario), lwf()
    batch = at(made, part, 2)
    value, grads = penalty(made, part, batch)
    assert torch.equal(value, torch.zeros(2).double())
    assert all(g is None or g.abs().max() < 1e-16 for g in grads.values())
    away, grads = penalty(made, part, batch, tree.add(made.params, tree.scale(made.params, 0.5)))
    assert (away > 0).all() and all(g is not None and g.isfinite().all() and g.any() for g in grads.values())


def of_task(made: Learner, i: int, s: int = 0) -> list[int]:
    assert made.stream.masks is not None
    return made.stream.masks[s if len(made.stream.masks) > 1 else 0, i].nonzero().flatten().tolist()


def shifted(made: Learner, part: LwF, batch: Batch, tasks: list[int], which: int, by: float = 1.0) -> Tensor:
    """The first seed's penalty with output `which` of some tasks shifted (-1: all of them)."""
    units = [u for i in tasks for u in (of_task(made, i) if which < 0 else [of_task(made, i)[which]])]
    return penalty(made, part, batch, moved(made, units, by))[0][0]


def test_class_one_softmax_over_the_classes_seen_before_and_no_other() -> None:
    made, part = learner("class"), lwf()
    batch = at(made, part, 2)
    assert shifted(made, part, batch, [2, 3, 4], 0) == 0  # the present and the future are free
    assert shifted(made, part, batch, [0, 1], -1).abs() < 1e-15  # a softmax does not see a common shift
    assert shifted(made, part, batch, [0], -1) > 1e-3  # but one of a single old task


def test_task_a_softmax_for_each_old_head_on_the_new_inputs() -> None:
    made, part = learner("task"), lwf()
    batch = at(made, part, 2)
    assert (batch.t == 2).all()
    assert shifted(made, part, batch, [2, 3, 4], 0) == 0
    assert shifted(made, part, batch, [0], -1).abs() < 1e-15  # now each head is a softmax of its own
    one, other = (shifted(made, part, batch, [i], 0) for i in (0, 1))
    assert one > 1e-3 and other > 1e-3
    torch.testing.assert_close(shifted(made, part, batch, [0, 1], 0), one + other, rtol=1e-10, atol=0)


def test_domain_all_outputs() -> None:
    made, part = learner("domain"), lwf()
    batch = at(made, part, 1)
    assert all((penalty(made, part, batch, moved(made, [u], 1.0))[0] > 1e-4).all() for u in range(10))


def test_the_divergence_by_hand() -> None:
    old, new = torch.tensor([[[0.0, math.log(3.0), 9.0]]]), torch.tensor([[[0.0, 0.0, -5.0]]])
    two, three = (torch.tensor(m).view(1, 1, 1, 3) for m in ([True, True, False], [True, True, True]))
    expected = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    torch.testing.assert_close(divergence(old, new, two, two), torch.tensor([[[expected]]]))
    new[0, 0, 2] = math.log(2.0)  # the student's probabilities are now 1/4, 1/4 and 1/2
    torch.testing.assert_close(divergence(old, new, two, three), torch.tensor([[[expected + math.log(2)]]]))


@pytest.mark.parametrize(
    ("changed", "a", "b"),
    [
        ({}, 1.0, 1.0),
        ({"weighting": "tasks"}, 1.0, 2.0),
        ({"weighting": "share"}, 1 / 3, 2 / 3),
        ({"strength": 5.0}, 1.0, 5.0),
        ({"t_squared": True}, 1.0, 4.0),
    ],
)
def test_weights_in_the_third_task(changed: dict[str, Any], a: float, b: float) -> None:
    made, part = learner("class"), lwf(**changed)
    batch = at(made, part, 2)
    torch.testing.assert_close(batch.w, torch.full_like(batch.w, a / 8))
    params = tree.scale(made.params, 1.5)
    z = made.apply(params, {}, batch.x, batch.t).logits
    old = made.net(batch.x, batch.t).logits
    for s in range(2):
        units = of_task(made, 0, s) + of_task(made, 1, s)
        p, q = (v[s][:, units].div(2).softmax(-1) for v in (old, z))
        expected = b * (p * (p / q).log()).sum(-1).mean()
        torch.testing.assert_close(penalty(made, part, batch, params)[0][s], expected, rtol=1e-10, atol=0)


def cross_entropy(old: Tensor, new: Tensor) -> Tensor:
    """-Σ softmax(old / 2) log softmax(new / 2), mean over rows; outputs that only `new` has get target 0."""
    target = F.pad((old / 2).softmax(1), (0, new.shape[1] - old.shape[1]))
    return -(target * (new / 2).log_softmax(1)).sum(1).mean()


def total_of_2022(made: Learner, z: Tensor, old: Tensor, y: Tensor, s: int) -> Tensor:
    """Loss of one seed in van de Ven et al.'s code (e6d795a) in the third task; columns sorted by task."""
    if made.stream.scenario == "domain":
        return F.cross_entropy(z, y) + 2 * cross_entropy(old, z)
    order = [u for i in range(5) for u in of_task(made, i, s)]
    z, old, y = z[:, order], old[:, order], torch.tensor([order.index(int(c)) for c in y])
    if made.stream.scenario == "task":
        pairs = [cross_entropy(old[:, i : i + 2], z[:, i : i + 2]) for i in (0, 2)]
        return F.cross_entropy(z[:, 4:6], y - 4) + 2 * (sum(pairs) / 2)
    if made.stream.classes == "all":
        return F.cross_entropy(z, y) + cross_entropy(old, z)
    return F.cross_entropy(z[:, :6], y) + cross_entropy(old[:, :4], z[:, :6])


@pytest.mark.parametrize(
    ("scenario", "classes", "weighting"),
    [
        ("task", "seen", "tasks"),
        ("task", "seen", "heads"),
        ("domain", "seen", "tasks"),
        ("class", "all", "heads"),
        ("class", "seen", "heads"),
    ],
)
def test_the_gradient_is_that_of_the_code_of_2022(scenario: str, classes: str, weighting: str) -> None:
    made, part = learner(scenario, classes=classes), lwf(weighting=weighting, student="competing")
    batch = at(made, part, 2)
    old = made.net(batch.x, batch.t).logits
    z = (2 * old + torch.arange(10) / 10).detach().requires_grad_()
    out = made.apply(made.params, made.buffers, batch.x, batch.t)._replace(logits=z)
    ours = (batch.w * made.row_loss(z, batch)).sum(1) + part.loss(made, made.params, batch, out)
    theirs = sum(total_of_2022(made, z[s], old[s], batch.y[s], s) for s in range(2))
    assert isinstance(theirs, Tensor)
    mine, hers = (torch.autograd.grad(v, z, retain_graph=True)[0] for v in (ours.sum(), theirs))
    torch.testing.assert_close(mine, hers, rtol=1e-10, atol=1e-14)
    assert mine.abs().max() > 0.01


def test_the_teacher_is_in_evaluation_mode_and_does_not_move() -> None:
    """Avalanche's stays in training mode: batch statistics, and running ones that drift while it teaches."""
    made, part = learner("class", "residual"), lwf()
    prepare(made, chain := Chain([part]))
    kept = []

    class Watch(Blind):
        def start(self, task: Any) -> None:
            kept.append((tree.copy(part.teacher.params), tree.copy(part.teacher.buffers)))

        def step(self, step: Any, aux: Any) -> None:
            for now, then in zip((part.teacher.params, part.teacher.buffers), kept[-1]):
                assert all(torch.equal(v, then[k]) and not v.requires_grad for k, v in now.items())
            if made.now:
                z = made.apply(*kept[-1], step.batch.x, step.batch.t, train=False).logits
                assert torch.equal(step.batch.extra["lwf"], z)

    train(made, chain, Watch())
    assert all(torch.equal(v, made.params[k]) for k, v in part.teacher.params.items())
    assert all(torch.equal(v, made.buffers[k]) for k, v in part.teacher.buffers.items())
    assert not torch.equal(kept[1][1]["stem.norm.mean"], kept[2][1]["stem.norm.mean"])


@pytest.mark.parametrize("first", [True, False])
def test_replayed_rows_are_distilled_where_they_came_before(first: bool) -> None:
    made, part = learner("class"), lwf()
    replay = Replay(capacity=20, batch_size=6, policy="reservoir", weighting="sum", fill="step", replacement=False)
    chain = Chain([part, replay] if first else [replay, part])
    prepare(made, chain)
    assert bool(chain.disorder()) != first
    seen = set()

    class Watch(Blind):
        def step(self, step: Any, aux: Any) -> None:
            if made.now:
                seen.add(step.batch.extra["lwf"].shape[1])

    train(made, chain, Watch())
    assert seen == ({8} if first else {14})


def test_avalanche_ends_at_the_same_weights_where_no_layer_has_a_mode() -> None:
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("ignore")
        state = torch.random.get_rng_state()
        import avalanche
        import avalanche.benchmarks.utils
        import avalanche.evaluation.metrics
        import avalanche.training.plugins
        import avalanche.training.supervised

        made = bridge.streams()["split"]
        ours = bridge.ours(made, lwf(strength=3.0))
        _, net = bridge.theirs(avalanche, made, "LwF", alpha=3.0, temperature=2.0)
        torch.random.set_rng_state(state)
    assert bridge.distance(ours, net) < 2e-6
    assert bridge.distance(bridge.ours(made), net) > 0.01


def test_strength_zero_and_the_first_task_are_naive() -> None:
    runs = []
    for parts in ([lwf(strength=0.0)], []):
        made = learner("class")
        prepare(made, chain := Chain(parts))
        train(made, chain, Blind())
        runs.append(made.params)
    assert all(torch.equal(v, runs[1][k]) for k, v in runs[0].items())
    made, part = learner("class"), lwf(weighting="share", strength=9.0)
    assert "lwf" not in at(made, part, 0).extra


def test_a_regression_is_refused() -> None:
    with pytest.raises(ValueError, match="lwf: regression has no class probabilities"):
        prepare(regression(loss="mse"), Chain([lwf()]))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"strength": -1.0}, "strength=-1.0"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"weighting": "x"}, "weighting=x"),
        ({"student": "x"}, "student=x"),
    ],
)
def test_bad_values_are_named(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        lwf(**changed)
