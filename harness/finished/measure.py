"""Metrics of a finished run, computed afterwards from its folder.

Every boundary's net is kept, the accuracy matrix and the controls of plasticity are in the tables, and a metric has its
own random keys. So a metric has the same value whether it is computed during the run or now. Not kept are: the net that
a strategy prepares before a task; and, except at the last boundary, the optimizer's state and the strategy's own state
(gates, or a deployed net that differs from the trained one).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor

from harness import loop, store, tree
from harness.boundary import Boundary, Metric
from harness.config.catalogue import CONF, targets
from harness.finished.trust import safe
from harness.groups import groups, stream_of
from harness.jobs.setting import Setting, build, build_strategies, chosen_device, chosen_metrics
from harness.learner import Learner
from harness.record.clock import Clock
from harness.record.evaluation import measured, trained_score
from harness.record.layout import timing_rows
from harness.record.meter import Meter
from harness.record.sinks import InMemory, Lane, StoredNets, shared
from harness.store import sources
from harness.strategy import Chain
from harness.trackers.bar import bar
from harness.types import Net, Reading, Stream, Task
from harness.wording import first_line, warn

if TYPE_CHECKING:
    import pandas as pd

KEY = ["seed", "boundary", "phase", "net", "task", "metric", "axis", "coord"]  # identifies one value of a run
GROUP = ["boundary", "phase", "net", "metric"]  # rows that are replaced together


class Missing(Exception):
    """A metric needs something that the run's folder does not have."""


def measure(
    path: Path,
    metrics: Mapping[str, Any],
    *,
    every: int = 1,
    changes: Mapping[str, Any] | None = None,
    trust: Sequence[str] = (),
    config_dir: str | None = None,
) -> str:
    """Compute metrics (name -> configuration) of the finished run at `path` and write them into its tables.

    Rows of the same metric, boundary and phase are replaced, except values that only the run itself could compute; all
    other rows remain. Writes only after everything is measured: an interrupted call leaves the run unchanged. `changes`
    to the run's configuration: device, dataset.root. `trust` and `config_dir` as in `trust.safe`. Returns what was done
    and what is missing, a line each. ValueError if the run is not finished, did not keep its nets, names code that is
    not allowed, or its stream cannot be reproduced.
    """
    with store.RunFolder.reopen(path) as folder:
        folder.needs_nets()
        chosen = chosen_metrics(dict(metrics))
        whole = opened(folder, changes or {}, trust, config_dir)
        replays = [Replay(run, chosen) for run in apart(whole)]
        total = len(whole.stream.tasks)
        tasks = [t for t in range(total) if measured(t, total, every)]
        with bar("measure", len(tasks)) as part:
            for t in tasks:
                part(f"task {t + 1}/{total}")
                for replay in replays:
                    replay.around(replay.run.stream.tasks[t])
        amend(folder, whole.rows)
        missing = sorted({line for replay in replays for line in replay.missing})
        added = {"at": store.now(), "metrics": dict(metrics), "every": every, "missing": missing}
        code = sources.digest(sources.files(targets(metrics)))
        folder.update_manifest(
            metrics=sorted({*folder.manifest["metrics"], *chosen}),
            measured=[*folder.manifest.get("measured", []), {**added, "source": code}],
        )
    lines = [f"measured {', '.join(sorted(chosen)) or 'nothing'} at {len(tasks)} boundaries of {path}"]
    return "\n".join([*lines, *(f"missing: {line}" for line in missing)])


@dataclass
class Opened:
    """A finished run without its state, or the part of it that was trained as one group of seeds."""

    folder: store.RunFolder
    setting: Setting
    rows: Rows
    lane: Lane  # these seeds' part of `rows`
    stream: Stream
    learner: Learner
    strategy: Kept

    def net(self, t: int) -> Net:
        """The net after task t, -1 for the initialisation."""
        return self.loaded(self.lane.net(t))

    def loaded(self, kept: Mapping[str, Any]) -> Net:
        """A net from its saved form. StoreError if the model has other parameters."""
        for name, value in self.learner.params.items():
            there = kept.get("params", {}).get(name)
            if not isinstance(there, Tensor) or there.shape != value.shape or not isinstance(kept.get("buffers"), dict):
                raise store.StoreError(
                    f"{self.folder.path}: damaged (a net that it kept does not fit the model at {name}); rerun with"
                    " force=true, or delete the run"
                )
        params, buffers = ({k: v.to(self.learner.device) for k, v in kept[p].items()} for p in ("params", "buffers"))
        return Net(params, buffers, self.learner.apply)


