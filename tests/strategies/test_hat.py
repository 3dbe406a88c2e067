"""HAT: what is frozen does not move, the authors' step re-enacted, the annealing, the regularisation by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from harness import tree
from harness.learner import Budget, Learner
from harness.loop import prepare
from harness.models.cnn import CNN
from harness.models.mlp import MLP
from harness.models.resnet18 import ResNet18
from harness.optim import SGD, Adam, AdamW, Optimizer
from harness.strategy import Chain
from harness.types import Aux, Batch, Params, Step, Task
from strategies.hat import HAT
from tests.toy import stream


def hat(**changed: Any) -> HAT:
    return HAT(**{"strength": 0.75, "s_max": 50.0, "anneal": "epoch", **changed})


def learner(part: HAT, optimizer: Optimizer | None = None, model: Any = None, steps: int = 6) -> tuple[Learner, Chain]:
    source = stream("task", (0, 1))
    net = model(source) if model else MLP(source.shape, source.outputs, (7, 6))
    made = Learner(net, source, optimizer or SGD(lr=0.1), Budget(steps=steps, batch_size=8), dtype=torch.float64)
    chain = Chain([part])
    prepare(made, chain)
    return made, chain


def sharpen(made: Learner, task: int) -> None:
    """Embeddings of a task at -6 or 6, where attention is 0 or 1 in float64."""
    for k, v in made.params.items():
        if k.startswith("hat."):
            v[:, task] = 6 * (-1) ** torch.arange(v.shape[2])


def train(made: Learner, chain: Chain, task: Task, log: list[tuple[float, Batch, Params]] | None = None) -> None:
    gradient = chain.grad(made, made.value_and_grad(chain.loss))
    made.enter(task)
    made.plan(chain.begin(made, task))
    for fresh in made.batches(task):
        batch = chain.batch(made, fresh)
        if log is not None:
            log.append((float(chain.parts[0].s), batch, tree.copy(made.params)))  # type: ignore[attr-defined]
        grads, aux, before = made.advance(gradient, batch)
        with torch.no_grad():
            chain.step(made, Step(fresh, batch, aux.out, grads, before))


def says(made: Learner, task: int) -> Tensor:
    x, _, t = made.stream.tasks[task].test.take(torch.arange(10).expand(2, 10))
    mask = made.stream.mask(t, task)
    assert mask is not None
    return made.net(x, t).logits.masked_fill(~mask, 0)


OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda: SGD(lr=0.1),
    "momentum": lambda: SGD(lr=0.1, momentum=0.9, weight_decay=0.01),
    "adam": lambda: Adam(lr=0.02),
    "adamw": lambda: AdamW(lr=0.02, weight_decay=0.1),
}
NETS: dict[str, Any] = {
    "mlp": None,
    "crelu": lambda s: MLP(s.shape, s.outputs, (5, 4), "crelu"),
    "cnn": lambda s: CNN(s.shape, s.outputs, (4, 5), (6,)),
}


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_what_past_tasks_use_does_not_move_at_all(optimizer: str, net: str) -> None:
    part = hat()
    made, chain = learner(part, OPTIMIZERS[optimizer](), NETS[net])
    first, *later = made.stream.tasks
    train(made, chain, first)
    sharpen(made, 0)
    chain.end(made, first)
    before, said, first_frozen = tree.copy(made.params), says(made, 0), tree.copy(part.frozen)
    assert all(((v < 1e-100) | (v == 1)).all() for v in part.frozen.values())  # σ(-300) is not quite 0
    for task in later:
        train(made, chain, task)
        chain.end(made, task)
    assert torch.equal(says(made, 0), said)  # the old task's function is the same, to the bit
    for k, v in made.params.items():
        if k.startswith("hat."):
            assert torch.equal(v[:, 0], before[k][:, 0])  # nor do its embeddings
            assert not torch.equal(v[:, 1], before[k][:, 1])
        else:
            assert not torch.equal(v, before[k])  # what is free learns
            held = first_frozen[k] == 1
            assert held.any() and torch.equal(v[held], before[k][held])


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """To the last digit, in which a sigmoid depends on the layout of its input."""
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=0)


def test_frozen_entries_are_the_smaller_of_both_ends() -> None:
    part = hat()
    made, chain = learner(part)
    made.enter(made.stream.tasks[1])
    made.params["hat.fc1"][:, 1] = torch.linspace(-0.05, 0.05, 7, dtype=torch.float64)
    made.params["hat.fc2"][:, 1] = torch.linspace(0.04, -0.03, 6, dtype=torch.float64)
    chain.end(made, made.stream.tasks[1])
    a, b = (torch.sigmoid(50 * made.params[f"hat.{n}"][0, 1]) for n in ("fc1", "fc2"))
    assert made.stream.masks is not None
    used = made.stream.masks[0, 1].double()
    for i, j in ((0, 6), (3, 2), (5, 0)):
        close(part.frozen["fc2.weight"][0, i, j], torch.minimum(b[i], a[j]))
    close(part.frozen["fc1.weight"][0], a[:, None].expand(-1, 64))
    close(part.frozen["fc1.bias"][0], a)
    close(part.frozen["head.weight"][0], torch.minimum(used[:, None], b))
    assert torch.equal(part.frozen["head.bias"][0], used)
    kept = tree.copy(part.past)
    made.enter(made.stream.tasks[2])
    chain.end(made, made.stream.tasks[2])
    for act, c in part.past.items():
        close(c, kept[act].maximum(torch.sigmoid(50 * made.params[f"hat.{act}"][:, 2])))


def test_partly_used_weights_move_by_the_rest() -> None:
    part = hat()
    made, chain = learner(part)
    first, second, _ = made.stream.tasks
    train(made, chain, first)
    chain.end(made, first)
    made.enter(second)
    made.plan(second)
    before = tree.copy(made.params)
    for v in made.params.values():
        v.add_(1)
    batch = next(iter(made.batches(second)))
    chain.step(made, Step(batch, batch, made.task_loss(made.params, batch)[1], {}, before))
    for k, v in part.frozen.items():
        torch.testing.assert_close(made.params[k] - before[k], 1 - v)


def test_a_cnn_freezes_all_columns_that_read_a_channel() -> None:
    part = hat()
    made, chain = learner(part, model=NETS["cnn"])
    sharpen(made, 0)
    chain.end(made, made.stream.tasks[0])
    on = {u.act: part.past[u.act] for u in made.model.units}
    columns = on["conv2"].repeat_interleave(4, 1)  # 2x2 pixels are left of 8x8
    assert torch.equal(part.frozen["fc1.weight"], torch.minimum(on["fc1"][:, :, None], columns[:, None]))
    inner = torch.minimum(on["conv2"][:, :, None], on["conv1"][:, None])
    assert torch.equal(part.frozen["conv2.weight"], inner[..., None, None].expand(-1, -1, -1, 3, 3))


def test_steepness_grows_over_each_epoch_or_over_the_task() -> None:
    for anneal, expected in (("epoch", [0, 1, 2, 3, 4] * 2), ("task", [*range(10)])):
        part = hat(anneal=anneal)
        made, chain = learner(part, steps=10)
        task = made.stream.tasks[0]
        made.budget = Budget(steps=10, batch_size=math.ceil(task.rows / 5))
        log: list[tuple[float, Batch, Params]] = []
        train(made, chain, task, log)
        n = max(expected) + 1
        assert [s for s, _, _ in log] == pytest.approx([1 / 50 + (50 - 1 / 50) * b / n for b in expected])


def test_regularisation_counts_only_what_is_free() -> None:
    part = hat(strength=2.0)
    made, _ = learner(part)
    part.s.fill_(3.0)
    for u, past in (("fc1", [1.0, 0.5, 0, 0, 0, 0, 0]), ("fc2", [1.0, 1, 1, 1, 1, 0.75])):
        part.past[u] = torch.tensor([past, past], dtype=torch.float64)
    batch = next(iter(made.batches(made.stream.tasks[0])))
    found = part.loss(made, made.params, batch, made.task_loss(made.params, batch)[1])
    a, b = (torch.sigmoid(3 * made.params[f"hat.{n}"][:, 0]) for n in ("fc1", "fc2"))
    expected = 2 * (0.5 * a[:, 1] + a[:, 2:].sum(1) + 0.25 * b[:, 5]) / (5.5 + 0.25)
    torch.testing.assert_close(found, expected)
    part.past = {k: torch.ones_like(v) for k, v in part.past.items()}
    assert (part.loss(made, made.params, batch, made.task_loss(made.params, batch)[1]) == 0).all()


def test_evaluation_is_at_the_steepest() -> None:
    part = hat()
    made, _ = learner(part)
    part.s.fill_(0.5)
    t = torch.tensor([[0, 2], [1, 1]])
    for train_, s in ((True, 0.5), (False, 50.0)):
        gates = part.gating(made.params, t, train_)["fc2"]
        e = made.params["hat.fc2"]
        torch.testing.assert_close(gates[0, 1], torch.sigmoid(s * e[0, 2]))
        torch.testing.assert_close(gates[1, 0], torch.sigmoid(s * e[1, 1]))


class Authors(torch.nn.Module):
    """One seed of the authors' algorithm: approaches/hat.py with networks/mlp_hat.py, rewritten for one net."""

    def __init__(self, params: Params, seed: int, s_max: float, strength: float) -> None:
        super().__init__()
        self.p = {k: v[seed].detach().clone().requires_grad_() for k, v in params.items()}
        self.s_max, self.strength = s_max, strength
        self.past: dict[str, Tensor] | None = None
        self.back: dict[str, Tensor] = {}

    def masks(self, task: int, s: float) -> dict[str, Tensor]:
        return {n: torch.sigmoid(s * self.p[f"hat.{n}"][task]) for n in ("fc1", "fc2")}

    def learn(self, task: int, s: float, x: Tensor, y: Tensor, outputs: Tensor, lr: float) -> None:
        p, masks = self.p, self.masks(task, s)
        h = F.relu(F.linear(x, p["fc1.weight"], p["fc1.bias"])) * masks["fc1"]
        h = F.relu(F.linear(h, p["fc2.weight"], p["fc2.bias"])) * masks["fc2"]
        z = F.linear(h, p["head.weight"], p["head.bias"]).masked_fill(~outputs, -math.inf)
        reg, count = torch.zeros(()), torch.zeros(())
        for n, m in masks.items():
            aux = torch.ones_like(m) if self.past is None else 1 - self.past[n]
            reg, count = reg + (m * aux).sum(), count + aux.sum()
        grads = torch.autograd.grad(F.cross_entropy(z, y) + self.strength * reg / count, list(p.values()))
        with torch.no_grad():
            for (k, v), g in zip(p.items(), grads):
                if k in self.back:
                    g = g * self.back[k]
                if k.startswith("hat."):
                    num, den = torch.cosh(torch.clamp(s * v, -50, 50)) + 1, torch.cosh(v) + 1
                    g = g * (self.s_max / s * num / den)
                v -= lr * g
                if k.startswith("hat."):
                    v.clamp_(-6, 6)

    def close(self, task: int) -> None:
        masks = {k: v.detach() for k, v in self.masks(task, self.s_max).items()}
        self.past = masks if self.past is None else {k: torch.max(v, self.past[k]) for k, v in masks.items()}
        post, pre = self.past["fc2"], self.past["fc1"]
        self.back = {
            "fc1.weight": 1 - pre[:, None],
            "fc1.bias": 1 - pre,
            "fc2.weight": 1 - torch.min(post[:, None], pre[None]),
            "fc2.bias": 1 - post,
        }


