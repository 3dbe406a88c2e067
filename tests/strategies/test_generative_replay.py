"""Generative replay: who dreams, who labels, and how both networks' losses are weighted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import kl_div

from harness import rng, tree
from harness.learner import Budget, Learner
from harness.loop import prepare, train
from harness.optim import SGD
from harness.strategy import Chain, Strategy
from harness.types import Batch, Params, Step
from strategies.generative_replay import GenerativeReplay
from tests.observer import Blind
from tests.strategies.by_hand import learner_of, module, run
from tests.toy import MODELS, stream

B, N = 8, 5


def dreaming(**changed: Any) -> GenerativeReplay:
    settings = {"batch_size": N, "targets": "hard", "temperature": 2.0, "widths": [7], "latent": 3}
    return GenerativeReplay(**{**settings, "likelihood": "bernoulli", "lr": 0.01, "steps": None, **changed})


def in_task(now: int, learner: Learner, part: GenerativeReplay) -> Batch:
    """Trained on the tasks before `now`; its first batch as the stream gives it."""
    whole = learner.stream
    learner.stream = replace(whole, tasks=whole.tasks[:now])
    run(part, learner)
    learner.stream = whole
    learner.enter(whole.tasks[now])
    return next(learner.batches(part.begin(learner, whole.tasks[now])))


@pytest.mark.parametrize("targets", ["hard", "soft"])
def test_the_first_task_is_naive(targets: str) -> None:
    learner, naive, part = learner_of(tasks=1), learner_of(tasks=1), dreaming(targets=targets)
    run(part, learner)
    run(Strategy(), naive)
    assert all(torch.equal(v, naive.params[k]) for k, v in learner.params.items())
    start = part.vae.fresh(part.vae.key("init"))[0]
    assert not any(torch.equal(v, start[k]) for k, v in part.vae.params.items())  # but the VAE learns in it


@pytest.mark.parametrize("scenario", ["task", "domain", "class"])
@pytest.mark.parametrize("now", [1, 2])
def test_dreams_are_labelled_by_the_previous_net_among_what_it_knew(scenario: str, now: int) -> None:
    learner, part = learner_of(scenario), dreaming()
    fresh = in_task(now, learner, part)
    before = tree.copy(learner.params)
    for v in learner.params.values():  # labels are the previous net's, whatever becomes of this one
        v.neg_()
    batch = part.batch(learner, fresh)
    assert batch.x.shape[1] == B + N and batch.x[:, B:].min() >= 0 and batch.x[:, B:].max() <= 1
    for s in range(2):
        z = module(before, s)(batch.x[s, B:].double())
        heads = batch.t[s, B:].tolist()
        assert all(h < now for h in heads) if scenario == "task" else not any(heads)
        for row, head, y in zip(z, heads, batch.y[s, B:].tolist()):
            if scenario == "domain":
                known = range(10)
            elif scenario == "task":
                known = range(2 * head, 2 * head + 2)
            else:
                known = range(2 * now)
            assert y == max(known, key=row.tolist().__getitem__)


def test_heads_are_drawn_among_the_past_ones() -> None:
    learner, part = learner_of("task"), dreaming(batch_size=400)
    batch = part.batch(learner, in_task(2, learner, part))
    for s in range(2):
        count = batch.t[s, B:].bincount(minlength=2)
        assert len(count) == 2 and (count - 200).abs().max() < 50


def test_weights_of_the_kth_task() -> None:
    for targets in ("hard", "soft"):
        for seen in run(dreaming(targets=targets), learner_of()):
            k = seen.now + 1
            assert torch.allclose(seen.batch.w[:, :B], torch.tensor(1 / k / B).double())
            share = (1 - 1 / k) / N if targets == "hard" else 0.0
            assert torch.allclose(seen.batch.w[:, B:], torch.tensor(share).double())


@pytest.mark.parametrize("scenario", ["task", "domain", "class"])
def test_soft_targets_against_torch(scenario: str) -> None:
    learner, part = learner_of(scenario), dreaming(targets="soft")
    fresh = in_task(2, learner, part)
    old = tree.copy(learner.params)
    for v in learner.params.values():
        v.mul_(1.3)
    batch = part.batch(learner, fresh)
    _, out = learner.task_loss(learner.params, batch)
    found = torch.as_tensor(part.loss(learner, learner.params, batch, out))
    x = batch.x[:, B:]
    for s in range(2):
        total = 0.0
        for i in range(N):
            head = int(batch.t[s, B + i])
            before, now = {
                "task": ([2 * head, 2 * head + 2],) * 2,
                "domain": ([0, 10],) * 2,
                "class": ([0, 4], [0, 6]),
            }[scenario]
            q = (module(old, s)(x[s, i : i + 1].double())[0, slice(*before)] / 2).softmax(0)
            log_p = (module(learner.params, s)(x[s, i : i + 1].double())[0, slice(*now)] / 2).log_softmax(0)
            q = torch.cat([q, q.new_zeros(len(log_p) - len(q))])  # what it did not know competes with target 0
            total += float((kl_div(log_p, q, reduction="sum") + torch.special.entr(q).sum()).detach())
        assert float(found[s]) == pytest.approx((1 - 1 / 3) * 2**2 * total / N, rel=1e-9)


def test_soft_targets_have_their_minimum_at_the_previous_net() -> None:
    # at the previous net the distance is the targets' entropy, and its gradient is zero
    learner, part = learner_of("domain"), dreaming(targets="soft")
    fresh = in_task(1, learner, part)
    batch = part.batch(learner, fresh)
    leaves = {k: v.detach().requires_grad_() for k, v in learner.params.items()}
    _, out = learner.task_loss(leaves, batch)
    loss = torch.as_tensor(part.loss(learner, leaves, batch, out))
    q = batch.extra["dreamt"][1]
    torch.testing.assert_close(loss.detach(), 0.5 * 4 * torch.special.entr(q).sum(2).mean(1))
    assert all(g.abs().max() < 1e-12 for g in torch.autograd.grad(loss.sum(), list(leaves.values())))


def test_no_nan_where_outputs_do_not_compete() -> None:
    learner, part = learner_of("class"), dreaming(targets="soft")
    batch = part.batch(learner, in_task(1, learner, part))
    grads, aux = learner.value_and_grad(part.loss)(learner.params, batch)
    assert aux.loss.isfinite().all() and all(g.isfinite().all() for g in grads.values())


@pytest.mark.parametrize("now", [0, 1, 2])
def test_the_loss_of_the_vae(now: int, monkeypatch: pytest.MonkeyPatch) -> None:
    learner, part = learner_of("class"), dreaming()
    if now:
        fresh = in_task(now, learner, part)
    else:
        prepare(learner, Chain([part]))
        fresh = next(learner.batches(learner.stream.tasks[0]))
    batch = part.batch(learner, fresh)
    found: list[Params] = []
    monkeypatch.setattr(part.vae.optimizer, "update", lambda p, g: found.append(g))
    count, base = part.random.count, part.random.base
    _, out = learner.task_loss(learner.params, batch)
    with torch.no_grad():
        part.step(learner, Step(fresh, batch, out, {}, None))
    leaves = {k: v.detach().requires_grad_() for k, v in part.vae.params.items()}
    elbo = part.model.elbo(leaves, fresh.x, rng.fold(base, count + 1)).mean(1)
    if now:
        elbo = elbo / (now + 1)
        elbo = elbo + now / (now + 1) * part.model.elbo(leaves, batch.x[:, B:], rng.fold(base, count + 2)).mean(1)
    expected = torch.autograd.grad(-elbo.sum() / 64, list(leaves.values()))  # nats a pixel
    for g, e in zip(found[0].values(), expected):
        torch.testing.assert_close(g, e)


def test_the_previous_networks_stay_as_they_were_during_a_task() -> None:
    # a teacher that aliases the live net would label with what it just unlearned
    learner, part = learner_of("class"), dreaming()
    in_task(1, learner, part)
    net, vae = tree.copy(learner.params), tree.copy(part.vae.params)
    whole = learner.stream
    learner.stream = replace(whole, tasks=whole.tasks[1:2])
    part.end = lambda *_: None  # type: ignore[method-assign]
    train(learner, Chain([part]), Blind())
    assert not torch.equal(learner.params["head.bias"], net["head.bias"])
    assert all(torch.equal(v, part.teacher.params[k]) for k, v in net.items())
    assert all(torch.equal(v, part.dreamer[k]) for k, v in vae.items())


def test_dreams_are_the_previous_generators() -> None:
    learner, part = learner_of("class"), dreaming()
    fresh = in_task(1, learner, part)
    for v in part.vae.params.values():
        v.zero_()  # would dream grey
    batch = part.batch(learner, fresh)
    key = rng.fold(part.random.base, part.random.count)
    assert torch.equal(batch.x[:, B:], part.model.sample(part.dreamer, N, key).to(batch.x.dtype))
    assert (batch.x[:, B:] != 0.5).all()
    assert not torch.equal(batch.x[:, B:], part.batch(learner, fresh).x[:, B:])  # new ones every step


def test_the_previous_net_answers_in_evaluation_mode() -> None:
    # Avalanche's teachers stay in training mode: batch statistics, and running ones that drift
    made = stream("class", (0, 1))
    learner = Learner(MODELS["residual"](made), made, SGD(lr=0.05), Budget(steps=4, batch_size=8), dtype=torch.float64)
    part = dreaming(likelihood="gaussian")
    fresh = in_task(1, learner, part)
    buffers: dict[str, Tensor] = tree.copy(part.teacher.buffers)
    batch = part.batch(learner, fresh)
    assert buffers and all(torch.equal(v, part.teacher.buffers[k]) for k, v in buffers.items())
    x = batch.x[:, B:]
    alone = torch.cat([part.teacher(x[:, i : i + 1], batch.t[:, :1]).logits for i in range(N)], 1)
    assert torch.equal(batch.y[:, B:], alone[:, :, :2].argmax(2))


@pytest.mark.parametrize("steps", [1, 4, 9])
def test_the_vae_takes_its_own_number_of_steps(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The net takes four. What is left at the end is trained on rows of the task and on dreams of the past."""
    learner, part = learner_of("class", tasks=2), dreaming(steps=steps)
    met: list[tuple[Tensor, Tensor | None]] = []
    descend = part.descend
    monkeypatch.setattr(part, "descend", lambda le, x, d: (met.append((x, d)), descend(le, x, d))[1])
    run(part, learner)
    assert learner.planned == 4 and len(met) == 2 * steps
    for i, (x, dreamt) in enumerate(met):
        task = learner.stream.tasks[i // steps]
        assert x.shape[1] == B and (dreamt is None if i < steps else dreamt.shape[1] == N)
        for s in range(2):
            own = task.train.take(torch.arange(int(task.train.size.min())).expand(2, -1))[0][s]
            assert all((row == own).flatten(1).all(1).any() for row in x[s])
    assert steps < 9 or not torch.equal(met[-1][0], met[-2][0])
    assert steps < 9 or not any(torch.equal(d, met[-1][1]) for _, d in met[steps:-1])


def collapsed(what: str, capsys: pytest.CaptureFixture[str]) -> str:
    learner, part = learner_of("class"), dreaming(latent=2)
    prepare(learner, Chain([part]))
    for k, v in part.vae.params.items():
        if k.endswith("weight"):
            v.mul_(30)  # the means vary by more than 0.1, and the images by z
    x = part.model.sample(part.vae.params, 50, part.random.key())
    task = learner.stream.tasks[0]
    for s in range(2):  # the net halves these images between its two classes
        a, b = task.train.labels()[s].unique().tolist()
        z = learner.net(x, torch.zeros(2, 50, dtype=torch.long)).logits[s]
        learner.params["head.bias"][s, a] -= (z[:, a] - z[:, b]).median()
    for s, name in {"none": (), "image": ((1, "encoder"),), "label": ((0, "decoder"),)}[what]:
        part.vae.params[f"{name}.fc2.weight"][s] = 0.0  # one q(z|x) for every x, or one image for every z
    learner.enter(task)
    part.end(learner, task)
    part.end(learner, replace(task, index=len(learner.stream.tasks) - 1))  # nobody dreams any more
    return capsys.readouterr().err


def test_a_collapsed_vae_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert collapsed("none", capsys) == ""
    remedy = "; raise strategy.generative_replay.steps, or lower latent\n"
    said = "1 of 2 VAEs have no active latent dimension: all their dreams are one image"
    assert collapsed("image", capsys) == f"warning: task 0: generative_replay: {said}{remedy}"
    said = "the dreams of 1 of 2 VAEs all have one label"
    assert said in collapsed("label", capsys)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"targets": "warm"}, "targets=warm"),
        ({"temperature": 0.0}, "temperature=0"),
        ({"lr": 0.0}, "lr=0"),
        ({"steps": 0}, "steps=0"),
        ({"latent": 0}, "latent=0"),
        ({"likelihood": "poisson"}, "likelihood=poisson"),
    ],
)
def test_bad_values_are_named(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        dreaming(**changed)


def test_what_it_cannot_do_is_refused() -> None:
    learner = learner_of()
    object.__setattr__(learner.stream, "loss", "mse")
    with pytest.raises(ValueError, match="generative_replay: regression has no classes"):
        prepare(learner, Chain([dreaming()]))
