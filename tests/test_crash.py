"""Kill -9 at random moments costs nothing but time."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import harness

ROOT = Path(harness.__file__).resolve().parent.parent


@pytest.mark.nightly
def test_a_run_killed_at_random_moments_leaves_the_tables_of_one_that_was_not(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-m", "tests.crash", "30", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.startswith("30 kills in ") and "all tables equal" in ended.stdout
