"""IMM and CoFiMA: the merged weights against their formulas, vanishing information, separate heads."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from harness import tree
from harness.landscape.fisher import diagonal
from harness.learner import Learner
from harness.loop import prepare, train
from harness.models.mlp import MLP
from harness.optim import SGD
from harness.strategy import Chain, Strategy
from harness.types import Params, Task
from strategies.cofima import CoFiMA
from strategies.imm import IMM
from strategies.interpolate import Interpolate
from tests.observer import Blind
from tests.toy import MODELS, gaussian


def imm(**changed: Any) -> IMM:
    return IMM(**{"mode": "mode", "alpha": None, "fisher": "exact", "samples": None, **changed})


def cofima(**changed: Any) -> CoFiMA:
    return CoFiMA(**{"weight_new": 0.5, "fisher": "exact", "samples": None, "clip": None, **changed})


def learner(tasks: int = 3, **kw: Any) -> Learner:
    return gaussian(lambda s: MLP(s.shape, s.outputs, (5,)), SGD(lr=0.3), tasks=tasks, **kw)


class Watch(Strategy):
    """The weights as trained, and their Fisher information."""

    def __init__(self) -> None:
        self.params: list[Params] = []
        self.fisher: list[Params] = []

    def end(self, learner: Learner, task: Task) -> None:
        self.params.append(tree.copy(learner.params))
        self.fisher.append(diagonal(learner, task.train, "exact", self.random))


class After(Watch):
    """The same, behind the strategy."""


def run(part: Strategy, made: Learner | None = None) -> tuple[Watch, Watch, Learner]:
    made = made or learner()
    first, last = Watch(), After()
    chain = Chain([first, part, last])
    prepare(made, chain)
    train(made, chain, Blind())
    return first, last, made


def weighted(history: Watch, shares: list[float], fisher: bool) -> Params:
    found = {}
    for k in history.params[0]:
        weights = [a * (f[k] if fisher else torch.ones_like(f[k])) for a, f in zip(shares, history.fisher, strict=True)]
        terms = [w * p[k] for w, p in zip(weights, history.params)]
        total = torch.stack(weights).sum(0)
        found[k] = torch.where(total > 0, torch.stack(terms).sum(0) / total, history.params[-1][k])
    return found


def close(a: Params, b: Params) -> None:
    for k, v in a.items():
        torch.testing.assert_close(v, b[k], rtol=1e-9, atol=1e-11)


def same(a: Params, b: Params) -> bool:
    return all(torch.equal(v, b[k]) for k, v in a.items())


@pytest.mark.parametrize("mode", ["mean", "mode"])
@pytest.mark.parametrize(("alpha", "shares"), [(None, [1 / 3] * 3), (0.5, [0.25, 0.25, 0.5]), (1.0, [0, 0, 1.0])])
def test_deployed_is_the_weighted_mean_of_all_nets(mode: str, alpha: float | None, shares: list[float]) -> None:
    part = imm(mode=mode, alpha=alpha)
    history, _, made = run(part)
    close(part.deploy(made, made.net).params, weighted(history, shares, mode == "mode"))


def test_mode_is_the_minimum_of_the_summed_quadratics() -> None:
    part = imm()
    history, _, made = run(part)
    theta = {k: v.requires_grad_() for k, v in tree.copy(part.deploy(made, made.net).params).items()}
    total = torch.zeros(2, dtype=torch.float64)
    for p, f in zip(history.params, history.fisher):
        shift = tree.sub(theta, p)
        total = total + tree.dot(tree.mul(f, shift), shift)
    slope = torch.autograd.grad(total.sum(), list(theta.values()))
    assert max(float(g.abs().max()) for g in slope) < 1e-12


def test_weight_transfer_trains_on_from_the_unmerged_net() -> None:
    part = imm()
    _, _, made = run(part)
    naive = learner()
    train(naive, Chain([]), Blind())
    assert same(made.params, naive.params)


def test_merging_is_not_a_no_op() -> None:
    # joansj/hat's IMM computes the merge into a local name and trains on unmerged
    part = imm()
    _, _, made = run(part)
    merged = part.deploy(made, made.net).params
    assert all(not torch.allclose(v, merged[k]) for k, v in made.params.items())


def test_first_task_is_deployed_as_trained() -> None:
    for part in (imm(), imm(mode="mean", alpha=0.3)):
        history, _, made = run(part, learner(tasks=1))
        close(part.deploy(made, made.net).params, history.params[0])
    fresh = learner()
    prepare(fresh, Chain([part]))
    part.count = 0
    assert part.deploy(fresh, fresh.net).params is fresh.params


@pytest.mark.parametrize("mode", ["mean", "mode"])
def test_separate_heads_are_not_averaged(mode: str) -> None:
    made = learner(tasks=2)
    sources = [replace(t.train, y=torch.full_like(t.train.y, t.index)) for t in made.stream.tasks]  # type: ignore
    tasks = tuple(replace(t, train=s) for t, s in zip(made.stream.tasks, sources))
    masks = torch.tensor([[[True, False], [True, True]]])
    made.stream = replace(made.stream, scenario="class", masks=masks, tasks=tasks)
    part = imm(mode=mode)
    history, _, _ = run(part, made)
    merged = part.deploy(made, made.net).params
    new = history.params[1]
    assert torch.equal(merged["head.weight"][:, 1], new["head.weight"][:, 1])  # the old net never trained this row
    if mode == "mean":
        half = (history.params[0]["head.weight"] + new["head.weight"]) / 2
        torch.testing.assert_close(merged["head.weight"][:, 0], half[:, 0])


def known(values: list[float], monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    """Fisher information that is one number at each boundary."""
    given = iter(values)

    def constant(learner: Learner, *_: Any, **__: Any) -> Params:
        f = next(given)
        return {k: torch.full_like(v, f) for k, v in learner.params.items()}

    monkeypatch.setattr(f"strategies.{module}.diagonal", constant)


def test_zero_information_everywhere_keeps_the_newest_and_is_never_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, part in (("imm", imm()), ("cofima", cofima())):
        known([0.0, 0.0, 0.0], monkeypatch, module)
        history, _, made = run(part)
        assert same(part.deploy(made, made.net).params, history.params[-1])


def test_cofima_is_the_fisher_weighted_mean_with_the_last_boundary() -> None:
    part = cofima(weight_new=0.4)
    trained, kept, _ = run(part)
    assert same(kept.params[0], trained.params[0])
    for i in (1, 2):
        for k, new in trained.params[i].items():
            old, f0, f1 = kept.params[i - 1][k], trained.fisher[i - 1][k], trained.fisher[i][k]
            expected = (0.6 * f0 * old + 0.4 * f1 * new) / (0.6 * f0 + 0.4 * f1)
            torch.testing.assert_close(kept.params[i][k], expected, rtol=1e-9, atol=1e-11)
            assert not torch.allclose(expected, new)


def test_cofima_with_constant_information_is_interpolation(monkeypatch: pytest.MonkeyPatch) -> None:
    known([2.0, 2.0, 2.0], monkeypatch, "cofima")
    _, a, _ = run(cofima(weight_new=0.3))
    _, b, _ = run(Interpolate(weight_new=0.3))
    close(a.params[-1], b.params[-1])


def test_clip_bounds_the_information_from_above(monkeypatch: pytest.MonkeyPatch) -> None:
    known([8.0, 1.0, 1.0], monkeypatch, "cofima")
    part = cofima(clip=2.0)
    trained, kept, _ = run(part)
    expected = tree.lerp(kept.params[0], trained.params[1], 1 / 3)  # 2 against 1, not 8
    close(kept.params[1], expected)


def test_a_new_class_keeps_its_read_out_unscaled() -> None:
    # the authors' code sets rows of a new class to Fisher times weight
    made = learner(tasks=2)
    masks = torch.tensor([[[True, False], [True, True]]])
    sources = [replace(t.train, y=torch.full_like(t.train.y, t.index)) for t in made.stream.tasks]  # type: ignore
    tasks = tuple(replace(t, train=s) for t, s in zip(made.stream.tasks, sources))
    made.stream = replace(made.stream, scenario="class", masks=masks, tasks=tasks)
    trained, kept, _ = run(cofima(), made)
    assert torch.equal(kept.params[1]["head.weight"][:, 1], trained.params[1]["head.weight"][:, 1])


@pytest.mark.parametrize("part", [imm(samples=8), cofima(samples=8)])
def test_batch_norm_statistics_are_those_of_the_merged_net(part: Any) -> None:
    made = gaussian(MODELS["residual"], SGD(lr=0.1), shape=(3, 8, 8), tasks=2, steps=3, rows=16)
    prepare(made, Chain([part]))
    part.random = made.random("strategy/x")
    train(made, Chain([part]), Blind())
    net = part.deploy(made, made.net)
    x, _, t = made.stream.tasks[1].train.take(torch.arange(16).expand(2, 16))
    z: Tensor = made.apply(net.params, net.buffers, x, t, record=True).preacts["stem"].movedim(2, 1).flatten(2)
    spread = z.std(2)
    assert ((net.buffers["stem.norm.mean"] - z.mean(2)).abs() < 0.25 * spread).all()
    assert ((net.buffers["stem.norm.var"] / z.var(2)).log().abs() < 0.25).all()


@pytest.mark.parametrize(
    ("make", "changed", "said"),
    [
        (imm, {"mode": "median"}, "mode=median"),
        (imm, {"alpha": 0.0}, "alpha=0.0"),
        (imm, {"fisher": "true"}, "fisher=true"),
        (imm, {"samples": 0}, "samples=0"),
        (cofima, {"weight_new": 2.0}, "weight_new=2.0"),
        (cofima, {"fisher": "true"}, "fisher=true"),
        (cofima, {"samples": 0}, "samples=0"),
        (cofima, {"clip": 0.0}, "clip=0.0"),
    ],
)
def test_bad_values_are_named(make: Any, changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make(**changed)
