"""The page: what it shows, that it escapes, and how it behaves in a real browser."""

from __future__ import annotations

import itertools
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness import cli, store
from harness.leaderboard import leaderboard
from harness.report import html as rendered
from harness.report import report, svg
from harness.report.figures import declared_columns
from harness.store import tables
from harness.store.entries import named
from tests.harness.browser import CHROMIUM, browser
from tests.harness.folders import write

NASTY = "ewc</script><script>alert(1)</script><img src=http://x.invalid/a.png onerror=alert(2)>&\"'{{7*7}}"


class Page(HTMLParser):
    """Tags with their attributes, and the text of table cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("report") / "results"
    for i, name in enumerate(("naive", "replay", NASTY)):
        shape = {
            "lambda_max_joint": [[5.0 + i, 6.0 + i]] * 3,
            "trainability_gap": [[0.0, 0.1]] * 3,
            "barrier_entezari_loss_joint": [[], [0.1 * i, 0.2], [0.3, 0.1]],
            "weight_l2": [[1.0, 2.0]] * 3,
        }
        own = {"note": NASTY} if name == NASTY else {}
        path = write(root, name, [0.5 + 0.1 * i, 0.6], step=1.0 + i, metrics=shape, settings=own)
        _along(path)
    return root


def _along(path: Path) -> None:
    """Adds the rows of a path and of a spectrum to a finished run."""
    import pyarrow as pa

    table = store.read_table(path, "metrics")
    rows = []
    for t in (1, 2):
        for seed in (0, 1):
            for name, slope in (("path_loss_old", 1.0), ("path_loss_new", -1.0), ("path_loss_joint", 0.1)):
                rows += [(t, seed, name, "alpha", str(a / 4), 2 + slope * a / 4) for a in range(5)]
            rows += [(t, seed, "lambda_top_joint", "k", str(k), 9.0 / k) for k in (1, 2, 3)]
    first = table.slice(0, 1).to_pylist()[0]
    made = [
        {**first, "boundary": t, "seed": seed, "metric": name, "axis": axis, "coord": coord, "value": value}
        for t, seed, name, axis, coord, value in rows
    ]
    whole = pa.concat_tables([table, pa.Table.from_pylist(made, schema=table.schema)])
    tables.write_table(path / "metrics.parquet", whole, "metrics", 2)


@pytest.fixture(scope="module")
def html(folder: Path) -> str:
    return report([folder])


@pytest.mark.parametrize("low", [0.0, 1.0, -3.0, 1e-15, 1e12, 1e-200])
@pytest.mark.parametrize("width", [0.0, 1e-17, 1e-15, 1e-9, 0.3, 7e8])
def test_ticks_rise_and_span_the_values(low: float, width: float) -> None:
    high = low + width
    found = svg.ticks(low, high)
    assert 2 <= len(found) <= 12 and all(a < b for a, b in itertools.pairwise(found))
    slack = 1e-9 * max(abs(low), abs(high), found[-1] - found[0])
    assert found[0] <= low + slack and high <= found[-1] + slack


def test_everything_that_was_measured_has_a_figure(html: str) -> None:
    for title in ("Compute", "Memory", "Average accuracy over the tasks so far", "Forgetting", "Plasticity lost"):
        assert f"<figcaption>{title}</figcaption>" in html
    assert "<figcaption>Sharpness: top eigenvalue" in html and "<figcaption>Barrier on the line" in html
    assert html.count("task 1 to 2</figcaption>") == html.count("task 2 to 3</figcaption>") == 3  # path cards
    assert f"<figcaption>{declared_columns()['lambda_top_joint'][1]}</figcaption>" in html  # the spectrum
    assert "<figcaption>weight_l2</figcaption>" in html
    assert "<figcaption>trace_joint" not in html  # nobody measured it


def test_each_figure_has_a_name_and_its_numbers(html: str) -> None:
    figures = re.findall(r"<figure>(.*?)</figure>", html, re.DOTALL)
    assert len(figures) > 15
    for figure in figures:
        assert re.search(r'<svg [^>]*role="img" aria-label="[^"]+"', figure)
        assert figure.count("<tr>") >= 2 and "<summary>Numbers</summary>" in figure
    (forgetting,) = [f for f in figures if "<figcaption>Forgetting</figcaption>" in f and "after task" in f]
    assert "<td>0.1</td>" in forgetting  # the value of every seed and boundary
    (weights,) = [f for f in figures if "<figcaption>weight_l2</figcaption>" in f]
    assert re.findall(r'<th scope="col">(.*?)</th>', weights) == ["1", "2", "3"]  # tasks are counted from one
    assert "<td>1.5 ± 6.35</td>" in weights  # of 1 and 2: t(0.975, 1) / 2


def test_names_from_configurations_are_text_wherever_they_stand(html: str) -> None:
    tags = Page(html).tags
    assert [tag for tag, _ in tags].count("script") == 1 and "img" not in {tag for tag, _ in tags}
    assert not any(key.startswith("on") for _, attributes in tags for key in attributes)
    assert "x.invalid" in html and "alert(1)</script>" not in html and "{{7*7}}" in html


def test_nothing_is_asked_of_a_network(html: str) -> None:
    for tag, attributes in Page(html).tags:
        for key in ("src", "href", "xlink:href", "action", "data"):
            assert (attributes.get(key) or "#").startswith(("#", "data:")), (tag, attributes)
    assert "default-src 'none'" in html and "@import" not in html and "url(" not in html


def test_a_row_can_be_made_again(html: str) -> None:
    assert "<pre>python -m harness strategy=naive</pre>" in html
    assert "note:" in html and "source" in html


def test_a_single_run_has_a_page(folder: Path) -> None:
    (path,) = folder.glob("runs/*/naive/*")
    text = report([path])
    assert text.count("<figcaption>naive</figcaption>") == 1 and "replay" not in text


def test_the_leaderboard_page_is_the_same_without_figures(folder: Path) -> None:
    text = rendered(leaderboard([folder]))
    assert "<figure>" not in text and text.count("<tr") > 3


@pytest.mark.nightly
def test_twenty_runs_stay_under_two_megabytes(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for i in range(20):
        names = [f"measure_{k}" for k in range(80)]  # what metrics=standard has of them
        write(tmp_path, f"m{i}", [0.5, 0.6], tasks=20, metrics={n: draw.random((20, 2)).tolist() for n in names})
    assert len(report([tmp_path]).encode()) < 2e6


def test_lines_break_where_a_seed_diverged() -> None:
    x = np.arange(4.0)
    y = np.array([1.0, 2.0, np.nan, 3.0])
    drawn = svg.lines("a", [svg.Series("s", 0, x, y, y - 1, y + 1)], "x", "y")
    (line,) = re.findall(r'class="line d0" d="([^"]*)"', drawn)
    assert line.count("M") == 2 and "nan" not in drawn
    assert svg.lines("a", [svg.Series("s", 0, x, y * np.nan, y, y)], "x", "y") != ""
    assert svg.lines("a", [svg.Series("s", 0, x, y * np.nan, y * np.nan, y * np.nan)], "x", "y") == ""


def test_a_point_stands_where_its_numbers_say() -> None:
    """Up is more, right is later; the ends of the axes are the ends of the ticks."""
    axes = svg.frame([1.0, 3.0], [0.0, 1.0], "x", "y", whole=True)
    assert axes.x(1) == svg.LEFT and axes.x(3) == svg.WIDTH - svg.RIGHT
    assert axes.y(0) == svg.HEIGHT - svg.BOTTOM and axes.y(1) == svg.TOP
    drawn = svg.heat("a", np.array([[0.0, 1.0]]), [0], [0, 1], 0.0, 1.0)
    assert drawn.index("#00224e") < drawn.index("#fee838")
    cells = re.findall(r'<rect x="([\d.]+)" y="([\d.]+)"', svg.heat("a", np.eye(2), [0, 1], [0, 1], 0.0, 1.0))
    assert [float(y) for _, y in cells] == [34.0, 34.0, 154.0, 154.0] and cells[0][0] == cells[2][0] != cells[1][0]


def test_a_band_far_wider_than_the_lines_are_apart_runs_off_the_chart() -> None:
    x, y = np.arange(3.0), np.array([1.0, 2.0, 3.0])
    drawn = svg.lines("a", [svg.Series("s", 0, x, y, y - 90, y + 90)], "x", "y")
    shown = [float(tick) for tick in re.findall(r'text-anchor="end">(-?[\d.]+)<', drawn)]
    assert min(shown) > -3 and max(shown) < 7


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium: apt-get install chromium")
def test_in_a_browser(html: str, tmp_path: Path) -> None:
    """At desktop and phone width, light and dark: no message, no request, nothing cut off, sorted by keyboard."""
    file = tmp_path / "report.html"
    file.write_text(html, "utf-8")
    order = "[...document.querySelector('table.board').tBodies[0].rows].map(r => r.cells[1].textContent)"
    shades = {}
    with browser() as view:
        for scheme in ("light", "dark"):
            for width in (1280, 390):
                view.open(file, width, 900, scheme)
                assert view.ask("document.documentElement.scrollWidth") <= width  # tables scroll, the page does not
                assert view.ask("document.querySelectorAll('figure svg').length") > 15
                view.screenshot(tmp_path / f"{scheme}-{width}.png")
                image = np.asarray(Image.open(tmp_path / f"{scheme}-{width}.png").convert("L"))
                shades[scheme] = float(np.median(image))
                assert image.std() > 5  # something is drawn
        assert shades["light"] > 230 and shades["dark"] < 40
        view.open(file, 1280, 900, "light")
        before = view.ask(order)
        assert before == [named(NASTY, {NASTY: {"note": NASTY}}), "replay", "naive"]
        view.ask("document.querySelector('table.board th button').focus()")
        view.press("Enter", 13, "\r")  # rank: now the other way
        assert view.ask(order) == before[::-1]
        assert view.ask("document.activeElement.closest('th').getAttribute('aria-sort')") == "descending"
        view.press("Tab", 9)
        view.press(" ", 32, " ")  # strategy: by name
        assert view.ask(order) == sorted(before, key=str.lower)
        assert view.ask("document.querySelectorAll('th[aria-sort]').length") == 1
        view.ask("document.querySelector('.chip').click()")
        assert view.ask("document.querySelectorAll('.picking .series.on').length") > 0
        assert view.said() == []


@pytest.mark.parametrize(("command", "option"), [("report", "FILE"), ("leaderboard", "FOLDER")])
def test_a_place_that_cannot_be_written_to_is_named_with_the_option_that_chooses_another(
    folder: Path,
    tmp_path: Path,
    command: str,
    option: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr("sys.argv", ["harness", command, str(folder), "--out", str(tmp_path / "file" / "x")])
    assert cli.main() == 2
    said = capsys.readouterr().err
    assert said.startswith(f"harness: {tmp_path}/file/x: ") and said.endswith(f"with --out {option}\n"), said
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
