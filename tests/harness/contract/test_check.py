"""`check` finds each fault of own code, by the right check, and passes what is right."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from harness.contract.check import Finding, check
from tests.command import harness

OWN = Path(__file__).with_name("own_code.py")


RIGHT = ("Plain", "Noise", "Average", "Clips")


@pytest.fixture(scope="module", autouse=True)
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with own code and its options, as a user has."""
    folder = tmp_path_factory.mktemp("own")
    text = OWN.read_text("utf-8")
    (folder / "own_code.py").write_text(text)
    for group in ("strategy", "model", "metrics"):
        (folder / "mine" / group).mkdir(parents=True)
    (folder / "mine" / "strategy" / "right.yaml").write_text("right:\n  _target_: own_code.Penalty\n  strength: 0.1\n")
    (folder / "mine" / "strategy" / "wrong.yaml").write_text("wrong:\n  _target_: own_code.GlobalDraw\n")
    (folder / "mine" / "model" / "own.yaml").write_text("_target_: own_code.Recurrent\n")
    (folder / "mine" / "metrics" / "own.yaml").write_text("own:\n  _target_: own_code.norm\n  _partial_: true\n")
    sys.path.insert(0, str(folder))
    return folder


def named(group: str, name: str, **settings: object) -> dict[str, object]:
    node: dict[str, object] = {"_target_": f"own_code.{name}", **settings}
    if group == "metrics":
        node["_partial_"] = True
    return {group: node if group == "model" else {"mine": node}}


def faults(group: str, name: str, **settings: object) -> dict[str, str]:
    """What `check` says is broken: check -> what is wrong."""
    found = list(check(named(group, name, **settings), [group]))
    assert found and all(isinstance(f, Finding) for f in found)
    return {f.check: f.fault for f in found if f.fault}


def fault(group: str, name: str, title: str, **settings: object) -> str:
    """The first fault that the check of this title finds; those after it do not run."""
    found = check(named(group, name, **settings), [group])
    return next((f.fault for f in found if f.check == title and f.fault), "")


WRONG = [
    ("ScalarPenalty", "its hooks return what they should", "sum over everything but the first axis"),
    ("GlobalDraw", "draws come from self.random alone", "`batch` draws from torch's global generator"),
    ("NumpyDraw", "draws come from self.random alone", "`step` draws from numpy's global generator"),
    ("MixesSeeds", "row s of three seeds equals seed s alone", "depends on the other seeds"),
    ("Forgets", "a resumed run equals an uninterrupted one", "some state is not saved"),
    ("Counts", "loss is pure", "`loss` changes strategy.Counts.calls"),
    ("Idle", "it is not naive", "defines step, but trains as naive does"),
    ("DeploysInPlace", "deploying changes nothing", "`deploy` changes learner.params"),
]


@pytest.mark.parametrize(("name", "title", "line"), WRONG)
def test_each_fault_of_a_strategy_is_found(name: str, title: str, line: str) -> None:
    assert line in fault("strategy", name, title)


@pytest.mark.parametrize("name", ["Replays", *(pytest.param(n, marks=pytest.mark.nightly) for n in RIGHT)])
def test_right_strategies_pass(name: str) -> None:
    assert faults("strategy", name) == {}


def test_keys_and_settings_are_checked() -> None:
    assert faults("strategy", "Penalty", strength=0.1) == {}
    assert "lacks strength" in fault("strategy", "Penalty", "keys equal the signature")


@pytest.mark.parametrize(
    ("name", "title", "line"),
    [
        ("FewOutputs", "parameters and logits have the seed axis", r"expected [2, 10]"),
        ("SameRows", "init depends on its key alone", "depends on the other seeds, in"),
        ("GlobalInit", "init depends on its key alone", "`init` draws from torch's global generator"),
        ("InPlace", "a forward pass is pure", "its forward pass changes"),
        ("WrongNames", "units, layers and head exist", "declares fc9.weight"),
        ("MeanSeed", "row s of three seeds equals seed s alone", "depends on the other seeds"),
    ],
)
def test_each_fault_of_a_model_is_found(name: str, title: str, line: str) -> None:
    assert line in fault("model", name, title)


@pytest.mark.parametrize("name", ["Recurrent", "Dropped", "Convolutional", "Stacked", "HalfFrozen"])
def test_right_models_pass(name: str) -> None:
    assert faults("model", name) == {}


@pytest.mark.parametrize(
    ("name", "title", "line"),
    [
        ("no_seed_axis", "columns have one row for each seed", "expected [3], one row for each seed"),
        ("mean_of_seeds", "row s of three seeds equals seed s alone", "depends on the other seeds"),
        ("global_draw", "it changes nothing", "it draws from torch's global generator"),
        ("edits", "it changes nothing", "it changes params"),
        ("remembers", "it answers twice alike", "it answers differently when asked again"),
    ],
)
def test_each_fault_of_a_metric_is_found(name: str, title: str, line: str) -> None:
    assert line in fault("metrics", name, title)


@pytest.mark.parametrize("name", ["norm", "own_draw", "per_task", "probe_loss", "distance"])
def test_right_metrics_pass(name: str) -> None:
    assert faults("metrics", name) == {}


def test_checking_leaves_torchs_generator_alone() -> None:
    state = torch.get_rng_state()
    faults("strategy", "GlobalDraw")
    assert torch.equal(torch.get_rng_state(), state)


def said(own: Path, *words: str) -> tuple[int, str]:
    done = harness("check", *words, "--config-dir", "mine", cwd=own)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.nightly  # the wheel's test runs the command too
def test_the_command_prints_a_line_for_each_check_and_its_exit_code_says_it(own: Path) -> None:
    code, text = said(own, "strategy=right", "metrics=own")
    assert code == 0 and "FAILS" not in text and text.splitlines()[-1] == "all 13 checks passed", text
    assert text.splitlines()[0] == "ok    strategy=right: keys equal the signature"
    code, text = said(own, "strategy=wrong")
    assert code == 1 and "FAILS strategy=wrong: draws come from self.random alone: `batch` draws" in text
    assert "checks failed" in text.splitlines()[-1]
    code, text = said(own, "seeds=[0]")
    assert code == 2 and "name what to check" in text
