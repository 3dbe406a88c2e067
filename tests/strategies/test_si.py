"""Synaptic intelligence: the path integral on a quadratic, under any optimizer, and its faults elsewhere by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from harness import tree
from harness.learner import Budget, Learner
from harness.loop import prepare, train
from harness.models.mlp import MLP
from harness.optim import SGD, Adam, Optimizer
from harness.strategy import Chain, Strategy
from harness.types import BEFORE, Aux, Batch, GradFn, Params, Step, Task
from strategies.si import SI
from tests.observer import Blind
from tests.strategies.test_ewc import learner as quadratic_learner
from tests.toy import gaussian


def si(**changed: Any) -> SI:
    return SI(**{"strength": 0.5, "xi": 0.1, "gradient": "task", **changed})


class Watch(Strategy):
    """Keeps SI's path before SI clears it: stands before it in the list."""

    def __init__(self, part: SI) -> None:
        self.part, self.paths, self.transient = part, list[Params](), ("part", "paths")

    def end(self, learner: Learner, task: Task) -> None:
        self.paths.append(tree.copy(self.part.path))


class Ledger(Strategy):
    """-g Δθ of every step, from a gradient of its own."""

    needs = frozenset({BEFORE})

    def __init__(self, gradient: str) -> None:
        self.gradient, self.sums = gradient, list[Params]()

    def begin(self, learner: Learner, task: Task) -> Task:
        self.sums.append(tree.zeros(learner.params))
        return task

    def step(self, learner: Learner, step: Step) -> None:
        g = step.grads if self.gradient == "total" else learner.task_grad(step.before, step.batch)
        moved = tree.sub(learner.params, step.before)
        self.sums[-1] = tree.add(self.sums[-1], tree.mul(g, moved), -1.0)


def go(made: Learner, *parts: Strategy) -> Learner:
    chain = Chain(list(parts))
    prepare(made, chain)
    train(made, chain, Blind())
    return made


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_on_a_quadratic_the_path_integral_is_the_loss_decrease_in_small_steps(momentum: float) -> None:
    gaps = []
    for steps in (400, 800):
        made, part = quadratic_learner(tasks=1, loss="mse"), si()
        made.optimizer = SGD(lr=8 / steps, momentum=momentum)
        made.budget = Budget(steps=steps, batch_size=20)
        task, start = made.stream.tasks[0], made.evaluate(made.net, made.stream.tasks[0].train)[1]
        watch = Watch(part)
        go(made, watch, part)
        decrease = start - made.evaluate(made.net, task.train)[1]
        ones = {k: torch.ones_like(v) for k, v in made.params.items()}
        gaps.append((tree.dot(watch.paths[0], ones) - decrease) / decrease)
    assert (gaps[1].abs() < 0.02).all()
    # the rest is ½ Δθᵀ H Δθ summed over the steps: first order in the step
    torch.testing.assert_close(gaps[0] / gaps[1], torch.full((2,), 2.0).double(), rtol=0.05, atol=0)


@pytest.mark.parametrize("gradient", ["task", "total"])
@pytest.mark.parametrize("optimizer", [SGD(lr=0.1), SGD(lr=0.1, momentum=0.9, weight_decay=0.01), Adam(lr=0.01)])
def test_the_path_is_gradient_times_the_update_that_was_made(optimizer: Optimizer, gradient: str) -> None:
    """Not lr * g², which is wrong under momentum and Adam; and g is the task's alone where it says so."""
    optimizer.reset()
    made = gaussian(lambda s: MLP(s.shape, 2, (5,)), optimizer, tasks=3)
    part, ledger = si(strength=2.0, gradient=gradient), Ledger(gradient)
    watch = Watch(part)
    go(made, watch, part, ledger)
    for found, expected in zip(watch.paths, ledger.sums, strict=True):
        for k, v in expected.items():
            assert v.any()
            torch.testing.assert_close(found[k], v, rtol=1e-9, atol=1e-14)
    other = Ledger("total" if gradient == "task" else "task")
    again = gaussian(lambda s: MLP(s.shape, 2, (5,)), SGD(lr=0.1), tasks=3)
    part = si(strength=2.0, gradient=gradient)
    go(again, watch := Watch(part), part, other)
    assert not torch.allclose(watch.paths[1]["fc1.weight"], other.sums[1]["fc1.weight"], rtol=1e-3)


def test_under_a_sharpness_aware_step_the_gradient_is_that_at_the_weights() -> None:
    class Sharp(Strategy):
        def grad(self, learner: Learner, inner: GradFn) -> GradFn:
            def gradient(params: Params, batch: Batch) -> tuple[Params, Aux]:
                grads, _ = inner(params, batch)
                return inner(tree.add(params, grads, 5.0), batch)

            return gradient

    made = gaussian(lambda s: MLP(s.shape, 2, (5,)), SGD(lr=0.1), tasks=2)
    part, ledger = si(), Ledger("task")
    go(made, watch := Watch(part), part, Sharp(), ledger)
    for found, expected in zip(watch.paths, ledger.sums):
        torch.testing.assert_close(found["fc1.weight"], expected["fc1.weight"], rtol=1e-9, atol=1e-14)


def test_importance_and_penalty_by_hand() -> None:
    made, part = gaussian(lambda s: MLP(s.shape, 2, ()), SGD(lr=0.1)), si(strength=3.0, xi=1.0)
    prepare(made, Chain([part]))
    for path, expected in ((0.5, 0.1), (1.0, 0.3), (-2.0, 0.0)):  # + 0.5/5, + 1/5, then clamped: 0.3 - 2/5 < 0
        for v in part.path.values():
            v.fill_(path)
        for v in made.params.values():
            v.add_(2.0)  # Δ² + ξ = 5
        part.end(made, made.stream.tasks[0])
        for k, v in part.importance.items():
            torch.testing.assert_close(v, torch.full_like(v, expected))
            assert torch.equal(part.anchor[k], made.params[k]) and not part.path[k].any()
    for v in part.importance.values():
        v.fill_(0.5)
    shifted = {k: v + 2.0 for k, v in made.params.items()}
    value = part.loss(made, shifted, None, None)  # type: ignore[arg-type]
    torch.testing.assert_close(value, torch.full((2,), 3.0 * 0.5 * 4 * 10).double())  # 10 parameters, no factor ½


def test_it_is_not_naive_on_a_cpu() -> None:
    """Avalanche's anchors alias the live weights there, so that every importance is 0."""
    made, part = gaussian(lambda s: MLP(s.shape, 2, (5,)), SGD(lr=0.1), tasks=2, steps=30), si(strength=10.0)
    go(made, part)
    naive = go(gaussian(lambda s: MLP(s.shape, 2, (5,)), SGD(lr=0.1), tasks=2, steps=30))
    for k, v in made.params.items():
        assert part.importance[k].any() and not torch.allclose(v, naive.params[k], rtol=1e-3)
        assert part.anchor[k].data_ptr() != v.data_ptr()


def test_strength_zero_is_naive() -> None:
    made, naive = (gaussian(lambda s: MLP(s.shape, 2, (5,)), SGD(lr=0.1), tasks=2) for _ in range(2))
    go(made, si(strength=0.0))
    go(naive)
    assert all(torch.equal(v, naive.params[k]) for k, v in made.params.items())


@pytest.mark.parametrize(
    ("changed", "said"),
    [({"strength": -1.0}, "strength=-1.0"), ({"xi": 0.0}, "xi=0.0"), ({"gradient": "x"}, "gradient=x")],
)
def test_bad_values_are_named(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        si(**changed)
