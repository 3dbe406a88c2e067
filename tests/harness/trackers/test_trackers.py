"""What trackers show of a run, and that none of them can harm it."""

from __future__ import annotations

import io
import math
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from harness.store import RunFolder
from harness.trackers import About, Summary, Trackers, summaries
from harness.trackers.console import TABLE, Console, Shown, line, matrix, table

ROOT = Path(__file__).parents[3]
NAN = math.nan


def about(path: Path) -> About:
    return About({}, {"run_id": "abc"}, path, (3, 4), 2)


FIRST = Summary(0, {"forgetting": np.array([NAN, NAN])}, np.array([[0.9, NAN], [0.7, NAN]]))
SECOND = Summary(
    1,
    {"forgetting": np.array([0.4, 0.2]), "lambda_max_joint": np.array([10.0, 30.0])},
    np.array([[0.5, 0.8], [0.5, 0.6]]),
)


def test_new_and_old_are_read_from_the_accuracy_matrix() -> None:
    assert FIRST.new.tolist() == [0.9, 0.7] and np.isnan(FIRST.old).all()
    assert SECOND.new.tolist() == [0.8, 0.6] and SECOND.old.tolist() == [0.5, 0.5]
    assert np.isnan(Summary(-1, {}, np.array([[0.1, 0.2]])).new).all()


def test_summaries_are_made_of_the_rows(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path, "permuted", "ewc", "abc") as run:
        run.append(-1, "init", {"accuracy": {"seed": [4, 3], "task": 0, "accuracy": [0.1, 0.2], "n": 9}})
        run.append(0, "start", {"metrics": {"seed": [3, 4], "metric": "dead_frac", "value": [0.5, 0.6]}})
        run.append(
            0,
            "end",
            {
                "metrics": [
                    {"seed": 4, "metric": "dead_frac", "value": 0.7},
                    {"seed": 3, "metric": "loss", "net": "deployed", "value": 1.0},
                    {"seed": 3, "metric": "loss", "net": "trained", "value": 2.0},
                    {"seed": 3, "metric": "ece", "net": "deployed", "value": 3.0},
                    {"seed": 3, "metric": "path", "axis": "alpha", "coord": 0.5, "value": 4.0},
                    {"seed": 3, "metric": "forgetting_task", "task": 0, "value": 5.0},
                ],
                "accuracy": {"seed": [3, 3, 4], "task": [0, 1, 0], "accuracy": [0.9, 0.3, 0.8], "n": 9},
            },
        )
        initial, after = summaries(run.table("metrics"), run.table("accuracy"), (3, 4), 2)
    assert (initial.t, after.t) == (-1, 0) and not initial.values
    np.testing.assert_array_equal(initial.accuracy, [[0.2, NAN], [0.1, NAN]])
    np.testing.assert_array_equal(after.accuracy, [[0.9, 0.3], [0.8, NAN]])
    assert set(after.values) == {"start/dead_frac", "dead_frac", "loss", "loss/deployed", "ece"}
    np.testing.assert_array_equal(after.values["dead_frac"], [NAN, 0.7])
    np.testing.assert_array_equal(after.values["start/dead_frac"], [0.5, 0.6])
    assert after.values["loss"][0] == 2.0 and after.values["loss/deployed"][0] == 1.0


# --- console ------------------------------------------------------------------------------------


def test_a_pipe_gets_plain_lines(tmp_path: Path) -> None:
    out = io.StringIO()
    console = Console("ewc on permuted digits", closing=["compare with: this"], stream=out)
    console.start(about(tmp_path), [])
    console.progress(0, 5, 10)
    console.boundary(FIRST)
    console.boundary(SECOND)
    console.finish([])
    # 95 % of two values: t(0.975, 1) = 12.706, half = 12.706 |a - b| / 2
    assert (
        out.getvalue()
        == f"""\
ewc on permuted digits
task 1/2  new  0.800  old    n/a  forgetting    n/a
task 2/2  new  0.700  old  0.500  forgetting  0.300  sharpness     20

mean ± 95 % interval over 2 seeds
  {"average accuracy":38}  0.600 ± 0.635
  {"accuracy on the new task, mean":38}  0.750 ± 1.271
  {"accuracy on old tasks":38}  0.500 ± 0.000
  {"forgetting":38}  0.300 ± 1.271
  sharpness (top eigenvalue, seen tasks)  20 ± 127.1

accuracy, %, on task (across) after task (down), mean over seeds
        1   2
    1  80   -
    2  50  70

results in {tmp_path}
compare with: this
"""
    )


