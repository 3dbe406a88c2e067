"""Seconds that a user waits for the first commands, each in a process that starts afresh.

    python -m tests.benchmarks first [--rounds 3] [SETTING ...]

The run is `strategy=ewc` as it is by default, in a results folder of its own; further settings shorten it. It is
followed by the same command, which finds it finished, by `show`, `ls` and `--help`. Every command but the run is timed
in turn, and the table has the least of the rounds: wall clock, and time on all processors, of the command and of its
processes. Modules are compiled before: users have them on disk. The load is that of the machine as it began.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUDGET = {"the run": 30.0, "again": 3.0, "show": 1.0, "ls": 0.5, "--help": 0.5}  # seconds, on two idle cores


@dataclass(frozen=True)
class Line:
    what: str
    seconds: float
    processor: float  # seconds
    budget: float  # seconds


def timed(words: Sequence[str]) -> tuple[float, float]:
    """Seconds of `python -m harness WORDS`, and seconds on all processors. RuntimeError if it fails."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPATH"] = str(ROOT)
    began = time.perf_counter()
    command = [sys.executable, "-m", "harness", *words]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None
        said = process.stdout.read().decode()
        _, status, usage = os.wait4(process.pid, 0)  # with the processes that it has waited for
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"python -m harness {' '.join(words)}: exit code {process.returncode}\n{said}")
    return seconds, usage.ru_utime + usage.ru_stime


def main(arguments: Sequence[str] | None = None) -> list[Line]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="how often each command but the run has its turn")
    parser.add_argument("settings", nargs="*", help="further settings of the run")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        run = ["strategy=ewc", f"results={folder}", *options.settings]
        timed(["strategy=ewc", f"results={folder}/compile", "tasks.n_tasks=2", "train.steps=1"])
        print(f"{len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}, least of {options.rounds} rounds")
        print(f"{'command':<10}{'seconds':>9}{'processor':>11}{'budget':>8}")
        found = [("the run", [timed(run)])]
        (path,) = Path(folder).glob("runs/*/ewc/*")
        others = {"again": run, "show": ["show", str(path)], "ls": ["ls"], "--help": ["--help"]}
        turns = [{name: timed(words) for name, words in others.items()} for _ in range(options.rounds)]
        found += [(name, [turn[name] for turn in turns]) for name in others]
    lines = []
    for name, times in found:
        seconds, processor = (min(column) for column in zip(*times))
        lines.append(Line(name, seconds, processor, BUDGET[name]))
        over = "  OVER" if seconds > BUDGET[name] else ""
        print(f"{name:<10}{seconds:>9.2f}{processor:>11.2f}{BUDGET[name]:>8.1f}{over}", flush=True)
    return lines


if __name__ == "__main__":
    main()
