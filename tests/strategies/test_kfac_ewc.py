"""KFAC-EWC against dense matrices, and what it knows that a diagonal does not."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from harness import tree
from harness.landscape import kronecker
from harness.landscape.fisher import diagonal
from harness.learner import Learner
from harness.loop import prepare, train
from harness.models.mlp import MLP
from harness.optim import SGD
from harness.strategy import Chain
from harness.types import Params
from strategies.ewc import EWC
from strategies.kfac_ewc import KFACEWC
from tests.observer import Blind
from tests.toy import gaussian


def kfac(**changed: Any) -> KFACEWC:
    return KFACEWC(**{"strength": 3.0, "fisher": "exact", "samples": None, **changed})


def learner(widths: tuple[int, ...] = (3,), layer_norm: bool = False, tasks: int = 3) -> Learner:
    return gaussian(lambda s: MLP(s.shape, 2, widths, layer_norm=layer_norm), SGD(lr=0.1), tasks=tasks)


def ended(made: Learner, part: Any) -> None:
    """After the first task, as the second begins."""
    prepare(made, Chain([part]))
    part.end(made, made.stream.tasks[0])
    made.enter(made.stream.tasks[1])


def noisy(params: Params) -> Params:
    draw = torch.Generator().manual_seed(1)
    noise = {k: torch.randn(v.shape, generator=draw, dtype=v.dtype) for k, v in params.items()}
    return tree.add(params, noise)


def test_the_penalty_is_the_quadratic_form_of_the_dense_matrix() -> None:
    made, part = learner(layer_norm=True), kfac()
    for v in made.params.values():
        v.add_(0.1)
    ended(made, part)
    task = made.stream.tasks[0]
    pairs, _ = kronecker.factors(made, task.train, "exact", made.random("test"))
    F = diagonal(made, task.train, "exact", made.random("test"))
    leaves = {k: v.requires_grad_() for k, v in noisy(made.params).items()}
    expected = torch.zeros(2).double()
    for layer in made.model.layers:
        D = kronecker.matrix(leaves, layer) - kronecker.matrix(made.params, layer)
        for s, (A, G) in enumerate(zip(*pairs[layer.weight])):
            vec = D[s].mT.flatten()
            expected[s] += 1.5 * vec @ torch.kron(A, G) @ vec
    for k in ("fc1.norm.gain", "fc1.norm.shift"):  # no Kronecker factors: the diagonal
        assert F[k].any()
        expected = expected + 1.5 * (F[k] * (leaves[k] - made.params[k]) ** 2).sum(1)
    value = torch.as_tensor(part.loss(made, leaves, None, None))  # type: ignore[arg-type]
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-14)
    scale = torch.tensor([1.0, 2.0]).double()
    grads = (torch.autograd.grad(v, list(leaves.values()), scale, retain_graph=True) for v in (value, expected))
    for found, wanted in zip(*grads):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-13)


def test_a_change_that_leaves_the_softmax_alone_costs_nothing_but_under_a_diagonal_it_does() -> None:
    shares = []
    for part in (kfac(), EWC(strength=3.0, mode="separate", gamma=1.0, fisher="exact", samples=None)):
        made = learner()
        ended(made, part)
        moved = dict(made.params)
        row = torch.randn(3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        moved["head.weight"], moved["head.bias"] = moved["head.weight"] + row, moved["head.bias"] + 2.0
        shares.append(torch.as_tensor(part.loss(made, moved, None, None)))  # type: ignore[arg-type]
    assert (shares[0].abs() < 1e-12).all() and (shares[1] > 0.1).all()


def test_over_tasks_factors_add_up_and_the_anchor_is_the_last_net() -> None:
    made, part = learner(), kfac()
    found = []

    class Watch(Blind):
        def end(self, task: Any) -> None:
            found.append(kronecker.factors(made, task.train, "exact", made.random("test"))[0])

    prepare(made, chain := Chain([part]))
    train(made, chain, Watch())
    for k, (A, G) in part.pairs.items():
        wanted = kronecker.add(kronecker.add(found[0][k], found[1][k]), found[2][k])
        for one, other in zip((A, G), wanted):
            torch.testing.assert_close(one.abs() / one.norm(), other.abs() / other.norm(), rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(A.norm() * G.norm(), wanted[0].norm() * wanted[1].norm(), rtol=1e-8, atol=0)
    assert all(torch.equal(v, made.params[k]) for k, v in part.anchor.items())


def test_strength_zero_and_the_first_task_are_naive() -> None:
    for strength, tasks in ((0.0, 3), (1e6, 1)):
        runs = []
        for parts in ([kfac(strength=strength)], []):
            made = learner(tasks=tasks)
            prepare(made, chain := Chain(parts))
            train(made, chain, Blind())
            runs.append(made.params)
        assert all(torch.equal(v, runs[1][k]) for k, v in runs[0].items())


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"strength": -1.0}, "strength=-1.0"),
        ({"fisher": "batch"}, "fisher=batch"),
        ({"samples": 0}, "samples=0"),
    ],
)
def test_bad_values_are_named(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        kfac(**changed)
