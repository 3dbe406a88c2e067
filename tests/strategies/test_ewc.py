"""EWC against sums of the individual penalties, and on a problem whose answer is known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from harness import tree
from harness.landscape.fisher import diagonal
from harness.learner import Budget, Learner
from harness.loop import prepare, train
from harness.models.mlp import MLP
from harness.optim import SGD
from harness.rows import Rows
from harness.strategy import Chain
from harness.types import Params, Stream, Task
from strategies.ewc import EWC, OnlineEWC
from tests.observer import Blind

DEFAULT: dict[str, Any] = {"strength": 3.0, "mode": "separate", "gamma": 1.0, "fisher": "exact", "samples": None}


def ewc(**changed: Any) -> EWC:
    return EWC(**{**DEFAULT, **changed})


def learner(seeds: tuple[int, ...] = (0, 1), tasks: int = 3, loss: str = "cross_entropy", lr: float = 0.2) -> Learner:
    draw = torch.Generator().manual_seed(3)
    S, n, C = len(seeds), 20, 3
    made = []
    for i in range(tasks):
        x = torch.randn(n, 4, generator=draw, dtype=torch.float64)
        y = torch.randint(0, C, (S, n), generator=draw)
        if loss == "mse":
            y = torch.randn(S, n, C, generator=draw, dtype=torch.float64)
        rows = Rows(x, torch.arange(n).expand(S, n), y, torch.zeros(S, 1, dtype=torch.int64), torch.full((S,), n))
        made.append(Task(i, rows, rows, rows, n))
    stream = Stream("toy", 1, "domain", tuple(made), (4,), C, seeds, "", loss=loss)
    model = MLP((4,), C, () if loss == "mse" else (5,), "tanh")
    return Learner(model, stream, SGD(lr=lr), Budget(steps=4, batch_size=n), dtype=torch.float64)


def consolidated(made: Learner, part: EWC) -> list[tuple[Params, Params]]:
    """Train on all tasks; the weights and the Fisher information after each."""
    found: list[tuple[Params, Params]] = []
    chain = Chain([part])
    prepare(made, chain)

    class Watch(Blind):
        def end(self, task: Task) -> None:
            F = diagonal(made, task.train, "exact", made.random("test"))
            found.append((tree.copy(made.params), F))

    train(made, chain, Watch())
    return found


def elsewhere(made: Learner) -> Params:
    draw = torch.Generator().manual_seed(9)
    noise = {k: torch.randn(v.shape, generator=draw, dtype=v.dtype) for k, v in made.params.items()}
    return tree.add(made.params, noise)


def penalty(part: EWC, made: Learner, params: Params) -> tuple[Tensor, Params]:
    leaves = {k: v.detach().requires_grad_() for k, v in params.items()}
    value = part.loss(made, leaves, None, None)  # type: ignore[arg-type]
    scale = torch.arange(1.0, made.S + 1, dtype=torch.float64)  # each seed's own gradient must be scaled
    return value.detach(), dict(zip(leaves, torch.autograd.grad(value, list(leaves.values()), scale)))


@pytest.mark.parametrize("tasks", [1, 2, 4])
def test_separate_penalties_are_summed_in_constant_memory(tasks: int) -> None:
    made, part = learner(tasks=tasks), ewc()
    history = consolidated(made, part)
    at = elsewhere(made)
    leaves = {k: v.requires_grad_() for k, v in at.items()}
    terms = [tree.dot(F, tree.mul(*[tree.sub(leaves, theta)] * 2)) for theta, F in history]
    reference = 3.0 / 2 * torch.stack(terms).sum(0)
    grads = torch.autograd.grad(reference, list(leaves.values()), torch.tensor([1.0, 2.0]).double())
    value, grad = penalty(part, made, at)
    torch.testing.assert_close(value, reference.detach(), rtol=1e-11, atol=0)
    for k, g in zip(leaves, grads):
        torch.testing.assert_close(grad[k], g, rtol=1e-10, atol=1e-13)
    held = sum(v.numel() for p in (part.anchor, part.weight) for v in p.values())
    assert held == 2 * sum(v.numel() for v in made.params.values())


def test_the_information_is_that_of_all_training_rows_and_no_test_row() -> None:
    """L2-init's code takes test rows, and leaves out the last rows that fill no batch."""
    made, part = learner(tasks=1), ewc(samples=None)
    task = made.stream.tasks[0]
    unseen = replace(task.test, data=torch.full_like(task.test.data, torch.nan))  # type: ignore[type-var, attr-defined]
    prepare(made, Chain([part]))
    part.end(made, replace(task, test=unseen, val=unseen))
    rows = task.train.take(torch.arange(task.rows).expand(made.S, -1))
    batch = made.make_batch(*rows)
    total = tree.zeros(made.params)
    for i in range(task.rows):
        one = replace(batch, **{k: getattr(batch, k)[:, i : i + 1] for k in "xyt"}, w=torch.ones(made.S, 1).double())
        for y in range(3):
            labelled = replace(one, y=torch.full_like(one.y, y))
            loss, _ = made.task_loss(made.params, labelled)
            g = made.task_grad(made.params, labelled)
            share = loss.detach().neg().exp() / task.rows  # p(y | x)
            total = {k: v + share.view(-1, *[1] * (v.dim() - 1)) * g[k].square() for k, v in total.items()}
    for k, v in total.items():
        torch.testing.assert_close(part.weight[k], v, rtol=1e-8, atol=1e-14)


