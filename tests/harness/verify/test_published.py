"""The cheap rows of the published tables, run again. They need MNIST: HARNESS_DATA names the folder that holds it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from scipy.stats import ttest_ind

from harness.verify import results
from harness.verify.protocol import protocols
from tests.command import harness

COMMITTED = Path(__file__).parents[3] / "results" / results.NAME
DATA = os.environ.get("HARNESS_DATA")
MINUTES = 1.5
CHEAP = [row for one in protocols().values() for row in one.rows if row.minutes <= MINUTES]


@pytest.mark.nightly
@pytest.mark.skipif(not DATA, reason="HARNESS_DATA is not set to a folder with MNIST")
@pytest.mark.parametrize("name", [row.name for row in CHEAP])
def test_a_cheap_row_comes_out_as_it_did(name: str, tmp_path: Path) -> None:
    """The same seeds: on the same kind of machine the same numbers, elsewhere others from the same distribution."""
    before = {result.row: result for result in results.load(COMMITTED)}
    done = harness("verify", name, f"dataset.root={DATA}", f"results={tmp_path}", "--out", str(tmp_path), cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    (made,) = results.load(tmp_path / results.NAME)
    if name not in before:
        pytest.skip(f"{name}: no committed result to compare with")
    assert made.seeds == before[name].seeds and made.diverged == before[name].diverged
    assert ttest_ind(made.values, before[name].values, equal_var=False).pvalue > 0.001


def test_there_are_cheap_rows_of_several_protocols() -> None:
    assert len({row.name.partition("/")[0] for row in CHEAP}) >= 2 and len(CHEAP) >= 5
