"""What the benchmarks share: options, the clock, and the machine that the numbers are of."""

from __future__ import annotations

import argparse
import os
import platform
import time
from pathlib import Path
from typing import Any

import torch

_now = time.perf_counter


def clock() -> float:
    """Seconds: of wall time, or of this process on the CPU after `--cpu-time`."""
    return _now()


def parser(doc: str | None, rounds: int | None = None) -> argparse.ArgumentParser:
    """The options that every benchmark in one process has; the docstring is the help."""
    found = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    if rounds is not None:
        found.add_argument("--rounds", type=int, default=rounds, help="how often each contender has its turn")
    found.add_argument("--threads", type=int, default=0, help="CPU threads; 0: as torch finds them")
    found.add_argument("--cpu-time", action="store_true", help="time on the CPU: for a busy machine, with --threads 1")
    return found


def begin(options: argparse.Namespace) -> None:
    """Set the clock, the threads and torch's seed, and print what the numbers are of."""
    global _now
    _now = time.process_time if options.cpu_time else time.perf_counter
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    rounds = f", medians of {options.rounds} rounds" if hasattr(options, "rounds") else ""
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads{rounds}")


def machine() -> dict[str, Any]:
    """CPU, cores that this process may use, versions, threads of torch, and the load of the last minute."""
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