def test_a_resumed_run_says_so_and_shows_all_of_it(tmp_path: Path) -> None:
    out = io.StringIO()
    console = Console(stream=out)
    console.start(about(tmp_path), [FIRST])
    console.boundary(SECOND)
    console.finish([])
    text = out.getvalue()
    assert text.startswith("resumed after task 1/2\ntask 2/2") and "    1  80   -\n    2  50  70\n" in text


def test_a_failed_run_prints_no_table(tmp_path: Path) -> None:
    out = io.StringIO()
    console = Console(stream=out)
    console.start(about(tmp_path), [])
    console.boundary(FIRST)
    console.finish([], error="ValueError: no")
    assert out.getvalue().count("\n") == 1


def test_a_diverged_seed_is_counted_not_hidden() -> None:
    gone = Summary(1, {"forgetting": np.array([0.4, NAN])}, np.array([[0.5, 0.8], [NAN, NAN]]))
    shown = (Shown("new", "new", over="mean"), Shown("forgetting", "forgetting"))
    assert line(gone, 2, shown).endswith("(1 of 2 seeds diverged)")
    _, new, forgetting = table([FIRST, gone], 2, shown)
    # seed 3: (0.9 + 0.8) / 2, seed 4: (0.7 + 0) / 2; half = 12.706 |a - b| / 2
    assert re.fullmatch(r"  new +0\.600 ± 3\.177  1 diverged, counted as 0", new)
    assert re.fullmatch(r"  forgetting +div 1/2", forgetting)
    dead = Summary(1, {}, np.full((2, 2), NAN))
    assert "task 2/2  new  0.000" in line(dead, 2, shown)


def test_one_seed_has_no_interval() -> None:
    one = Summary(0, {}, np.array([[0.5]]))
    assert table([one], 1, (Shown("new", "new"),)) == ["mean over 1 seed", "  new  0.500"]


def test_long_streams_show_an_even_choice_of_tasks() -> None:
    tasks = 75
    history = [Summary(t, {}, np.full((2, tasks), t / 100)) for t in range(-1, tasks)]
    head, labels, cells = matrix(history, tasks, 10**6)
    shown = [int(x) for x in head.splitlines()[1].split()]
    assert len(shown) == len(labels) == len(cells) == 20 and (shown[0], shown[-1]) == (1, 75)
    assert set(np.diff(shown)) <= {3, 4} and cells[-1][0][0] == "  74"
    narrow, _, _ = matrix(history, tasks, 50)
    assert max(map(len, narrow.splitlines()[1:])) <= 50


def test_scores_that_are_no_fractions_are_not_percentages() -> None:
    head, _, cells = matrix([Summary(0, {}, np.array([[-1.25, NAN]]))], 2, 80)
    assert head.startswith("score") and [t.strip() for t in cells[0][0]] == ["-1.25", "-"]
    errors = [Summary(t, {}, np.array([[-1.25, NAN], [-0.5, -2.0]])) for t in (0, 1)]
    assert [row.split("  ")[1] for row in table(errors, 2, TABLE)[1:]] == [
        "average score",
        "score on the new task, mean",
        "score on old tasks",
        "forgetting",
    ]


