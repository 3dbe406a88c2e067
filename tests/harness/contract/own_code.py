"""A user's own strategies, models and metrics: some right, each of the others with one fault."""

import numpy as np
import torch
from torch import nn

from harness import rng, tree
from harness.models.mlp import MLP
from harness.strategy import Strategy
from harness.types import Layer, Net, Reading, cat

# --- strategies with a fault --------------------------------------------------------------------------


class Penalty(Strategy):
    def __init__(self, *, strength):
        self.strength = strength

    def setup(self, learner):
        self.anchor = tree.copy(learner.params)

    def loss(self, learner, params, batch, out):
        return self.strength * sum((params[k] - v).square().flatten(1).sum(1) for k, v in self.anchor.items())


class ScalarPenalty(Strategy):
    def setup(self, learner):
        self.anchor = tree.copy(learner.params)

    def loss(self, learner, params, batch, out):
        return 0.02 * sum((params[k] - v).square().sum() for k, v in self.anchor.items())


class GlobalDraw(Strategy):
    def batch(self, learner, batch):
        from dataclasses import replace

        return replace(batch, x=batch.x + 0.1 * torch.randn_like(batch.x))


class NumpyDraw(Strategy):
    def step(self, learner, step):
        for p in learner.params.values():
            p.mul_(1 - 0.1 * float(np.random.rand()))


class MixesSeeds(Strategy):
    def step(self, learner, step):
        for p in learner.params.values():
            p.lerp_(p.mean(0, keepdim=True), 0.1)


class Forgets(Strategy):
    """Keeps what it needs where it is not saved."""

    transient = ("seen",)

    def setup(self, learner):
        self.seen = []

    def end(self, learner, task):
        self.seen.append(tree.copy(learner.params))

    def step(self, learner, step):
        for old in self.seen:
            for k, p in learner.params.items():
                p.lerp_(old[k], 0.1)


class Counts(Strategy):
    def setup(self, learner):
        self.calls = 0

    def loss(self, learner, params, batch, out):
        self.calls += 1
        return 0.1 * sum(p.square().flatten(1).sum(1) for p in params.values())


class Idle(Strategy):
    def step(self, learner, step):
        for p in learner.params.values():
            p.mul_(1.0)


class DeploysInPlace(Strategy):
    def deploy(self, learner, net):
        for p in net.params.values():
            p.mul_(0.9)
        return net


# --- right strategies ---------------------------------------------------------------------------------


class Plain(Strategy):
    """No hook."""


class Replays(Strategy):
    """Repeats the rows of the step before."""

    def setup(self, learner):
        self.last = None

    def batch(self, learner, batch):
        both = batch if self.last is None else cat(batch, learner.make_batch(*self.last)).batch
        self.last = (batch.x, batch.y, batch.t)
        return both

    def end(self, learner, task):
        self.last = None


class Noise(Strategy):
    def step(self, learner, step):
        key = self.random.key()
        for i, p in enumerate(learner.params.values()):
            p.add_(rng.normal(rng.fold(key, i), *p.shape[1:], dtype=p.dtype), alpha=0.01)


class Average(Strategy):
    """Deploys the mean of all weights so far."""

    def setup(self, learner):
        self.mean, self.count = tree.copy(learner.params), 1

    def step(self, learner, step):
        self.count += 1
        for k, p in learner.params.items():
            self.mean[k].lerp_(p, 1 / self.count)

    def deploy(self, learner, net):
        return Net(self.mean, net.buffers, net.apply)


class Clips(Strategy):
    """Each seed's gradient has norm 0.1 at most."""

    def grad(self, learner, inner):
        def clipped(params, batch):
            grads, aux = inner(params, batch)
            factor = (0.1 / tree.norm(grads)).clamp(max=1)
            return {k: g * factor.view(-1, *[1] * (g.dim() - 1)) for k, g in grads.items()}, aux

        return clipped


# --- models -------------------------------------------------------------------------------------------


class FewOutputs(nn.Sequential):
    def __init__(self, shape, outputs):
        super().__init__(nn.Flatten(), nn.Linear(64, 5))


class SameRows(MLP):
    def __init__(self, shape, outputs):
        super().__init__(shape, outputs, (6,))

    def init(self, key):
        params, buffers = super().init(key)
        return {k: v - v.mean(0, keepdim=True) / 2 for k, v in params.items()}, buffers


class GlobalInit(SameRows):
    def init(self, key):
        params, buffers = super().init(key)
        return {k: torch.randn_like(v) * 0.1 for k, v in params.items()}, buffers


class InPlace(MLP):
    def __init__(self, shape, outputs):
        super().__init__(shape, outputs, (6,))

    def __call__(self, params, buffers, x, t, **how):
        with torch.no_grad():
            params["head.bias"].mul_(0.5)
        return super().__call__(params, buffers, x, t, **how)


class WrongNames(MLP):
    def __init__(self, shape, outputs):
        super().__init__(shape, outputs, (6,))
        self.layers = (Layer("fc9.weight", None, "fc9", "fc9"),)


class MeanSeed(MLP):
    def __init__(self, shape, outputs):
        super().__init__(shape, outputs, (6,))

    def __call__(self, params, buffers, x, t, **how):
        out = super().__call__(params, buffers, x, t, **how)
        return out._replace(logits=out.logits - out.logits.mean(0, keepdim=True))


class Recurrent(nn.Module):
    def __init__(self, shape, outputs):
        super().__init__()
        self.cell, self.fc = nn.LSTM(shape[-1], 6, batch_first=True), nn.Linear(6, outputs)

    def forward(self, x):
        return self.fc(self.cell(x[:, 0])[0][:, -1])


class Dropped(nn.Sequential):
    def __init__(self, shape, outputs):
        super().__init__(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Dropout(0.3), nn.Linear(12, outputs))


class Convolutional(nn.Sequential):
    def __init__(self, shape, outputs):
        head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, outputs))
        super().__init__(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), *head)


class Stacked(MLP):
    def __init__(self, shape, outputs):
        super().__init__(shape, outputs, (5,))


class HalfFrozen(nn.Sequential):
    def __init__(self, shape, outputs):
        super().__init__(nn.Flatten(), nn.Linear(64, 12).requires_grad_(False), nn.ReLU(), nn.Linear(12, outputs))


# --- metrics ------------------------------------------------------------------------------------------


def no_seed_axis(b):
    return {"norm": tree.norm(b.trained.params).mean()}


def mean_of_seeds(b):
    return {"norm": tree.norm(b.trained.params) / tree.norm(b.trained.params).mean()}


def global_draw(b):
    return {"noise": torch.randn(len(b.alive))}


def edits(b):
    for p in b.trained.params.values():
        p.mul_(0.9)
    return {"norm": tree.norm(b.trained.params)}


_ASKED = []


def remembers(b):
    _ASKED.append(1)
    return {"norm": tree.norm(b.trained.params) * len(_ASKED)}


def norm(b):
    return {"norm": tree.norm(b.trained.params)}


def own_draw(b):
    return {"draw": rng.normal(b.random.key(), 3).mean(1)}


def per_task(b):
    return {"seen": Reading(b.accuracy[:, b.t + 1, : b.t + 1], axis="task", coords=range(b.t + 1))}


def probe_loss(b):
    return {"loss": b.loss([b.t])(b.trained.params).detach()}


def distance(b):
    return {"moved": tree.norm(tree.sub(b.trained.params, b.nets.initial.params))}
