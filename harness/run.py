"""From a stream, a model and strategies to tables: as a Python call, and from a configuration.

>>> from tasks.datasets import load
>>> from tasks.permuted import permuted
>>> from harness.models.mlp import MLP
>>> from harness.optim import SGD
>>> from harness.learner import Budget
>>> from strategies.naive import Naive
>>> stream = permuted(dataset=load("digits"), seeds=[0, 1], n_tasks=2, fixed=False)
>>> model = MLP(stream.shape, stream.outputs, widths=(20,))
>>> result = run(stream, [Naive()], model=model, optimizer=SGD(lr=0.1), budget=Budget(epochs=1))
>>> result.accuracy.shape  # [seeds, boundaries with the initialisation, tasks]
torch.Size([2, 3, 2])
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from harness import loop, store
from harness.boundary import Metric
from harness.learner import Budget, Learner
from harness.models.module import Module
from harness.optim import Optimizer
from harness.record.recorder import Columns, Evaluation, InMemory, Recorder, Sink
from harness.store import provenance
from harness.strategy import Chain, Strategy, full_key
from harness.trackers import About, Tracker, Trackers, published, summaries, warn
from harness.types import Model, Net, Stream
from tasks.stream import on_validation

if TYPE_CHECKING:
    import pandas as pd
    from omegaconf import DictConfig


@dataclass(frozen=True)
class Result:
    """What a run leaves in memory."""

    accuracy: Tensor  # [S, T + 1, T] test accuracy; row 0 the initialisation, row i + 1 after task i
    learner: Learner
    strategy: Chain
    tables: dict[str, Columns] = field(default_factory=dict)  # empty where they went to a folder

    def frame(self, table: str = "metrics") -> pd.DataFrame:
        """A table as a pandas frame."""
        import pandas as pd

        return pd.DataFrame(self.tables[table])


def run(
    stream: Stream,
    strategies: Sequence[Strategy] = (),
    *,
    model: Model,
    optimizer: Optimizer,
    budget: Budget | None = None,
    metrics: Mapping[str, Metric] | None = None,
    metrics_every: int = 1,
    evaluation: Evaluation | None = None,
    control: Tensor | None = None,
    is_control: bool = False,
    gap: bool = True,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    pin: Mapping[str, int | None] | None = None,
    sink: Sink | None = None,
    resume: tuple[int, dict[str, Any]] | None = None,
    progress: Callable[[int, int, int], None] = lambda task, step, steps: None,
) -> Result:
    """Train strategies on a stream, all of the stream's seeds at once, and measure at every boundary.

    `control` [S, T] is a fresh net's accuracy on each task (`fresh_accuracy`), which intransigence
    and the trainability gap are measured against; `is_control` says that this run is that control.
    `sink` takes the rows, nets and checkpoints; by default they stay in memory. `resume` is a boundary
    and its checkpoint. `metrics_every=k` measures around every k-th task, the first and the last.

    Raises ValueError where a strategy is not defined for the stream's scenario, or needs boundaries that are hidden.
    """
    check_scenario(stream, strategies)
    check_boundaries(stream, strategies, optimizer)
    chain = Chain(strategies)
    learner = Learner(model, stream, optimizer, budget or Budget(), device=device, dtype=dtype, pin=pin)
    sink = InMemory() if sink is None else sink
    recorder = Recorder(
        learner,
        chain,
        metrics or {},
        evaluation or Evaluation(),
        sink,
        every=metrics_every,
        control=control,
        is_control=is_control,
        gap=gap,
        progress=progress,
        warn=warn,
    )
    loop.prepare(learner, chain)
    start = 0
    if resume is None:
        recorder.initial()
    else:
        start = resume[0] + 1
        recorder.load_state_dict(resume[1])
    loop.train(learner, chain, recorder, start=start)
    recorder.write_times(len(stream.tasks) - 1)
    return Result(recorder.accuracy, learner, chain, getattr(sink, "tables", {}))


def check_scenario(stream: Stream, strategies: Sequence[Strategy]) -> None:
    """ValueError where a strategy is not defined for the stream's scenario."""
    for part in strategies:
        if stream.scenario not in part.scenarios:
            why = f", because {part.why}" if part.why else ""
            known = ", ".join(part.scenarios)
            raise ValueError(f"scenario={stream.scenario}: {part.name} is defined for {known} only{why}")