def opened(
    folder: store.RunFolder, changes: Mapping[str, Any], trust: Sequence[str] = (), config_dir: str | None = None
) -> Opened:
    """Rebuild the stream, learner and strategy of all seeds from the run's configuration.

    ValueError if the stream differs, or the configuration is not `safe`.
    """
    from omegaconf import OmegaConf

    path, manifest = folder.path, folder.manifest
    known: Any = OmegaConf.load(CONF / "config.yaml")
    known = OmegaConf.masked_copy(known, [str(k) for k in known if k not in ("defaults", "hydra")])
    kept = safe(path, manifest["config"], trust, config_dir)
    config = OmegaConf.merge(known, kept)  # keys added since the run have their defaults
    for key, value in changes.items():
        OmegaConf.update(config, key, value)
    cfg: Any = OmegaConf.to_container(config)
    torch.set_num_threads(manifest["threads"])
    with buildable(path):
        setting = Setting(cfg, build(cfg["dataset"]), chosen_device(cfg["device"]), manifest["threads"])
        stream = setting.stream(manifest["seeds"])
    if stream.hash != manifest["stream_hash"]:
        raise ValueError(
            f"{path}: the data stream can no longer be reproduced (hash differs), so new metrics would not match this"
            " run; restore its data set and source version, or rerun it with force=true"
        )
    if changed := sources.edited(manifest):
        warn(f"{path}: trained with different code ({sources.listed(changed)}); the new metrics use the current code")
    rows = Rows(folder=folder)
    (lane,) = shared(rows, [range(len(stream.seeds))])
    return built(folder, setting, rows, lane, stream)


def built(folder: store.RunFolder, setting: Setting, rows: Rows, lane: Lane, stream: Stream) -> Opened:
    """The learner and strategy of a stream's seeds, prepared."""
    with buildable(folder.path):
        strategy = Kept(list(build_strategies(setting.cfg["strategy"]).values()))
        learner = Learner(stream=stream, **setting.parts(stream))
        loop.prepare(learner, strategy)
    return Opened(folder, setting, rows, lane, stream, learner, strategy)


def apart(run: Opened) -> list[Opened]:
    """The run by groups of seeds, as it was trained."""
    lanes = shared(run.rows, groups(run.stream))
    if len(lanes) == 1:
        return [run]
    return [built(run.folder, run.setting, run.rows, lane, stream_of(run.stream, lane.places)) for lane in lanes]


@contextmanager
def buildable(path: Path) -> Iterator[None]:
    """Damaged for an error that only a configuration of other types can cause; its values are checked elsewhere."""
    try:
        yield
    except (LookupError, TypeError, AttributeError, RuntimeError) as error:
        why = f"its config cannot be built: {type(error).__name__}: {first_line(error, 200)}"
        raise store.Damaged(path / "manifest.json", why) from error


class Kept(Chain):
    """The strategies of a run; their state is known only at the last boundary."""

    known = False

    def deploy(self, learner: Learner, net: Net) -> Net:
        if self.active["deploy"] and not self.known:
            names = "+".join(p.name for p in self.active["deploy"])
            return _Absent(f"the net that {names} deploys, which is kept only for the last boundary")  # type: ignore[return-value]
        return super().deploy(learner, net)


class _Absent:
    """Placeholder for something unknown: any use raises Missing."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __getattr__(self, name: str) -> NoReturn:
        raise Missing(self._what)

    def __call__(self, *args: Any, **how: Any) -> NoReturn:
        raise Missing(self._what)


class _NoState(dict[str, Any]):
    """An optimizer's state that was not kept: empty, and records whether it was read."""

    asked = False

    def __contains__(self, key: object) -> bool:
        self.asked = True
        return False


@dataclass
class Rows(InMemory):
    """Collects rows, and reads the nets from a run's folder."""

    folder: store.RunFolder = field(kw_only=True)

    @functools.cached_property
    def checkpoint(self) -> dict[str, Any]:
        """The state of the last boundary."""
        return self.folder.checkpoint()

    def net(self, task: int) -> dict[str, Any]:
        return self.folder.net(task)

    def has_net(self, task: int) -> bool:
        return True


