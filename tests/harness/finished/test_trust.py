"""Nothing in a results folder runs: targets are on a list, and nothing is interpolated."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from harness import cli
from harness.config.catalogue import CONF
from harness.config.preflight import composed
from harness.finished.trust import named_in, safe
from tests.harness import folders
from tests.harness.finished.test_measure import trained

RUN = Path("results/runs/s/m/abc")
NODES: dict[str, Any] = {
    "sympify": {"_target_": "sympy.sympify", "a": "__import__('os').mkdir('ran')"},
    "read_pickle": {"_target_": "pandas.read_pickle", "filepath_or_buffer": "x"},
    "torch.load": {"_target_": "torch.load", "f": "x", "weights_only": False},
    "hub": {"_target_": "torch.hub.load", "repo_or_dir": ".", "source": "local", "model": "x"},
    "eval": {"_target_": "builtins.eval", "source": "1"},
    "system": {"_target_": "os.system", "command": "mkdir ran"},
    "pytest": {"_target_": "pytest.main", "args": ["x"]},
    "ours, but no target of conf/": {"_target_": "harness.store.files.load", "path": "x"},
    "what ours imports": {"_target_": "strategies.avalanche.inspect.os.system", "command": "mkdir ran"},
    "no name": {"_target_": ["os.system"]},
    "partial": {"_target_": "tasks.datasets.load", "_partial_": True},
    "arguments": {"_target_": "tasks.datasets.load", "_args_": ["digits"]},
    "recursive": {"_target_": "tasks.datasets.load", "_recursive_": False},
    "convert": {"_target_": "tasks.datasets.load", "_convert_": "all"},
    "resolver": {"_target_": "tasks.datasets.load", "name": "${oc.env:HOME}"},
    "reference": {"_target_": "tasks.datasets.load", "name": "${strategy}"},
    "resolver in a list": {"_target_": "tasks.datasets.load", "augment": ["a", ["${oc.decode:1}"]]},
    "nested": {"_target_": "tasks.datasets.function", "make": {"_target_": "os.system"}},
    "nested in lists": {"_target_": "tasks.datasets.load", "augment": [1, [{"x": {"_target_": "os.system"}}]]},
}  # fmt: skip


@pytest.mark.parametrize("node", NODES.values(), ids=list(NODES))
def test_what_conf_does_not_name_is_refused_in_one_line_with_run_key_target_and_remedy(node: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"^{RUN}: dataset\.") as caught:
        safe(RUN, {"dataset": node})
    line = str(caught.value)
    assert "\n" not in line
    target = str(node["_target_"])
    if target not in named_in([CONF]):
        assert f"dataset._target_={target}: " in line
    if target.startswith(("os", "sympy", "pandas", "torch", "pytest", "builtins")):
        assert line.endswith(f"allow it with --trust {target.rpartition('.')[0]}")


def test_every_option_of_conf_passes_and_the_list_has_nothing_else() -> None:
    for words in (["strategy=[replay,ewc,sam]", "dataset=npz"], ["tasks=split", "model=cnn", "optimizer=adam"]):
        cfg = composed([*words, "metrics=atlas"])
        assert safe(RUN, cfg) == {k: v for k, v in cfg.items() if k not in ("metrics", "tracker", "start")}
    roots = {target.partition(".")[0] for target in named_in([CONF])}
    assert roots == {"harness", "strategies", "tasks"} and "harness.models.mlp.MLP" in named_in([CONF])


def test_a_trusted_module_is_its_own_code_and_not_what_it_imports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "somebodys"
    package.mkdir()
    (package / "__init__.py").write_text("import os\nfrom torch import load\nfrom strategies.ewc import EWC\n")
    (package / "nets.py").write_text("class Net:\n    @classmethod\n    def small(cls): ...\n")
    (tmp_path / "somebodys_other.py").write_text("raise RuntimeError('was imported')")
    monkeypatch.syspath_prepend(tmp_path)
    try:
        for target in ("somebodys.nets.Net", "somebodys.nets.Net.small", "somebodys.EWC"):
            node = {"model": {"_target_": target}}
            with pytest.raises(ValueError, match=rf"--trust {target.rpartition('.')[0]}$"):
                safe(RUN, node)
            assert "somebodys" not in sys.modules or target != "somebodys.nets.Net", "refused before it is imported"
            assert safe(RUN, node, trust=["numpy", "somebodys"]) == node
        for target, home in (("somebodys.os.system", os.system.__module__), ("somebodys.load", "torch.serialization")):
            with pytest.raises(ValueError, match=rf"{target}: defined in {home}, not in somebodys;"):
                safe(RUN, {"model": {"_target_": target}}, trust=["somebodys"])
        for target in ("somebodys_other.X", "somebodys"):
            with pytest.raises(ValueError, match="not part of this program"):
                safe(RUN, {"model": {"_target_": target}}, trust=["somebodys"])
        with pytest.raises(ValueError, match="not found"):
            safe(RUN, {"model": {"_target_": "somebodys.Missing"}}, trust=["somebodys"])
        with pytest.raises(ValueError, match="--trust a/b: must be the name of a module"):
            safe(RUN, {}, trust=["a/b"])
    finally:
        for name in [n for n in sys.modules if n.partition(".")[0] == "somebodys"]:
            del sys.modules[name]


def test_targets_of_the_users_own_configuration_folder_are_allowed(tmp_path: Path) -> None:
    (tmp_path / "strategy").mkdir()
    (tmp_path / "strategy" / "mine.yaml").write_text("mine:\n  _target_: my_module.Mine\n")
    node = {"strategy": {"mine": {"_target_": "my_module.Mine"}}}
    assert safe(RUN, node, config_dir=tmp_path) == node
    with pytest.raises(ValueError, match=r"strategy\.mine\._target_=my_module\.Mine: not part of this program"):
        safe(RUN, node)


def poisoned(path: Path, key: str, node: Any) -> None:
    """Add `node` to a group of the run's configuration."""
    config = json.loads((path / "manifest.json").read_text())["config"]
    config[key] = config[key] | node if isinstance(node, dict) else node
    folders.edit(path, config=config)


