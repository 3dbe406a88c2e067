"""Every fault in FAULTS.md has a test, and every test that it names exists."""

import ast
import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
ROWS = re.findall(r"^\| (.+) \| (.+) \|$", (FOLDER / "FAULTS.md").read_text(encoding="utf-8"), re.MULTILINE)
FAULTS = {fault: tests for fault, tests in ROWS if fault not in ("fault", "---")}


def test_the_list_is_read() -> None:
    assert len(FAULTS) > 80


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_s_tests_exist(fault: str) -> None:
    if FAULTS[fault].startswith("not "):  # with the reason in its place
        return
    for name in FAULTS[fault].split():
        file, test = name.split("::")
        (path,) = FOLDER.rglob(file)
        assert test in {n.name for n in ast.parse(path.read_text(encoding="utf-8")).body if hasattr(n, "name")}, name
