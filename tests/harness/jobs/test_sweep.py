"""Sweeps: what is left of one when jobs refuse, fail, are killed or interrupted."""

import json
import os
import shlex
import signal
import time
from multiprocessing.util import register_after_fork
from pathlib import Path
from typing import Any

import pytest
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError

from harness import store
from harness.cli.errors import catch_sigterm
from harness.jobs import sweep as sweeps
from tests.command import Command, harness

# the command line with training replaced: what a job does is its strategy's name
STUB = """
import json, os, signal, sys, time, types
from pathlib import Path
from omegaconf import OmegaConf

def from_config(cfg, progress):
    from harness.store import RunFolder
    name = next(iter(cfg.strategy))
    job = [name, list(cfg.seeds), os.getpid(), sys.argv[1:], os.environ["OMP_NUM_THREADS"]]
    with open("jobs", "a") as file:
        file.write(json.dumps(job) + "\\n")
    if name == "ewc":
        raise ValueError(f"scenario={cfg.scenario}: ewc is not defined for it")
    if name == "si":
        with RunFolder.open(cfg.results, "stream", "si", "abc"):
            raise ValueError("ran into this")
    if name == "mas":
        int("a bug")
    if name == "replay":
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "lwf":
        time.sleep(600)

sys.modules["harness.jobs.job"] = types.ModuleType("harness.jobs.job")
sys.modules["harness.jobs.job"].from_config = from_config
from harness.cli import main
sys.exit(main())
"""


def typed(folder: Path, *words: str) -> Command:
    (folder / "stub.py").write_text(STUB)
    return Command(*words, cwd=folder, file=folder / "stub.py")


def sweep(folder: Path, *words: str) -> Any:
    return typed(folder, *words).wait()


def jobs(folder: Path) -> list[list]:
    file = folder / "jobs"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def until(true, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.02)


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_job_that_refuses_raises_or_is_killed_takes_no_other_along(tmp_path):
    done = sweep(tmp_path, "-m", "strategy=replay,ewc,si,mas,naive", "seeds=[7]", "hydra.launcher.n_jobs=2")
    assert sorted(job[0] for job in jobs(tmp_path)) == ["ewc", "mas", "naive", "replay", "si"]
    assert (done.returncode, done.stderr) == (1, "")  # above all not Hydra's line about one failed job
    lines = done.stdout.splitlines()
    told = {line.split("strategy=")[1].partition(":")[0]: line.split()[1] for line in lines if line.startswith("[")}
    assert told == {"naive": "done", "ewc": "refused", "si": "FAILED", "mas": "FAILED", "replay": "FAILED"}
    end = lines[lines.index("1 done, 1 refused, 3 failed") :]
    assert "  strategy=ewc: scenario=domain: ewc is not defined for it" in end
    commands = [line for line in end if line.startswith("  python -m harness ")]
    assert sorted(shlex.split(c)[3:] for c in commands) == [
        [f"strategy={name}", "seeds=[7]"] for name in ("mas", "replay", "si")
    ]
    said = "\n".join(end)
    assert (
        "run folder" not in said
        and "killed by SIGKILL" in said
        and "ran into this" in said
        and "invalid literal for int()" in said
    )
    assert end[-1] == "next: python -m harness leaderboard results"
    (log,) = tmp_path.glob("results/runs/.multirun/strategy-mas-*.log")
    assert log.read_text().startswith("Traceback") and "int(" in log.read_text()


def test_a_job_is_told_its_own_command_and_threads(tmp_path):
    (tmp_path / "mine").mkdir()
    words = ("--config-dir", "mine", "-m", "strategy=naive,ewc", "threads=2", "seeds=[1]")
    assert sweep(tmp_path, *words).returncode == 2  # none failed, one was refused
    told = {job[0]: job[3:] for job in jobs(tmp_path)}
    for name in ("naive", "ewc"):
        assert told[name] == [["--config-dir", "mine", f"strategy={name}", "threads=2", "seeds=[1]"], "2"]


