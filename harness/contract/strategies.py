"""What a strategy promises. Each check raises Broken, with what is wrong and the remedy."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, wraps
from typing import Any

import torch

from harness.contract.generators import moved
from harness.contract.toy import OPTIMIZERS, SEEDS, Run, Saver, begin, copy_of, differing, go, same, state
from harness.learner import Learner
from harness.loop import train
from harness.strategy import HOOKS, Chain, Strategy
from harness.types import Model, Stream

DRAW = "draw from self.random, as in rng.normal(self.random.key(), n)"


class Broken(AssertionError):
    """A promise that is not kept."""


@dataclass
class Case:
    """A strategy in one setting."""

    make: Callable[[], Strategy | None]  # None: plain training
    scenario: str
    model: Callable[[Stream], Model]
    optimizer: str

    def parts(self) -> list[Strategy]:
        part = self.make()
        return [] if part is None else [part]

    def begin(self, **how: Any) -> tuple[Learner, Chain]:
        return begin(self.parts(), self.scenario, self.model, OPTIMIZERS[self.optimizer](), **how)

    def go(self, **how: Any) -> Run:
        return go(self.parts(), self.scenario, self.model, OPTIMIZERS[self.optimizer](), **how)

    @cached_property
    def whole(self) -> Run:
        """A finished run that several checks look at; they leave it as it is."""
        return self.go()

    def resumed(self) -> tuple[Learner, Chain]:
        """A new process's learner and strategy with the state that was saved after task 1."""
        saved = self.whole.checkpoint()
        learner, chain = self.begin()
        learner.load_state_dict(saved["learner"])
        chain.load_state_dict(saved["strategy"])
        return learner, chain


def repeats(case: Case) -> None:
    """A repeat is bitwise equal."""
    first, second = case.whole, case.go()
    where = differing(state(first.learner, first.chain), state(second.learner, second.chain))
    if where or not same(first.logits(), second.logits()):
        raise Broken(
            f"a repeat differs in {where or 'the deployed net'}; draw from self.random, as in rng.normal(key, n)"
        )


def alone(case: Case, *, dtype: torch.dtype = torch.float64, steps: int | None = None) -> None:
    """Row s of three seeds is the run of seed s alone."""
    short = {} if steps is None else {"steps": steps}
    together = case.go(dtype=dtype, **short) if short or dtype != torch.float64 else case.whole
    s = len(SEEDS) - 1
    single = case.go(seeds=SEEDS[s:], dtype=dtype, **short)
    rtol, atol = (1e-9, 1e-10) if dtype == torch.float64 else (1e-5, 1e-6)
    remedy = "reduce over every axis but the first, which is the seed's"
    for k, v in single.learner.params.items():
        row = together.learner.params[k][s]
        if not torch.allclose(row, v[0], rtol=rtol, atol=atol, equal_nan=True):
            gap = (row - v[0]).abs().max().item()
            raise Broken(f"seed {s} depends on the other seeds: {k} differs by {gap:.2g}; {remedy}")
    if dtype == torch.float64 and not torch.allclose(together.logits()[s], single.logits()[0], rtol=1e-8, atol=1e-9):
        raise Broken(f"the net deployed for seed {s} depends on the other seeds; {remedy}")


def pure(case: Case) -> None:
    """`loss` changes nothing and answers twice alike."""
    learner, chain = case.resumed()
    task = learner.stream.tasks[2]
    learner.enter(task)
    data = chain.begin(learner, task)
    learner.plan(data)
    if not learner.planned:
        return
    batch = chain.batch(learner, next(iter(learner.batches(data))))
    before = copy_of(state(learner, chain))
    leaves = {k: v.detach().requires_grad_() for k, v in learner.params.items()}
    _, out = learner.task_loss(leaves, batch)
    first, second = (torch.as_tensor(chain.loss(learner, leaves, batch, out)).detach() for _ in range(2))
    if where := differing(before, copy_of(state(learner, chain))):
        raise Broken(
            f"`loss` changes {where}; change state in `batch` or `step`: sharpness-aware methods call it twice"
        )
    if not torch.equal(first, second):
        raise Broken("`loss` answers differently when called again; draw in `batch` and keep the draw in batch.extra")


