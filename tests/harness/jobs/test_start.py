"""A run that starts from the net of another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from harness import store
from harness.cli.training import train
from harness.jobs.job import from_config
from tests.compositions import composed

SMALL = (
    "strategy=naive", "tasks=permuted", "tasks.n_tasks=2", "train.steps=3", "model.widths=[6]", "metrics=off",
    "gap=false", "control=false", "tracker.mode=disabled", "eval.samples=40",
)  # fmt: skip


def made(tmp_path: Path, *words: str) -> Path:
    return from_config(composed(*SMALL, f"results={tmp_path}", *words), progress=False)


def net(run: Path, name: str) -> dict[str, Any]:
    with store.RunFolder.reopen(run) as folder:
        return folder.net(-1 if name == "initial" else int(name))["params"]


def test_each_seed_starts_from_its_own_net_with_a_new_read_out(tmp_path: Path) -> None:
    first = made(tmp_path, "seeds=[0,1,2]")
    again = made(tmp_path, "seeds=[2,1]", f"start={first}")
    there, here, plain = net(first, "1"), net(again, "initial"), net(first, "initial")
    for k, v in here.items():
        if k.startswith("head"):
            assert torch.equal(v, plain[k][[2, 1]]), "the read-out of a run without a start"
        else:
            assert torch.equal(v, there[k][[2, 1]]) and not torch.equal(v, plain[k][[2, 1]])
    assert made(tmp_path, "seeds=[2,1]").name != again.name


def test_a_run_of_one_seed_starts_all_and_counts_by_its_net_not_its_place(tmp_path: Path) -> None:
    first = made(tmp_path, "seeds=[7]")
    one = made(tmp_path, "seeds=[0,1]", f"start={first}")
    weight = net(one, "initial")["fc1.weight"]
    assert torch.equal(weight[0], weight[1]) and torch.equal(weight[:1], net(first, "1")["fc1.weight"])
    moved = first.rename(tmp_path / "moved")
    assert made(tmp_path, "seeds=[0,1]", f"start={moved}").name == one.name


@pytest.mark.parametrize(
    "words, said",
    [
        (["seeds=[1,5]"], r"has the seeds \[0, 1\], and not \[5\]; use seeds=\[0,1\]"),
        (["seeds=[0,1]", "model.widths=[7]"], r"has model.widths=\[6\], and this run \[7\]; use the same"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, words: list[str], said: str) -> None:
    first = made(tmp_path, "seeds=[0,1]")
    with pytest.raises(ValueError, match=said):
        made(tmp_path, f"start={first}", *words)


def test_a_folder_that_is_no_run_and_data_of_another_shape_are_refused(tmp_path: Path) -> None:
    with pytest.raises(store.StoreError, match="not a run; name a run folder"):
        made(tmp_path, f"start={tmp_path}")
    first = made(tmp_path, "seeds=[0]")
    with pytest.raises(ValueError, match=r"start: fc1.weight is \[6, 64\] there, and here \[6, 100\]"):
        made(tmp_path, "seeds=[0]", f"start={first}", "dataset.pad=1")


def test_it_is_a_setting_of_the_command_line(tmp_path: Path) -> None:
    first = made(tmp_path, "seeds=[0]")
    assert train([*SMALL, "seeds=[0]", f"results={tmp_path}", f"start={first}"]) == 0
    assert len([*(tmp_path / "runs").glob("*/*/*/DONE")]) == 2
