"""Names of settings and entries: they depend on the run alone, and different values have different names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from harness import store
from harness.config.catalogue import CONF, options
from harness.store import entries
from harness.store.entries import defaults, named, word


def spec(*words: str) -> Any:
    """The strategies of a configuration that is composed as a run composes it."""
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return OmegaConf.to_container(compose("config", list(words)).strategy, resolve=True)


def test_every_strategy_with_its_defaults_has_the_plain_name() -> None:
    for name in options("strategy"):
        if name != "avalanche":  # its name is that of a method
            assert named(name, {name: _nested(defaults(name))}) == name


def _nested(flat: dict[str, Any]) -> dict[str, Any]:
    made = OmegaConf.create({})
    for key, value in flat.items():
        OmegaConf.update(made, key, value)
    container = OmegaConf.to_container(made)
    assert isinstance(container, dict)
    return {str(k): v for k, v in container.items()}


@pytest.mark.parametrize(
    ("strategy", "words", "entry"),
    [
        ("ewc", ["strategy=ewc"], "ewc"),
        ("ewc", ["strategy=ewc", "strategy.ewc.strength=100"], "ewc[strength=100]"),
        ("ewc", ["strategy=ewc", "strategy.ewc.strength=2.00"], "ewc"),
        ("ewc", ["strategy=ewc", "+tuned.ewc.strength=20.0"], "ewc[strength=20]"),  # a preset is no default
        ("replay+ewc", ["strategy=[replay,ewc]", "strategy.ewc.mode=separate"], "replay+ewc[mode=separate]"),
        ("avalanche_MAS", ["strategy=avalanche/MAS", "strategy.avalanche.options.alpha=0.5"],
         "avalanche_MAS[options.alpha=0.5]"),
    ],
)  # fmt: skip
def test_an_entry_says_what_differs_from_the_defaults(strategy: str, words: list[str], entry: str) -> None:
    assert named(strategy, spec(*words)) == entry
    assert named(strategy, spec(*words), "c14b0e72a0b5-3") == f"{entry}@3"
    assert entries.base(f"{entry}@3") == entries.base(entry) == entry


def test_a_strategy_that_has_no_file_in_conf_shows_all_its_values() -> None:
    mine = {"_target_": "mine.Mine", "rate": 0.1, "steps": 3}
    assert named("mine", {"mine": mine}) == "mine[rate=0.1,steps=3]"
    assert named("ewc", {"ewc": {"_target_": "mine.EWC", "strength": 1.4}}) == "ewc[_target_=mine.EWC,strength=1.4]"
    whole = {"_target_": "strategies.ewc.EWC", **{k: v for k, v in defaults("ewc").items() if k != "_target_"}}
    del whole["samples"]
    assert named("ewc", {"ewc": whole}) == "ewc[no samples]"


def test_words_differ_exactly_if_values_do() -> None:
    values: list[Any] = [
        1,
        0,
        True,
        False,
        None,
        "1",
        "true",
        "null",
        "a,b",
        "a]",
        0.5,
        "0.5",
        [1, 2],
        ["1", 2],
        [[1], 2],
        "",
    ]
    words = [word(v) for v in values]
    assert len(set(words)) == len(values)
    assert word(1.0) == word(1) and word([2.0]) == word([2]) and word(1e300) != word(1e299)


def test_the_columns_of_every_table_are_those_of_the_manifest(tmp_path: Path) -> None:
    from tests.harness.folders import write

    path = write(tmp_path, "ewc", [0.5, 0.6], settings={"strength": 3.0}, stream_version=4)
    for name in store.SCHEMAS:
        table = store.read_all(tmp_path, name)
        assert set(table["setting"].to_pylist()) == {"a" * 12 + "@4"}, name
        assert set(table["entry"].to_pylist()) == {"ewc[strength=3]"}, name
    manifest = store.read_manifest(path)
    assert entries.entry_of({**manifest, "entry": "as recorded"}) == "as recorded"