class Replay:
    """Measures the boundaries of a finished run as the run itself would have."""

    def __init__(self, run: Opened, metrics: Mapping[str, Metric]) -> None:
        self.run, self.sink, self.missing = run, run.lane, set[str]()
        self.checkpoint = run.lane.state(run.rows.checkpoint)
        self.accuracy, self.online = accuracy(run), online(run)
        frame = store.read_rows(run.folder, "metrics").to_pandas()
        self.fresh, self.plain = (controls(frame, name, run) for name in ("fresh_score", "plain_score"))
        self.is_control = run.folder.manifest["strategy"] == "reset"
        self.random = run.learner.random("probe")
        guarded = {name: self.guarded(name, metric) for name, metric in metrics.items()}
        self.meter = Meter(run.learner, guarded, self.sink, Clock(run.learner.device))
        self.apply = run.learner.apply
        self.gated = self.apply != run.learner.model.__call__
        self.alive, self.state = run.learner.alive, _NoState()

    def guarded(self, name: str, metric: Metric) -> Metric:
        """The metric; if it cannot be computed, the reason is added to `missing`."""
        function = metric.func if isinstance(metric, partial) else metric

        @functools.wraps(function)
        def call(b: Any) -> dict[str, Tensor | Reading]:
            try:
                return metric(b)
            except Missing as error:
                self.missing.add(f"{name}: needs {error}")
                return {}

        return call

    def around(self, task: Task) -> None:
        """Measure before and after a task."""
        last = task.index == len(self.run.stream.tasks) - 1
        begin = [p.name for p in self.run.strategy.parts if p.overrides("begin")]
        if begin:
            self.missing.add(f"phase start: {'+'.join(begin)} prepares the net for a task, and that net was not kept")
        else:
            self.set_to(task, "start")
            self.meter.measure(lambda: self.boundary(task, "start"))
        self.set_to(task, "end", known=last)
        self.meter.measure(lambda: self.boundary(task, "end"))
        self.sink.write("timing", timing_rows(task.index, self.meter.clock.take()))
        if self.run.setting.evaluation.every:
            self.missing.add("scores within tasks: what needs them keeps the run's value or is missing")
        if self.state.asked:
            self.missing.add("the optimizer's state before the last boundary: what needs it (eos_ratio of Adam) is NaN")
        if self.plain is not None and bool(self.plain[:, task.index].isnan().all()):
            self.missing.add("a plainly trained copy, where the run measured nothing: trainability_gap is NaN")

    def set_to(self, task: Task, phase: str, known: bool = False) -> None:
        """Restore the learner to that boundary."""
        run, learner, ended = self.run, self.run.learner, phase == "end"
        learner.apply = self.apply
        net = run.net(task.index if ended else task.index - 1)
        learner.params, learner.buffers = net.params, net.buffers
        learner.enter(task)
        steps = self.online[task.index].shape[1] if task.index in self.online else 0
        learner.planned = steps or learner.budget.of(task)
        if ended and steps:
            learner.steps = learner.planned - 1
            learner.set_lr()  # that of the last step
            learner.steps = learner.planned
        run.strategy.known = known
        if known:
            learner.load_state_dict(self.checkpoint["learner"])
            run.strategy.load_state_dict(self.checkpoint["strategy"])
        else:
            learner.optimizer.state = self.state
            if self.gated:
                names = "+".join(p.name for p in run.strategy.parts)
                learner.apply = _Absent(f"the forward pass of {names}, whose state is kept only for the last boundary")
        learner.alive = self.alive = self.alive & tree.finite(learner.params)

    def boundary(self, task: Task, phase: str) -> Boundary:
        """What a metric could read then."""
        run, learner, ended = self.run, self.run.learner, phase == "end"
        accuracy, fresh = self.accuracy.clone(), None if self.fresh is None else self.fresh.clone()
        accuracy[:, task.index + 1 + ended :] = torch.nan
        if fresh is not None:
            fresh[:, task.index + ended :] = torch.nan
        return Boundary(
            t=task.index,
            phase=phase,
            stream=run.stream,
            learner=learner,
            trained=learner.net,
            deployed=run.strategy.deploy(learner, learner.net),
            nets=StoredNets(learner, self.sink),
            accuracy=accuracy,
            online=self.online[task.index] if ended and task.index in self.online else torch.empty(learner.S, 0),
            random=self.random,
            control=accuracy[:, 1:].diagonal(dim1=1, dim2=2) if self.is_control else fresh,
            gap=self.plain[:, task.index] if self.plain is not None and ended else None,
            trained_score=self.trained_score(task) if ended else None,
            alive=learner.alive,
        )

    def trained_score(self, task: Task) -> Tensor | None:
        """As in the run: None unless the strategy deploys another net."""
        run, learner = self.run, self.run.learner
        absent = isinstance(learner.apply, _Absent)
        if not run.strategy.active["deploy"] or absent or self.fresh is None:
            return None
        if run.strategy.known and learner.net.same(run.strategy.deploy(learner, learner.net)):
            return None
        return trained_score(learner, task, run.setting.evaluation)


