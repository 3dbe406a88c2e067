"""Kill a run at random moments, start it again each time, and compare its tables with those of a run left alone.

    python -m tests.crash 30 FOLDER

One process loads everything once and forks each attempt, so that a kill lands in the run and not in an import.
The moments are drawn from a fixed seed, uniformly over what an attempt from the start takes.
"""

import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import pyarrow.parquet  # noqa: F401  here and not in each child
from hydra import compose, initialize_config_dir

from harness import store
from harness.config.catalogue import CONF
from harness.jobs.job import from_config

OVERRIDES = (
    *("strategy=[replay,ewc,cbp]", "tasks.n_tasks=3", "train.steps=20", "seeds=[0,1]", "threads=1"),
    *("strategy.ewc.samples=50", "strategy.cbp.rate=0.01", "tracker.mode=disabled"),
    *("metrics=[fast,sharpness,connectivity]", "metrics.sharpness.size=64", "metrics.sharpness.steps=4", "device=cpu"),
)
EQUAL = ("metrics", "accuracy", "curves")


def attempt(results: Path) -> int:
    """Start a run in a child, as a command line would; its process number."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.setsid()
        with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
            cfg = compose("config", [*OVERRIDES, f"results={results}"])
        from_config(cfg, progress=False)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def finished(child: int) -> bool:
    """Wait for a child: whether it ended by itself. RuntimeError if it failed."""
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code not in (0, -signal.SIGKILL):
        raise RuntimeError(f"an attempt ended with {code}")
    return code == 0


def tables(results: Path) -> dict[str, bytes]:
    """The tables of every finished run: equal rows are equal bytes."""
    return {
        f"{run.manifest['run_id']}/{name}": (run.path / f"{name}.parquet").read_bytes()
        for run in store.find_runs(results)
        for name in EQUAL
    }


def main(kills: int, folder: Path) -> int:
    began = time.monotonic()
    assert finished(attempt(folder / "whole"))
    whole, length = tables(folder / "whole"), time.monotonic() - began
    moment = random.Random(0)
    done, runs = 0, 0
    while done < kills:
        results, cut = folder / f"cut{runs}", 0
        while True:
            child = attempt(results)
            if done < kills:
                time.sleep(moment.uniform(0, length))
                os.kill(child, signal.SIGKILL)
            if finished(child):
                break
            done, cut = done + 1, cut + 1
        if tables(results) != whole:
            print(f"{results}: killed {cut} times, its tables differ from those of {folder / 'whole'}")
            return 1
        runs += 1
    print(f"{done} kills in {runs} runs of {length:.1f} s: all tables equal, bit for bit")
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), Path(sys.argv[2])))
