"""`check`: the promises of what a command line names, one line for each."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from harness.contract import datasets, metrics, models, strategies, streams
from harness.contract.strategies import Broken, Case
from harness.contract.toy import MODELS, OPTIMIZERS, Undefined
from harness.jobs.setting import build, build_strategies
from harness.models.module import as_model
from harness.strategy import Strategy
from harness.types import Model, Stream
from harness.wording import first_line
from tasks.datasets import Dataset
from tasks.stream import SCENARIOS


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
        if "dataset" in chosen:
            yield from _dataset(values["dataset"])
        if "tasks" in chosen:
            yield from _tasks(values["tasks"], values["dataset"] if "dataset" in chosen else None)
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

    what = f"model={_called(node)}"
    for title, one in models.CHECKS.items():
        fault = _fault(one, [make])
        yield Finding(what, title, fault)
        if fault and one is models.fits:
            return  # no other check could run


def _dataset(node: Mapping[str, Any]) -> Iterator[Finding]:
    def make(**changes: Any) -> Dataset:
        made: Dataset = build({**node, **changes})
        return made

    what = f"dataset={node.get('name') or _called(node.get('make') or node)}"
    said = "none" if node.get("pad") else str(node.get("normalise", "none"))  # padding moves the mean
    case = datasets.Case(make, said, tuple(node))
    if fault := _fault(lambda case: case.data, [case]):
        yield Finding(what, "it can be read", fault)
        return
    for title, one in datasets.CHECKS.items():
        fault = _fault(one, [case])
        yield Finding(what, title, fault)
        if fault and one is datasets.fits:
            return  # no other check could run


def _tasks(node: Mapping[str, Any], dataset: Mapping[str, Any] | None) -> Iterator[Finding]:
    """The stream on toy data, or on a few rows of the chosen data set, in every scenario that it does not refuse."""
    from hydra.utils import get_object

    data = streams.toy_data() if dataset is None else datasets.few(build(dataset))
    module = sys.modules[get_object(node["_target_"]).__module__]
    what, own = f"tasks={_called(node)}", {k: v for k, v in node.items() if k != "_target_"}
    cases, refusals = [], []
    for scenario in SCENARIOS:

        def make(scenario: str = scenario, **changes: Any) -> Stream:
            given = {"dataset": data, "classes": "seen", "pin": None, "device": "cpu", **changes}
            made: Stream = build(node, scenario=scenario, **given)
            return made

        case = streams.Case(make, scenario, (data,), arguments=own, exempt=getattr(module, "EXEMPT", {}))
        try:
            _ = case.stream
        except Exception as error:
            if isinstance(error, ValueError) and str(error).startswith("scenario="):
                refusals.append(str(error))
                continue
            yield Finding(what, f"it can be made with scenario={scenario}", _said(error))
            return
        cases.append(case)
    if not cases:
        yield Finding(what, "it can be made", f"every scenario is refused: {refusals[0]}")
        return
    for title, one in streams.CHECKS.items():
        if one.__name__ in cases[0].exempt:
            yield Finding(what, f"{title} (not promised: {cases[0].exempt[one.__name__]})", "")
            continue
        fault = _fault(one, cases)
        yield Finding(what, title, fault)
        if fault and one is streams.fits:
            return  # no other check could run


def _called(node: Mapping[str, Any]) -> str:
    """What a target is called."""
    return str(node["_target_"]).rpartition(".")[2]


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
            scenario = getattr(subject, "scenario", "")
            setting = f" (scenario={scenario})" if scenario else ""
            return f"{_said(error)}{setting}"
    return ""


def _said(error: BaseException) -> str:
    kind = "" if isinstance(error, (Broken, ValueError)) else f"{type(error).__name__}: "
    return f"{kind}{first_line(error)}"
