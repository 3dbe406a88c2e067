"""Weights & Biases as a mirror: offline unless asked for, off the critical path, never in the way of a run.

Everything happens on one thread in the order of the calls: the import (about 1 s) and the start of its
service (about 1 s) pass while the first task trains. What is logged can always be logged again from the
tables, so that a resumed run starts a fresh record and takes the place of the one that was cut short, and
one that a server does not take goes on offline with everything that came before.
"""

from __future__ import annotations

import json
import math
import os
import queue
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.stats import finite_mean, student
from harness.store import read_table
from harness.trackers import About, Summary
from harness.wording import first_line, warn

if TYPE_CHECKING:
    import wandb

MODES = ("offline", "online", "disabled")
AXIS = "task"  # of every chart; never W&B's own step, which starts at 0 again in a resumed record
ABORT = 10.0  # seconds that a run which was stopped waits for W&B
OWN = 20.0  # seconds that W&B may take for itself: its import, its service, on a machine that is busy


@dataclass(frozen=True)
class Target:
    """Where runs go to, and how long to wait for the server."""

    project: str = "harness"
    entity: str | None = None
    group: str | None = None  # None: that of `group`
    tags: Sequence[str] = ()
    init_timeout: float = 15.0  # seconds
    finish_timeout: float = 60.0


class Record:
    """One W&B run: opened, filled in and closed by calls that wait, and that raise what went wrong.

    The run's id is that of the results folder. W&B puts what is sent under an id that it has in the place of what
    was there, so that a run that is sent again is not doubled.
    """

    def __init__(self, about: About, target: Target, mode: Any, local: Path, suffix: str = "") -> None:
        """Open it; W&B keeps its own copy in `local`/wandb."""
        import wandb

        self.about, self.target, self.mode, self.history = about, target, mode, list[Summary]()
        (local / "wandb").mkdir(exist_ok=True)

        manifest = about.manifest
        settings = wandb.Settings(
            root_dir=str(local),
            init_timeout=target.init_timeout,
            finish_timeout=target.finish_timeout,
            finish_timeout_raises=True,
            console="off",
            silent=True,
            quiet=True,
            # the manifest says it, with the host's name hashed and no list of all that is installed
            host=str(manifest.get("hardware", {}).get("host", "hidden")),
            x_disable_machine_info=True,
            x_disable_stats=True,
            x_disable_meta=True,
            x_save_requirements=False,
            disable_git=True,
            disable_code=True,
            disable_job_creation=True,
        )
        self.run: wandb.Run = wandb.init(
            project=target.project,
            entity=target.entity,
            group=target.group or group(manifest),
            job_type=str(manifest.get("strategy", "")) or None,
            name=f"{manifest.get('strategy', 'run')} {manifest.get('stream', '')}".strip(),
            id=f"{manifest['run_id']}{suffix}",
            tags=list(target.tags),
            config={**about.config, "manifest": _facts(manifest)},
            mode=mode,
            reinit="create_new",
            settings=settings,
        )
        _remove_earlier(local / "wandb", str(manifest["run_id"]), Path(self.run.settings.sync_dir))
        self.run.define_metric(AXIS, hidden=True)
        self.run.define_metric("*", step_metric=AXIS)

    def log(self, summary: Summary) -> None:
        """One boundary: of each metric the mean, its interval and every seed's value."""
        if summary.t >= 0:
            row: dict[str, float] = {AXIS: summary.t}
            values = {"accuracy/new": summary.new, "accuracy/old": summary.old, **summary.values}
            for name, per_seed in values.items():
                average, half = map(float, student(per_seed, nan="skip"))
                row[name] = average
                row[f"{name}/lo"], row[f"{name}/hi"] = average - half, average + half
                row.update({f"{name}/seed={seed}": float(v) for seed, v in zip(self.about.seeds, per_seed)})
            self.run.log({k: v for k, v in row.items() if math.isfinite(v)})
        self.history.append(summary)

    def close(self, files: Sequence[Path], error: str = "") -> None:
        """The accuracy matrix, the manifest as it is now and the `files`; wait until they are sent. TimeoutError."""
        import wandb

        if self.mode == "online":  # to log an artifact asks the server, for as long as there is no answer
            require_server(self.target.init_timeout)
        if self.history and not error:
            columns: list[str | int] = ["after task", *(f"task {j}" for j in range(self.about.tasks))]
            data: list[Any] = [
                [s.t, *(None if math.isnan(v) else v for v in finite_mean(s.accuracy.T))] for s in self.history
            ]
            self.run.log({AXIS: self.history[-1].t, "accuracy_matrix": wandb.Table(columns=columns, data=data)})
        if files:
            manifest = json.loads((self.about.path / "manifest.json").read_text("utf-8"))
            self.run.config.update({"manifest": _facts(manifest)}, allow_val_change=True)  # type: ignore[no-untyped-call]
            self.run.summary.update(cost(self.about.path, files))
            artifact = wandb.Artifact(f"run-{self.about.manifest['run_id']}", type="results")
            for file in files:
                artifact.add_file(str(file))
            self.run.log_artifact(artifact)
        self.run.finish(exit_code=1 if error else 0)

    def abandon(self) -> None:
        """End it, as failed, whatever state it is in."""
        with suppress(Exception):
            self.run.finish(exit_code=1)

    @property
    def url(self) -> str:
        """Its address on the server."""
        return str(self.run.url)


