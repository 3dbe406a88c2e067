"""What own code returns is checked where it enters: one line with the strategy's name, the hook and the remedy."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from harness import tree
from harness.learner import Budget
from harness.models.mlp import MLP
from harness.optim import SGD
from harness.run import Result, run
from harness.strategy import Strategy
from harness.types import Net, Reading, Stream, cat
from tasks.permuted import permuted
from tests.toy import digits


def stream(seeds: tuple[int, ...] = (0, 1)) -> Stream:
    return permuted(dataset=digits(), seeds=list(seeds), n_tasks=2, fixed=False)


def trained(part: Strategy, seeds: tuple[int, ...] = (0, 1), **options: Any) -> Result:
    s = stream(seeds)
    how = {"model": MLP(s.shape, s.outputs, (6,)), "optimizer": SGD(lr=0.1), "budget": Budget(steps=2, batch_size=4)}
    return run(s, [part], **{**how, **options})


class Mine(Strategy):
    def setup(self, learner: Any) -> None:
        self.anchor = tree.copy(learner.params)


class Scalar(Mine):
    """The penalty of audit 2.1, as anybody writes it who comes from plain PyTorch."""

    def loss(self, learner: Any, params: Any, batch: Any, out: Any) -> Any:
        return 0.02 * sum((p - a).square().sum() for p, a in zip(params.values(), self.anchor.values()))


class LaterScalar(Scalar):
    """Harmless in the first task, and in the first step of the second."""

    def loss(self, learner: Any, params: Any, batch: Any, out: Any) -> Any:
        return super().loss(learner, params, batch, out) if learner.now and learner.steps else 0.0


class Right(Mine):
    def loss(self, learner: Any, params: Any, batch: Any, out: Any) -> Any:
        return 0.02 * sum((p - a).square().flatten(1).sum(1) for p, a in zip(params.values(), self.anchor.values()))


@pytest.mark.parametrize("part", [Scalar, LaterScalar])
@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_a_scalar_penalty_is_refused_with_the_remedy(part: type[Strategy], seeds: tuple[int, ...]) -> None:
    line = "`loss` returned a 0-dim tensor; expected one penalty for each seed, "
    remedy = "sum over everything but the first axis, as in (p - a).square().flatten(1).sum(1)"
    with pytest.raises(ValueError, match=re.escape(line)) as caught:
        trained(part(), seeds)
    assert str(caught.value).startswith(f"strategy={part.name}: ") and remedy in str(caught.value)


def test_a_penalty_for_each_seed_passes_and_seeds_stay_apart() -> None:
    together, alone = trained(Right(), (0, 1)), trained(Right(), (1,))
    assert torch.allclose(together.accuracy[1], alone.accuracy[0], equal_nan=True)


def losing(value: Any) -> Strategy:
    """A strategy whose `loss` returns this function of (learner, params)."""

    class Own(Strategy):
        def loss(self, learner: Any, params: Any, batch: Any, out: Any) -> Any:
            return value(learner, params)

    return Own()


def each(params: Any) -> Tensor:
    return sum((p.flatten(1).square().sum(1) for p in params.values()), torch.tensor(0.0))


@pytest.mark.parametrize(
    ("value", "line"),
    [
        (lambda learner, p: None, "returned None; expected 0.0 or a tensor [S] = [2]"),
        (lambda learner, p: each(p).tolist(), "returned a list; expected 0.0 or a tensor"),
        (lambda learner, p: each(p).sum().item(), "which has no gradient"),
        (lambda learner, p: each(p)[:1], "returned a tensor [1]; expected one penalty for each seed, [2]"),
        (lambda learner, p: each(p)[:, None], "returned a tensor [2, 1]; expected one penalty for each seed"),
        (lambda learner, p: each(p).detach(), "does not depend on `params`"),
        (lambda learner, p: each(learner.params), "does not depend on `params`"),
        (lambda learner, p: (each(p) * 1e6).long(), "expected a floating-point tensor"),
        (lambda learner, p: each(p) * 0 / 0, "is not finite: [nan, nan]"),
        (lambda learner, p: (each(p) * 0).log(), "is not finite: [-inf, -inf]"),
    ],
)
def test_a_penalty_of_another_kind_is_refused(value: Any, line: str) -> None:
    with pytest.raises(ValueError, match=r"^strategy=own: `loss` .*" + re.escape(line)):
        trained(losing(value))


def test_a_penalty_that_begins_in_a_later_task_is_looked_at_there() -> None:
    with pytest.raises(ValueError, match="does not depend on `params`"):
        trained(losing(lambda learner, p: each(p).detach() if learner.now else 0.0))


@pytest.mark.parametrize("value", [0.0, 0, torch.zeros(2)])
def test_no_penalty_is_no_penalty(value: Any) -> None:
    trained(losing(lambda learner, p: value))


def test_a_diverged_seed_is_no_fault_of_the_penalty() -> None:
    """Seed 1 overflows in the first task; its penalty is not finite in the second. The run goes on."""

    class Blow(Right):
        def step(self, learner: Any, step: Any) -> None:
            if learner.now == 0:
                next(iter(learner.params.values()))[1] = float("inf")

    assert trained(Blow()).learner.alive.tolist() == [True, False]


def drawing(change: Any) -> Strategy:
    class Own(Strategy):
        def batch(self, learner: Any, batch: Any) -> Any:
            return change(batch)

    return Own()


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda b: None, "returned None; expected a Batch"),
        (lambda b: cat(b, b), "returned a Joined; expected a Batch"),
        (lambda b: replace(b, x=b.x[:, :3]), "returned y [2, 4]; expected [2, 3], because x has 3 rows a seed"),
        (lambda b: replace(b, x=b.x[:1]), "returned x [1, 4, 1, 8, 8]; expected [2, 4, 1, 8, 8]"),
        (lambda b: replace(b, x=b.x.flatten(2)), "returned x [2, 4, 64]"),
        (lambda b: replace(b, w=b.w[0]), "returned w [4]; expected [2, 4]"),
        (lambda b: replace(b, w=b.w / 0), "returned weights w that are not finite"),
        (lambda b: replace(b, w=b.w.long()), "returned w as torch.int64; expected torch.float32"),
        (lambda b: replace(b, y=b.y + 10), "returned labels y outside 0 ... 9"),
        (lambda b: replace(b, mask=torch.ones(2, 4, 10)), "as mask; expected None or a bool tensor [2, 4, 10]"),
        (lambda b: replace(b, mask=torch.ones(2, 3, 10).bool()), "returned a tensor [2, 3, 10] as mask"),
        (lambda b: replace(b, key=torch.zeros(1).long()), "as key; expected one key for each seed, [2]"),
        (lambda b: replace(b, **{k: getattr(b, k)[:, :0] for k in "xytw"}), "returned no row"),
    ],
)
def test_a_batch_of_another_form_is_refused(change: Any, line: str) -> None:
    with pytest.raises(ValueError, match=r"^strategy=own: `batch` .*" + re.escape(line)):
        trained(drawing(change))


def grading(change: Any) -> Strategy:
    class Own(Strategy):
        def grad(self, learner: Any, inner: Any) -> Any:
            return change(inner)

    return Own()


def made(edit: Any) -> Any:
    """A wrapper that edits what `inner` returned."""
    return lambda inner: lambda params, batch: edit(*inner(params, batch))


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda inner: None, "returned None; expected a function as `inner` is"),
        (made(lambda g, aux: g), "made a function that returned a dict; expected (gradients, aux)"),
        (made(lambda g, aux: ({k: g[k] for k in list(g)[1:]}, aux)), "of other names than the parameters"),
        (made(lambda g, aux: ({k: v.sum(0) for k, v in g.items()}, aux)), "as the gradient of"),
        (made(lambda g, aux: ({k: v.double() for k, v in g.items()}, aux)), "as torch.float64 on cpu; expected"),
        (made(lambda g, aux: (g, aux._replace(loss=aux.loss.mean()))), "made aux.loss a 0-dim tensor"),
    ],
)
def test_gradients_of_another_form_are_refused(change: Any, line: str) -> None:
    with pytest.raises(ValueError, match=r"^strategy=own: `grad` .*" + re.escape(line)):
        trained(grading(change))


def acting(hook: str, act: Any) -> Strategy:
    return type("Own", (Strategy,), {hook: act})()


def change(learner: Any, edit: Any) -> None:
    name = next(iter(learner.params))
    learner.params[name] = edit(learner.params[name])


@pytest.mark.parametrize(
    ("hook", "act", "line"),
    [
        ("begin", lambda self, learner, task: None, "returned None; expected a Task"),
        ("setup", lambda self, learner: {}, "returned a dict, which is not used"),
        ("setup", lambda self, learner: learner.params.update(own=torch.zeros(3)), "added own [3]"),
        ("step", lambda self, learner, step: learner.params, "returned a dict, which is not used"),
        (
            "step",
            lambda self, learner, step: change(learner, lambda p: p.mean(0)),
            "changed fc1.weight from [2, 6, 64]",
        ),
        ("step", lambda self, learner, step: change(learner, lambda p: p.double()), "to torch.float64"),
        ("end", lambda self, learner, task: learner.params.popitem() and None, "removed"),
        ("end", lambda self, learner, task: learner.params.update(own=torch.zeros(2)), "added own"),
        ("deploy", lambda self, learner, net: None, "returned None; expected a Net"),
        ("deploy", lambda self, learner, net: net.params, "returned a dict; expected a Net"),
    ],
)
def test_other_hooks_are_checked_as_well(hook: str, act: Any, line: str) -> None:
    with pytest.raises(ValueError, match=rf"^strategy=own: `{hook}` .*" + re.escape(line)):
        trained(acting(hook, act))


def test_a_net_deployed_with_other_logits_is_refused() -> None:
    def deploy(self: Any, learner: Any, net: Net) -> Net:
        def apply(*a: Any, **how: Any) -> Any:
            out = net.apply(*a, **how)
            return out._replace(logits=out.logits.mean(0))

        return Net(net.params, net.buffers, apply)

    with pytest.raises(ValueError, match=r"`deploy` .* logits of two rows a seed are a tensor \[2, 10\]"):
        trained(acting("deploy", deploy))


def test_a_model_without_the_seed_axis_is_refused() -> None:
    class Flat(MLP):
        def init(self, key: Tensor) -> Any:
            params, buffers = super().init(key)
            return {k: v[0] for k, v in params.items()}, buffers

    class Few(MLP):
        def __call__(self, *a: Any, **how: Any) -> Any:
            out = super().__call__(*a, **how)
            return out._replace(logits=out.logits[..., :7])

    s = stream((0, 1, 2))
    with pytest.raises(ValueError, match=r"^model: Flat\.init made .* expected a row for each seed, \[3, \.\.\.\]"):
        trained(Strategy(), (0, 1, 2), model=Flat(s.shape, s.outputs, (6,)))
    with pytest.raises(ValueError, match=r"^model: Few's logits of two rows a seed are a tensor \[3, 2, 7\]"):
        trained(Strategy(), (0, 1, 2), model=Few(s.shape, s.outputs, (6,)))


@pytest.mark.parametrize(
    ("value", "line"),
    [
        (torch.zeros(2), "returned a tensor [2]; expected a dict of column -> tensor [2]"),
        ({"a": 0.5}, "a is a float; expected a tensor [2]"),
        ({"a": torch.tensor(0.5)}, "a is a 0-dim tensor; expected [2], one row for each seed"),
        ({"a": torch.zeros(2, 3)}, "a is a tensor [2, 3]; expected [2]"),
        ({"a": torch.zeros(3)}, "a is a tensor [3]; expected [2]"),
        ({"a": Reading(torch.zeros(2, 3), axis="k", coords=[1])}, "a has 3 values a seed but 1 coords"),
        ({"a": Reading(torch.zeros(2), torch.zeros(1))}, "stderr of a is a tensor [1]; expected [2]"),
    ],
)
def test_a_metric_of_another_form_is_refused(value: Any, line: str) -> None:
    with pytest.raises(ValueError, match=r"^metrics\.own: " + re.escape(line)):
        trained(Strategy(), metrics={"own": lambda b: value})


def test_later_steps_are_not_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking at values waits for the device: once a task is enough."""
    looked: list[int] = []
    finite = Tensor.isfinite
    monkeypatch.setattr(Tensor, "isfinite", lambda t: looked.append(1) or finite(t))
    few = trained(Right(), budget=Budget(steps=2, batch_size=4)) and len(looked)
    many = trained(Right(), budget=Budget(steps=9, batch_size=4)) and len(looked) - few
    assert few == many > 0


def test_the_checks_draw_nothing_and_an_unchecked_run_is_the_same() -> None:
    """A module's forward pass in the checks leaves the run as it was."""
    s = stream()
    plain = trained(Strategy()).learner.params
    torch.manual_seed(3)
    state = torch.get_rng_state()
    again = run(
        s, [], model=MLP(s.shape, s.outputs, (6,)), optimizer=SGD(lr=0.1), budget=Budget(steps=2, batch_size=4)
    ).learner.params
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(v, again[k]) for k, v in plain.items())