def test_a_matrix_of_nothing_but_nan_is_drawn(tmp_path: Path) -> None:
    out = io.StringIO()
    console = Console(stream=out)
    console.start(about(tmp_path), [])
    console.boundary(Summary(0, {}, np.full((2, 2), NAN)))
    console.finish([])
    assert "    1 div   -\n" in out.getvalue()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar_and_colours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("NO_COLOR", raising=False)
    out = Terminal()
    console = Console("[bold]title[/bold]", stream=out)
    console.start(about(tmp_path), [])
    console.progress(0, 5, 10)
    assert console.bar is not None and console.bar.tasks[0].completed == 0.5
    console.boundary(FIRST)
    assert console.bar.tasks[0].description == "task 1/2"
    console.boundary(SECOND)
    console.finish([])
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())
    assert "━" in plain and "left" in plain and "\x1b[" in out.getvalue()
    assert "[bold]title[/bold]" in plain  # what users name is no markup
    assert "task 2/2  new  0.700  old  0.500" in plain and "    2  50  70" in plain
    # light text on the dark end of the ramp for the worst cell, dark text on its bright end for the best
    cells = re.findall(r"\x1b\[([0-9;]+)m +(50|80)\x1b", out.getvalue())
    assert len(cells) == 2 and cells[0][0] != cells[1][0]


def test_a_control_that_is_trained_beside_the_run_has_a_bar_until_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    trained: list[int | None] = [0]
    console = Console("title", stream=Terminal())
    console.start(replace(about(tmp_path), control=lambda: trained[-1]), [])
    assert console.bar is not None
    _, control = console.bar.tasks
    assert (control.description, control.completed, control.visible) == ("control 0/2", 0, True)
    trained.append(1)
    console.progress(0, 5, 10)
    assert (control.description, control.completed) == ("control 1/2", 1)
    trained.append(None)
    console.progress(0, 10, 10)
    assert not control.visible
    console.bar.stop()
    alone = Console("title", stream=Terminal())
    alone.start(replace(about(tmp_path), control=lambda: None), [])
    assert alone.bar is not None and len(alone.bar.tasks) == 1
    alone.bar.stop()


@pytest.mark.parametrize("width", [20, 60])
def test_lines_on_a_narrow_terminal_break_between_words_only(
    width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shown(columns: int) -> list[str]:
        monkeypatch.setenv("COLUMNS", str(columns))
        out = Terminal()
        title = "ewc on permuted_digits (scenario domain, 2 tasks, seeds [3, 4]), a title of more than sixty characters"
        console = Console(title, closing=[f"compare: python -m harness leaderboard {tmp_path}"], stream=out)
        console.start(about(tmp_path), [])
        console.bar = console.bar and console.bar.stop()  # redrawing would mix its frames in
        for summary in (FIRST, SECOND):
            console.boundary(summary)
        console.finish([])
        plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())
        return [line.rstrip() for line in plain.splitlines() if "task 0/2" not in line]

    monkeypatch.setenv("TERM", "xterm-256color")
    narrow = shown(width)
    too_long = [line for line in narrow if len(line) > width]
    assert all(len(line.split()) == 1 for line in too_long), too_long
    assert " ".join(narrow).split() == " ".join(shown(400)).split()  # the same words


def test_importing_trackers_costs_neither_rich_nor_wandb(tmp_path: Path) -> None:
    code = (
        "import sys, io; from pathlib import Path\n"
        "import harness.trackers.console as c, harness.trackers.wandb as w\n"
        "from harness.trackers import About\n"
        "a = About({}, {}, Path('.'), (0,), 1)\n"
        "c.Console(stream=io.StringIO()).start(a, []); w.WandB('disabled').start(a, [])\n"
        "print([m for m in ('rich', 'wandb', 'torch', 'scipy', 'pandas', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True, check=True)
    assert done.stdout == "[]\n"


def test_a_tracker_that_raises_is_left_out_after_one_warning(tmp_path: Path) -> None:
    class Broken:
        calls = 0

        def start(self, about: About, past: Sequence[Summary]) -> None: ...
        def progress(self, task: int, step: int, steps: int) -> None: ...

        def boundary(self, summary: Summary) -> None:
            Broken.calls += 1
            raise OSError("pipe\nclosed")

        def finish(self, files: Sequence[Path], error: str = "") -> None: ...

    warnings: list[str] = []
    out = io.StringIO()
    all_ = Trackers([Broken(), Console(stream=out)], warn=warnings.append)
    all_.start(about(tmp_path))
    all_.boundary(FIRST)
    all_.boundary(SECOND)
    all_.finish([])
    assert warnings == ["Broken stopped (OSError: pipe); the run continues"] and Broken.calls == 1
    assert out.getvalue().count("task ") >= 2
