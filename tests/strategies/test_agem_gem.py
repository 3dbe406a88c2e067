"""A-GEM and GEM: worked numbers, the optimality conditions, Avalanche, and what a run receives."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from harness import tree
from harness.learner import Learner
from harness.loop import prepare, train
from harness.models.mlp import MLP
from harness.optim import SGD
from harness.strategy import Chain
from harness.types import Aux, Batch, Params, Step
from strategies import agem, gem
from strategies.agem import AGEM
from strategies.gem import GEM
from tests.observer import Blind
from tests.toy import gaussian


def made(tasks: int = 3, steps: int = 4, dropout: float = 0.0) -> Learner:
    return gaussian(lambda s: MLP(s.shape, 2, (5,), dropout=dropout), SGD(lr=0.5), tasks=tasks, steps=steps)


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def params(seeds: int = 3, seed: int = 0) -> Params:
    return {"a": rand(seeds, 2, 3, seed=seed), "b": rand(seeds, 4, seed=seed + 100)}


def flat(p: Params) -> Tensor:
    return torch.cat([v.flatten(1) for v in p.values()], 1)


class Watch(Blind):
    """Keeps each step: batch, gradient, parameters after it."""

    def __init__(self) -> None:
        self.steps: list[Step] = []

    def step(self, step: Step, aux: Aux) -> None:
        self.steps.append(step)


# --- A-GEM ----------------------------------------------------------------------------------------


def test_agem_projects_the_seed_that_points_against_the_memory_and_no_other() -> None:
    g = {"w": torch.tensor([[1.0, -2.0], [1.0, 2.0], [3.0, -4.0]])}
    r = {"w": torch.tensor([[0.0, 1.0], [0.0, 1.0], [-1.0, 0.0]])}
    expected = torch.tensor([[1.0, 0.0], [1.0, 2.0], [0.0, -4.0]])
    assert torch.equal(agem.project(g, r)["w"], expected)


def test_agem_without_a_reference_gradient_leaves_the_gradient_alone() -> None:
    g = params()
    assert torch.equal(flat(agem.project(g, tree.zeros(g))), flat(g))


def test_agem_agrees_with_avalanche() -> None:
    plugins = pytest.importorskip("avalanche.training.plugins")
    g, r = params(20), params(20, seed=7)
    ours, projected = agem.project(g, r), 0
    for s in range(20):
        model = torch.nn.ParameterDict({k: torch.nn.Parameter(v[s].clone()) for k, v in g.items()})
        for k, p in model.items():
            p.grad = g[k][s].clone()
        plugin = plugins.AGEMPlugin(patterns_per_experience=1, sample_size=1)
        plugin.buffers, plugin.reference_gradients = [None], flat(r)[s]
        plugin.after_backward(SimpleNamespace(model=model, device="cpu"))
        for k, p in model.items():
            assert p.grad is not None
            torch.testing.assert_close(ours[k][s], p.grad, rtol=1e-10, atol=1e-12)
        projected += int(not torch.equal(flat(ours)[s], flat(g)[s]))
    assert 3 < projected < 17


def test_agem_s_optimizer_receives_the_projection_on_the_memory_s_gradient() -> None:
    learner, watch = made(steps=8), Watch()
    part = AGEM(per_task=10, batch_size=6)
    chain = Chain([part])
    prepare(learner, chain)
    seen: list[tuple[Params, Params, Params]] = []
    grad = part.grad

    def spy(learner: Learner, inner: Any) -> Any:
        outer = grad(learner, inner)

        def gradient(p: Params, batch: Batch) -> tuple[Params, Aux]:
            got = outer(p, batch)
            if "agem" in batch.extra:
                seen.append((inner(p, batch)[0], learner.task_grad(p, batch.extra["agem"]), got[0]))
            return got

        return gradient

    part.grad = spy  # type: ignore[method-assign]
    train(learner, chain, watch)
    assert len(seen) == 16  # none on the first task
    dots = torch.stack([tree.dot(g, r) for g, r, _ in seen])
    after = torch.stack([tree.dot(z, r) for _, r, z in seen])
    assert (dots < 0).any() and (dots > 0).any()
    assert (after > -1e-12).all()
    untouched = torch.stack([(flat(g) == flat(z)).all(1) for g, _, z in seen])
    assert torch.equal(untouched, dots >= 0)


def test_agem_works_with_more_tasks_than_rows_in_its_sample_and_draws_from_all() -> None:
    """Avalanche's crashes: it gives each task sample_size // tasks rows."""
    learner, watch = made(tasks=4, steps=30), Watch()
    chain = Chain([AGEM(per_task=3, batch_size=2)])
    prepare(learner, chain)
    train(learner, chain, watch)
    last = torch.cat([s.batch.extra["agem"].x for s in watch.steps[-30:]], 1)
    assert last.shape[1] == 60
    for s in range(2):
        assert len(last[s].unique(dim=0)) >= 8  # of the 9 rows that three past tasks keep (tasks share inputs)


def test_agem_keeps_per_task_rows_of_every_past_task_and_forgets_none() -> None:
    learner, part = made(), AGEM(per_task=7, batch_size=100)
    chain = Chain([part])
    prepare(learner, chain)
    sizes: list[int] = []

    class After(Blind):
        def end(self, task: Any) -> None:
            sizes.append(part.memory["x"].shape[1])
            x, y = part.memory["x"][:, -7:], part.memory["y"][:, -7:]
            assert torch.equal(y, (x[..., task.index] > 0).long())  # this task's labels
            assert len(x[0].unique(dim=0)) == 7 and not torch.equal(x[0], x[1])

    train(learner, chain, After())
    assert sizes == [7, 14, 21]


