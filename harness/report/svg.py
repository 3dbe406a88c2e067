"""Charts as inline SVG: text in, Markup out. Colours are CSS classes; the page sets them for light and dark mode.

`Markup.format` escapes every text, because labels come from configurations.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from harness.stats import Array

WIDTH, HEIGHT = 284, 204
LEFT, RIGHT, TOP, BOTTOM = 47, 10, 10, 34
DOTTED = 12  # longer lines have no point markers, which would overlap
COLOURS = 8  # classes c0 ... c7 of the style sheet; further series are dashed


class Series(NamedTuple):
    """Points of one line, with the interval around each; NaN leaves a gap."""

    label: str
    style: int
    x: Array
    y: Array
    low: Array
    high: Array


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Rising round numbers that span low ... high; values that differ by rounding errors count as one.

    >>> ticks(0, 1), ticks(0.12, 0.31, 4)
    ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [0.1, 0.15, 0.2, 0.25, 0.3, 0.35])
    >>> ticks(1e-15, 3e-15, 2), ticks(2.0, 2.0 + 1e-15, 1)
    ([1e-15, 2e-15, 3e-15], [2.0, 2.2])
    """
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # equal but for rounding
        high = low + (abs(low) or 1.0) * 0.1
    raw = (high - low) / count
    step = 10 ** math.floor(math.log10(raw))
    step *= next(m for m in (1, 2, 2.5, 5, 10) if m * step >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 2 - math.floor(math.log10(step))) for i in range(first, last + 1)]


def number(value: float) -> str:
    """Short text of a number.

    >>> number(0.5), number(12345.678), number(1e-5), number(math.nan), number(0)
    ('0.5', '12,346', '1e-05', '-', '0')
    """
    if not math.isfinite(value):
        return "-" if math.isnan(value) else str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


class Frame(NamedTuple):
    """Axes: the position of a value, and the grid."""

    x: Callable[[float], float]
    y: Callable[[float], float]
    marks: Markup