def test_measure_and_atlas_run_nothing_of_a_foreign_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = trained(tmp_path / "results", "strategy=naive", "metrics=off", "control=false", "gap=false")
    (tmp_path / "mine.py").write_text("from pathlib import Path\nPath('imported').touch()\ndef make(**_): ...\n")
    capsys.readouterr()
    for key in ("dataset", "tasks", "model", "optimizer", "strategy", "train", "pin", "unknown"):
        before = (path / "manifest.json").read_bytes()
        poisoned(path, key, [{"_target_": "mine.make"}] if key == "unknown" else {"x": {"_target_": "mine.make"}})
        after = (path / "manifest.json").read_bytes()
        for command in ("measure", "atlas", "merge") if key in ("dataset", "unknown") else ("atlas",):
            monkeypatch.setattr(sys, "argv", ["harness", command, str(path)])
            assert cli.main() == 2
            said = capsys.readouterr().err
            assert said.startswith(f"harness: {path}: {key}.") and said.count("\n") == 1, said
            assert "_target_=mine.make" in said and said.endswith("--trust mine\n")
        assert (path / "manifest.json").read_bytes() == after and not Path("imported").exists()
        (path / "manifest.json").write_bytes(before)
    before = (path / "manifest.json").read_bytes()
    for key, node in (("model", {"activation": {}}), ("strategy", {"x": {}}), ("optimizer", {"schedule": [1]})):
        poisoned(path, key, node)
        for command in ("measure", "atlas") if key == "model" else ("atlas",):
            monkeypatch.setattr(sys, "argv", ["harness", command, str(path)])
            assert cli.main() == 2
            said = capsys.readouterr().err
            assert said.count("\n") == 1 and (key in said or f"{path}/manifest.json: damaged (its config" in said)
        (path / "manifest.json").write_bytes(before)
    poisoned(path, "dataset", {"_target_": "tasks.datasets.function", "make": {"_target_": "mine.make"}})
    monkeypatch.setattr(sys, "argv", ["harness", "measure", str(path), "--trust", "mine"])
    cli.main()  # what it makes is no data set
    assert Path("imported").exists()


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"dataset": {"_target_": "tasks.datasets.load", "name": "${oc.env:HOME}"}}, r"dataset\.name"),
        ({"pin": {"x": [{"_target_": "os.system"}]}}, r"pin\.x\.0\._target_=os\.system: not part"),
        ({"strategy": {"ewc": {"_target_": "os.system"}}}, r"strategy\.ewc\._target_=os\.system"),
        ({"scenario": "../../x"}, "scenario=../../x: unknown"),
        ({"strategy": {"ewc],+x=[a": {"_target_": "strategies.ewc.EWC"}}}, r"strategy=ewc\],\+x=\[a: unknown"),
    ],
    ids=["resolver", "target in a list", "strategy", "path", "words"],
)  # fmt: skip
def test_tune_copies_only_plain_values_into_presets(
    tmp_path: Path,
    changes: dict[str, Any],
    key: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cfg = composed(["strategy=ewc", "tasks=split", "scenario=class", "tasks.n_tasks=2", "train.steps=7"])
    path = folders.write(tmp_path, "ewc", [0.5, 0.6], seeds=(100, 101), split="val", config={**cfg, **changes})
    monkeypatch.setattr(sys, "argv", ["harness", "tune", str(tmp_path), "--out", str(tmp_path / "presets")])
    assert cli.main() == 2
    said = capsys.readouterr().err
    assert str(path) in said and said.count("\n") == 1
    assert re.search(key, said), said
    assert not (tmp_path / "presets").exists()