class WandB:
    """The tracker: a Record on a thread of its own. What goes wrong online goes on offline, with one warning."""

    def __init__(self, mode: str = "offline", target: Target | None = None, warn: Callable[[str], None] = warn) -> None:
        if mode not in MODES:
            raise ValueError(f"tracker.mode={mode}: no such mode; use {', '.join(MODES)}")
        self.mode, self.target, self.warn = mode, target or Target(), warn
        self.calls: queue.SimpleQueue[Callable[[Record], None] | None] = queue.SimpleQueue()
        self.thread: threading.Thread | None = None

    def start(self, about: About, past: Sequence[Summary]) -> None:
        if self.mode == "disabled":
            return
        self.about = about
        # a daemon, so that a server that does not answer cannot keep the process alive
        self.thread = threading.Thread(target=self._work, name="wandb tracker", daemon=True)
        self.thread.start()
        for summary in past:
            self.boundary(summary)

    def progress(self, task: int, step: int, steps: int) -> None:
        pass

    def boundary(self, summary: Summary) -> None:
        if self.thread is not None:
            self.calls.put(lambda record: record.log(summary))

    def finish(self, files: Sequence[Path], error: str = "") -> None:
        if self.thread is None:
            return
        self.calls.put(lambda record: record.close(files, error))
        self.calls.put(None)
        # the time of an honest upload, and of starting twice: where it ends earlier this does
        self.thread.join(ABORT if error else OWN + 2 * (self.target.init_timeout + self.target.finish_timeout))
        if self.thread.is_alive():
            self._off("it did not finish in time")
        self.thread = None

    # --- on the thread ------------------------------------------------------------------------------

    def _work(self) -> None:
        record = None
        try:
            with environment(self.about.path):
                record = self._opened()
                while (call := self.calls.get()) is not None:
                    try:
                        call(record)
                    except Exception as error:
                        record.abandon()
                        record = self._offline(error, record.history)
                        call(record)
        except BaseException as error:  # wandb exits by SystemExit as well
            self._off(f"{type(error).__name__}: {first_line(error, 200)}")
            if record is not None:
                record.abandon()

    def _opened(self) -> Record:
        if self.mode == "online":
            try:
                require_server(self.target.init_timeout)
            except Exception as error:
                return self._offline(error)
            try:
                return Record(self.about, self.target, "online", self.about.path)
            except Exception as error:  # the service holds the name of the attempt
                return self._offline(error, suffix="-offline")
        return Record(self.about, self.target, "offline", self.about.path)

    def _offline(self, error: Exception, history: Sequence[Summary] = (), suffix: str = "") -> Record:
        """A record in the place of one that failed online, with all that it held. Raises `error` if it was offline."""
        if self.mode != "online":
            raise error
        self.mode = "offline"
        self.warn(f"W&B failed online ({first_line(error, 200)}); it goes on offline, {self._remedy}")
        record = Record(self.about, self.target, "offline", self.about.path, suffix)
        for summary in history:
            record.log(summary)
        return record

    def _off(self, why: str) -> None:
        if self.mode != "disabled":
            self.mode = "disabled"
            self.warn(f"W&B is off for this run ({why}); the results folder holds everything, {self._remedy}")

    @property
    def _remedy(self) -> str:
        return f"`python -m harness sync {self.about.path}` sends it"


