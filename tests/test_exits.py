"""Own code that calls sys.exit, wherever it does, fails the run: the exit code and the manifest say so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.command import harness

MINE = """
import sys
from harness.strategy import Strategy

class Mine(Strategy):
    def __init__(self, where):
        self.where = where
        if where == "init":
            sys.exit(0)

{hooks}
"""
HOOKS = {
    "setup": "learner",
    "begin": "learner, task",
    "batch": "learner, batch",
    "loss": "learner, params, batch, out",
    "grad": "learner, inner",
    "step": "learner, step",
    "end": "learner, task",
    "deploy": "learner, net",
}
SMALL = (
    *("tasks.n_tasks=2", "train.steps=2", "seeds=[0]", "metrics=off", "control=false", "gap=false"),
    *("tracker.mode=disabled", "strategy=mine"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("own")
    hooks = "".join(
        f"    def {hook}(self, {args}):\n        if self.where == {hook!r}:\n            sys.exit({code})\n"
        f"        return super().{hook}({args})\n"
        for (hook, args), code in zip(HOOKS.items(), ["0", "", "'enough'", "0", "0", "7", "0", "0"])
    )
    (made / "own_exit.py").write_text(MINE.format(hooks=hooks))
    (made / "mine" / "strategy").mkdir(parents=True)
    (made / "mine" / "strategy" / "mine.yaml").write_text(
        "mine:\n  _target_: own_exit.Mine\n  # where it exits\n  where: step\n"
    )
    return made


def go(folder: Path, *words: str) -> Any:
    return harness("--config-dir", "mine", *SMALL, *words, cwd=folder)


@pytest.mark.parametrize("hook", [pytest.param("step", marks=pytest.mark.nightly), "deploy"])
def test_a_run_that_a_strategy_leaves_has_failed(folder: Path, hook: str) -> None:
    done = go(folder, f"strategy.mine.where={hook}", f"results={hook}")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert (
        "sys.exit(" in done.stderr and "own_exit.py:" in done.stderr and "raise an error there instead" in done.stderr
    )
    (manifest,) = (json.loads(p.read_text()) for p in (folder / hook).rglob("manifest.json"))
    assert manifest["status"] == "failed" and "sys.exit" in json.dumps(manifest)


def test_so_has_one_whose_strategy_cannot_be_made(folder: Path) -> None:
    done = go(folder, "strategy.mine.where=init", "results=init")
    assert done.returncode == 2 and "own_exit.py:" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("hook", list(HOOKS))
def test_the_python_call_raises_an_error_in_every_hook(
    folder: Path, hook: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.learner import Budget
    from harness.models.mlp import MLP
    from harness.optim import SGD
    from harness.run import run
    from tasks.permuted import permuted
    from tests.toy import digits

    monkeypatch.syspath_prepend(folder)
    import own_exit  # type: ignore[import-not-found]

    stream = permuted(dataset=digits(), seeds=[0], n_tasks=1, fixed=False)
    with pytest.raises(ValueError, match=r"own_exit\.py:\d+: sys\.exit\("):
        run(
            stream,
            [own_exit.Mine(hook)],
            model=MLP(stream.shape, stream.outputs, (4,)),
            optimizer=SGD(lr=0.1),
            budget=Budget(steps=2),
        )
