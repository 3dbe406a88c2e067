"""Sweeps: each job in its own process. A job that fails or is killed does not stop the others.

Hydra composes the jobs; `Processes` is its launcher (`hydra/launcher=processes`, the default). It imports what all jobs
need once, and forks each job from there. A job's threads are part of its run id, so the number of parallel jobs, not
their threads, is limited to the cores.
"""

from __future__ import annotations

import atexit
import importlib
import multiprocessing
import os
import re
import shlex
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.plugins.plugin import Plugin

from harness.jobs.child import cores, detach, end_with_parent, signals_held
from harness.store import slug
from harness.store.run_folder import NOTE
from harness.wording import interruptions_kept

PLUGINS = "hydra_plugins.harness"  # Hydra's name for the module of our plugins; see `register`
REFUSED = 2  # exit code of a job whose settings cannot be combined; any other is a failure
PATIENCE = 60.0  # seconds that a job has to end after SIGTERM


@dataclass(frozen=True)
class Job:
    """One job, started or ended. `code` is None while it runs, negative if a signal killed it."""

    overrides: tuple[str, ...]
    label: str  # the overrides that differ between jobs
    log: Path
    results: str
    then: str  # the command that reads its results
    threads: int
    process: BaseProcess
    began: float

    @property
    def code(self) -> int | None:
        return self.process.exitcode

    @property
    def reason(self) -> str:
        """Why it ended, in one line."""
        if self.code is not None and self.code < 0:
            name = signal.Signals(-self.code).name
            memory = ", perhaps out of memory" if name == "SIGKILL" else ""
            return f"killed by {name}{memory}"
        lines = [line.strip() for line in self.log.read_text("utf-8", errors="replace").splitlines() if line.strip()]
        lines = [line for line in lines if not line.startswith(NOTE)]  # an exception's notes follow its message
        return re.sub("^harness: ", "", lines[-1])[:300] if lines else f"exit code {self.code}"


