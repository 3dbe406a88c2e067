"""Training as one would write it by hand in PyTorch: eager, compiled as a whole, and vectorised over seeds by vmap."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap

from harness import rng
from harness.compiling.step import tracing
from harness.models.cnn import CNN
from harness.models.mlp import MLP
from harness.models.resnet18 import ResNet18
from harness.types import Model
from tests.benchmarks.timing import clock

LR, CAPACITY, STRENGTH, RHO = 0.01, 500, 1.0, 0.05
DECAY, RATE, MATURITY = 0.99, 1e-3, 100
OUTPUTS = 10


# --- nets -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A net and a batch size. `steps` of a turn of the smallest net become steps / `weight` of this one."""

    name: str
    shape: tuple[int, ...]
    batch: int
    plain: Callable[[], nn.Module]
    ours: Callable[[], Model]
    weight: int = 1

    def __str__(self) -> str:
        return f"{self.name} batch {self.batch}"

    def samples(self, rows: int) -> tuple[Tensor, Tensor]:
        return _samples(self.shape, max(rows // self.weight, 4 * self.batch))


@cache
def _samples(shape: tuple[int, ...], rows: int) -> tuple[Tensor, Tensor]:
    key = rng.keys([0], "benchmark")
    return rng.normal(key, rows, *shape)[0], rng.integers(key, OUTPUTS, rows)[0]


def dense(name: str, batch: int) -> Case:
    inputs, *widths = map(int, name.split("-"))

    def plain() -> nn.Module:
        modules: list[nn.Module] = []
        for a, b in zip([inputs, *widths], [*widths, OUTPUTS]):
            modules += [nn.Linear(a, b), nn.ReLU()]
        return nn.Sequential(*modules[:-1])

    return Case(name, (inputs,), batch, plain, lambda: MLP((inputs,), OUTPUTS, widths))


def plain_cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(64 * 8 * 8, 128), nn.ReLU(), nn.Linear(128, OUTPUTS),
    )  # fmt: skip


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
        shortcut = [nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)]
        self.shortcut = nn.Sequential(*(shortcut if inputs != outputs else []))

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(h)) + self.shortcut(x))


def plain_resnet18(width: int = 20) -> nn.Module:
    blocks: list[nn.Module] = []
    inputs = width
    for outputs, stride in zip((width, 2 * width, 4 * width, 8 * width), (1, 2, 2, 2)):
        blocks += [Block(inputs, outputs, stride), Block(outputs, outputs, 1)]
        inputs = outputs
    stem = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, OUTPUTS))


IMAGE = (3, 32, 32)
SMALL, MIDDLE, LARGE = dense("64-100-100", 32), dense("784-100-100", 128), dense("784-400-400", 128)
CONVOLUTIONAL = Case("cnn", IMAGE, 64, plain_cnn, lambda: CNN(IMAGE, OUTPUTS), 10)
RESIDUAL = Case("resnet18", IMAGE, 32, plain_resnet18, lambda: ResNet18(IMAGE, OUTPUTS), 30)
CASES = {case.name: case for case in (SMALL, MIDDLE, LARGE, CONVOLUTIONAL, RESIDUAL)}


# --- eager ------------------------------------------------------------------------------------------


class Bare:
    """One net, trained as one would write it down for this method and nothing else."""

    def __init__(self, case: Case, rows: int) -> None:
        x, y = case.samples(rows)
        self.x, self.y = x, y
        self.batch, self.position = case.batch, len(x)
        self.net = case.plain()
        self.linear = [layer for layer in self.net.modules() if isinstance(layer, nn.Linear)]
        self.parameters = list(self.net.parameters())
        self.optimizer = torch.optim.SGD(self.parameters, lr=LR)
        self.prepare()

    def prepare(self) -> None: ...

    def next(self) -> Tensor:
        """Rows of the next batch; a new order for every pass."""
        if self.position + self.batch > len(self.x):
            self.order, self.position = torch.randperm(len(self.x)), 0
        self.position += self.batch
        return self.order[self.position - self.batch : self.position]

    def fresh(self) -> tuple[Tensor, Tensor]:
        index = self.next()
        return self.x[index], self.y[index]

    def step(self) -> None:
        x, y = self.fresh()
        self.optimizer.zero_grad()
        F.cross_entropy(self.net(x), y).backward()
        self.optimizer.step()

    def __call__(self, steps: int) -> float:
        began = clock()
        for _ in range(steps):
            self.step()
        return clock() - began