def check_boundaries(stream: Stream, strategies: Sequence[Strategy], optimizer: Optimizer) -> None:
    """ValueError if boundaries are hidden and a strategy, the scenario or the optimizer depends on them."""
    if stream.announced:
        return
    needs = [part.name for part in strategies if part.needs_boundaries]
    if needs:
        raise ValueError(
            f"boundaries=hidden: {needs[0]} acts at task boundaries and needs to know them; use boundaries=announced"
        )
    if stream.scenario == "task":
        raise ValueError("boundaries=hidden: scenario=task reveals the task of each row; use scenario=domain or class")
    if stream.scenario == "class" and stream.classes == "seen":
        raise ValueError("boundaries=hidden: classes=seen adds a task's classes at its boundary; use classes=all")
    if optimizer.reset_each_task:
        raise ValueError("boundaries=hidden: optimizer.reset=true acts at task boundaries; use optimizer.reset=false")
    if optimizer.schedule != "constant" and (optimizer.scope == "task" or optimizer.schedule == "task"):
        raise ValueError(
            f"boundaries=hidden: optimizer.schedule={optimizer.schedule} restarts at each task; "
            "use schedule=constant or scope=stream"
        )


def fresh_accuracy(accuracy: Tensor) -> Tensor:
    """Accuracy on each task just after training on it: [S, T], from a run of strategy=reset."""
    return accuracy[:, 1:].diagonal(dim1=1, dim2=2)


# --- from a configuration --------------------------------------------------------------------------


class FolderSink:
    """Rows to a run folder first, then a summary of the boundary to the trackers."""

    def __init__(self, folder: store.RunFolder, trackers: Trackers, seeds: Sequence[int], tasks: int) -> None:
        self.folder, self.trackers, self.seeds, self.tasks = folder, trackers, tuple(seeds), tasks

    def write(self, table: str, columns: Columns) -> None:
        self.folder.append(columns["boundary"][0] if columns["boundary"] else 0, "end", {table: columns})

    def commit(self, boundary: int, checkpoint: Callable[[], dict[str, Any]], net: Net) -> None:
        self.folder.commit(boundary, checkpoint(), net)
        metrics, accuracy = self.folder.table("metrics", boundary), self.folder.table("accuracy", boundary)
        for summary in summaries(metrics, accuracy, self.seeds, self.tasks):
            self.trackers.boundary(summary)

    def net(self, task: int) -> dict[str, Any]:
        return self.folder.net(task)

    def has_net(self, task: int) -> bool:
        return self.folder.has_net(task)


@dataclass(frozen=True)
class Setting:
    """What a configuration says but for its strategy and seeds: runs compare within one setting."""

    cfg: dict[str, Any]
    dataset: Any
    device: torch.device
    threads: int

    @property
    def identity(self) -> dict[str, Any]:
        """Exactly what determines the numbers, strategy and seeds apart."""
        cfg = self.cfg
        budget = cfg["train"] if cfg["train"]["steps"] is None else {**cfg["train"], "epochs": None}
        return {
            **{k: cfg[k] for k in ("tasks", "scenario", "classes", "boundaries", "model", "optimizer", "dtype", "pin")},
            "train": budget,
            "dataset": [self.dataset.name, self.dataset.digest],
            "samples": cfg["eval"]["samples"],
            "split": self.split,
            "threads": self.threads,
            "device": self.device.type,
        }

    @property
    def split(self) -> str:
        """Rows that scores are of: test, or val for choosing values."""
        return str(self.cfg["eval"]["split"])

    @property
    def evaluation(self) -> Evaluation:
        """Which tasks are tested, on how many rows."""
        return Evaluation(**{k: v for k, v in self.cfg["eval"].items() if k != "split"})

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
            raise ValueError(f"dataset.augment={augment}: {made.name} makes its rows itself; use dataset.augment=[]")
        made = replace(made, announced=cfg["boundaries"] == "announced")
        return made if self.split == "test" else on_validation(made)

    def parts(self, stream: Stream) -> dict[str, Any]:
        """Arguments of `run` that every run of this setting shares."""
        cfg = self.cfg
        model = build(cfg["model"], shape=stream.shape, outputs=stream.outputs)
        if isinstance(model, torch.nn.Module):  # a user's own: made once per seed, and vectorised
            model = Module(lambda: build(cfg["model"], shape=stream.shape, outputs=stream.outputs), stream.outputs)
        return {
            "model": model,
            "optimizer": build(cfg["optimizer"]),
            "budget": Budget(**cfg["train"]),
            "device": self.device,
            "dtype": getattr(torch, cfg["dtype"]),
            "pin": {k: v for k, v in cfg["pin"].items() if k != "stream"},
        }


