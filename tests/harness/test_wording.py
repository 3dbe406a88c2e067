"""Names from configurations and folders are shown, and do nothing, wherever they are written."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness import cli
from harness.leaderboard import leaderboard, text
from harness.report.leaderboard_files import write as write_files
from harness.wording import markdown, printable, spreadsheet
from tests.harness import folders

ROOT = Path(__file__).parents[2]
ESCAPE = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202etxt\r\x85\u2028end"
LIVE = "![x](http://x.invalid/a.png) [y](javascript:alert(1)) [z]: javascript:1 <img src=x> `c` |"


@pytest.mark.parametrize("first", "=+-@\t\r\n＝＋－＠")
def test_a_cell_that_begins_like_a_formula_is_text(first: str) -> None:
    assert spreadsheet(f"{first}cmd|'/c calc'!A1") == f"'{first}cmd|'/c calc'!A1"
    assert spreadsheet(f"a{first}1") == f"a{first}1"


def test_every_control_character_is_shown_and_other_text_is_unchanged() -> None:
    for code in (*range(32), 127, *range(128, 160), 0x200E, 0x2028, 0x202E, 0x2066, 0xDC80):
        assert printable(chr(code)).isascii() and printable(chr(code)).startswith("\\")
    assert printable("λ₁ ± 0.1 – ewc (strength=1)") == "λ₁ ± 0.1 – ewc (strength=1)"


def test_markdown_shows_links_and_images_as_text() -> None:
    shown = markdown(LIVE)
    assert "](" not in shown.replace("\\](", "") and "]:" not in shown.replace("\\]:", "")
    assert "<" not in shown and "`" not in shown and "://" not in shown and shown.endswith("\\|")
    assert markdown("a\\](b)") == "a\\\\\\](b)"  # a backslash of the name does not undo ours
    assert markdown("seeds [0, 1], strategy=[ewc,replay]") == "seeds [0, 1], strategy=[ewc,replay]"


def test_a_hostile_name_is_text_in_every_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folders.write(tmp_path, "naive", [0.5, 0.6])
    folders.write(tmp_path, "ewc", [0.6, 0.7])
    name = f"=1+1{LIVE}{ESCAPE}"
    folders.edit(path, strategy=name, entry=name, stream=f"s{LIVE}{ESCAPE}", argv=["x", ESCAPE], status=ESCAPE)
    found = leaderboard([tmp_path])
    assert all(line.isprintable() for line in text(found))
    write_files(found, tmp_path / "out")
    page = (tmp_path / "out" / "leaderboard.md").read_text()
    assert page.replace("\n", "").isprintable()
    assert "![x](" not in page and "[y](" not in page and "<img" not in page and "javascript" in page
    for name in ("leaderboard", "leaderboard_seeds"):
        with (tmp_path / "out" / f"{name}.csv").open(newline="") as file:
            cells = [cell for row in list(csv.reader(file))[1:] for cell in row]
        assert any(cell.startswith("'=1+1") for cell in cells)
        assert not [c for c in cells if c.startswith(("=", "+", "@")) or (c.startswith("-") and not c[1:2].isdigit())]
    for words in (("show", str(path)), ("leaderboard", str(tmp_path)), ("show", f"no{ESCAPE}")):
        monkeypatch.setattr(sys, "argv", ["harness", *words])
        cli.main()
        said = capsys.readouterr()
        assert (said.out + said.err).replace("\n", "").isprintable(), words


def started(command: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    line = f"{sys.executable} -m harness {command}"
    given = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(["bash", "-c", line], check=False, capture_output=True, cwd=ROOT, env=given)


@pytest.mark.parametrize(
    "closed", [">&-", "<&- >&- 2>&-", *(pytest.param(s, marks=pytest.mark.nightly) for s in ("<&- >&-", "2>&-"))]
)
def test_closed_streams_are_no_error(tmp_path: Path, closed: str) -> None:
    folders.write(tmp_path, "naive", [0.5, 0.6])
    done = started(f"leaderboard {tmp_path} --out {tmp_path}/out {closed}")
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "out" / "leaderboard.md").read_text().startswith("# Leaderboard")


def test_an_ascii_terminal_shows_every_table(tmp_path: Path) -> None:
    folders.write(tmp_path, "naive", [0.5, 0.6])
    path = folders.write(tmp_path, "ewc", [0.6, 0.7], settings={"mode": "λ"})
    for command in (f"leaderboard {tmp_path}", f"show {path}"):
        done = started(command, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
        assert (done.returncode, done.stderr) == (0, b"") and b"\\xb1" in done.stdout


def test_a_full_disk_behind_stdout_is_one_line(tmp_path: Path) -> None:
    folders.write(tmp_path, "naive", [0.5, 0.6])
    done = started(f"leaderboard {tmp_path} > /dev/full")
    assert done.returncode == 2 and done.stderr == b"harness: [Errno 28] No space left on device\n"
