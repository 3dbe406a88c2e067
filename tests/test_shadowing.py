"""Our top-level names are common words: what stands in the working directory must not take their place."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import harness

ROOT = Path(harness.__file__).resolve().parent.parent


@pytest.fixture
def hostile(tmp_path):
    """A working directory with modules of our names, and others that are the user's own."""
    for name in ("tasks", "strategies", "conf"):
        (tmp_path / f"{name}.py").write_text(f"raise RuntimeError('shadowed {name}')\n")
    (tmp_path / "mine.py").write_text("from strategies.naive import Naive\n\nclass Mine(Naive):\n    '''My own.'''\n")
    (tmp_path / "helper").mkdir()
    (tmp_path / "helper" / "tasks.py").write_text("where = 'helper'\n")
    (tmp_path / "helper" / "__init__.py").write_text("")
    return tmp_path


def python(cwd: Path, *args: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"}
    return subprocess.run([sys.executable, *args], cwd=cwd, env=env, capture_output=True, text=True, timeout=120)


def test_our_packages_are_found_and_the_users_modules_too(hostile):
    done = python(
        hostile,
        "-c",
        "import sys; sys.path.insert(0, ''); import harness, tasks, strategies, conf, helper.tasks\n"
        "print(tasks.__file__, strategies.__file__, conf.__file__, helper.tasks.where, sep='|')",
    )
    assert done.stderr == ""
    *ours, theirs = done.stdout.strip().split("|")
    assert [Path(f) for f in ours] == [ROOT / n / "__init__.py" for n in ("tasks", "strategies", "conf")]
    assert theirs == "helper"


def test_path_is_left_as_it_was(hostile):
    code = "import sys; before = list(sys.path); import harness; print(sys.path == before)"
    assert python(hostile, "-c", code).stdout.strip() == "True"


@pytest.mark.parametrize("folder", [False, True])
def test_a_module_of_our_name_imported_before_us_is_refused_in_a_sentence(tmp_path, folder):
    """As in a notebook. A folder without __init__.py is a module too, one without a file."""
    (tmp_path / "tasks").mkdir() if folder else (tmp_path / "tasks.py").write_text("")
    code = "import sys; sys.path.insert(0, ''); sys.path.remove(%r); import tasks; sys.path.append(%r); import harness"
    done = python(tmp_path, "-c", code % (str(ROOT), str(ROOT)))
    assert done.stderr.splitlines()[-1].startswith("ImportError: tasks is already imported from")


def test_a_users_strategy_runs_from_a_folder_that_shadows_ours(hostile):
    """`python -m` puts the working directory first on the path; the strategy there is the user's."""
    (hostile / "conf_mine" / "strategy").mkdir(parents=True)
    (hostile / "conf_mine" / "strategy" / "mine.yaml").write_text("mine:\n  _target_: mine.Mine\n")
    small = ["strategy=[mine]", "seeds=[3]", "tasks.n_tasks=1", "train.epochs=null", "train.steps=2"]
    quick = ["metrics=off", "gap=false", "control=false", "tracker.mode=disabled", "threads=1"]
    listed = python(hostile, "-m", "harness", "ls", "strategies", "--config-dir", "conf_mine")
    assert "mine " in listed.stdout and "My own." in listed.stdout
    done = python(hostile, "-m", "harness", "--config-dir", "conf_mine", *small, *quick)
    assert done.returncode == 0, done.stderr
    assert len(list(hostile.glob("results/runs/*/mine/*/DONE"))) == 1
    assert not [p for p in hostile.iterdir() if p.name in ("outputs", ".hydra", "multirun.yaml", "harness.log")]


def test_the_console_script_finds_modules_of_the_working_directory(hostile):
    """A script's own folder stands first on the path, not the working directory."""
    bin_ = hostile / "bin"
    bin_.mkdir()
    (bin_ / "harness").write_text(
        "import sys\nfrom harness.cli import main\nsys.argv[1:] = ['ls', 'tasks']\nmain()\nimport helper.tasks"
    )
    done = python(hostile, "bin/harness")
    assert done.stderr == ""