def test_a_failed_run_keeps_its_traceback_until_it_is_tried_again(tmp_path):
    with pytest.raises(RuntimeError, match="no") as caught, store.RunFolder.open(tmp_path, "s", "x", "abc") as run:
        raise RuntimeError("no")
    manifest = json.loads((run.path / "manifest.json").read_text())
    assert (manifest["status"], manifest["error"]) == ("failed", "RuntimeError: no")
    assert manifest["traceback"].startswith("Traceback") and 'raise RuntimeError("no")' in manifest["traceback"]
    assert str(run.path) in caught.value.__notes__[0]
    with store.RunFolder.open(tmp_path, "s", "x", "abc") as again:
        assert (again.manifest["error"], again.manifest["traceback"]) == ("", "")


def test_a_job_deletes_its_own_temporary_folders_and_not_its_parents(tmp_path):
    import atexit
    from tempfile import TemporaryDirectory

    from harness.jobs.child import forget_finalizers

    parents = TemporaryDirectory(dir=tmp_path)
    child = os.fork()
    if child == 0:  # as `_job` begins and ends
        atexit._clear()
        forget_finalizers()
        own = TemporaryDirectory(dir=tmp_path, prefix="job")
        (tmp_path / "was").write_text(own.name)
        atexit._run_exitfuncs()
        os._exit(0)
    os.waitpid(child, 0)
    assert not Path((tmp_path / "was").read_text()).exists() and Path(parents.name).exists()
    parents.cleanup()
    assert [p.name for p in tmp_path.iterdir()] == ["was"]


def test_the_limit_of_jobs_and_the_threads_of_one_are_checked_and_counted():
    from harness.jobs.sweep import Processes, cores, summary, wanted

    for wrong in (0, "abc", 1.5, True):
        with pytest.raises(ValueError, match=f"n_jobs={wrong}: must be at least 1, or -1"):
            Processes(wrong)  # type: ignore[arg-type]
    assert (Processes(3).n_jobs, Processes().n_jobs) == (3, cores())
    assert wanted(OmegaConf.create({"threads": 3})) == 3 and wanted(OmegaConf.create({"threads": 0})) == cores()
    assert summary([]) == (["", "0 done"], 0)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.nightly)]
)
def test_an_interrupted_sweep_stops_its_jobs_and_says_how_to_go_on(tmp_path, number, code):
    running = typed(tmp_path, "-m", "strategy=naive,lwf,ewc", "hydra.launcher.n_jobs=1")
    until(lambda: len(jobs(tmp_path)) == 2)
    os.killpg(running.pid, number)  # the jobs as well, which their parent stops once more
    if number == signal.SIGTERM:
        running.send_signal(number)
    done = running.wait(30)
    assert done.returncode == code
    start = "harness: interrupted: of 3 jobs, 1 had ended, 1 were stopped and 1 had not started; repeat the command "
    assert done.stderr.startswith(start) and done.stderr.count("\n") == 1
    assert not alive(jobs(tmp_path)[1][2])


class Interrupted:
    """Composes jobs until one that is composed while Ctrl-C comes: OmegaConf cleans up, fails, and Hydra wraps that."""

    def __init__(self, folder: Path) -> None:
        self.config_loader, self.folder = self, folder

    def load_sweep_config(self, config: Any, overrides: list[str]) -> Any:
        if overrides == ["strategy=ewc"]:
            try:
                raise KeyboardInterrupt
            except KeyboardInterrupt as stop:
                raise ConfigCompositionException() from ConfigKeyError(str(stop))
        own = {"sweep": {"dir": str(self.folder)}, "job": {"num": 0, "id": ""}}
        return OmegaConf.create({"hydra": own, "threads": 1, "results": "", "strategy": overrides[0]})


def test_a_sweep_that_is_interrupted_while_a_job_is_composed_stops_its_jobs(tmp_path, monkeypatch, capfd):
    def work(context: Any, task: Any, cfg: Any) -> int:
        time.sleep(600 if cfg.strategy == "strategy=lwf" else 0)
        return 0

    monkeypatch.setattr("sys.argv", ["harness"])
    monkeypatch.setattr(sweeps, "_exit_code", work)
    monkeypatch.setattr(sweeps.Processes, "ended", [])
    processes = sweeps.Processes(n_jobs=1)
    register_after_fork(processes, lambda _: time.sleep(0.3 * len(processes.ended)))  # the second is slow to begin
    processes.setup(hydra_context=Interrupted(tmp_path), task_function=print, config=None)
    began, handler = time.monotonic(), signal.getsignal(signal.SIGTERM)
    catch_sigterm()
    try:
        with pytest.raises(KeyboardInterrupt, match="of 3 jobs, 1 had ended, 1 were stopped and 1 had not started"):
            processes.launch([["strategy=naive"], ["strategy=lwf"], ["strategy=ewc"]], 0)
    finally:
        signal.signal(signal.SIGTERM, handler)
    # a job that is stopped as soon as it is forked neither misses that nor says anything
    assert capfd.readouterr().err == "" and time.monotonic() - began < 30