def build(node: Any, **given: Any) -> Any:
    """The one place where Hydra makes objects from configuration."""
    from hydra.utils import instantiate

    if not given:
        return instantiate(node, _convert_="all")
    # given values as call arguments: Hydra would turn a dataclass among them into configuration
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


def from_config(cfg: DictConfig, progress: bool = True) -> Path:
    """Run what a composed configuration says; returns the run's folder.

    A run that is done is not repeated (`force=true` does), one that was cut short is resumed.
    """
    from omegaconf import OmegaConf

    own = OmegaConf.masked_copy(cfg, [str(k) for k in cfg if k != "hydra"])
    plain: Any = OmegaConf.to_container(own, resolve=True)
    threads = int(plain["threads"]) or os.cpu_count() or 1
    torch.set_num_threads(threads)
    setting = Setting(plain, build(plain["dataset"]), chosen_device(plain["device"]), threads)
    return _one(setting, plain["strategy"], build_strategies(plain["strategy"]), tuple(plain["seeds"]), progress)


def chosen_metrics(node: dict[str, Any]) -> dict[str, Metric]:
    """The metrics of a configuration, less those that were left out with null."""
    return {name: build(one) for name, one in node.items() if one is not None}


def chosen_device(name: str) -> torch.device:
    """`auto` is the GPU where there is one. ValueError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device={name}: this machine has {torch.cuda.device_count()} GPUs; use device=auto or cpu")
    return device


RESET = {"reset": {"_target_": "strategies.reset.Reset"}}  # the control that plasticity is measured against


def _one(
    setting: Setting, spec: dict[str, Any], strategies: dict[str, Strategy], seeds: tuple[int, ...], progress: bool
) -> Path:
    # everything that can refuse its settings is made before anything is written
    cfg, label = setting.cfg, "+".join(part.label for part in strategies.values())
    stream = setting.stream(seeds)
    parts, evaluation = setting.parts(stream), setting.evaluation
    metrics = chosen_metrics(cfg["metrics"])
    shown = _trackers(cfg, stream, label, progress)
    check_scenario(stream, list(strategies.values()))
    check_boundaries(stream, list(strategies.values()), parts["optimizer"])
    for line in Chain(list(strategies.values())).disorder():
        warn(f"strategy=[{','.join(strategies)}]: {line}")
    is_control = list(strategies) == ["reset"]
    identity = {**setting.identity, "strategy": spec, "seeds": list(seeds), "eval": cfg["eval"]["tasks"]}
    with _open(setting, stream, label, identity, force=cfg["force"]) as folder:
        if folder.done:
            print(f"done already: {folder.path} (force=true runs it again)")
            if more := sorted(set(metrics) - set(folder.manifest["metrics"])):
                taken = ", ".join(folder.manifest["metrics"]) or "off"
                print(f"it was measured with metrics {taken}; add what is asked for now:")
                print(f"  python -m harness measure {folder.path} metrics=[{','.join(more)}]")
            return folder.path
        resume = _resume(folder, setting, stream, {"metrics": sorted(metrics), "purpose": "run"})
        control = None
        if cfg["control"] and not is_control:
            control = _control(setting, seeds, progress)
        trackers = Trackers(shown)
        sink = FolderSink(folder, trackers, seeds, len(stream.tasks))
        past = summaries(folder.table("metrics"), folder.table("accuracy"), seeds, len(stream.tasks))
        trackers.start(About(cfg, folder.manifest, folder.path, seeds, len(stream.tasks)), past)
        try:
            result = run(
                stream,
                list(strategies.values()),
                metrics=metrics,
                metrics_every=cfg["metrics_every"],
                evaluation=evaluation,
                control=control,
                is_control=is_control,
                gap=cfg["gap"],
                sink=sink,
                resume=resume,
                progress=trackers.progress,
                **parts,
            )
        except BaseException as error:
            trackers.finish([], f"{type(error).__name__}: {error}")
            raise
        alive = result.learner.alive.tolist()
        diverged = [s for s, a in zip(seeds, alive) if not a]
        folder.finish(diverged=diverged)
        if diverged:
            warn(f"seeds {diverged} diverged: their weights are no longer finite; try a lower optimizer.lr")
        trackers.finish(published(folder.path))
        return folder.path


def _open(setting: Setting, stream: Stream, label: str, identity: dict[str, Any], **how: Any) -> store.RunFolder:
    """The run's folder, locked. StoreError if the same configuration found other data there before."""
    folder = store.RunFolder.open(
        setting.cfg["results"],
        f"{stream.name}_{stream.scenario}",
        label,
        store.identity(identity),
        scenario=stream.scenario,
        keep=setting.cfg["keep"],
        **how,
    )
    # names stand in the identity, and what is behind that of a further data set or a function may change
    if folder.manifest.get("stream_hash", stream.hash) != stream.hash:
        folder.close()
        raise store.StoreError(
            f"{folder.path}: its data were others under the same names; use force=true to train on today's,"
            " or results=FOLDER to keep both"
        )
    return folder