def frame(xs: Sequence[float], ys: Sequence[float], x_title: str, y_title: str, whole: bool = False) -> Frame:
    """Axes around finite values; `whole`: x is a count and has ticks at whole numbers only."""
    at_y = ticks(min(ys), max(ys))
    at_x = ticks(min(xs), max(xs))
    low, high = (min(xs), max(xs)) if whole or min(xs) == 0 else (at_x[0], at_x[-1])
    if high <= low:
        low, high = low - 0.5, high + 0.5
    if whole:
        at_x = [v for v in at_x if v == int(v)]
    at_x = [v for v in at_x if low <= v <= high]

    def x(value: float) -> float:
        return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (value - at_y[0]) / (at_y[-1] - at_y[0]) * (HEIGHT - TOP - BOTTOM)

    parts = []
    for v in at_y:
        line = Markup('<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>')
        text = Markup('<text class="tick" x="{}" y="{:.1f}" text-anchor="end">{}</text>')
        parts += [line.format(LEFT, WIDTH - RIGHT, y(v), y(v)), text.format(LEFT - 6, y(v) + 3.5, number(v))]
    for v in at_x:
        text = Markup('<text class="tick" x="{:.1f}" y="{}" text-anchor="middle">{}</text>')
        parts.append(text.format(x(v), HEIGHT - BOTTOM + 14, number(v)))
    titles = Markup('<text class="axis" x="{}" y="{}" text-anchor="middle">{}</text>')
    parts.append(titles.format((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, x_title))
    parts.append(
        Markup('<text class="axis" transform="translate(9 {}) rotate(-90)" text-anchor="middle">{}</text>').format(
            (TOP + HEIGHT - BOTTOM) / 2, y_title
        )
    )
    return Frame(x, y, Markup("").join(parts))


def figure(label: str, *parts: Markup, width: float = WIDTH, height: float = HEIGHT) -> Markup:
    """An image with a label for screen readers."""
    opening = Markup('<svg viewBox="0 0 {:g} {:g}" role="img" aria-label="{}">')
    return opening.format(width, height, label) + Markup("").join(parts) + Markup("</svg>")


def lines(label: str, series: Sequence[Series], x_title: str, y_title: str, *, whole: bool = False) -> Markup:
    """Lines with bands; empty if there is nothing to draw.

    A band much wider than the distance between the lines is clipped: the interval of two seeds would hide the lines.
    """
    means = np.concatenate([s.y[np.isfinite(s.y)] for s in series]) if series else np.array([])
    if len(means) and (extent := float(np.ptp(means))) > 0:
        low, high = means.min() - 0.75 * extent, means.max() + 0.75 * extent
        series = [s._replace(low=np.clip(s.low, low, high), high=np.clip(s.high, low, high)) for s in series]
    stacked = [np.concatenate([s.y, s.low, s.high]) for s in series]
    ys = np.concatenate(stacked)[np.isfinite(np.concatenate(stacked))] if stacked else np.array([])
    if not len(ys):
        return Markup("")
    xs = np.concatenate([s.x for s in series])
    axes = frame(xs.tolist(), ys.tolist(), x_title, y_title, whole)
    return figure(label, axes.marks, *(_line(s, axes) for s in series))


def _line(series: Series, axes: Frame) -> Markup:
    mean, band, dots = [], [], []
    for stretch in _stretches(np.isfinite(series.y)):
        points = [(axes.x(series.x[i]), axes.y(series.y[i])) for i in stretch]
        mean.append(_path(points))
        dots += points if len(series.x) <= DOTTED or len(points) == 1 else []
    for stretch in _stretches(np.isfinite(series.low) & np.isfinite(series.high)):
        if np.array_equal(series.low[stretch], series.high[stretch]):
            continue  # one seed, or all equal: no visible band
        upper = [(axes.x(series.x[i]), axes.y(series.high[i])) for i in stretch]
        lower = [(axes.x(series.x[i]), axes.y(series.low[i])) for i in reversed(stretch)]
        band.append(_path(upper + lower) + "Z")
    circles = Markup("").join(Markup('<circle cx="{:.1f}" cy="{:.1f}" r="2.4"/>').format(x, y) for x, y in dots)
    colour, dash = series.style % COLOURS, series.style // COLOURS
    inner = Markup('<path class="band" d="{}"/><path class="line d{}" d="{}"/>').format(
        "".join(band), dash, "".join(mean)
    )
    opening = Markup('<g class="series c{}" data-s="{}"><title>{}</title>')
    return opening.format(colour, series.style, series.label) + inner + circles + Markup("</g>")


def _path(points: Sequence[tuple[float, float]]) -> str:
    """A line through points, as relative steps: shorter, and a report has some hundred thousand points.

    >>> _path([(10, 20), (15.04, 20), (20.08, 19.5)])
    'M10 20l5 0 5.1-0.5'
    """
    tenths = [(round(10 * x), round(10 * y)) for x, y in points]  # integers, so the steps add up exactly
    first, *rest = [f"{x / 10:g} {y / 10:g}" for x, y in (tenths[0], *_steps(tenths))]
    return f"M{first}" + ("l" + " ".join(rest) if rest else "").replace(" -", "-")


def _steps(points: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    return [(x - a, y - b) for (a, b), (x, y) in itertools.pairwise(points)]


def _stretches(there: np.ndarray) -> list[list[int]]:
    """Runs of neighbouring indices of True.

    >>> _stretches(np.array([True, True, False, True]))
    [[0, 1], [3]]
    """
    found: list[list[int]] = []
    for i in np.flatnonzero(there).tolist():
        if found and found[-1][-1] == i - 1:
            found[-1].append(i)
        else:
            found.append([i])
    return found


def scatter(label: str, points: Sequence[tuple[str, int, float, float, bool]], x_title: str, y_title: str) -> Markup:
    """Named points (label, style, x, y, on the front), and the Pareto front as a staircase."""
    known = [p for p in points if math.isfinite(p[2]) and math.isfinite(p[3])]
    if not known:
        return Markup("")
    axes = frame([0.0, *(p[2] for p in known)], [p[3] for p in known], x_title, y_title)
    front = sorted((p[2], p[3]) for p in known if p[4])
    parts = [axes.marks]
    if len(front) > 1:
        path = f"M{axes.x(front[0][0]):.1f} {axes.y(front[0][1]):.1f}"
        path += "".join(f"H{axes.x(x):.1f}V{axes.y(y):.1f}" for x, y in front[1:])
        parts.append(Markup('<path class="front" d="{}"/>').format(path))
    centres = [(axes.x(x), axes.y(y)) for _, _, x, y, _ in known]
    taken = [(px - 6, py - 6, px + 6, py + 6) for px, py in centres]
    for (name, style, _, _, best), (px, py) in zip(known, centres):
        name = name if len(name) <= 28 else f"{name[:27]}…"
        tx, ty, anchor, box = _place(name, px, py, taken)
        taken.append(box)
        mark = Markup('<g class="series c{}" data-s="{}"><circle cx="{:.1f}" cy="{:.1f}" r="{}" class="{}"/>')
        text = Markup('<text class="name" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text></g>')
        parts.append(mark.format(style % COLOURS, style, px, py, 4.5, "on" if best else "off"))
        parts.append(text.format(tx, ty, anchor, name))
    return figure(label, *parts)


Box = tuple[float, float, float, float]  # left, top, right, bottom


def _place(name: str, x: float, y: float, taken: Sequence[Box]) -> tuple[float, float, str, Box]:
    """Position of a point's name: next to, above or below it, the first free one."""
    wide = 6.2 * len(name)
    places = [
        *((x + 8, y + 3.5, "start"), (x - 8, y + 3.5, "end")),
        *((x, y + dy, "middle") for dy in (-9, 16, -20, 27)),
        *((x + dx, y + dy, anchor) for dy in (-20, 27) for dx, anchor in ((8, "start"), (-8, "end"))),
    ]
    shift = {"start": 0.0, "middle": 0.5, "end": 1.0}
    boxes = [(px - shift[a] * wide, py - 9, px + (1 - shift[a]) * wide, py + 2) for px, py, a in places]
    for place, box in zip(places, boxes):
        inside = box[0] >= LEFT - 4 and box[2] <= WIDTH + 4 and box[1] >= -2
        if inside and not any(
            box[0] < o[2] and o[0] < box[2] and box[1] < o[3] and o[1] < box[3] for o in taken if o[0] != x - 6
        ):
            return (*place, box)
    return (*places[0], boxes[0])


# cividis (Nuñez, Anderton & Renslow 2018): even steps of lightness, also for the colour-blind
RAMP = ((0, 34, 78), (53, 69, 108), (102, 105, 112), (148, 142, 119), (198, 182, 102), (254, 232, 56))


def shade(share: float) -> tuple[str, str]:
    """Colour of a cell and of its text, from 0 (lowest) to 1.

    >>> shade(0.0), shade(1.0)
    (('#00224e', '#fff'), ('#fee838', '#111'))
    """
    at = min(max(share, 0.0), 1.0) * (len(RAMP) - 1)
    i = min(int(at), len(RAMP) - 2)
    r, g, b = (round(lo + (at - i) * (hi - lo)) for lo, hi in zip(RAMP[i], RAMP[i + 1]))
    return f"#{r:02x}{g:02x}{b:02x}", "#111" if 0.299 * r + 0.587 * g + 0.114 * b > 125 else "#fff"


def heat(label: str, table: Array, rows: Sequence[int], columns: Sequence[int], low: float, high: float) -> Markup:
    """A matrix [rows, columns], with numbers if there is room; cells without a value are empty."""
    cell, margin = 240 / max(len(columns), len(rows)), 34
    percent = low >= 0 and high <= 1
    parts = []
    empty = ""  # cells without a value, as one path: half of the matrix
    for i in range(len(rows)):
        y = margin + i * cell
        text = Markup('<text class="tick" x="{}" y="{:.1f}" text-anchor="end">{}</text>')
        parts.append(text.format(margin - 6, y + cell / 2 + 3.5, rows[i] + 1))
        for j in range(len(columns)):
            value, x = float(table[i, j]), margin + j * cell
            if math.isnan(value):
                empty += f"M{x:.1f} {y:.1f}h{cell - 1:.1f}v{cell - 1:.1f}h{1 - cell:.1f}z"
                continue
            fill, ink = shade((value - low) / max(high - low, 1e-12))
            parts.append(
                Markup('<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" fill="{}" rx="1.5"/>').format(
                    x, y, cell - 1, cell - 1, fill
                )
            )
            if cell >= 19:
                text = Markup('<text class="cell" x="{:.1f}" y="{:.1f}" fill="{}" text-anchor="middle">{}</text>')
                shown = f"{100 * value:.0f}" if percent else number(value)
                parts.append(text.format(x + cell / 2, y + cell / 2 + 4, ink, shown))
    parts.append(Markup('<path class="none" d="{}"/>').format(empty))
    for j in range(len(columns)):
        text = Markup('<text class="tick" x="{:.1f}" y="{}" text-anchor="middle">{}</text>')
        parts.append(text.format(margin + (j + 0.5) * cell, margin - 8, columns[j] + 1))
    parts.append(Markup('<text class="axis" x="{}" y="11" text-anchor="middle">task</text>').format(margin + 120))
    turned = Markup('<text class="axis" transform="translate(11 {}) rotate(-90)" text-anchor="middle">after</text>')
    parts.append(turned.format(margin + len(rows) * cell / 2))
    return figure(label, *parts, width=margin + 246, height=margin + len(rows) * cell + 4)