def test_online_penalty_decays_the_old_and_is_anchored_at_the_last() -> None:
    made, part = learner(), ewc(mode="online", gamma=0.5)
    history = consolidated(made, part)
    weights = [0.5**3, 0.5**2, 0.5]  # F~ = 0.25 F_0 + 0.5 F_1 + F_2, and γ once more in the penalty
    at = elsewhere(made)
    shift = tree.sub(at, history[-1][0])
    terms = [c * tree.dot(F, tree.mul(shift, shift)) for c, (_, F) in zip(weights, history)]
    torch.testing.assert_close(penalty(part, made, at)[0], 1.5 * torch.stack(terms).sum(0), rtol=1e-11, atol=0)


def test_the_first_task_is_trained_as_if_alone() -> None:
    made = learner(tasks=1)
    chain = Chain([ewc(strength=1e6)])
    prepare(made, chain)
    train(made, chain, Blind())
    naive = learner(tasks=1)
    train(naive, Chain([]), Blind())
    for k, v in naive.params.items():
        assert torch.equal(made.params[k], v)


def test_pulls_to_the_precision_weighted_mean_of_two_optima() -> None:
    # One-hot inputs make the squared error of a linear net without bias gradient a diagonal quadratic of known
    # curvature h = (2/C) n_i / n at optimum m_1; anchored at m_0 with Fisher f = h and strength 1 the minimum
    # is the mean of the two, weighted by precision: (h m_1 + λ f m_0) / (h + λ f).
    S, C, lam = 2, 3, 4.0
    counts = torch.tensor([1, 2, 5])
    x = torch.eye(3, dtype=torch.float64)
    index = torch.repeat_interleave(torch.arange(3), counts).expand(S, -1)
    n = index.shape[1]
    optima = torch.randn(2, S, 3, C, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tasks = []
    for i in range(2):
        y = torch.stack([optima[i, s][index[s]] for s in range(S)])
        rows = Rows(x, index, y, torch.zeros(S, 1, dtype=torch.int64), torch.full((S,), n))
        tasks.append(Task(i, rows, rows, rows, n))
    stream = Stream("quadratic", 1, "domain", tuple(tasks), (3,), C, (0, 1), "", loss="mse")
    made = Learner(MLP((3,), C, ()), stream, SGD(lr=0.5), Budget(steps=1500, batch_size=n), dtype=torch.float64)
    made.params["head.bias"].zero_()

    class NoBias(EWC):
        def grad(self, learner: Learner, inner: Any) -> Any:
            def gradient(params: Params, batch: Any) -> Any:
                grads, aux = inner(params, batch)
                return {**grads, "head.bias": torch.zeros_like(grads["head.bias"])}, aux

            return gradient

    chain = Chain([NoBias(**{**DEFAULT, "strength": lam})])
    prepare(made, chain)
    train(made, chain, Blind())
    expected = (optima[1] + lam * optima[0]) / (1 + lam)  # the precision h is the same for both and cancels
    torch.testing.assert_close(made.params["head.weight"], expected.mT, rtol=1e-8, atol=1e-8)


def test_strength_zero_is_naive() -> None:
    runs = []
    for parts in ([ewc(strength=0.0)], []):
        made = learner()
        chain = Chain(parts)
        prepare(made, chain)
        train(made, chain, Blind())
        runs.append(made.params)
    assert all(torch.equal(v, runs[1][k]) for k, v in runs[0].items())


def test_parameters_without_information_stay_finite() -> None:
    made, part = learner(tasks=2), ewc()
    prepare(made, Chain([part]))
    task = made.stream.tasks[0]
    dead = Rows(torch.zeros_like(task.train.data), *[getattr(task.train, k) for k in ("index", "y", "t", "size")])
    for _ in range(2):  # no input: no gradient reaches the first layer's weights
        part.end(made, Task(0, dead, dead, dead, 20))
    assert (part.weight["fc1.weight"] == 0).all()
    value, grad = penalty(part, made, elsewhere(made))
    assert value.isfinite().all() and all(g.isfinite().all() for g in grad.values())


def test_online_ewc_is_ewc_with_mode_online() -> None:
    runs = []
    for part in (OnlineEWC(strength=3.0, gamma=0.5, fisher="exact", samples=None), ewc(mode="online", gamma=0.5)):
        made = learner()
        consolidated(made, part)
        runs.append(made.params)
    separate = learner()
    consolidated(separate, ewc(gamma=0.5))
    assert all(torch.equal(v, runs[1][k]) for k, v in runs[0].items())
    assert not torch.equal(separate.params["fc1.weight"], runs[0]["fc1.weight"])


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"strength": -1.0}, "strength=-1.0"),
        ({"mode": "offline"}, "mode=offline"),
        ({"gamma": 1.5}, "gamma=1.5"),
        ({"fisher": "batch"}, "fisher=batch"),
        ({"samples": 0}, "samples=0"),
    ],
)
def test_bad_values_are_named(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ewc(**changed)