def _resume(
    folder: store.RunFolder, setting: Setting, stream: Stream, facts: dict[str, Any]
) -> tuple[int, dict[str, Any]] | None:
    """Where to go on from; writes the configuration and the manifest of this attempt."""
    from omegaconf import OmegaConf

    facts = {**provenance.facts(setting.device.type), **facts}
    resume = folder.resume(source=facts["source"])
    for note in folder.notes:
        warn(note)
    folder.write_config(OmegaConf.to_yaml(OmegaConf.create(setting.cfg)))
    folder.update_manifest(
        setting=store.identity(setting.identity),
        seeds=list(stream.seeds),
        stream_version=stream.version,
        stream_hash=stream.hash,
        split=stream.split,
        config=setting.cfg,
        threads=setting.threads,
        **facts,
    )
    return resume


def _control(setting: Setting, seeds: tuple[int, ...], progress: bool) -> Tensor:
    """A fresh net's accuracy on every task for these seeds [S, T]: found among the results, or trained.

    Seeds that are missing are trained under the run's lock, so that of several processes that need
    them one trains and the others read.
    """
    known = _known_control(setting)
    missing = tuple(s for s in seeds if s not in known)
    if missing:
        stream = replace(setting.stream(missing), announced=True)  # the control acts at every one
        identity = {**setting.identity, "strategy": RESET, "seeds": list(missing), "purpose": "control"}
        with _open(setting, stream, "reset", identity, wait=3600.0) as folder:
            if not folder.done:
                resume = _resume(folder, setting, stream, {"metrics": [], "purpose": "control"})
                if progress:
                    print(f"training the control first: a fresh net for each task, seeds {list(missing)}", flush=True)
                run(
                    stream,
                    list(build_strategies(RESET).values()),
                    evaluation=replace(setting.evaluation, tasks=1, every=None),
                    is_control=True,
                    gap=False,
                    sink=FolderSink(folder, Trackers([]), missing, len(stream.tasks)),
                    resume=resume,
                    **setting.parts(stream),
                )
                folder.finish(diverged=[])
        known = _known_control(setting)
    return torch.stack([known[s] for s in seeds])


def _known_control(setting: Setting) -> dict[int, Tensor]:
    """Accuracy on each task just after it [T], by seed, from every finished control of this setting."""
    known: dict[int, Tensor] = {}
    for found in store.find_runs(setting.cfg["results"], strategy="reset", setting=store.identity(setting.identity)):
        table = store.read_table(found, "accuracy").to_pylist()
        tasks = 1 + max(row["boundary"] for row in table)
        for row in table:
            if row["boundary"] == row["task"]:
                known.setdefault(row["seed"], torch.full((tasks,), float("nan"), dtype=torch.float64))
                known[row["seed"]][row["task"]] = row["accuracy"]
    return known


def _trackers(cfg: dict[str, Any], stream: Stream, label: str, progress: bool) -> list[Tracker]:
    from harness.trackers.console import Console
    from harness.trackers.wandb import Target, WandB

    title = (
        f"{label} on {stream.name} (scenario {stream.scenario}, {len(stream.tasks)} tasks, seeds {list(stream.seeds)})"
    )
    closing = [f"compare: python -m harness leaderboard {cfg['results']}"]
    shown: list[Tracker] = [Console(title, closing=closing)] if progress else []
    settings = dict(cfg["tracker"] or {"mode": "disabled"})
    mode = settings.pop("mode")
    return shown if mode == "disabled" else [*shown, WandB(mode, Target(**settings))]
