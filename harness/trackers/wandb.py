"""Weights & Biases as a mirror: offline unless asked for, off the critical path, never in the way of a run.

Everything happens on one thread in the order of the calls: the import (about 1 s) and the start of its
service (about 1 s) pass while the first task trains. What is logged can always be logged again from the
tables, so that a resumed run starts a fresh record and takes the place of the one that was cut short.
"""

from __future__ import annotations

import math
import os
import queue
import shutil
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.trackers import About, Summary, interval, mean, warn

if TYPE_CHECKING:
    import wandb

MODES = ("offline", "online", "disabled")
AXIS = "task"  # of every chart; never W&B's own step, which starts at 0 again in a resumed record


class WandB:
    """Logs means with intervals and every seed's value at each boundary, the matrix and the files at the end."""

    def __init__(
        self,
        mode: str = "offline",
        *,
        project: str = "harness",
        entity: str | None = None,
        group: str | None = None,
        tags: Sequence[str] = (),
        init_timeout: float = 15.0,
        finish_timeout: float = 60.0,
        warn: Callable[[str], None] = warn,
    ) -> None:
        if mode not in MODES:
            raise ValueError(f"tracker.mode={mode}: no such mode; use {', '.join(MODES)}")
        self.mode, self.project, self.entity, self.group, self.tags = (
            mode,
            project,
            entity,
            group,
            tuple(tags),
        )
        self.init_timeout, self.finish_timeout, self.warn = init_timeout, finish_timeout, warn
        self.history: list[Summary] = []
        self.run: wandb.Run | None = None
        self.calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self.thread: threading.Thread | None = None
        self.environment: dict[str, str | None] = {}

    def start(self, about: About, past: Sequence[Summary]) -> None:
        if self.mode == "disabled":
            return
        self.about = about
        self.calls.put(self._open)
        for summary in past:
            self.calls.put(lambda summary=summary: self._log(summary))  # type: ignore[misc]
        # a daemon, so that a server that does not answer cannot keep the process alive
        self.thread = threading.Thread(target=self._work, name="wandb tracker", daemon=True)
        self.thread.start()

    def progress(self, task: int, step: int, steps: int) -> None:
        pass

    def boundary(self, summary: Summary) -> None:
        if self.thread is not None:
            self.calls.put(lambda: self._log(summary))

    def finish(self, files: Sequence[Path], error: str = "") -> None:
        if self.thread is None:
            return
        self.calls.put(lambda: self._close(files, error))
        self.calls.put(None)
        # one that has warned has emptied its queue: this is the time of an honest upload
        self.thread.join(10.0 if error else self.init_timeout * 2 + self.finish_timeout)
        if self.thread.is_alive():
            self._fail("did not finish in time; `wandb sync` sends what it has written")
        self.thread = None

    # --- on the thread ------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            while (call := self.calls.get()) is not None:
                call()
        except BaseException as error:  # wandb exits by SystemExit as well
            lines = str(error).strip().splitlines() or [""]
            self._fail(f"{type(error).__name__}: {lines[0][:200]}")
            if self.run is not None:
                with suppress(Exception):
                    self.run.finish(exit_code=1)
        finally:
            self._restore()

    def _fail(self, why: str) -> None:
        if self.mode != "disabled":
            self.mode = "disabled"
            self.warn(f"W&B is off for this run ({why}); the results folder holds everything")

    def _open(self) -> None:
        folder = self.about.path / "wandb"
        folder.mkdir(exist_ok=True)
        # artifacts are staged under the home folder otherwise, and `wandb sync` elsewhere would miss them
        self._set("WANDB_DATA_DIR", folder / "data")
        self._set("WANDB_CACHE_DIR", folder / "cache")
        self._set("WANDB_DIR", self.about.path)
        self._set("WANDB_ERROR_REPORTING", "false")
        if self.mode == "online":
            try:
                self._require_key()
                self.run = self._init("online")
            except Exception as error:
                lines = str(error).strip().splitlines() or [type(error).__name__]
                self.warn(f"W&B cannot be reached ({lines[0][:150]}); logging offline, send it with `wandb sync`")
                # the service still holds the name of the attempt that timed out
                self.run = self._init("offline", suffix="-offline")
        if self.run is None:
            self.run = self._init("offline")
        self._remove_earlier(folder, Path(self.run.settings.sync_dir))
        self.run.define_metric(AXIS, hidden=True)
        self.run.define_metric("*", step_metric=AXIS)

    def _require_key(self) -> None:
        """Raise where there is no key: `wandb.init` would ask for it on a terminal and wait for ever."""
        import wandb
        from wandb.sdk.lib import wbauth

        host = wandb.setup().settings.base_url
        if wbauth.authenticate_session(host=host, source="harness", prompt=False) is None:
            raise ValueError("no key; log in with `wandb login`")

    def _init(self, mode: Any, suffix: str = "") -> wandb.Run:
        import wandb

        manifest = self.about.manifest
        settings = wandb.Settings(
            root_dir=str(self.about.path),
            init_timeout=self.init_timeout,
            finish_timeout=self.finish_timeout,
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
        return wandb.init(
            project=self.project,
            entity=self.entity,
            group=self.group or str(manifest.get("stream", "")) or None,
            job_type=str(manifest.get("strategy", "")) or None,
            name=f"{manifest.get('strategy', 'run')} {manifest.get('stream', '')}".strip(),
            id=f"{manifest['run_id']}{suffix}",
            tags=self.tags,
            config={**self.about.config, "manifest": dict(manifest)},
            mode=mode,
            reinit="create_new",
            settings=settings,
        )

    def _remove_earlier(self, folder: Path, current: Path) -> None:
        """Two records of one run would erase one another when they are sent; the new one holds everything."""
        for old in folder.glob(f"*run-*-{self.about.manifest['run_id']}*"):
            if old.is_dir() and old.resolve() != current.resolve():
                shutil.rmtree(old, ignore_errors=True)

    def _log(self, summary: Summary) -> None:
        self.history.append(summary)
        if summary.t < 0 or self.run is None:
            return
        row: dict[str, float] = {AXIS: summary.t}
        values = {"accuracy/new": summary.new, "accuracy/old": summary.old, **summary.values}
        for name, per_seed in values.items():
            average, half, _ = interval(per_seed)
            row[name] = average
            row[f"{name}/lo"], row[f"{name}/hi"] = average - half, average + half
            row.update({f"{name}/seed={seed}": float(v) for seed, v in zip(self.about.seeds, per_seed)})
        self.run.log({k: v for k, v in row.items() if math.isfinite(v)})

    def _close(self, files: Sequence[Path], error: str) -> None:
        import wandb

        assert self.run is not None
        if self.history and not error:
            columns: list[str | int] = ["after task", *(f"task {j}" for j in range(self.about.tasks))]
            data: list[Any] = [[s.t, *(None if math.isnan(v) else v for v in mean(s.accuracy.T))] for s in self.history]
            self.run.log({AXIS: self.history[-1].t, "accuracy_matrix": wandb.Table(columns=columns, data=data)})
        if files:
            artifact = wandb.Artifact(f"run-{self.about.manifest['run_id']}", type="results")
            for file in files:
                artifact.add_file(str(file))
            self.run.log_artifact(artifact)
        self.run.finish(exit_code=1 if error else 0)

    def _set(self, name: str, value: Path | str) -> None:
        self.environment.setdefault(name, os.environ.get(name))
        os.environ[name] = str(value)

    def _restore(self) -> None:
        for name, before in self.environment.items():
            if before is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = before
        self.environment = {}
