"""Weights & Biases as a mirror of a run: offline by default, and never in the way of training.

One thread makes all calls, in order: the import (about 1 s) and the start of its service (about 1 s) happen while the
first task trains. Everything can be logged again from the tables: a resumed run starts a new record that replaces the
interrupted one, and a record that fails online continues offline with all that came before.
"""

from __future__ import annotations

import json
import math
import os
import queue
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from harness.stats import student
from harness.store import read_table
from harness.trackers import About, Summary, floor, quantity
from harness.wording import first_line, warn

if TYPE_CHECKING:
    import wandb

MODES = ("offline", "online", "disabled")
AXIS = "task"  # of every chart; not W&B's own step, which restarts at 0 in a resumed record
ABORT = 10.0  # seconds that an interrupted run waits for W&B
OWN = 20.0  # seconds allowed for W&B itself on a busy machine: its import, its service


@dataclass(frozen=True)
class Target:
    """Where runs are sent, and how long to wait for the server."""

    project: str = "harness"
    entity: str | None = None
    group: str | None = None  # None: the result of `group`
    tags: Sequence[str] = ()
    init_timeout: float = 15.0  # seconds
    finish_timeout: float = 60.0


class Record:
    """One W&B run: opened, filled and closed by calls that block and raise errors.

    Its id is the run id. W&B replaces what it has under an id, so sending a run twice does not duplicate it.
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
            # the manifest has this, with the host's name hashed and without a list of installed packages
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
        """One boundary: for each metric the mean, its interval and the value of every seed, as `stats.counted` says."""
        if summary.t >= 0:
            row: dict[str, float] = {AXIS: summary.t}
            lowest = floor([*self.history, summary])
            for key in ("new", "old", *summary.values):
                per_seed = quantity(summary, key, lowest)
                assert per_seed is not None
                name = f"accuracy/{key}" if key in ("new", "old") else key
                average, half = map(float, student(per_seed))
                row[name] = average
                row[f"{name}/lo"], row[f"{name}/hi"] = average - half, average + half
                row.update({f"{name}/seed={seed}": float(v) for seed, v in zip(self.about.seeds, per_seed)})
            self.run.log({k: v for k, v in row.items() if math.isfinite(v)})
        self.history.append(summary)

    def close(self, files: Sequence[Path], error: str = "") -> None:
        """Add the accuracy matrix, the current manifest and the `files`; wait until they are sent. TimeoutError."""
        import wandb

        if self.mode == "online":  # logging an artifact asks the server, and waits without limit
            require_server(self.target.init_timeout)
        if self.history and not error:
            columns: list[str | int] = ["after task", *(f"task {j}" for j in range(self.about.tasks))]
            lowest = floor(self.history)
            data: list[Any] = [[s.t, *(None if math.isnan(v) else v for v in s.means(lowest))] for s in self.history]
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
        """End it as failed, in any state."""
        with suppress(Exception):
            self.run.finish(exit_code=1)

    @property
    def url(self) -> str:
        """Its address on the server."""
        return str(self.run.url)


class WandB:
    """The tracker: a Record on its own thread. If it fails online it continues offline, with one warning."""

    def __init__(self, mode: str = "offline", target: Target | None = None, warn: Callable[[str], None] = warn) -> None:
        if mode not in MODES:
            raise ValueError(f"tracker.mode={mode}: unknown mode; use {', '.join(MODES)}")
        self.mode, self.target, self.warn = mode, target or Target(), warn
        self.calls: queue.SimpleQueue[Callable[[Record], None] | None] = queue.SimpleQueue()
        self.thread: threading.Thread | None = None

    def start(self, about: About, past: Sequence[Summary]) -> None:
        if self.mode == "disabled":
            return
        self.about = about
        # a daemon: a server that does not answer must not keep the process alive
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
        # enough for a slow upload and for two starts; join returns as soon as the thread ends
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
            except Exception as error:  # the service still uses the attempt's name
                return self._offline(error, suffix="-offline")
        return Record(self.about, self.target, "offline", self.about.path)

    def _offline(self, error: Exception, history: Sequence[Summary] = (), suffix: str = "") -> Record:
        """An offline record with the content of one that failed online. Raises `error` if that was offline."""
        if self.mode != "online":
            raise error
        self.mode = "offline"
        self.warn(f"W&B failed online ({first_line(error, 200)}) and continues offline; {self._remedy}")
        record = Record(self.about, self.target, "offline", self.about.path, suffix)
        for summary in history:
            record.log(summary)
        return record

    def _off(self, why: str) -> None:
        if self.mode != "disabled":
            self.mode = "disabled"
            self.warn(f"W&B is off for this run ({why}); the results folder is complete, and {self._remedy}")

    @property
    def _remedy(self) -> str:
        return f"`python -m harness sync {shlex.quote(str(self.about.path))}` sends the run"


def cost(path: Path, files: Sequence[Path]) -> dict[str, float]:
    """Time of a step relative to a plain step, and training seconds for a seed."""
    if not {"timing.parquet", "metrics.parquet"} <= {file.name for file in files}:
        return {}
    from harness.store.costs import costs_of

    tables = {name: read_table(path, name).to_pandas() for name in ("timing", "metrics")}
    seeds = tables["metrics"].seed.nunique()
    ((step, _, seconds),) = costs_of(tables).values()
    made = {"cost/step": float(step), "cost/seconds": float(seconds) / seeds}
    return {name: value for name, value in made.items() if math.isfinite(value)}


def _facts(manifest: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in manifest.items() if k not in ("config", "files")}  # logged separately; too long


def group(manifest: Mapping[str, Any]) -> str | None:
    """The default group of a run: the preset that was typed, or the stream.

    >>> group({"argv": ["harness", "experiment=geometry", "seeds=[0]"], "stream": "split_task"})
    'geometry'
    >>> group({"argv": ["harness", "strategy=ewc"], "stream": "split_task"})
    'split_task'
    """
    presets = [word.partition("=")[2] for word in manifest.get("argv", ()) if word.startswith("experiment=")]
    return (presets and presets[-1].strip("[]")) or manifest.get("stream")


def require_server(timeout: float) -> None:
    """ValueError if there is no key, or no server answers within `timeout` seconds.

    Without this check, `wandb.init` would ask for a key on the terminal and wait without limit; and after a timeout its
    service would keep trying for the life of the process.
    """
    import requests
    import wandb
    from wandb.sdk.lib import wbauth

    host = wandb.setup().settings.base_url
    if wbauth.authenticate_session(host=host, source="harness", prompt=False) is None:
        raise ValueError(f"no key for {host}; log in with `wandb login` or set WANDB_API_KEY")
    try:
        answer = requests.get(host, timeout=timeout)
    except requests.exceptions.SSLError:
        return  # W&B uses its own certificates
    except requests.exceptions.RequestException as error:
        why = "no answer" if isinstance(error, requests.exceptions.Timeout) else "no connection"
        raise ValueError(f"{host}: {why}; check the network and WANDB_BASE_URL") from error
    if answer.status_code >= 500:
        raise ValueError(f"{host}: answered {answer.status_code} {answer.reason}; check the server and WANDB_BASE_URL")


@contextmanager
def environment(local: Path) -> Iterator[None]:
    """Make W&B keep its files in `local`/wandb, and print nothing."""
    settings = {
        "WANDB_DIR": local,
        # otherwise artifacts are staged in the home folder, and `wandb sync` on another machine would miss them
        "WANDB_DATA_DIR": local / "wandb" / "data",
        "WANDB_CACHE_DIR": local / "wandb" / "cache",
        "WANDB_ERROR_REPORTING": "false",
        "WANDB_SILENT": "true",  # a run's settings do not silence the library itself
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


@contextmanager
def temporary(purpose: str) -> Iterator[Path]:
    """A folder for W&B's files, deleted at the end.

    W&B's service is stopped first: it fills its cache after a run is finished, and would create the folder again.
    """
    with TemporaryDirectory(prefix=f"harness-{purpose}-", ignore_cleanup_errors=True) as name:
        end = _stop_service
        try:
            with environment(Path(name)):
                yield Path(name)
        except (KeyboardInterrupt, GeneratorExit):
            end = _kill_service  # it may be waiting for a server that does not answer
            raise
        finally:
            if "wandb" in sys.modules:
                end()


def _stop_service() -> None:
    sys.modules["wandb"].teardown()


def _kill_service() -> None:
    with suppress(Exception):
        service = sys.modules["wandb"].setup()._connection._proc._process
        service.terminate()
        try:
            service.wait(2.0)
        except subprocess.TimeoutExpired:
            service.kill()
            service.wait(2.0)


def _remove_earlier(folder: Path, run_id: str, current: Path) -> None:
    """Delete older records of a run: sent later, they would overwrite the new one, which is complete."""
    for old in folder.glob(f"*run-*-{run_id}*"):
        if old.is_dir() and old.resolve() != current.resolve():
            shutil.rmtree(old, ignore_errors=True)