class Processes(Launcher):
    """Runs the jobs of a sweep in parallel: at most `n_jobs` (-1: no limit), and no more threads than cores.

    `then` is the command that reads the results, printed at the end. `seconds` is the time of a job, from which the
    length of the sweep is estimated before it starts.
    """

    __module__ = PLUGINS

    ended: ClassVar[list[Job]] = []  # of all batches: Hydra does not pass on results

    def __init__(self, n_jobs: int = -1, then: str = "leaderboard", seconds: float | None = None) -> None:
        if isinstance(n_jobs, bool) or not isinstance(n_jobs, int) or (n_jobs != -1 and n_jobs < 1):
            raise ValueError(f"hydra.launcher.n_jobs={n_jobs}: must be at least 1, or -1 for one for each core")
        if seconds is not None and not seconds > 0:
            raise ValueError(f"hydra.launcher.seconds={seconds}: must be above 0, or null if unknown")
        self.n_jobs, self.then, self.seconds = n_jobs if n_jobs > 0 else cores(), then, seconds

    def setup(self, *, hydra_context: Any, task_function: Callable[[Any], Any], config: Any) -> None:
        self.context, self.task, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        import harness.jobs.job  # noqa: F401  once, for all jobs

        setup_globals()
        total = initial_job_idx + len(job_overrides)
        if self.seconds is not None:
            print(estimate(len(job_overrides), self.n_jobs, self.seconds), flush=True)
        labels = varying(job_overrides)
        waiting = deque(enumerate(job_overrides))
        planned: tuple[int, Any] | None = None  # composed late: Hydra takes ten seconds for a hundred jobs
        running: list[Job] = []
        parent_end, child_end = os.pipe()[::-1]  # closes when this process ends, however it ends
        try:
            with interruptions_kept():
                while waiting or planned or running:
                    if planned is None and waiting:
                        at, overrides = waiting.popleft()
                        cfg = self.context.config_loader.load_sweep_config(self.config, list(overrides))
                        cfg.hydra.job.num = initial_job_idx + at
                        cfg.hydra.job.id = str(initial_job_idx + at)
                        planned = at, cfg
                    if planned and fits(wanted(planned[1]), [job.threads for job in running], self.n_jobs, cores()):
                        at, cfg = planned
                        with signals_held():
                            running.append(self._start(job_overrides[at], labels[at], cfg, (child_end, parent_end)))
                        planned = None
                        continue
                    wait([job.process.sentinel for job in running])
                    for job in [job for job in running if not job.process.is_alive()]:
                        running.remove(job)
                        self.ended.append(job)
                        print(line(job, len(self.ended), total), flush=True)
        except KeyboardInterrupt as stop:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # schedulers send it both to a process and to its group
            left = total - len(self.ended) - len(running)
            stop_all(running)
            raise type(stop)(
                f"interrupted: of {total} jobs, {len(self.ended)} had ended, {len(running)} were stopped and {left} had"
                " not started; repeat the command to resume the stopped jobs and run the missing ones"
            ) from None
        finally:
            os.close(parent_end)
            os.close(child_end)
        # Hydra would raise the first failure only: `summary` lists all of them
        return [JobReturn(overrides=list(o), status=JobStatus.COMPLETED) for o in job_overrides]

    def _start(self, overrides: Sequence[str], label: str, cfg: Any, pipe: tuple[int, int]) -> Job:
        folder = Path(cfg.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        mark = sha256("\0".join(overrides).encode()).hexdigest()[:8]
        log, threads = folder / f"{slug(label, 60)}-{mark}.log", wanted(cfg)
        process = multiprocessing.get_context("fork").Process(
            target=_job, args=(self.context, self.task, cfg, overrides, log, threads, pipe)
        )
        sys.stdout.flush()
        sys.stderr.flush()
        process.start()
        return Job(tuple(overrides), label, log, str(cfg.results), self.then, threads, process, time.monotonic())


def register(*plugins: type[Plugin]) -> None:
    """Register launchers and sweepers with Hydra, which looks for them in the package hydra_plugins only.

    They go into a synthetic module; the repository then needs no top-level folder hydra_plugins.
    """
    try:
        package = importlib.import_module("hydra_plugins")
    except ModuleNotFoundError:  # no Hydra plugin is installed
        package = sys.modules["hydra_plugins"] = ModuleType("hydra_plugins")
        package.__path__ = []  # Hydra walks it
    module = sys.modules[PLUGINS] = package.harness = ModuleType(PLUGINS)  # type: ignore[attr-defined]
    for plugin in plugins:
        setattr(module, plugin.__name__, plugin)
        Plugins.instance().register(plugin)


def wanted(cfg: Any) -> int:
    """Threads of a job."""
    return int(cfg.threads) or cores()


def fits(threads: int, running: Sequence[int], n_jobs: int, cores: int) -> bool:
    """Whether a job with `threads` may start while others with `running` threads run; the first always may.

    >>> fits(1, [1], n_jobs=2, cores=2), fits(1, [1, 1], n_jobs=2, cores=9), fits(2, [1], n_jobs=9, cores=2)
    (True, False, False)
    >>> fits(8, [], n_jobs=1, cores=2)
    True
    """
    return not running or (len(running) < n_jobs and sum(running) + threads <= cores)


def estimate(jobs: int, n_jobs: int, seconds: float) -> str:
    """How long a sweep will take.

    >>> estimate(28, 2, 120.0)
    'about 0.5 hours: 28 jobs, up to 2 in parallel, about 120 s each as the preset says; finished runs are skipped'
    """
    hours = -(-jobs // n_jobs) * seconds / 3600
    jobs_text = f"{jobs} jobs, up to {n_jobs} in parallel, about {seconds:g} s each as the preset says"
    return f"about {hours:.1f} hours: {jobs_text}; finished runs are skipped"


def varying(jobs: Sequence[Sequence[str]]) -> list[str]:
    """What distinguishes each job: its overrides without those that all jobs share.

    >>> varying([["strategy=ewc", "seeds=[0]"], ["strategy=si", "seeds=[0]"]])
    ['strategy=ewc', 'strategy=si']
    >>> varying([["strategy=ewc"]])
    ['strategy=ewc']
    """
    shared = set.intersection(*(set(job) for job in jobs)) if len(jobs) > 1 else set()
    return [" ".join(o for o in job if o not in shared) or " ".join(job) for job in jobs]


def command(overrides: Sequence[str]) -> list[str]:
    """The arguments that run one job of this sweep alone."""
    from hydra._internal.utils import get_args_parser

    flags = vars(get_args_parser().parse_args(sys.argv[1:]))
    named = {f"--{key.replace('_', '-')}": flags[key] for key in ("config_dir", "config_name", "config_path")}
    return [*(word for pair in named.items() if pair[1] for word in pair), *overrides]


def line(job: Job, at: int, total: int) -> str:
    """How a job ended."""
    kind = {0: "done", REFUSED: "refused"}.get(job.code or 0, "FAILED")
    why = "" if job.code == 0 else f": {job.reason}"
    seconds = f"{time.monotonic() - job.began:.0f} s"
    return f"[{at:>{len(str(total))}}/{total}] {kind:<7} {seconds:>6}  {job.label}{why}"


def summary(jobs: Sequence[Job]) -> tuple[list[str], int]:
    """The summary of a sweep, and its exit code: 0, 2 if jobs were refused and none failed, else 1."""
    jobs = sorted(jobs, key=lambda job: job.began)
    refused = [job for job in jobs if job.code == REFUSED]
    failed = [job for job in jobs if job.code not in (0, REFUSED)]
    counts = {"done": len(jobs) - len(refused) - len(failed), "refused": len(refused), "failed": len(failed)}
    lines = ["", ", ".join(f"{n} {kind}" for kind, n in counts.items() if n or kind == "done")]
    if refused:
        lines += ["", "refused, because these settings cannot be combined:"]
        lines += [f"  {job.label}: {job.reason}" for job in refused]
    if failed:
        lines += ["", "failed; each command reruns one:"]
        for job in failed:
            lines += [f"  python -m harness {shlex.join(command(job.overrides))}", f"    {job.reason} ({job.log})"]
        lines += ["repeating the sweep reruns the failed jobs only"]
    folders = list(dict.fromkeys(job.results for job in jobs if job.code == 0))
    if folders:
        lines += ["", f"next: python -m harness {jobs[0].then} {shlex.join(folders)}"]
    return lines, 1 if failed else REFUSED if refused else 0


def stop_all(jobs: Sequence[Job]) -> None:
    """Terminate every job, wait until it has saved its work, and kill it if it does not end."""
    try:
        for job in jobs:
            job.process.terminate()
        until = time.monotonic() + PATIENCE
        for job in jobs:
            job.process.join(max(0.0, until - time.monotonic()))
    finally:  # after PATIENCE, or at once when interrupted again
        for job in jobs:
            job.process.kill()
            job.process.join()


# --- in the job's process ---------------------------------------------------------------------------


def _job(
    context: Any,
    task: Callable[[Any], Any],
    cfg: Any,
    overrides: Sequence[str],
    log: Path,
    threads: int,
    pipe: tuple[int, int],
) -> None:
    try:
        detach()  # the exit handlers that the job registers are its own
        end_with_parent(pipe)
        _redirect(log)
        os.environ.update({f"{name}_NUM_THREADS": str(threads) for name in ("OMP", "MKL", "OPENBLAS")})
        sys.argv = [sys.argv[0], *command(overrides)]
        code = _exit_code(context, task, cfg)
    except KeyboardInterrupt:
        code = 128 + signal.SIGTERM
    atexit._run_exitfuncs()
    sys.exit(code)


def _exit_code(context: Any, task: Callable[[Any], Any], cfg: Any) -> int:
    raised: list[Exception] = []

    def kept(own: Any) -> None:
        try:
            task(own)
        except Exception as error:
            raised.append(error)
            raise

    run_job(
        hydra_context=context,
        task_function=kept,
        config=cfg,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )
    return int(getattr(raised[0], "code", 1)) if raised else 0


def _redirect(log: Path) -> None:
    """Standard output and error to the job's log; parallel jobs would mix their lines."""
    with open(os.devnull, "rb") as nothing, log.open("wb") as file:
        os.dup2(nothing.fileno(), 0)
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    # line-buffered: the log of a killed job ends where the job did
    sys.stdout = open(1, "w", buffering=1, encoding="utf-8")  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, encoding="utf-8")  # noqa: SIM115