# --- GEM ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("margin", "expected"),
    [(0.0, [0.0, 0.0, 5.0]), (0.5, [0.0, 0.0, 5.0]), (2.0, [1.0, 1.0, 5.0])],
)
def test_gem_with_two_axes_as_constraints(margin: float, expected: list[float]) -> None:
    # v = max(margin, 1): the margin is the least dual variable, as memory_strength in the authors' code
    g = {"w": torch.tensor([[-1.0, -1.0, 5.0], [1.0, 1.0, 5.0]]).double()}
    past = [{"w": torch.eye(3)[i].expand(2, -1).double()} for i in range(2)]
    z = gem.project(g, past, margin)["w"]
    torch.testing.assert_close(z[0], torch.tensor(expected).double(), rtol=0, atol=5e-6)
    assert torch.equal(z[1], g["w"][1])  # nothing violated: no margin either


@pytest.mark.parametrize("k", [1, 2, 3, 8])
def test_gem_satisfies_the_optimality_conditions_of_a_projection(k: int) -> None:
    g, past = params(30), [params(30, seed=i + 1) for i in range(k)]
    z, G = flat(gem.project(g, past, 0.0)), torch.stack([flat(p) for p in past], 1)
    slack = (G @ z[..., None])[..., 0]
    assert (slack > -1e-4).all()  # G z >= 0
    v = torch.linalg.lstsq(G.mT, (z - flat(g))[..., None]).solution[..., 0]
    torch.testing.assert_close((v[:, None] @ G)[:, 0], z - flat(g), rtol=0, atol=1e-8)  # z - g in the span of G
    assert (v > -1e-4).all()  # and in the cone
    assert (v * slack).abs().max() < 1e-3  # complementary, to the ridge
    violated = ((G @ flat(g)[..., None])[..., 0] < 0).any(1)
    assert violated.any() and torch.equal((z == flat(g)).all(1), ~violated)


def test_gem_with_a_margin_minimises_its_dual_above_the_margin() -> None:
    g, past, margin = params(30), [params(30, seed=i + 1) for i in range(3)], 0.5
    z, G = flat(gem.project(g, past, margin)), torch.stack([flat(p) for p in past], 1)
    v = torch.linalg.lstsq(G.mT, (z - flat(g))[..., None]).solution[..., 0]
    slope = (G @ z[..., None])[..., 0]  # of the dual in v
    violated = ((G @ flat(g)[..., None])[..., 0] < 0).any(1)
    v, slope = v[violated], slope[violated]
    assert (v > margin - 1e-5).all() and (slope > -1e-4).all()
    assert ((v - margin) * slope).abs().max() < 1e-4
    assert (v > margin + 0.1).any() and (slope > 0.1).any()


def test_gem_with_one_past_task_and_no_margin_is_agem() -> None:
    g, r = params(20), params(20, seed=5)
    torch.testing.assert_close(
        flat(gem.project(g, [r], 0.0)), flat(agem.project(g, r)), rtol=0, atol=1e-5
    )  # the ridge is 1e-6


def test_gem_s_seeds_are_solved_independently() -> None:
    g, past = params(6), [params(6, seed=i + 1) for i in range(4)]
    whole = flat(gem.project(g, past, 0.3))
    for s in range(6):
        one = gem.project(
            {k: v[s : s + 1] for k, v in g.items()}, [{k: v[s : s + 1] for k, v in p.items()} for p in past], 0.3
        )
        torch.testing.assert_close(flat(one)[0], whole[s], rtol=1e-10, atol=1e-12)


def test_gem_s_optimizer_receives_a_gradient_that_raises_no_past_task_s_memory() -> None:
    learner, watch = made(steps=8), Watch()
    chain = Chain([GEM(per_task=10, margin=0.0)])
    prepare(learner, chain)
    gradient = chain.grad(learner, learner.value_and_grad(chain.loss))
    train(learner, chain, watch)
    assert [len(s.batch.extra["gem"]) for s in watch.steps] == [0] * 8 + [1] * 8 + [2] * 8
    batch = watch.steps[-1].batch
    g, z = learner.task_grad(learner.params, batch), gradient(learner.params, batch)[0]
    overlaps = []
    for held in batch.extra["gem"]:
        assert held.x.shape[1] == 10
        r = learner.task_grad(learner.params, held)
        assert (tree.dot(z, r) > -1e-5 * tree.norm(r) * tree.norm(g)).all()
        overlaps.append(tree.dot(g, r))
    assert (torch.stack(overlaps) < 0).any()


@pytest.mark.parametrize("make", [lambda: AGEM(per_task=5, batch_size=4), lambda: GEM(per_task=5, margin=0.5)])
def test_dropout_on_the_memory_has_masks_of_its_own_drawn_once_a_step(make: Any) -> None:
    learner, watch = made(dropout=0.5), Watch()
    chain = Chain([make()])
    prepare(learner, chain)
    train(learner, chain, watch)
    held = [s.batch.extra["agem"] if "agem" in s.batch.extra else s.batch.extra["gem"][0] for s in watch.steps[4:]]
    assert len({tuple(b.key.tolist()) for b in held}) == len(held) == 8


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: AGEM(per_task=0, batch_size=1), "per_task=0"),
        (lambda: AGEM(per_task=1, batch_size=0), "batch_size=0"),
        (lambda: GEM(per_task=0, margin=0.5), "per_task=0"),
        (lambda: GEM(per_task=1, margin=-0.5), "margin=-0.5"),
    ],
)
def test_bad_values_are_named(make: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()
