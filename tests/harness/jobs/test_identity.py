"""A finished run is found from the settings alone, and only if data and code are those that made it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from harness import ROOT, store
from harness.config.catalogue import CONF
from harness.jobs import identity
from harness.jobs.identity import finished, of_run, of_setting
from harness.jobs.job import from_config
from harness.store.known import recall
from tests.tasks.test_datasets import arrays, write

SMALL = ("tasks.n_tasks=1", "train.steps=2", "metrics=off", "control=false", "tracker.mode=disabled", "device=cpu")
HEAVY = ("torch", "pandas", "sklearn", "scipy", "matplotlib", "wandb", "avalanche", "rich", "torchvision")


def configured(*overrides: str) -> Any:
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return compose("config", [*SMALL, *overrides])


def found(*overrides: str) -> Path | None:
    values: Any = OmegaConf.to_container(configured(*overrides), resolve=True)
    return finished(values)


@pytest.fixture
def mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], tuple[str, ...]]:
    """Settings of a run on small files of an hour ago; of others if the number differs, with the same sizes."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "data" / "MNIST" / "raw"

    def settings(number: int) -> tuple[str, ...]:
        content = arrays()
        content[0][0, 0, 0] = number
        write(folder, content)
        for file in folder.iterdir():
            os.utime(file, (1e9, 1e9 + number))
        return "dataset=mnist", f"dataset.root={tmp_path / 'data'}", f"results={tmp_path / 'results'}", "seeds=[0]"

    return settings


def test_published_run_ids_come_from_the_settings_without_building_anything() -> None:
    ids = {
        "naive": "c14b0e72a0b5",
        "replay": "e998debd15af",
        "ewc strategy.ewc.mode=separate strategy.ewc.strength=1.4": "88a8c6ec8cc4",
    }
    for strategy, expected in ids.items():
        with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
            words = [f"strategy={strategy.split()[0]}", *strategy.split()[1:], "optimizer.lr=0.1"]
            cfg: Any = OmegaConf.to_container(compose("config", words), resolve=True)
        setting = of_setting(cfg, ("digits", "35385199c92b732b"), 1, "cpu")
        assert store.identity(of_run(cfg, setting)) == expected


def test_a_finished_run_is_found_and_said_to_be(
    mnist: Callable[[int], tuple[str, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    settings = mnist(0)
    assert found(*settings) is None
    path = from_config(configured(*settings), progress=False)
    capsys.readouterr()
    assert found(*settings, "metrics=[transfer]", "tracker.mode=offline") == path
    assert capsys.readouterr().out.splitlines() == [
        f"already finished: {path} (force=true reruns it)",
        "it was measured with metrics off; add the others with:",
        f"  python -m harness measure {path} metrics=[transfer]",
    ]
    for other in ("strategy=ewc", "seeds=[1]", "train.steps=3", "optimizer.lr=0.1", "eval.tasks=all", "dtype=float64"):
        assert found(*settings, other) is None, other
    for open_ in ("force=true", "force=beside", "device=cuda"):
        assert found(*settings, open_) is None, open_
    assert capsys.readouterr().out == ""
    (path / "DONE").unlink()
    assert found(*settings) is None


def test_it_is_not_found_once_its_data_have_changed(mnist: Callable[[int], tuple[str, ...]]) -> None:
    path = from_config(configured(*mnist(0)), progress=False)
    assert found(*mnist(0)) == path
    assert found(*mnist(1)) is None
    other = from_config(configured(*mnist(1)), progress=False)
    assert other.name != path.name and found(*mnist(1)) == other and found(*mnist(0)) is None


def test_it_is_not_found_once_its_code_or_the_version_of_torch_has_changed(
    mnist: Callable[[int], tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = mnist(0)
    path = from_config(configured(*settings), progress=False)
    manifest = path / "manifest.json"
    facts = json.loads(manifest.read_text())
    assert found(*settings) == path
    for change in (
        {"files": {**facts["files"], "tasks.permuted": "0"}},
        {"versions": {**facts["versions"], "torch": "1"}},
    ):
        manifest.write_text(json.dumps({**facts, **change}))
        assert found(*settings) is None, list(change)
    manifest.write_text(json.dumps(facts))
    assert found(*settings) == path


def test_where_a_gpu_may_be_only_torch_can_tell_the_device(
    mnist: Callable[[int], tuple[str, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = mnist(0)
    path = from_config(configured(*settings), progress=False)
    monkeypatch.setattr(identity, "DRIVERS", (str(tmp_path / "none"),))
    assert found(*settings, "device=auto") == (path if sys.platform == "linux" else None)
    monkeypatch.setattr(identity, "DRIVERS", (str(tmp_path),))
    assert found(*settings, "device=auto") is None and found(*settings) == path


def test_a_data_set_whose_files_are_not_known_is_always_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "data.csv").write_text("a,b,label\n" + "".join(f"{i},{i * i % 7},{i % 2}\n" for i in range(40)))
    settings = ("dataset=csv", f"dataset.path={tmp_path / 'data.csv'}", f"results={tmp_path / 'results'}", "seeds=[0]")
    from_config(configured(*settings), progress=False)
    assert found(*settings) is None
    values: Any = OmegaConf.to_container(configured(*settings), resolve=True)
    assert recall(values["dataset"]) is None


def test_to_say_so_imports_neither_torch_nor_any_other_heavy_library(
    mnist: Callable[[int], tuple[str, ...]], tmp_path: Path
) -> None:
    settings = mnist(0)
    path = from_config(configured(*settings), progress=False)
    words = [*SMALL, *settings]
    code = (
        f"import sys; from harness.cli import main; sys.argv = ['harness', *{words!r}]; code = main()\n"
        f"print(code, [m for m in {HEAVY!r} if m in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ended.stdout.splitlines() == [f"already finished: {path} (force=true reruns it)", "0 []"], ended.stderr