def test_a_job_ends_with_a_parent_that_is_killed(tmp_path):
    running = typed(tmp_path, "-m", "strategy=naive,lwf", "hydra.launcher.n_jobs=1")
    until(lambda: len(jobs(tmp_path)) == 2)
    running.send_signal(signal.SIGKILL)
    running.wait()
    until(lambda: not alive(jobs(tmp_path)[1][2]))


@pytest.mark.nightly
def test_the_name_joblib_and_a_preset_of_a_whole_table_are_sweeps(tmp_path):
    folder = tmp_path / "mine" / "experiment"
    folder.mkdir(parents=True)
    table = "hydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n      strategy: naive,replay\n      seeds: '[0],[1]'\n"
    table += "  launcher:\n    n_jobs: 2\n    seconds: 1800\n"
    (folder / "table.yaml").write_text("# @package _global_\n" + table)
    done = sweep(tmp_path, "--config-dir", "mine", "experiment=table", "hydra/launcher=joblib", "results=elsewhere")
    assert sorted(job[:2] for job in jobs(tmp_path)) == [[n, [s]] for n in ("naive", "replay") for s in (0, 1)]
    assert done.stdout.startswith("about 1.0 hours: 4 jobs, up to 2 in parallel, about 1800 s each")
    assert done.returncode == 1 and "2 done, 2 failed" in done.stdout
    assert done.stdout.endswith("next: python -m harness leaderboard elsewhere\n")
    # narrowed on the command line, and a command that repeats one job of it does just that
    (tmp_path / "jobs").unlink()
    (line,) = [line for line in done.stdout.splitlines() if "python -m harness --config" in line and "[1]" in line]
    again = sweep(tmp_path, *shlex.split(line)[3:])
    assert [job[:2] for job in jobs(tmp_path)] == [["replay", [1]]] and again.returncode == 1


TINY = ("tasks.n_tasks=2", "train.steps=3", "seeds=[0]", "metrics=off", "gap=false", "tracker.mode=disabled")
KILLER = """
import os, signal
from harness.strategy import Strategy

class Killer(Strategy):
    def end(self, learner, task):
        if task.index == 1 and not os.path.exists("spared"):
            os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.nightly
def test_a_sweep_does_what_is_missing_and_its_tables_are_those_of_single_runs(tmp_path):
    (tmp_path / "mine" / "strategy").mkdir(parents=True)
    (tmp_path / "mine" / "strategy" / "killer.yaml").write_text("killer:\n  _target_: killer.Killer\n")
    (tmp_path / "killer.py").write_text(KILLER)

    def typed(*words):
        return harness("--config-dir", "mine", *words, *TINY, cwd=tmp_path)

    first = typed("-m", "strategy=killer,naive", "tasks=permuted")
    assert first.returncode == 1 and "1 done, 1 failed" in first.stdout, first.stdout + first.stderr
    (tmp_path / "spared").touch()
    (whole,) = store.find_runs(tmp_path / "results", strategy="naive")
    before = (whole.path / "manifest.json").read_bytes()
    second = typed("-m", "strategy=killer,naive", "tasks=permuted")
    assert second.returncode == 0 and "2 done" in second.stdout, second.stdout + second.stderr
    assert (whole.path / "manifest.json").read_bytes() == before  # was not run again
    (resumed,) = store.find_runs(tmp_path / "results", strategy="killer")
    assert resumed.manifest["attempts"] == 2 and resumed.manifest["argv"][1:4] == [
        "--config-dir",
        "mine",
        "strategy=killer",
    ]
    single = typed("strategy=naive", "tasks=permuted", "results=single")
    assert single.returncode == 0, single.stderr
    (other,) = store.find_runs(tmp_path / "single", strategy="naive")
    for table in ("metrics", "accuracy", "curves"):
        assert (other.path / f"{table}.parquet").read_bytes() == (whole.path / f"{table}.parquet").read_bytes()
