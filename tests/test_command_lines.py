"""Every command line in README, CONTRIBUTING, the pages and the help texts runs."""

from __future__ import annotations

import os
import re
import sys
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from harness import cli
from harness.cli import commands
from harness.cli.table import COMMANDS
from tests.command_lines import documented, is_training, small

LINES = documented()
TRAINING = [words for words in LINES if is_training(words)]
SLOW = ("experiment=", "glob(")  # many jobs to compose; tests/test_presets.py composes presets by day
OTHERS = [words for words in LINES if not is_training(words)]
SERVER = ("sync", "report --wandb")  # without a key or a server they end with 2


def named(words: tuple[str, ...]) -> str:
    return " ".join(words)


class Said(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def main(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """The command line in this process, in a folder of the test's, without a key for a server."""
    for name in [n for n in os.environ if n.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def run(*argv: str) -> Said:
        monkeypatch.setattr(sys, "argv", ["harness", *argv])
        return Said(cli.main(), *capfd.readouterr())

    return run


def photos(folder: Path) -> None:
    draw = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for i in range(12):
            Image.fromarray(draw.integers(0, 256, (9, 9, 3)).astype(np.uint8)).save(folder / name / f"{i}.png")


def own(run: Callable[..., Said]) -> None:
    """What a reader has who names a strategy x in the folder mine, and photos."""
    photos(Path("PHOTOS"))
    if not Path("x.py").exists():
        assert run("new", "strategy", "x").code == 0


def test_the_pages_and_help_texts_are_read() -> None:
    assert len(TRAINING) > 25 and len(OTHERS) > 20
    assert ("strategy=[replay,ewc,cbp]",) in LINES and ("-m", "strategy=ewc,naive") in LINES
    assert ("catalogue", "metrics") in LINES  # its line goes on in the next
    assert {words[0] for words in OTHERS if words[0] in COMMANDS} == set(COMMANDS)


def daily(at: int, words: tuple[str, ...]) -> Any:
    later = at % 2 or any(s in w for s in SLOW for w in words)
    return pytest.param(words, marks=pytest.mark.nightly if later else ())


@pytest.mark.parametrize("words", [daily(at, words) for at, words in enumerate(TRAINING)], ids=map(named, TRAINING))
def test_what_trains_is_composed(
    words: tuple[str, ...], main: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    stub, jobs = types.ModuleType("harness.jobs.job"), Path("jobs")
    jobs.touch()

    def from_config(cfg: Any, progress: bool) -> None:
        with jobs.open("a") as file:
            file.write(f"{','.join(cfg.strategy)}\n")

    def launch(self: Any, job_overrides: Any, initial_job_idx: int) -> list[Any]:
        with jobs.open("a") as file:
            file.write("a-job\n" * len(job_overrides))
        return []

    stub.from_config = from_config  # type: ignore[attr-defined]
    monkeypatch.setattr("harness.jobs.sweep.Processes.launch", launch)
    own(main)
    monkeypatch.setitem(sys.modules, "harness.jobs.job", stub)
    said = main(*small(words))
    assert said.code == 0 and "harness:" not in said.err, said
    asked = [word.partition("=")[2].strip("[]").split(",") for word in words if word.startswith("strategy=")]
    done = jobs.read_text().split()
    many = "-m" in words and any("," in word or "*" in word for word in words)
    assert len(done) >= (2 if many else 1)
    if asked and "glob" not in asked[0][0] and "-m" not in words:
        assert done == [",".join(name.partition("/")[0] for name in asked[0])]


@pytest.mark.parametrize("words", OTHERS, ids=named)
def test_what_does_not_train_is_parsed(
    words: tuple[str, ...], main: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def parsed(name: str) -> Callable[[Any], int]:
        return lambda args: seen.append(name) or 0

    for name, command in COMMANDS.items():
        monkeypatch.setitem(COMMANDS, name, replace(command, run=parsed(name)))
    said = main(*(words if words != ("show",) else ("show", "RUN")))
    assert said.code == 0 and said.err == "", said
    assert seen == ([words[0]] if words[0] in COMMANDS else []) or said.out


def test_settings_of_the_command_lines_exist() -> None:
    """Those that follow a command: they are not parsed with it."""
    from harness.config.preflight import composed

    for words in OTHERS:
        settings = [word for word in words[1:] if "=" in word and "=x" not in word]
        if words[0] in ("measure", "sync", "report"):
            composed(settings)
            assert {word.partition("=")[0] for word in settings} <= {
                *(f"tracker.{key}" for key in commands.TRACKER),
                *commands.MEASURE,
            }


# --- all of them, for real ----------------------------------------------------------------------------


def sound(said: Said, code: int = 0) -> None:
    assert said.code == code, said
    assert "Traceback" not in said.err + said.out and "diverged" not in said.err + said.out, said


@pytest.mark.nightly
def test_they_all_run(main: Callable[..., Said]) -> None:
    """In one folder, as one reader after the other types them: what trains first, then what reads the results."""
    own(main)
    for words in TRAINING:
        said = main(*small(words))
        if "tasks=avalanche" in words and said.code == 2:
            assert "FashionMNIST" in said.err or "fashion" in said.err.lower(), said  # it is not on this machine
            continue
        sound(said)
    card = next(words for words in TRAINING if "metrics.ledger.steps=30" in words)
    out = main(*small(card), "results=cards").out
    (path,) = re.findall(r"results in (\S+)", out)
    for words in sorted(OTHERS, key=named):
        real = ["results" if word == "FOLDER" else path if word == "RUN" else word for word in words]
        real = [*real, path] if words == ("show",) else real
        if words[0] == "new":
            real[2] = "another"
        if words[0] == "atlas":
            real += ["--points", "3", "--grid", "3", "--size", "20", "--vectors", "2", "--steps", "3"]
        if words[0] == "tune":
            real += ["--out", "presets"]
        refused = named(words).startswith(SERVER) or words == ("explain",)  # results are no designed grid
        sound(main(*real), 2 if refused else 0)