def deploys(case: Case) -> None:
    """Deploying changes nothing."""
    run = case.whole
    before = copy_of(state(run.learner, run.chain))
    first, second = run.logits(), run.logits()
    if where := differing(before, copy_of(state(run.learner, run.chain))):
        raise Broken(f"`deploy` changes {where}; return a new Net instead, as in Net(params, buffers, net.apply)")
    if not same(first, second):
        raise Broken("`deploy` answers differently when called again")


def resumes(case: Case) -> None:
    """A run that was interrupted after task 1 ends as one that was not."""
    whole = case.whole
    learner, chain = case.resumed()
    if where := differing(whole.checkpoint(), state(learner, chain)):
        raise Broken(f"{where} is not restored; allocate it in `setup`, and keep it as an attribute that can be saved")
    train(learner, chain, Saver(learner, chain), start=2)
    where = differing(state(whole.learner, whole.chain), state(learner, chain))
    if where or not same(Run(learner, chain, None).logits(), whole.logits()):
        what = where or "the deployed net"
        raise Broken(f"a resumed run ends with another {what}; some state is not saved: make it an attribute of self")


def draws(case: Case) -> None:
    """No hook moves a global random generator."""
    found: dict[str, str] = {}

    def watched(hook: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(call)
        def inner(*args: Any, **how: Any) -> Any:
            result, names = moved(lambda: call(*args, **how))
            if names:
                found.setdefault(hook, " and ".join(names))
            return watched(hook, result) if hook == "grad" and callable(result) else result

        return inner

    part, names = moved(case.make)
    if names:
        found["__init__"] = " and ".join(names)
    if part is None:
        return
    for hook in HOOKS:
        if part.overrides(hook):
            setattr(part, hook, watched(hook, getattr(part, hook)))
    part.transient = (*part.transient, *HOOKS)
    run = go([part], case.scenario, case.model, OPTIMIZERS[case.optimizer]())
    run.logits()
    if found:
        hook, source = next(iter(found.items()))
        raise Broken(
            f"`{hook}` draws from {source}'s global generator; draw from self.random, as in rng.normal(key, n)"
        )


@cache
def plain(scenario: str, model: Callable[[Stream], Model], optimizer: str) -> Case:
    return Case(lambda: None, scenario, model, optimizer)


def acts(cases: Sequence[Case]) -> None:
    """It is not naive, unless it has no hook."""
    (part,) = cases[0].parts()
    hooks = [hook for hook in HOOKS if part.overrides(hook)]
    changed = any(
        not same(case.whole.logits(), plain(case.scenario, case.model, case.optimizer).whole.logits()) for case in cases
    )
    if hooks and not changed:
        raise Broken(f"it defines {', '.join(hooks)}, but trains as naive does; it may act too rarely for a toy run")
    if not hooks and changed:
        raise Broken("it defines no hook, but does not train as naive does")


def keys(cls: Callable[..., Any], node: Mapping[str, Any]) -> None:
    """The configuration's keys are the constructor's arguments."""
    typed = [k for k in node if k != "_target_"]
    arguments = list(inspect.signature(cls).parameters.values())
    if any(p.kind is p.VAR_KEYWORD for p in arguments):
        return
    missing = [p.name for p in arguments if p.name not in typed]
    unknown = [k for k in typed if k not in [p.name for p in arguments]]
    if missing or unknown:
        parts = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"has unknown {', '.join(unknown)}"] * bool(unknown)
        raise Broken(f"the file {' and '.join(parts)}; its keys are the arguments of {cls.__name__}")


CHECKS: dict[str, Callable[[Case], None]] = {
    "a repeat is bitwise equal": repeats,
    "row s of three seeds equals seed s alone": alone,
    "loss is pure": pure,
    "draws come from self.random alone": draws,
    "a resumed run equals an uninterrupted one": resumes,
    "deploying changes nothing": deploys,
}
