"""The command line in a process that starts with everything imported.

`python -m harness` imports torch, hydra and pandas first, which costs more than most runs of the tests. Here one
process imports them once and forks each command. What a process is needed for stays: signals, exit codes, a folder, an
environment and modules that no other command sees. tests/test_install.py and tests/test_shadowing.py start Python.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from harness import ROOT

IMPORTED = (
    *("torch", "hydra.main", "pandas", "pyarrow.parquet", "scipy.stats", "rich.progress"),
    *("torch.fx.experimental.symbolic_shapes", "torch.func"),  # imported by the first gradient otherwise
    *("harness.cli", "harness.jobs.job", "harness.jobs.sweep", "harness.config.preflight"),
    *("harness.finished.card", "harness.leaderboard", "harness.contract.check"),
)
PATIENCE = 300.0  # seconds


@cache
def server() -> subprocess.Popen[str]:
    """The process that forks commands; it ends with this one."""
    words = [sys.executable, "-m", "tests.command"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    started = subprocess.Popen(words, cwd=ROOT, env=env, stdin=subprocess.PIPE, text=True, start_new_session=True)
    atexit.register(started.communicate)
    return started


class Command:
    """`python -m harness WORDS` in a folder, in a session of its own; with `file`, `python FILE WORDS`."""

    def __init__(self, *words: str, cwd: Path, file: Path | None = None, env: dict[str, str] | None = None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="command"))
        asked = {"words": words, "cwd": str(cwd), "file": file and str(file), "folder": str(self.folder)}
        asked["env"] = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **(env or {})}
        pipe = server().stdin
        assert pipe is not None
        print(json.dumps(asked), file=pipe, flush=True)
        self.pid = self._number("pid", PATIENCE)
        assert self.pid is not None, "the server has ended"

    def _number(self, name: str, seconds: float = 0.0) -> int | None:
        """What the server has written in the file, waiting for it so long."""
        file, end = self.folder / name, time.monotonic() + seconds
        while not file.exists() and time.monotonic() < end and server().poll() is None:
            time.sleep(0.005)
        return int(file.read_text()) if file.exists() else None

    def poll(self) -> int | None:
        """The exit code; None while it runs, negative if a signal killed it."""
        return self._number("code")

    def send_signal(self, number: int) -> None:
        assert self.pid is not None
        os.kill(self.pid, number)

    def wait(self, timeout: float = PATIENCE) -> subprocess.CompletedProcess[str]:
        """The ended command, with its output; once."""
        code = self._number("code", timeout)
        if code is None:
            self.send_signal(signal.SIGKILL)
            raise TimeoutError(f"has not ended after {timeout:g} s")
        out, err = ((self.folder / name).read_text() for name in ("out", "err"))
        shutil.rmtree(self.folder)
        return subprocess.CompletedProcess([], code, out, err)


def harness(*words: str, cwd: Path, file: Path | None = None, env: dict[str, str] | None = None) -> Any:
    """A command that is waited for, as subprocess.run answers."""
    return Command(*words, cwd=cwd, file=file, env=env).wait()


# --- in the server ------------------------------------------------------------------------------------


def serve() -> None:
    for name in IMPORTED:
        importlib.import_module(name)
    watching = []
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _watch(json.loads(line))
        watching = [w for w in [*watching, child] if os.waitpid(w, os.WNOHANG) == (0, 0)]
    for child in watching:
        os.waitpid(child, 0)


def _watch(asked: dict[str, Any]) -> NoReturn:
    """Run the command in a child and write its number and its exit code."""
    child = os.fork()
    if child == 0:
        _become(asked)
    _write(asked["folder"], "pid", child)
    _write(asked["folder"], "code", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    os._exit(0)


def _write(folder: str, name: str, number: int) -> None:
    """Whole or not at all."""
    new = Path(folder, f"{name}.new")
    new.write_text(str(number))
    new.rename(Path(folder, name))


def _become(asked: dict[str, Any]) -> NoReturn:
    code = 1
    try:
        os.setsid()
        for number, name in enumerate((os.devnull, "out", "err")):
            kept = os.open(Path(asked["folder"], name), os.O_RDWR | os.O_CREAT | os.O_APPEND)
            os.dup2(kept, number)
            os.close(kept)
        # what a shell gives: it starts background jobs with Ctrl-C ignored, and the tests' children inherit that
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.environ.clear()
        os.environ.update(asked["env"])
        os.chdir(asked["cwd"])
        sys.path[0] = asked["cwd"]
        warnings.simplefilter("error")
        file = asked["file"] or str(ROOT / "harness" / "__main__.py")
        sys.argv = [file, *asked["words"]]
        atexit._clear()
        if asked["file"]:
            runpy.run_path(file, run_name="__main__")
        else:
            runpy.run_module("harness", run_name="__main__")
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)


if __name__ == "__main__":
    serve()