class BareEWC(Bare):
    def prepare(self) -> None:
        self.anchor = [p.detach().clone() for p in self.parameters]
        self.fisher = [torch.rand_like(p) for p in self.parameters]

    def step(self) -> None:
        x, y = self.fresh()
        self.optimizer.zero_grad()
        (F.cross_entropy(self.net(x), y) + self.penalty()).backward()
        self.optimizer.step()

    def penalty(self) -> Tensor:
        terms = ((f * (p - a) ** 2).sum() for p, a, f in zip(self.parameters, self.anchor, self.fisher))
        return STRENGTH / 2 * sum(terms, torch.zeros(()))


class BareReplay(Bare):
    """Reservoir, as many replayed rows as fresh ones, each half with its own mean."""

    def prepare(self) -> None:
        self.seen = len(self.x)
        self.mx, self.my = self.x[:CAPACITY].clone(), self.y[:CAPACITY].clone()

    def step(self) -> None:
        x, y = self.fresh()
        held = torch.randperm(len(self.mx))[: self.batch]
        self.optimizer.zero_grad()
        z = self.net(torch.cat([x, self.mx[held]]))
        loss = F.cross_entropy(z[: len(x)], y) + F.cross_entropy(z[len(x) :], self.my[held])
        loss.backward()
        self.optimizer.step()
        slot = self.slots(len(x))
        keep = slot < len(self.mx)
        self.mx[slot[keep]], self.my[slot[keep]] = x[keep], y[keep]

    def slots(self, rows: int) -> Tensor:
        """Where each fresh row would go; beyond the memory: nowhere."""
        found = (torch.rand(rows) * torch.arange(self.seen + 1, self.seen + rows + 1)).long()
        self.seen += rows
        return found


class BareCBP(Bare):
    def prepare(self) -> None:
        hidden = self.linear[:-1]
        self.utility = [torch.zeros(layer.out_features) for layer in hidden]
        self.age = [torch.zeros(layer.out_features) for layer in hidden]
        self.due = [0.0 for _ in hidden]

    def step(self) -> None:
        x, y = self.fresh()
        self.optimizer.zero_grad()
        acts = []
        for layer in self.linear[:-1]:
            x = torch.relu(layer(x))
            acts.append(x)
        F.cross_entropy(self.linear[-1](x), y).backward()
        self.optimizer.step()
        with torch.no_grad():
            for i, act in enumerate(acts):
                self.replace(i, act)

    def replace(self, i: int, act: Tensor) -> None:
        own, reader, utility, age = self.linear[i], self.linear[i + 1], self.utility[i], self.age[i]
        age += 1
        utility.mul_(DECAY).add_(act.abs().mean(0) * reader.weight.abs().sum(0), alpha=1 - DECAY)
        mature = age > MATURITY
        self.due[i] += RATE * float(mature.sum())
        while self.due[i] >= 1:
            self.due[i] -= 1
            unit = int(torch.where(mature, utility / (1 - DECAY**age), torch.inf).argmin())
            bound = own.in_features**-0.5
            own.weight[unit].uniform_(-bound, bound)
            own.bias[unit] = 0
            reader.weight[:, unit] = 0
            utility[unit] = age[unit] = 0
            mature[unit] = False


class BareSAM(Bare):
    def step(self) -> None:
        x, y = self.fresh()
        self.optimizer.zero_grad()
        F.cross_entropy(self.net(x), y).backward()
        with torch.no_grad():
            grads = [p.grad for p in self.parameters if p.grad is not None]
            length = torch.stack([g.square().sum() for g in grads]).sum().sqrt()
            uphill = [RHO / length * g for g in grads]
            for p, e in zip(self.parameters, uphill):
                p.add_(e)
        self.optimizer.zero_grad()
        F.cross_entropy(self.net(x), y).backward()
        with torch.no_grad():
            for p, e in zip(self.parameters, uphill):
                p.sub_(e)
        self.optimizer.step()


