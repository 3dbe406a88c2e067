"""A composed configuration as objects: the setting that runs are compared within, and its parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from harness.boundary import Metric
from harness.compiling.choice import pays
from harness.jobs.identity import of_setting
from harness.jobs.start import identified, initial
from harness.learner import Budget
from harness.models.module import Module
from harness.record.evaluation import Evaluation
from harness.store.known import home
from harness.strategy import Strategy, full_key
from harness.types import Model, Stream
from tasks.stream import on_validation


@dataclass(frozen=True)
class Setting:
    """A configuration without its strategy and seeds: runs are compared within one setting."""

    cfg: dict[str, Any]
    dataset: Any
    device: torch.device
    threads: int

    @property
    def identity(self) -> dict[str, Any]:
        """Exactly what determines the numbers, except strategy and seeds."""
        return of_setting(
            identified(self.cfg), (self.dataset.name, self.dataset.digest), self.threads, self.device.type
        )

    def compiles(self, stream: Stream, model: Model) -> tuple[bool, str]:
        """Whether steps are compiled; and why they are not, if there is no compiler."""
        typed = self.cfg.get("compile", "auto")
        if typed != "auto":
            return bool(typed), ""
        budget, first = Budget(**self.cfg["train"]), stream.tasks[0]
        rows = replace(first, epoch=int(first.train.size.max()) if first.epoch is None else first.epoch)
        return pays(budget.of(rows) * len(stream.tasks), model, self.device, home() / "compile.json")

    @property
    def split(self) -> str:
        """The rows that are scored: test, or val to choose values."""
        return str(self.cfg["eval"]["split"])

    @property
    def evaluation(self) -> Evaluation:
        """Which tasks are tested, and on how many rows."""
        return Evaluation(**{k: v for k, v in self.cfg["eval"].items() if k != "split"})

    def facts(self, stream: Stream) -> Any:
        """Rows and classes of the data set; None if the stream has data of its own."""
        return self.dataset.facts if self.dataset.name in stream.name else None

    def stream(self, seeds: Sequence[int]) -> Stream:
        cfg = self.cfg
        made: Stream = build(
            cfg["tasks"],
            dataset=self.dataset,
            seeds=seeds,
            scenario=cfg["scenario"],
            classes=cfg["classes"],
            pin=cfg["pin"]["stream"],
            device=self.device,
        )
        augment = cfg["dataset"].get("augment")
        if augment and not all(getattr(task.train, "augmented", False) for task in made.tasks):
            raise ValueError(
                f"dataset.augment={augment}: {made.name} generates its own examples; use dataset.augment=[]"
            )
        made = replace(made, announced=cfg["boundaries"] == "announced")
        return made if self.split == "test" else on_validation(made)

    def parts(self, stream: Stream) -> dict[str, Any]:
        """The arguments of `run` that all runs of this setting share."""
        cfg = self.cfg
        model = build(cfg["model"], shape=stream.shape, outputs=stream.outputs)
        if isinstance(model, torch.nn.Module):  # a user's own: made once for each seed, and vectorised
            model = Module(lambda: build(cfg["model"], shape=stream.shape, outputs=stream.outputs), stream.outputs)
        return {
            "model": model,
            "optimizer": build(cfg["optimizer"]),
            "budget": Budget(**cfg["train"]),
            "device": self.device,
            "dtype": getattr(torch, cfg["dtype"]),
            "autocast": torch.bfloat16 if cfg.get("precision") == "bf16" else None,
            "start": initial(model, cfg),
            "pin": {k: v for k, v in cfg["pin"].items() if k != "stream"},
        }


def build(node: Any, **given: Any) -> Any:
    """Make an object from its configuration: the only place that calls Hydra's instantiate."""
    from hydra.utils import instantiate

    if not given:
        return instantiate(node, _convert_="all")
    # as call arguments: Hydra would turn a given dataclass into configuration
    return instantiate(node, _convert_="all", _partial_=True)(**given)


def build_strategies(spec: Mapping[str, Any]) -> dict[str, Strategy]:
    """The strategies of a configuration by their keys, which become their names."""
    from hydra.errors import InstantiationException

    made: dict[str, Strategy] = {}
    for key, node in spec.items():
        try:
            made[key] = build(node)
        except InstantiationException as error:
            if said := full_key(key, node, error.__cause__):
                raise ValueError(said) from error
            raise
        made[key].name = key
    return made


def chosen_metrics(node: dict[str, Any]) -> dict[str, Metric]:
    """The metrics of a configuration, without those set to null."""
    made = {name: build(one) for name, one in node.items() if one is not None}
    # Hydra looks at what each call of its own partial returns, among all modules: a hundredth of a metric's time
    return {k: partial(v.func, *v.args, **v.keywords) if isinstance(v, partial) else v for k, v in made.items()}


def chosen_device(name: str) -> torch.device:
    """`auto` is the GPU if there is one. ValueError for a device that this machine lacks."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device={name}: this machine has {torch.cuda.device_count()} GPUs; use device=auto or cpu")
    return device
