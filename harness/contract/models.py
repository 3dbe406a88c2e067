"""What a model promises. Each check raises Broken, with what is wrong and the remedy."""

from __future__ import annotations

from collections.abc import Callable

import torch

from harness import returns, rng
from harness.contract import strategies
from harness.contract.generators import moved
from harness.contract.strategies import Broken, Case
from harness.contract.toy import OPTIMIZERS, SEEDS, begin, copy_of, differing, same
from harness.learner import Learner
from harness.types import Batch, Model, Stream

Make = Callable[[Stream], Model]


def start(make: Make) -> tuple[Learner, Batch]:
    """A learner of three seeds, and a batch to train on."""
    learner, _ = begin([], "class", make, OPTIMIZERS["sgd"]())
    learner.plan(learner.stream.tasks[0])
    return learner, next(iter(learner.batches(learner.stream.tasks[0])))


def fits(make: Make) -> None:
    """Parameters have the seed axis, and logits are [seeds, rows, outputs]."""
    try:
        returns.model(start(make)[0])
    except ValueError as error:
        raise Broken(str(error)) from error


def initialises(make: Make) -> None:
    """Row s of `init` depends on key[s] alone."""
    learner, _ = start(make)
    key = rng.keys(SEEDS, "init")
    (together, names), again = moved(lambda: learner.model.init(key)), learner.model.init(key)
    if names:
        raise Broken(f"`init` draws from {names[0]}'s global generator; draw from its key, as in rng.normal(key, n)")
    if not same(list(together), list(again)):
        raise Broken("`init` makes other parameters when called again; draw from its key, as in rng.normal(key, n)")
    for part, single in zip(together, learner.model.init(key[-1:])):
        for k, v in single.items():
            if not torch.equal(part[k][-1], v[0]):
                raise Broken(f"`init` of seed {SEEDS[-1]} depends on the other seeds, in {k}; draw it from its own key")


def still(make: Make) -> None:
    """A forward pass changes nothing, draws from its key alone, and answers twice alike."""
    learner, batch = start(make)
    for train in (True, False):
        mode = "training" if train else "evaluation"
        before = copy_of({"params": learner.params, "buffers": learner.buffers})

        def forward(train: bool = train) -> torch.Tensor:
            key = batch.key if train else None
            return learner.model(learner.params, learner.buffers, batch.x, batch.t, train=train, key=key).logits

        first, names = moved(forward)
        if names:
            raise Broken(f"in {mode} its forward pass draws from {names[0]}'s global generator; draw from `key`")
        if where := differing(before, {"params": learner.params, "buffers": learner.buffers}):
            raise Broken(
                f"in {mode} its forward pass changes parameters or buffers in place ({where}); return new buffers"
            )
        if not torch.equal(first, forward()):
            raise Broken(f"in {mode} its forward pass answers differently when called again; draw from `key` alone")


def declares(make: Make) -> None:
    """Units, layers and head name parameters, activations and recorded inputs that exist."""
    learner, batch = start(make)
    model, known = learner.model, {**learner.params, **learner.buffers}
    with torch.no_grad():
        out = model(learner.params, learner.buffers, batch.x, batch.t, record=True)
    slices = [s for u in model.units for s in (*u.producers, *u.consumers, *u.norm)]
    for k in [*(s.name for s in slices), *(layer.weight for layer in model.layers), *model.head]:
        if k not in known:
            raise Broken(f"it declares {k}, which is no parameter; its parameters are {', '.join(learner.params)}")
    for u in model.units:
        if u.act not in out.acts or out.acts[u.act].shape[2] % u.size:
            raise Broken(f"it declares {u.size} units {u.act}, which are not in Out.acts as [S, B, {u.size}, ...]")
    for layer in model.layers:
        if layer.input not in out.inputs or layer.preact not in out.preacts:
            raise Broken(
                f"its layer {layer.weight} is not recorded as {layer.input} and {layer.preact} with record=True"
            )


def _trained(check: Callable[[Case], None]) -> Callable[[Make], None]:
    return lambda make: check(Case(lambda: None, "class", make, "momentum"))


CHECKS: dict[str, Callable[[Make], None]] = {
    "parameters and logits have the seed axis": fits,
    "init depends on its key alone": initialises,
    "a forward pass is pure": still,
    "units, layers and head exist": declares,
    "a repeat is bitwise equal": _trained(strategies.repeats),
    "row s of three seeds equals seed s alone": _trained(strategies.alone),
    "a resumed run equals an uninterrupted one": _trained(strategies.resumes),
}
