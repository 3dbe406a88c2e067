"""One job: the run of a composed configuration, resumed if it was interrupted, with its control and trackers."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from harness import store
from harness.groups import groups
from harness.jobs.folder import FolderSink, compiled, opened, resumed
from harness.jobs.identity import of_run, threads_of, told
from harness.jobs.plain import Control, CopiesBeside, beside, control_beside, known_control, train_control
from harness.jobs.setting import Setting, build, build_strategies, chosen_device, chosen_metrics
from harness.run import Result, check_boundaries, check_scenario, run
from harness.store.known import remember
from harness.strategy import Chain, Strategy
from harness.trackers import About, Tracker, Trackers, published, summaries
from harness.types import Stream
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
    chain = Chain(list(strategies.values()))
    for line in chain.disorder():
        warn(f"strategy=[{','.join(strategies)}]: {line}")
    for line in chain.remarks(stream, parts["model"]):
        warn(line)
    is_control = list(strategies) == ["reset"]
    identity = of_run(cfg, setting.identity)
    force: Any = {"force": cfg["force"] is True, "beside": cfg["force"] == "beside"}
    with opened(setting, stream, label, identity, **force) as folder, ExitStack() as context:
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
        resume = resumed(folder, setting, stream, spec, {"metrics": sorted(metrics), "purpose": "run"})
        compile = compiled(folder, setting, stream, parts["model"])
        compared = bool(cfg["control"]) and not is_control
        control = context.enter_context(_control(setting, seeds, folder, progress)) if compared else None
        copies = None
        if compared and cfg["gap"] and not chain.plain and beside(setting):
            copies = context.enter_context(CopiesBeside(setting, stream, list(strategies.values()), folder))
        trackers = Trackers(shown)
        sink = FolderSink(folder, trackers, seeds, len(stream.tasks))
        past = summaries(folder.table("metrics"), folder.table("accuracy"), seeds, len(stream.tasks))
        so_far = None if control is None else control.so_far
        trackers.start(About(cfg, folder.manifest, folder.path, seeds, len(stream.tasks), so_far), past)
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
                copies=copies,
                workers=2 if beside(setting) else 1,
                sink=sink,
                resume=resume,
                compile=compile,
                progress=trackers.progress,
                **parts,
            )
            if control is not None:
                control.finish()
        except BaseException as error:
            trackers.finish([], f"{type(error).__name__}: {error}")
            raise
        alive = result.alive.tolist()
        diverged = [s for s, a in zip(seeds, alive) if not a]
        folder.finish(diverged=diverged, graphs=result.graphs)
        if diverged:
            warn(
                f"seeds {diverged} diverged: their parameters are no longer finite; lower {remedy(strategies, result)}"
            )
        trackers.finish(published(folder.path))
        return folder.path


def remedy(strategies: Mapping[str, Strategy], result: Result) -> str:
    """What to lower after seeds have diverged: the likeliest cause first."""
    if stiff := {name for part in result.parts for name in part.unstable}:
        return " and ".join(f"strategy.{name}.strength, whose penalty was too stiff" for name in sorted(stiff))
    penalties = [f"the strength of {part.name}" for part in strategies.values() if part.overrides("loss")]
    return " or lower ".join(["optimizer.lr", *penalties])


@contextmanager
def _control(setting: Setting, seeds: tuple[int, ...], folder: store.RunFolder, progress: bool) -> Iterator[Control]:
    """The control of these seeds: found among the results, or trained, beside the run or first."""
    control = Control(known_control(setting), seeds)
    missing = tuple(s for s in seeds if s not in control.known)
    if not missing:
        yield control
        return
    at_once = beside(setting)
    if progress:
        when = "beside the run" if at_once else "first"
        print(f"training the control {when}: a fresh net on each task, seeds {list(missing)}", flush=True)
    if not at_once:
        train_control(setting, missing, control.add)
        yield control
        return
    with control_beside(setting, missing, folder) as control.child:
        yield control


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
