"""Seconds that the leaderboard of 2,000 small runs takes: python tests/benchmarks/leaderboard.py [COUNT]"""

import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from harness.leaderboard import leaderboard, text
from tests.harness.folders import copies, write


def main(count: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source = write(Path(folder) / "one", "naive", [0.5, 0.6, 0.7, 0.5, 0.6])
        copies(source, Path(folder), count)
        for _ in range(3):
            wall, cpu = time.perf_counter(), time.process_time()
            lines = text(leaderboard([Path(folder)]))
            print(f"{count} runs, {len(lines)} lines: {time.perf_counter() - wall:.2f} s, processor", end=" ")
            print(f"{time.process_time() - cpu:.2f} s", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2000)
