"""SAM, ASAM and C-Flat against plain autograd on one seed at a time, and against the dense Hessian."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from harness import tree
from harness.learner import Learner
from harness.loop import prepare, train
from harness.models.mlp import MLP
from harness.models.resnet18 import ResNet18
from harness.optim import SGD
from harness.strategy import Chain, Strategy
from harness.types import Aux, Batch, Params
from strategies.asam import ASAM
from strategies.cflat import CFlat
from strategies.l2_init import L2Init
from strategies.sam import SAM
from tests.observer import Blind
from tests.toy import gaussian

PULL = 0.3
METHODS: list[Callable[[], Strategy]] = [
    lambda: SAM(rho=0.1),
    lambda: ASAM(rho=0.5, eta=0.01),
    lambda: CFlat(rho=0.1, strength=0.5),
]
Vector = dict[str, Tensor]


def made(dropout: float = 0.0) -> Learner:
    return gaussian(lambda s: MLP(s.shape, 2, (3,), "tanh", dropout=dropout), SGD(lr=0.1), steps=3)


def first_batch(learner: Learner) -> Batch:
    return next(iter(learner.batches(learner.stream.tasks[0])))


def gradient_of(learner: Learner, *parts: Strategy) -> tuple[Params, Aux]:
    """What the optimizer would receive, away from the start so that L2-Init pulls."""
    chain = Chain(parts)
    prepare(learner, chain)
    for v in learner.params.values():  # seeds of different scale: a norm over all seeds would show
        v.add_(0.3).mul_(torch.tensor([1.0, 2.5]).double().view(2, *[1] * (v.dim() - 1)))
    return chain.grad(learner, learner.value_and_grad(chain.loss))(learner.params, first_batch(learner))


def plain(learner: Learner, s: int, start: Params) -> tuple[Vector, Callable[[Vector], Vector]]:
    """Seed s alone without any code of the harness: its parameters, and the gradient of the pulled loss."""
    batch = first_batch(made())
    x, y = batch.x[s], batch.y[s]

    def grad(p: Vector) -> Vector:
        leaves = {k: v.clone().requires_grad_() for k, v in p.items()}
        h = torch.tanh(linear(x, leaves["fc1.weight"], leaves["fc1.bias"]))
        loss = cross_entropy(linear(h, leaves["head.weight"], leaves["head.bias"]), y)
        for k, v in leaves.items():
            loss = loss + PULL * (v - start[k][s]).square().sum()
        return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values()))))

    return {k: v[s].clone() for k, v in learner.params.items()}, grad


def length(v: Vector) -> Tensor:
    return torch.cat([t.flatten() for t in v.values()]).norm()


def moved(p: Vector, v: Vector, c: Any) -> Vector:
    return {k: t + c * v[k] for k, t in p.items()}


def sam(p: Vector, g: Callable[[Vector], Vector]) -> Vector:
    return g(moved(p, g(p), 0.1 / length(g(p))))


def asam(p: Vector, g: Callable[[Vector], Vector]) -> Vector:
    T = {k: v.abs() + 0.01 if k.endswith("weight") else torch.ones_like(v) for k, v in p.items()}
    Tg = {k: T[k] * v for k, v in g(p).items()}
    return g(moved(p, {k: T[k] * v for k, v in Tg.items()}, 0.5 / length(Tg)))


def cflat(p: Vector, g: Callable[[Vector], Vector]) -> Vector:
    g0 = g(p)
    g1 = g(moved(p, g0, 0.1 / length(g0)))
    rise = moved(g1, g0, -1.0)
    there = moved(p, rise, 0.1 / length(rise))
    g2 = g(there)
    g3 = g(moved(there, g2, 0.1 / length(g2)))
    return moved(g1, moved(g3, g2, -1.0), 0.5)


@pytest.mark.parametrize(("make", "reference"), list(zip(METHODS, (sam, asam, cflat))))
def test_the_gradient_is_that_of_plain_autograd_with_another_strategy_s_penalty(make: Any, reference: Any) -> None:
    learner = made()
    start = tree.copy(learner.params)
    grads, aux = gradient_of(learner, L2Init(strength=PULL), make())
    for s in range(learner.S):
        p, g = plain(learner, s, start)
        expected, raw = reference(p, g), g(p)
        assert length(moved(expected, raw, -1.0)) > 1e-3 * length(raw)  # the detour matters
        for k, v in expected.items():
            torch.testing.assert_close(grads[k][s], v, rtol=1e-9, atol=1e-12)
    straight, _ = gradient_of(made(), L2Init(strength=PULL))
    assert not torch.allclose(straight["fc1.weight"], grads["fc1.weight"])
    assert aux.loss.shape == (2,)


def quadratic() -> tuple[Learner, Tensor, Tensor]:
    """A linear net under squared error without bias: its Hessian [D, D] and gradient [S, D] in head.weight."""
    learner = gaussian(lambda s: MLP(s.shape, 2, ()), SGD(lr=0.1), steps=3)
    object.__setattr__(learner.stream, "loss", "mse")
    batch = first_batch(learner)
    y = torch.randn(2, batch.x.shape[1], 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    object.__setattr__(batch, "y", y)
    x = torch.cat([batch.x, torch.ones_like(batch.x[..., :1])], 2)  # the bias is one more input
    H = torch.stack([torch.kron(torch.eye(2).double(), a.T @ a / len(a)) for a in x])  # 2/C = 1
    W = torch.cat([learner.params["head.weight"], learner.params["head.bias"][..., None]], 2)
    g = torch.stack([((w @ a.T - t.T) @ a / len(a)).flatten() for w, a, t in zip(W, x, y)])
    learner.batches = lambda task: iter([batch])  # type: ignore[method-assign, assignment]
    return learner, H, g


def test_on_a_quadratic_cflat_is_its_formula_with_the_dense_hessian() -> None:
    learner, H, g = quadratic()
    rho, lam = 0.3, 0.7
    part = CFlat(rho=rho, strength=lam)
    grads, _ = part.grad(learner, learner.value_and_grad(lambda *_: 0.0))(learner.params, first_batch(learner))
    found = torch.cat([grads["head.weight"], grads["head.bias"][..., None]], 2).flatten(1)
    for s in range(2):
        u = g[s] / g[s].norm()
        rise = H[s] @ u  # gradient of |g| at θ
        there = g[s] + rho * H[s] @ rise / rise.norm()  # g at the worst point for |g|
        expected = g[s] + rho * H[s] @ u + lam * rho * H[s] @ there / there.norm()
        torch.testing.assert_close(found[s], expected, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("make", METHODS)
def test_all_passes_share_their_dropout_masks(make: Any) -> None:
    learner, keys = made(dropout=0.5), []
    inner = learner.value_and_grad(lambda *_: 0.0)

    def watched(params: Params, batch: Batch) -> tuple[Params, Aux]:
        keys.append(batch.key)
        return inner(params, batch)

    batch = first_batch(learner)
    make().grad(learner, watched)(learner.params, batch)
    assert len(keys) in (2, 4) and batch.key is not None and all(k is batch.key for k in keys)


@pytest.mark.parametrize("make", METHODS)
def test_batch_norm_statistics_move_once_by_the_pass_at_theta(make: Any) -> None:
    learner = gaussian(lambda s: ResNet18(s.shape, 2, 2), SGD(lr=0.1), shape=(1, 4, 4), rows=8, steps=1)
    batch, start = first_batch(learner), tree.copy(learner.buffers)
    _, aux = make().grad(learner, learner.value_and_grad(lambda *_: 0.0))(learner.params, batch)
    once = learner.task_loss(learner.params, batch)[1].buffers
    for k, v in once.items():
        torch.testing.assert_close(aux.out.buffers[k].detach(), v.detach(), rtol=1e-12, atol=0)
        assert torch.equal(learner.buffers[k], start[k])


@pytest.mark.parametrize(
    "make", [lambda: SAM(rho=0.0), lambda: ASAM(rho=0.0, eta=0.1), lambda: CFlat(rho=0, strength=1)]
)
def test_radius_zero_is_naive(make: Any) -> None:
    runs = []
    for parts in ([make()], []):
        learner, chain = made(), Chain(parts)
        prepare(learner, chain)
        train(learner, chain, Blind())
        runs.append(learner.params)
    assert all(torch.equal(v, runs[1][k]) for k, v in runs[0].items())


@pytest.mark.parametrize("make", METHODS)
def test_a_vanished_gradient_stays_zero(make: Any) -> None:
    learner = made()
    zero: Any = lambda params, batch: (tree.zeros(params), None)  # noqa: E731
    grads, _ = make().grad(learner, zero)(learner.params, None)
    assert all(torch.equal(v, torch.zeros_like(v)) for v in grads.values())


def test_rescaling_two_layers_of_a_relu_net_changes_asam_s_loss_nowhere_and_sam_s_everywhere() -> None:
    """ASAM's claim: the perturbed loss is the same for all nets that compute the same function (eta = 0)."""
    for part, invariant in ((ASAM(rho=0.5, eta=0.0), True), (SAM(rho=0.1), False)):
        found = []
        for c in (1.0, 5.0):
            learner = gaussian(lambda s: MLP(s.shape, 2, (3,), "relu"), SGD(lr=0.1), steps=1)
            for k, factor in (("fc1.weight", c), ("fc1.bias", 0.0), ("head.weight", 1 / c), ("head.bias", 0.0)):
                learner.params[k].mul_(factor)
            inner = learner.value_and_grad(lambda *_: 0.0)
            losses = []

            def no_bias(params: Params, batch: Batch, inner: Any = inner, losses: Any = losses) -> tuple[Params, Aux]:
                grads, aux = inner(params, batch)
                losses.append(aux.loss)
                return {k: torch.zeros_like(v) if "bias" in k else v for k, v in grads.items()}, aux

            part.grad(learner, no_bias)(learner.params, first_batch(learner))
            found.append(losses[1])
        assert torch.allclose(found[0], found[1], rtol=1e-10) == invariant


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: SAM(rho=-0.1), "rho=-0.1"),
        (lambda: ASAM(rho=-0.1, eta=0.0), "rho=-0.1"),
        (lambda: ASAM(rho=0.1, eta=-1.0), "eta=-1.0"),
        (lambda: CFlat(rho=-0.1, strength=0.2), "rho=-0.1"),
        (lambda: CFlat(rho=0.1, strength=-0.2), "strength=-0.2"),
    ],
)
def test_bad_values_are_named(make: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()
