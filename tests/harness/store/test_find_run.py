"""A run is named by its folder or by the beginning of its id."""

import re
from pathlib import Path

import pytest

from harness.store.readers import find_run


def test_a_folder_or_the_beginning_of_an_id_is_enough(tmp_path: Path) -> None:
    first, second = (tmp_path / "runs" / "split" / "ewc" / name for name in ("c14b", "c15a"))
    for folder in (first, second):
        folder.mkdir(parents=True)
        (folder / "manifest.json").touch()
    assert find_run(str(first), command="card") == first
    assert find_run("c15", tmp_path, command="card") == second
    with pytest.raises(ValueError, match="card c1: matches 2 run ids; type more of the id"):
        find_run("c1", tmp_path, command="card")
    with pytest.raises(ValueError, match=re.escape("card d: not the folder of a run")):
        find_run("d", tmp_path, command="card")