def test_steps_are_those_of_the_authors_code() -> None:
    part = hat()
    made, chain = learner(part)
    theirs = [Authors(made.params, seed, 50.0, 0.75) for seed in range(2)]
    assert made.stream.masks is not None
    for task in made.stream.tasks:
        log: list[tuple[float, Batch, Params]] = []
        train(made, chain, task, log)
        for s, batch, _ in log:
            for seed, one in enumerate(theirs):
                x = batch.x[seed].flatten(1).double()
                one.learn(
                    task.index, s, x, batch.y[seed], made.stream.masks[seed % len(made.stream.masks), task.index], 0.1
                )
        chain.end(made, task)
        for seed, one in enumerate(theirs):
            one.close(task.index)
            for k, v in one.p.items():
                torch.testing.assert_close(made.params[k][seed], v.detach(), rtol=1e-8, atol=1e-10)


def test_embeddings_stay_within_six() -> None:
    part = hat()
    made, chain = learner(part, SGD(lr=1e4))
    train(made, chain, made.stream.tasks[0])
    for u in made.model.units:
        assert made.params[f"hat.{u.act}"][:, 0].abs().max() == 6


def test_replayed_rows_of_a_past_task_do_not_move_its_embeddings() -> None:
    part = hat()
    made, chain = learner(part, Adam(lr=0.1))
    made.enter(made.stream.tasks[1])
    made.plan(made.stream.tasks[1])
    before = tree.copy(made.params)
    batch = next(iter(made.batches(made.stream.tasks[0])))  # rows of task 0 while 1 is current
    gradient = chain.grad(made, made.value_and_grad(chain.loss))
    grads, aux, kept = made.advance(gradient, chain.batch(made, batch))
    assert grads["hat.fc1"][:, 0].abs().max() > 0
    with torch.no_grad():
        chain.step(made, Step(batch, batch, aux.out, grads, kept))
    assert torch.equal(made.params["hat.fc1"][:, 0], before["hat.fc1"][:, 0])
    assert isinstance(aux, Aux)


@pytest.mark.parametrize(
    "model", [lambda s: ResNet18(s.shape, s.outputs, 2), lambda s: MLP(s.shape, s.outputs, (4,), layer_norm=True)]
)
def test_nets_with_norms_are_refused(model: Any) -> None:
    with pytest.raises(ValueError, match=r"hat: .* has norms or no declared head; use model=mlp"):
        learner(hat(), model=model)


@pytest.mark.parametrize(("changed"), [{"strength": -1.0}, {"s_max": 0.5}, {"anneal": "batch"}])
def test_bad_values_are_named(changed: dict[str, Any]) -> None:
    ((key, value),) = changed.items()
    with pytest.raises(ValueError, match=f"^{key}={value}"):
        hat(**changed)
