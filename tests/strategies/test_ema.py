"""EMA and hare-tortoise: closed forms of the average, what is deployed, what a reset touches."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from harness import tree
from harness.learner import Learner
from harness.loop import prepare, train
from harness.models.mlp import MLP
from harness.optim import SGD, Adam, Optimizer
from harness.strategy import Chain, Strategy
from harness.types import Params, Step
from strategies.ema import EMA
from strategies.hare_tortoise import HareTortoise
from tests.observer import Blind
from tests.toy import MODELS, gaussian


class Log(Strategy):
    """Parameters and buffers after every step."""

    def __init__(self) -> None:
        self.params: list[Params] = []
        self.buffers: list[Params] = []

    def step(self, learner: Learner, step: Step) -> None:
        self.params.append(tree.copy(learner.params))
        self.buffers.append(tree.copy(learner.buffers))


class Later(Log):
    """The same, behind the strategy."""


def run(part: Strategy | None, model: Any = None, optimizer: Optimizer | None = None) -> tuple[Learner, Log, Log]:
    shape = (3, 8, 8) if model else (4,)
    made = gaussian(
        model or (lambda s: MLP(s.shape, s.outputs, (5,))), optimizer or SGD(lr=0.1), shape=shape, tasks=2, steps=6
    )
    first, last = Log(), Later()
    first.params.append(tree.copy(made.params))
    first.buffers.append(tree.copy(made.buffers))
    chain = Chain([first, part, last] if part else [first, last])
    prepare(made, chain)
    train(made, chain, Blind())
    return made, first, last


def average(history: list[Params], decays: list[float]) -> Params:
    mean = history[0]
    for now, d in zip(history[1:], decays, strict=True):
        mean = {k: d * v + (1 - d) * now[k] for k, v in mean.items()}
    return mean


def close(a: Params, b: Params) -> None:
    assert a.keys() == b.keys()
    for k, v in a.items():
        torch.testing.assert_close(v, b[k], rtol=1e-12, atol=1e-14)


def same(a: Params, b: Params) -> bool:
    return all(torch.equal(v, b[k]) for k, v in a.items())


def test_ema_is_the_geometric_sum_of_all_weights_so_far() -> None:
    part = EMA(decay=0.8, warmup=False)
    made, log, _ = run(part)
    n = 12  # two tasks: it goes on across the boundary
    assert len(log.params) == n + 1
    sums = tree.scale(log.params[0], 0.8**n)
    for i, p in enumerate(log.params[1:], 1):
        sums = tree.add(sums, p, 0.2 * 0.8 ** (n - i))
    close(part.deploy(made, made.net).params, sums)


def test_warm_up_forgets_the_initial_weights_at_once() -> None:
    part = EMA(decay=0.5, warmup=True)
    _, log, _ = run(part)
    decays = [min(0.5, (1 + n) / (10 + n)) for n in range(1, 13)]
    assert decays[0] == pytest.approx(2 / 11) and decays[-1] == 0.5
    close(part.params, average(log.params, decays))


def test_training_does_not_see_the_average() -> None:
    part = EMA(decay=0.9, warmup=False)
    made, _, _ = run(part)
    naive, _, _ = run(None)
    assert same(made.params, naive.params)
    assert not same(part.deploy(made, made.net).params, made.params)


@pytest.mark.parametrize(
    "part", [EMA(decay=0.8, warmup=False), HareTortoise(decay=0.8, period=9, reset_optimizer=False)]
)
def test_batch_norm_statistics_are_averaged_too(part: Any) -> None:
    made, log, _ = run(part, MODELS["residual"])
    close(part.buffers, average(log.buffers, [0.8] * 12))
    assert same(part.deploy(made, made.net).buffers, part.buffers)


def hare(decay: float = 0.7, period: int = 1, reset_optimizer: bool = False) -> HareTortoise:
    return HareTortoise(decay=decay, period=period, reset_optimizer=reset_optimizer)


def test_hare_is_reset_to_the_tortoise_after_whole_epochs() -> None:
    part = hare()  # 64 rows in batches of 8: an epoch has 8 steps, the stream 12
    made, before, after = run(part)
    slow = average(before.params[:9], [0.7] * 8)
    close(after.params[7], slow)
    assert not same(after.params[7], before.params[8])
    for i in [*range(7), *range(8, 12)]:
        assert same(after.params[i], before.params[i + 1])
    close(part.deploy(made, made.net).params, average([slow, *before.params[9:]], [0.7] * 4))


def test_longer_period_counts_epochs() -> None:
    naive, _, _ = run(None)
    made, _, _ = run(hare(period=2))  # 16 steps: beyond the end
    assert same(made.params, naive.params)


def test_hare_and_tortoise_do_not_share_storage_after_a_reset() -> None:
    # `fast.data = slow.data` of the authors' code makes the optimizer move the tortoise too
    part = hare()
    made, _, _ = run(part, MODELS["residual"])
    for mine, theirs in ((part.params, made.params), (part.buffers, made.buffers)):
        assert not {v.data_ptr() for v in mine.values()} & {v.data_ptr() for v in theirs.values()}
    kept = tree.copy(part.params)
    for v in made.params.values():
        v.add_(1)
    assert same(part.params, kept)


@pytest.mark.parametrize("drop", [False, True])
def test_the_optimizer_is_reset_only_if_asked(drop: bool) -> None:
    made, _, _ = run(hare(reset_optimizer=drop), optimizer=Adam(lr=0.01))
    assert isinstance(made.optimizer, Adam)
    assert made.optimizer.count == (4 if drop else 12)


def test_statistics_of_the_hare_are_reset_too() -> None:
    part = hare()
    _, before, after = run(part, MODELS["residual"])
    close(after.buffers[7], average(before.buffers[:9], [0.7] * 8))


def test_bad_values_are_named() -> None:
    with pytest.raises(ValueError, match=r"decay=1"):
        EMA(decay=1, warmup=False)
    with pytest.raises(ValueError, match=r"decay=-1"):
        hare(decay=-1)
    with pytest.raises(ValueError, match=r"period=0"):
        hare(period=0)
