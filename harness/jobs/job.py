"""One job: the run of a composed configuration, resumed if it was interrupted, with its control and trackers."""

from __future__ import annotations

import itertools
import json
import shlex
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from harness import store
from harness.config.catalogue import targets
from harness.groups import groups
from harness.jobs.identity import of_run, threads_of, told
from harness.jobs.setting import Setting, build, build_strategies, chosen_device, chosen_metrics
from harness.record.sinks import Columns
from harness.run import check_boundaries, check_scenario, run
from harness.store import entries, provenance, sources
from harness.store.known import remember
from harness.strategy import Chain, Strategy
from harness.trackers import About, Tracker, Trackers, published, summaries
from harness.types import Net, Stream
from harness.wording import warn

if TYPE_CHECKING:
    from omegaconf import DictConfig


def from_config(cfg: DictConfig, progress: bool = True) -> Path:
    """Run a composed configuration; returns the run's folder.

    A finished run is not repeated unless `force=true`; an interrupted one is resumed.
    """
    from omegaconf import OmegaConf

    own = OmegaConf.masked_copy(cfg, [str(k) for k in cfg if k != "hydra"])
    plain: Any = OmegaConf.to_container(own, resolve=True)
    threads = threads_of(plain)
    torch.set_num_threads(threads)
    setting = Setting(plain, build(plain["dataset"]), chosen_device(plain["device"]), threads)
    remember(plain["dataset"], setting.dataset)
    return _one(setting, plain["strategy"], build_strategies(plain["strategy"]), tuple(plain["seeds"]), progress)


RESET = {"reset": {"_target_": "strategies.reset.Reset"}}  # the control against which plasticity is measured


def _one(
    setting: Setting, spec: dict[str, Any], strategies: dict[str, Strategy], seeds: tuple[int, ...], progress: bool
) -> Path:
    # make everything that can refuse its settings before anything is written
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
    identity = of_run(cfg, setting.identity)
    with _open(setting, stream, label, identity, force=cfg["force"] is True, beside=cfg["force"] == "beside") as folder:
        if folder.done:
            told(folder, metrics)
            return folder.path
        if progress and (facts := setting.facts(stream)):
            print(f"{setting.dataset.name}: {facts}", flush=True)
        if progress and len(apart := groups(stream)) > 1:
            print(
                f"{stream.name}: tasks differ in size between seeds, which are trained in {len(apart)} groups"
                " (tasks.fixed=true gives all seeds the same tasks)",
                flush=True,
            )
        resume = _resume(folder, setting, stream, spec, {"metrics": sorted(metrics), "purpose": "run"})
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
        alive = result.alive.tolist()
        diverged = [s for s, a in zip(seeds, alive) if not a]
        folder.finish(diverged=diverged)
        if diverged:
            penalties = [f"the strength of {part.name}" for part in strategies.values() if part.overrides("loss")]
            remedy = " or lower ".join(["optimizer.lr", *penalties])
            warn(f"seeds {diverged} diverged: their parameters are no longer finite; lower {remedy}")
        trackers.finish(published(folder.path))
        return folder.path


def _open(
    setting: Setting, stream: Stream, label: str, identity: dict[str, Any], *, beside: bool = False, **how: Any
) -> store.RunFolder:
    """The run's folder, locked. StoreError if it was started on different data."""
    place = setting.cfg["results"], f"{stream.name}_{stream.scenario}", label
    folder = store.RunFolder.open(
        *place,
        _version(place, store.identity(identity), beside),
        scenario=stream.scenario,
        keep=setting.cfg["keep"],
        **how,
    )
    # the identity has names only; the data behind a function or a further data set may change
    if folder.manifest.get("stream_hash", stream.hash) != stream.hash:
        folder.close()
        raise store.StoreError(
            f"{folder.path}: this run was started on different data with the same name; restart it on the current data"
            " with force=true, or keep both with results=FOLDER"
        )
    return folder


def _version(place: tuple[str, str, str], run_id: str, beside: bool) -> str:
    """The id of the version of a run that today's code made: `run_id`, or `run_id-2`... if other code made the first.

    If none did: the first that is free if `beside`, else `run_id`.
    """
    for n in itertools.count(1):
        name = run_id if n == 1 else f"{run_id}-{n}"
        manifest = store.run_path(*place, name) / "manifest.json"
        if not manifest.exists():
            return name if beside else run_id
        with suppress(OSError, ValueError):  # RunFolder reports what cannot be read
            if not sources.edited(json.loads(manifest.read_bytes())):
                return name
    raise AssertionError


def _resume(
    folder: store.RunFolder, setting: Setting, stream: Stream, spec: dict[str, Any], facts: dict[str, Any]
) -> tuple[int, dict[str, Any]] | None:
    """The boundary to resume from, if any; writes the configuration and the manifest of this attempt."""
    from omegaconf import OmegaConf

    used = [spec, *(setting.cfg[key] for key in ("tasks", "dataset", "model", "optimizer", "metrics"))]
    facts = {**provenance.facts(setting.device.type, targets(used)), **facts}
    resume = folder.resume()
    for note in folder.notes:
        warn(note)
    folder.write_config(OmegaConf.to_yaml(OmegaConf.create(setting.cfg)))
    folder.update_manifest(
        setting=store.identity(setting.identity),
        entry=entries.named(folder.manifest["strategy"], spec, folder.manifest["run_id"]),
        seeds=list(stream.seeds),
        stream_version=stream.version,
        stream_hash=stream.hash,
        split=stream.split,
        data=asdict(rows) if (rows := setting.facts(stream)) else None,
        config=setting.cfg,
        threads=setting.threads,
        **facts,
    )
    return resume


def _control(setting: Setting, seeds: tuple[int, ...], progress: bool) -> Tensor:
    """A fresh net's accuracy on every task for these seeds [S, T]: found among the results, or trained.

    Missing seeds are trained under the control's lock: of several processes that need them, one trains and the others
    wait and read.
    """
    known = _known_control(setting)
    missing = tuple(s for s in seeds if s not in known)
    if missing:
        stream = replace(setting.stream(missing), announced=True)  # the control needs them
        identity = {**setting.identity, "strategy": RESET, "seeds": list(missing), "purpose": "control"}
        with _open(setting, stream, "reset", identity, beside=True, wait=3600.0) as folder:
            if not folder.done:
                resume = _resume(folder, setting, stream, RESET, {"metrics": [], "purpose": "control"})
                if progress:
                    print(f"training the control first: a fresh net on each task, seeds {list(missing)}", flush=True)
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
    """Accuracy on each task just after training on it [T], by seed, from the finished controls of this setting."""
    known: dict[int, Tensor] = {}
    for found in store.find_runs(setting.cfg["results"], strategy="reset", setting=store.identity(setting.identity)):
        if sources.edited(found.manifest):
            continue
        try:
            table = store.read_rows(found, "accuracy").to_pylist()
        except store.StoreError as error:  # another control may have these seeds, or it is trained again
            warn(str(error))
            continue
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
    closing = [f"compare: python -m harness leaderboard {shlex.quote(cfg['results'])}"]
    shown: list[Tracker] = [Console(title, closing=closing)] if progress else []
    settings = dict(cfg["tracker"] or {"mode": "disabled"})
    mode = settings.pop("mode")
    return shown if mode == "disabled" else [*shown, WandB(mode, Target(**settings))]


class FolderSink:
    """Writes rows to a run folder, then sends a summary of the boundary to the trackers."""

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
