"""The page about all strategies says what stands in the files, and nothing else."""

import pytest

from harness import ROOT
from harness.config import catalogue
from harness.pages import strategies
from strategies.ewc import EWC
from strategies.reset import Reset

README = ROOT / "strategies" / "README.md"


def test_every_strategy_has_a_row_and_a_section() -> None:
    overview, methods = strategies.overview(), strategies.methods()
    for name in catalogue.options("strategy"):
        assert f"| [{name}](#{name}) |" in overview
        assert f"\n### {name}\n" in methods
    assert "| [ewc](#ewc) | parameter regularization | task, domain, class | setup loss end |" in overview


def test_a_method_is_verified_by_the_tests_of_its_file_and_those_that_name_it() -> None:
    ewc, reset = strategies.tests("ewc", EWC), strategies.tests("reset", Reset)
    assert "separate penalties are summed in constant memory" in ewc
    assert "reset equals naive on the first task" in reset
    assert not set(ewc) & set(reset)


def test_the_page_in_the_repository_is_the_one_that_the_files_make() -> None:
    text = README.read_text(encoding="utf-8")
    remedy = "run python -m harness catalogue FOLDER > strategies/README.md"
    assert strategies.overview() in text, remedy
    assert strategies.methods() in text, remedy


def test_a_folder_without_runs_is_refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from harness import cli

    monkeypatch.setattr("sys.argv", ["harness", "catalogue", "nowhere"])
    assert cli.main() == 2
    assert "catalogue nowhere: no such folder" in capsys.readouterr().err
