"""A run's card says what stands in its tables."""

import re
from pathlib import Path

import numpy as np
import pytest

from harness import cli, store
from harness.finished.card import card
from tests.harness.finished.test_measure import trained

CHEAP = ("metrics.sharpness.steps=6", "metrics.rises.ascent=2", "metrics.connectivity.points=5")


def test_a_card_holds_the_means_of_the_tables_and_names_the_command_for_what_is_lacking(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = trained(tmp_path, "strategy=naive", "metrics=fast", "control=false", "gap=false")
    with pytest.raises(ValueError, match="lacks metrics that the card needs") as error:
        card(path)
    command = str(error.value).partition("add them: ")[2].split()
    assert command[:3] == ["python", "-m", "harness"]
    monkeypatch.setattr("sys.argv", ["harness", *command[3:], *CHEAP[::2]])
    assert cli.main() == 0
    monkeypatch.setattr("sys.argv", ["harness", "card", str(path), f"out={tmp_path / 'out'}"])
    assert cli.main() == 0
    said = capfd.readouterr().out.splitlines()
    assert said[-3:] == [str(tmp_path / "out" / f"card.{kind}") for kind in ("md", "png", "svg")]
    text = (tmp_path / "out" / "card.md").read_text()
    frame = store.read_table(path, "metrics").to_pandas()
    rows = frame[(frame.metric == "ledger_loss") & (frame.boundary == 2) & (frame.task == 1)]
    half = 12.7062 * rows.value.std() / np.sqrt(2)  # two seeds
    ledger = re.findall(r"^\| (\d) \| (.*) \|$", text.partition("## The path card")[0], re.MULTILINE)
    assert [int(t) for t, _ in ledger] == [1, 2]
    assert ledger[1][1].split(" | ")[1] == f"{rows.value.mean():.3f} ± {half:.3f}"
    beside = re.findall(r"^\| (\d) \| (.*) \|$", text.partition("## Sharpness and")[2], re.MULTILINE)
    assert [int(t) for t, _ in beside] == [1, 2, 3] and beside[0][1].startswith("n/a |")
    assert (tmp_path / "out" / "card.png").read_bytes().startswith(b"\x89PNG")
    assert "the bound" not in text  # which takes metrics.ledger.steps, and has no column here
    monkeypatch.setattr("sys.argv", ["harness", "card", str(path), f"out={tmp_path / 'out' / 'card.md' / 'x'}"])
    assert cli.main() == 2
    said = capfd.readouterr().err
    assert said.startswith(f"harness: {tmp_path}/out/card.md/x: not a directory; ") and "out=FOLDER" in said