# --- from the tables ---------------------------------------------------------------------------


def accuracy(run: Opened) -> Tensor:
    """The matrix R [S, T + 1, T] of the run's table; NaN if not tested."""
    seeds, total = run.stream.seeds, len(run.stream.tasks)
    matrix = torch.full((len(seeds), total + 1, total), torch.nan, dtype=torch.float64)
    rows = store.read_rows(run.folder, "accuracy").to_pylist()
    for row in (row for row in rows if row["seed"] in seeds):
        matrix[seeds.index(row["seed"]), row["boundary"] + 1, row["task"]] = row["accuracy"]
    return matrix


def online(run: Opened) -> dict[int, Tensor]:
    """Accuracy before each step of each task [S, steps] from its curve, which has means over stretches of steps."""
    frame = store.read_rows(run.folder, "curves").to_pandas()
    frame = frame[frame.seed.isin(run.stream.seeds)]
    found = {}
    for t, rows in frame.groupby("boundary"):
        table = rows.pivot_table("online_accuracy", "seed", "step", dropna=False).loc[list(run.stream.seeds)]
        lengths = torch.tensor([0, *table.columns]).diff()
        found[int(str(t))] = torch.tensor(table.to_numpy()).repeat_interleave(lengths, 1)
    return found


def controls(frame: pd.DataFrame, name: str, run: Opened) -> Tensor | None:
    """The recorded values of `name` for each task [S, T], NaN if missing; None without any."""
    seeds = run.stream.seeds
    rows = frame[(frame.metric == name) & frame.seed.isin(seeds)]
    if rows.empty:
        return None
    table = torch.full((len(seeds), len(run.stream.tasks)), torch.nan, dtype=torch.float64)
    for seed, t, value in zip(rows.seed, rows.boundary, rows.value):
        table[seeds.index(seed), t] = value
    return table


def amend(folder: store.RunFolder, sink: InMemory) -> None:
    """Replace the old rows by the new ones, one table at a time."""
    import pandas as pd

    made: dict[str, dict[str, list[Any]]] = {}
    for name, merge in (("metrics", merged), ("timing", retimed)):
        if name in sink.tables:
            old = store.read_table(folder, name).to_pandas()
            frame = merge(old, folder.filled(name, sink.tables[name]).to_pandas())
            assert isinstance(frame, pd.DataFrame)
            made[name] = {column: frame[column].tolist() for column in old.columns}
    for name, columns in made.items():  # written only when all could be read
        folder.replace(name, columns)


def merged(old: pd.DataFrame, new: pd.DataFrame) -> pd.DataFrame:
    """Rows of `new`, and rows of `old` of other metrics or boundaries; NaN never replaces a value."""
    import pandas as pd

    known = old.set_index(KEY)[["value", "stderr"]]
    before = known.reindex(pd.MultiIndex.from_frame(new[KEY])).reset_index(drop=True)
    lost = new.value.isna() & before.value.notna()
    new = new.assign(value=new.value.where(~lost, before.value), stderr=new.stderr.where(~lost, before.stderr))

    def groups(frame: pd.DataFrame) -> pd.MultiIndex:
        whose = frame.coord.where(frame.axis == "metric", "")  # the costs of one metric, not of all
        return pd.MultiIndex.from_frame(frame[GROUP].assign(whose=whose))

    both = pd.concat([old[~groups(old).isin(groups(new))], new])
    order = both.phase.map({"init": 0, "start": 1, "end": 2})
    return both.assign(order=order).sort_values(["boundary", "order"], kind="stable").drop(columns="order")


def retimed(old: pd.DataFrame, new: pd.DataFrame) -> pd.DataFrame:
    """Times of `new`, and times of `old` of other parts."""
    import pandas as pd

    def parts(frame: pd.DataFrame) -> pd.MultiIndex:
        return pd.MultiIndex.from_frame(frame[["boundary", "part"]])

    return pd.concat([old[~parts(old).isin(parts(new))], new]).sort_values("boundary", kind="stable")
