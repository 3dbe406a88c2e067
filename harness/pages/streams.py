"""The page of all streams, generated from their docstrings, the comments on their settings, and a tiny run of each."""

from __future__ import annotations

import inspect
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from harness.config import catalogue

HEAD = """\
# Streams

Made by `python -m harness catalogue tasks > tasks/README.md` from the docstrings and the comments in conf/tasks; not
edited by hand. `python -m harness tasks=NAME tasks.KEY=VALUE` chooses one and its settings; `scenario`, `classes`,
`boundaries` and `dataset` are set beside it. Every stream has training, validation and test rows; each seed draws its
own unless `tasks.fixed` or `pin.stream` is set. Seconds are those of a tiny run: five seeds, two tasks of twenty steps
on digits with a small net, training and testing, on one thread of the machine that made this page.
"""


def text(seconds: Callable[[str], str] | None = None) -> str:
    """The whole page as Markdown; `seconds` maps a stream's name to its time, by default that of a tiny run."""
    names = list(catalogue.options("tasks"))
    if seconds is None:
        seconds = tiny
        tiny(names[0])  # the imports of the first run must not count for that stream
    rows = ["| stream | scenarios | needs | seconds | lines |", "| --- | --- | --- | ---: | ---: |"]
    for name in names:
        function, doc = _target(name)
        lines = len(Path(inspect.getfile(function)).read_text(encoding="utf-8").splitlines())
        needs = doc.get("Needs", "").rstrip(".")
        rows.append(f"| [{name}](#{name}) | {', '.join(_scenarios(function))} | {needs} | {seconds(name)} | {lines} |")
    return "\n".join([HEAD, *rows, "", *(line for name in names for line in section(name))])


def section(name: str) -> Iterator[str]:
    """One stream: description, source, scenarios and settings."""
    function, doc = _target(name)
    yield from (f"## {name}", "", doc["what"], "")
    refused = [s for s in ("task", "domain", "class") if s not in _scenarios(function)]
    why = getattr(inspect.getmodule(function), "WHY", "")
    no = f"; not {' or '.join(refused)}, since {why}" if refused else ""
    yield f"* Scenarios: {', '.join(_scenarios(function))}{no}"
    yield from (f"* {key}: {doc[key]}" for key in ("Differs", "Needs") if key in doc)
    yield from ("", "| setting | default | meaning |", "| --- | --- | --- |")
    for key, value, meaning in settings_of(name):
        yield f"| `tasks.{key}` | {value} | {meaning} |"
    yield ""


def settings_of(name: str) -> list[tuple[str, str, str]]:
    """Keys of a stream's file with their defaults and comments.

    >>> settings_of("same")
    [('n_tasks', '10', 'Number of tasks.')]
    """
    found, comment = [], []
    for line in catalogue.options("tasks")[name].read_text(encoding="utf-8").splitlines():
        pair = re.match(r"(\w+): *(.*)", line)
        if line.startswith("#"):
            comment.append(line.lstrip("# "))
        elif pair:
            if pair[1] != "_target_":
                found.append((pair[1], pair[2], " ".join(comment)))
            comment = []
    return found


def tiny(name: str) -> str:
    """Seconds of a tiny run, or a dash if its data is not available."""
    from harness.learner import Budget
    from harness.models.mlp import MLP
    from harness.optim import SGD
    from harness.run import build, run
    from tasks.datasets import DataError, load

    node, data = _node(name), load("digits")
    few = {"n_tasks": 2} if "n_tasks" in node else {}
    more = {"width": data.classes // 2} if "width" in node else {}  # two tasks that contain all classes
    began = time.process_time()
    try:
        stream = build({**node, **few, **more}, dataset=data, seeds=range(5), scenario=_scenarios(_target(name)[0])[-1])
        run(
            stream,
            model=MLP(stream.shape, stream.outputs, widths=(32,)),
            optimizer=SGD(lr=0.05),
            budget=Budget(steps=20, batch_size=32),
            gap=False,
        )
    except DataError:
        return "-"
    return f"{time.process_time() - began:.1f}"


def _target(name: str) -> tuple[Any, dict[str, str]]:
    """A stream's function, and its docstring: `what`, then the paragraphs with a heading."""
    from hydra.utils import get_method

    function = get_method(_node(name)["_target_"])
    text: dict[str, str] = {}
    for part in (inspect.getdoc(function) or "").split("\n\n"):
        for piece in re.split(r"\n(?=Differs: |Needs: )", part):
            head = re.match(r"(Differs|Needs): ", piece)
            if head:
                text[head[1]] = " ".join(piece[head.end() :].split())
            elif not piece.startswith("Raises"):
                text["what"] = f"{text['what']}\n\n{piece}" if "what" in text else piece
    return function, text


def _node(name: str) -> dict[str, Any]:
    from omegaconf import OmegaConf

    node: Any = OmegaConf.to_container(OmegaConf.load(catalogue.options("tasks")[name]))
    return dict(node)


def _scenarios(function: Any) -> tuple[str, ...]:
    known: tuple[str, ...] = getattr(inspect.getmodule(function), "SCENARIOS", ("task", "domain", "class"))
    return known
