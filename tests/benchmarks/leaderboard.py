"""The leaderboard of many small runs: seconds of wall time and on the CPU, and the memory it adds.

    python -m tests.benchmarks leaderboard [--runs 2000 8000] [--rounds 3]

Runs of five seeds and three tasks, in forty boards. Each reading is in a process of its own, whose imports are not
counted in the time, and are in the peak of memory.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from tests.harness.folders import copies, write


@dataclass(frozen=True)
class Line:
    """One row of the table: seconds, and the peak of memory in MiB."""

    runs: int
    lines: int
    wall: float
    cpu: float
    peak: float


def read(folder: str) -> tuple[int, float, float, float]:
    """Lines of the leaderboard, wall time, CPU time, peak memory of this process in MiB."""
    from harness.leaderboard import leaderboard, text

    text(leaderboard([Path(folder) / "one"]))  # imports
    wall, cpu = time.perf_counter(), time.process_time()
    lines = text(leaderboard([Path(folder)]))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return len(lines), wall, cpu, peak()


def peak() -> float:
    """The largest resident memory of this process in MiB."""
    status = Path("/proc/self/status")
    if status.exists():  # there the usage of a new process begins with its parent's
        (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        return int(line.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def main(arguments: Sequence[str] | None = None) -> list[Line]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, nargs="+", default=[2000])
    parser.add_argument("--rounds", type=int, default=3, help="readings of each")
    options = parser.parse_args(arguments)
    found: list[Line] = []
    print(f"{'runs':>6}{'lines':>8}{'wall s':>9}{'CPU s':>8}{'peak MiB':>10}")
    for count in options.runs:
        with tempfile.TemporaryDirectory() as folder:
            source = write(Path(folder) / "one", "naive", [0.5, 0.6, 0.7, 0.5, 0.6])
            copies(source, Path(folder), count)
            context, taken = multiprocessing.get_context("spawn"), []
            for _ in range(options.rounds):
                with context.Pool(1) as pool:
                    taken.append(pool.apply(read, (folder,)))
        lines, wall, cpu, memory = (median(values) for values in zip(*taken))
        found.append(Line(count, int(lines), wall, cpu, memory))
        print(f"{count:>6}{int(lines):>8}{wall:>9.2f}{cpu:>8.2f}{memory:>10.0f}", flush=True)
    return found


if __name__ == "__main__":
    main()
