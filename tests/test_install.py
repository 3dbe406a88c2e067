"""The wheel, built and installed away from the checkout, run from a folder that shadows our names."""

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

import harness

ROOT = Path(harness.__file__).resolve().parent.parent


def said(*command: object, cwd: Path) -> str:
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([str(c) for c in command], cwd=cwd, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.nightly  # and in .ci/run: it takes as long as a hundred others
def test_the_wheel_runs_from_another_folder(tmp_path: Path) -> None:
    said(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", tmp_path / "wheel", ROOT, cwd=tmp_path)
    venv.create(tmp_path / "env")
    python = tmp_path / "env" / "bin" / "python"
    (wheel,) = (tmp_path / "wheel").glob("harness-*.whl")
    said(sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", wheel, cwd=tmp_path)
    site = Path(said(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip())
    # the dependencies of this environment stand in for a download of several gigabytes; a copy of harness that is
    # installed there comes later on the path than the wheel's
    here = Path(said(sys.executable, "-c", "import torch; print(torch.__file__)", cwd=tmp_path).strip())
    (site / "dependencies.pth").write_text(f"{here.parent.parent}\n")
    work = tmp_path / "work"
    work.mkdir()
    for name in ("tasks", "strategies", "conf"):
        (work / f"{name}.py").write_text(f"raise RuntimeError('shadowed {name}')\n")
    assert said(python, "-c", "import harness; print(harness.__file__)", cwd=work).startswith(str(site))
    small = ("tasks.n_tasks=2", "train.steps=3", "seeds=[0]", "metrics=fast", "tracker.mode=disabled")
    assert "average accuracy" in said(python, "-m", "harness", "strategy=ewc", *small, cwd=work)
    said(python, "-m", "harness", "new", "stream", "portions", cwd=work)
    checked = said(python, "-m", "harness", "check", "tasks=portions", "--config-dir", "mine", cwd=work)
    assert checked.endswith("all 11 checks passed\n")
    assert "ewc" in said(tmp_path / "env" / "bin" / "harness", "leaderboard", cwd=work)
    assert not (site / "results").exists() and not (site / "tests" / "toy.py").exists()
