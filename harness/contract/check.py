"""`check`: the promises of strategies, models and metrics that a command line names, one line for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from harness.contract import metrics, models, strategies
from harness.contract.strategies import Broken, Case
from harness.contract.toy import MODELS, OPTIMIZERS, Undefined
from harness.jobs.setting import build, build_strategies
from harness.models.module import as_model
from harness.strategy import Strategy
from harness.types import Model, Stream
from harness.wording import first_line

GROUPS = ("strategy", "model", "metrics")


class Finding(NamedTuple):
    """The outcome of one check."""

    what: str  # strategy=mine
    check: str
    fault: str  # "" if the promise is kept

    def __str__(self) -> str:
        return f"{'FAILS' if self.fault else 'ok':<6}{self.what}: {self.check}{self.fault and f': {self.fault}'}"


def printed(values: Mapping[str, Any], chosen: Sequence[str]) -> int:
    """Print what `check` finds, and a line that counts it; returns the number of faults."""
    faults, found = 0, 0
    for finding in check(values, chosen):
        print(finding, flush=True)
        found, faults = found + 1, faults + bool(finding.fault)
    print(f"{faults} of {found} checks failed" if faults else f"all {found} checks passed")
    return faults


def check(values: Mapping[str, Any], chosen: Sequence[str]) -> Iterator[Finding]:
    """Check the chosen groups of a composed configuration."""
    with torch.random.fork_rng(devices=()):
        if "strategy" in chosen:
            for name, node in values["strategy"].items():
                yield from _strategy(name, node)
        if "model" in chosen:
            yield from _model(values["model"])
        if "metrics" in chosen:
            for name, node in values["metrics"].items():
                if node is not None:
                    metric = build(node)
                    for title, one in metrics.CHECKS.items():
                        fault = _fault(one, [metric])
                        yield Finding(f"metrics={name}", title, fault)
                        if fault and one is metrics.fits:
                            break  # no other check could run


def _strategy(name: str, node: Any) -> Iterator[Finding]:
    from hydra.utils import get_object

    def make() -> Strategy:
        (part,) = build_strategies({name: node}).values()
        return part

    what, cls = f"strategy={name}", get_object(node["_target_"])
    yield Finding(what, "keys equal the signature", _fault(lambda node: strategies.keys(cls, node), [node]))
    try:
        scenarios = make().scenarios
    except Exception as error:
        yield Finding(what, "it can be made", _said(error))
        return
    cases = [
        Case(make, scenario, model, optimizer)
        for scenario, optimizer in zip(scenarios, OPTIMIZERS)
        for model in MODELS.values()
    ]
    fault = _fault(lambda case: case.whole, cases)
    yield Finding(what, "its hooks return what they should", fault)
    if fault:
        return  # no other check could run
    for title, one in strategies.CHECKS.items():
        yield Finding(what, title, _fault(one, cases))
    alike = [case for case in cases if case.model is MODELS["mlp"]]
    yield Finding(what, "it is not naive", _fault(strategies.acts, [alike]))


def _model(node: Any) -> Iterator[Finding]:
    def make(stream: Stream) -> Model:
        return as_model(lambda shape, outputs: build(node, shape=shape, outputs=outputs), stream)

    what = f"model={str(node['_target_']).rpartition('.')[2]}"
    for title, one in models.CHECKS.items():
        fault = _fault(one, [make])
        yield Finding(what, title, fault)
        if fault and one is models.fits:
            return  # no other check could run


def _fault(one: Callable[[Any], None], subjects: Sequence[Any]) -> str:
    """What is wrong with the first subject that breaks the promise, and in which setting."""
    for subject in subjects:
        try:
            one(subject)
        except Undefined as refusal:
            if isinstance(subject, Case) and subject.model is not MODELS["mlp"]:
                continue  # it is not defined for this net, and says so
            return first_line(refusal)
        except (Exception, SystemExit) as error:
            setting = f" (scenario={subject.scenario})" if isinstance(subject, Case) else ""
            return f"{_said(error)}{setting}"
    return ""


def _said(error: BaseException) -> str:
    kind = "" if isinstance(error, (Broken, ValueError)) else f"{type(error).__name__}: "
    return f"{kind}{first_line(error)}"