def cost(path: Path, files: Sequence[Path]) -> dict[str, float]:
    """Of a run with its times: of a step, a plain one being 1, and seconds of training for a seed."""
    if not {"timing.parquet", "metrics.parquet"} <= {file.name for file in files}:
        return {}
    from harness.store.costs import costs_of

    tables = {name: read_table(path, name).to_pandas() for name in ("timing", "metrics")}
    seeds = tables["metrics"].seed.nunique()
    ((step, _, seconds),) = costs_of(tables).values()
    made = {"cost/step": float(step), "cost/seconds": float(seconds) / seeds}
    return {name: value for name, value in made.items() if math.isfinite(value)}


def _facts(manifest: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in manifest.items() if k != "config"}  # which stands beside it


def group(manifest: Mapping[str, Any]) -> str | None:
    """What runs are grouped by unless told: the preset that was typed, or the stream.

    >>> group({"argv": ["harness", "experiment=geometry", "seeds=[0]"], "stream": "split_task"})
    'geometry'
    >>> group({"argv": ["harness", "strategy=ewc"], "stream": "split_task"})
    'split_task'
    """
    presets = [word.partition("=")[2] for word in manifest.get("argv", ()) if word.startswith("experiment=")]
    return (presets and presets[-1].strip("[]")) or manifest.get("stream")


def require_server(timeout: float) -> None:
    """ValueError where there is no key, or no server that answers within `timeout` seconds.

    `wandb.init` would ask for a key on a terminal and wait for ever; and after one that timed out, its service goes on
    trying for as long as the process lives.
    """
    import requests
    import wandb
    from wandb.sdk.lib import wbauth

    host = wandb.setup().settings.base_url
    if wbauth.authenticate_session(host=host, source="harness", prompt=False) is None:
        raise ValueError(f"no key for {host}; log in with `wandb login`, or set WANDB_API_KEY")
    try:
        answer = requests.get(host, timeout=timeout)
    except requests.exceptions.SSLError:
        return  # W&B has certificates of its own
    except requests.exceptions.RequestException as error:
        why = "no answer" if isinstance(error, requests.exceptions.Timeout) else "no connection"
        raise ValueError(f"{host}: {why}; look at the network and WANDB_BASE_URL") from error
    if answer.status_code >= 500:
        raise ValueError(f"{host}: answers {answer.status_code} {answer.reason}; look at the server and WANDB_BASE_URL")


@contextmanager
def environment(local: Path) -> Iterator[None]:
    """W&B keeps all its files in `local`/wandb and says nothing."""
    settings = {
        "WANDB_DIR": local,
        # artifacts are staged under the home folder otherwise, and `wandb sync` elsewhere would miss them
        "WANDB_DATA_DIR": local / "wandb" / "data",
        "WANDB_CACHE_DIR": local / "wandb" / "cache",
        "WANDB_ERROR_REPORTING": "false",
        "WANDB_SILENT": "true",  # settings of a run do not silence what the library prints
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update({name: str(value) for name, value in settings.items()})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _remove_earlier(folder: Path, run_id: str, current: Path) -> None:
    """Two records of one run would erase one another when they are sent; the new one holds everything."""
    for old in folder.glob(f"*run-*-{run_id}*"):
        if old.is_dir() and old.resolve() != current.resolve():
            shutil.rmtree(old, ignore_errors=True)