# --- compiled ---------------------------------------------------------------------------------------


class Compiled(Bare):
    """The whole step is one graph: gathering the rows, forward, backward, SGD, and a method's own work.

    Random draws (order, rows replayed) are made outside and passed in.
    """

    def __init__(self, case: Case, rows: int) -> None:
        super().__init__(case, rows)
        self.run = torch.compile(self.graph, fullgraph=True)

    def step(self) -> None:
        self.run(self.next(), *self.draws())

    def __call__(self, steps: int) -> float:
        with tracing():
            return super().__call__(steps)

    def draws(self) -> tuple[Tensor, ...]:
        return ()

    def graph(self, index: Tensor, *draws: Tensor) -> None:
        self.descend(F.cross_entropy(self.net(self.x[index]), self.y[index]))

    def descend(self, loss: Tensor) -> None:
        grads = torch.autograd.grad(loss, self.parameters)
        with torch.no_grad():
            for p, g in zip(self.parameters, grads):
                p.sub_(g, alpha=LR)


class CompiledEWC(Compiled, BareEWC):
    def graph(self, index: Tensor, *draws: Tensor) -> None:
        self.descend(F.cross_entropy(self.net(self.x[index]), self.y[index]) + self.penalty())


class CompiledReplay(Compiled, BareReplay):
    def prepare(self) -> None:
        super().prepare()
        # a row past the end takes what is not kept: a graph cannot select rows
        self.mx, self.my = torch.cat([self.mx, self.mx[:1]]), torch.cat([self.my, self.my[:1]])

    def draws(self) -> tuple[Tensor, ...]:
        return torch.randperm(CAPACITY)[: self.batch], self.slots(self.batch)

    def graph(self, index: Tensor, *draws: Tensor) -> None:
        x, y, (held, slot) = self.x[index], self.y[index], draws
        z = self.net(torch.cat([x, self.mx[held]]))
        self.descend(F.cross_entropy(z[: len(x)], y) + F.cross_entropy(z[len(x) :], self.my[held]))
        slot = slot.clamp(max=CAPACITY)
        self.mx[slot], self.my[slot] = x, y


class CompiledSAM(Compiled):
    def graph(self, index: Tensor, *draws: Tensor) -> None:
        x, y = self.x[index], self.y[index]
        grads = torch.autograd.grad(F.cross_entropy(self.net(x), y), self.parameters)
        with torch.no_grad():
            length = torch.stack([g.square().sum() for g in grads]).sum().sqrt()
            uphill = [RHO / length * g for g in grads]
            for p, e in zip(self.parameters, uphill):
                p.add_(e)
        grads = torch.autograd.grad(F.cross_entropy(self.net(x), y), self.parameters)
        with torch.no_grad():
            for p, e, g in zip(self.parameters, uphill, grads):
                p.sub_(e).sub_(g, alpha=LR)


# --- several nets at once, as with torch.func ------------------------------------------------------------


class Vectorised:
    """`seeds` nets by vmap of functional_call; each has its own order of the rows."""

    def __init__(self, case: Case, rows: int, seeds: int) -> None:
        self.x, self.y = case.samples(rows)
        self.batch, self.seeds, self.position = case.batch, seeds, len(self.x)
        nets: Sequence[nn.Module] = [case.plain() for _ in range(seeds)]
        self.params, self.buffers = stack_module_state(list(nets))
        skeleton = nets[0]

        def loss(p: dict[str, Tensor], b: dict[str, Tensor], x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            return F.cross_entropy(functional_call(skeleton, (p, b), (x,)), y), b

        self.gradient = vmap(grad(loss, has_aux=True))

    def step(self) -> None:
        if self.position + self.batch > len(self.x):
            self.order = torch.stack([torch.randperm(len(self.x)) for _ in range(self.seeds)])
            self.position = 0
        index = self.order[:, self.position : self.position + self.batch]
        self.position += self.batch
        grads, self.buffers = self.gradient(self.params, self.buffers, self.x[index], self.y[index])
        with torch.no_grad():
            for k, g in grads.items():
                self.params[k].sub_(g, alpha=LR)

    def __call__(self, steps: int) -> float:
        began = clock()
        for _ in range(steps):
            self.step()
        return clock() - began
