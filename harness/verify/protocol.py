"""Published tables as data: protocols/*.yaml, one file for each, with the source of every number.

A file states, before anything is run, what is compared (`score`, in percent), how wide an interval may be to count as
agreement (`margin`, in points: the published deviation of a seed, within these bounds), and what the source leaves open
(`open`). Settings are those of the source: none is chosen by its result.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.config.catalogue import nearest
from harness.stats import quantile

FOLDER = Path(__file__).parent / "protocols"
SPREADS = ("sd", "sem", "ci95")  # of one seed; of the mean; half width of the mean's 95 % interval
SCORES = {  # in percent
    "average_accuracy": "average accuracy over all tasks after the last one, on test rows",
    "online_accuracy": "average online accuracy: over all steps of all tasks, on each batch before its update",
}
PROTOCOL = {
    "title": str, "source": str, "read": str, "seen": bool, "score": str, "spread": str, "n": int, "margin": list,
    "seeds": int, "settings": list, "open": list, "rows": dict,
}  # fmt: skip
ROW = {"published": list, "settings": list}
ROW_MAY = {"note": str, "minutes": float, "n": int, "seeds": int, "seen": bool}


@dataclass(frozen=True)
class Row:
    """A number of a published table, and the run that should give it."""

    name: str  # protocol/row
    settings: tuple[str, ...]  # what is typed
    mean: float  # published, in percent
    sd: float  # of one seed, in points; NaN if the source gives none
    n: int  # published seeds
    margin: float  # points
    minutes: float  # that the run takes on one core; NaN if unknown
    note: str  # what explains a difference
    seen: bool = True  # whether the published number was read at its source
    score: str = "average_accuracy"  # what is compared


@dataclass(frozen=True)
class Protocol:
    """One published table."""

    name: str
    title: str
    source: str
    read: str  # where the numbers were read
    score: str
    settings: tuple[str, ...]  # that all rows share
    open: tuple[str, ...]  # what the source leaves open, and how it was set
    rows: tuple[Row, ...]


def protocols() -> dict[str, Protocol]:
    """All of them, by name."""
    return {path.stem: read(path) for path in sorted(FOLDER.glob("*.yaml"))}


def read(path: Path) -> Protocol:
    """A file of protocols/. ValueError with the key of what is missing, unknown or of another type."""
    import yaml

    found = yaml.safe_load(path.read_text("utf-8"))
    _checked(found, path.name, PROTOCOL)
    for key, known in (("score", SCORES), ("spread", SPREADS)):
        if found[key] not in known:
            raise ValueError(f"{path.name}: {key}: {found[key]}: must be {' or '.join(known)}")
    shared = tuple(found["settings"])
    rows = tuple(_row(path.stem, name, spec, found) for name, spec in found["rows"].items())
    about = {key: " ".join(found[key].split()) for key in ("title", "source", "read")}
    opened = tuple(" ".join(line.split()) for line in found["open"])
    return Protocol(path.stem, **about, score=found["score"], settings=shared, open=opened, rows=rows)


def _row(protocol: str, name: str, spec: Mapping[str, Any], shared: Mapping[str, Any]) -> Row:
    _checked(spec, f"{protocol}.yaml: rows: {name}", ROW, ROW_MAY)
    mean, spread = (float("nan") if value is None else float(value) for value in spec["published"])
    values = {key: spec.get(key, shared[key]) for key in ("n", "seeds")}
    sd, (least, most) = deviation(spread, shared["spread"], values["n"]), shared["margin"]
    seeds = f"seeds=[{','.join(map(str, range(values['seeds'])))}]"
    return Row(
        f"{protocol}/{name}",
        (*shared["settings"], *spec["settings"], seeds),
        mean,
        sd,
        values["n"],
        float(least if math.isnan(sd) else min(max(least, sd), most)),
        float(spec.get("minutes", "nan")),
        " ".join(spec.get("note", "").split()),
        bool(spec.get("seen", shared["seen"])),
        shared["score"],
    )


def deviation(spread: float, kind: str, n: int) -> float:
    """The standard deviation of one seed, from what a table gives for n seeds.

    >>> deviation(0.5, "sd", 20), deviation(0.5, "sem", 16), round(deviation(0.5, "ci95", 5), 4)
    (0.5, 2.0, 0.4027)
    """
    errors = {"sd": math.sqrt(n), "sem": 1.0, "ci95": quantile(n - 1)}[kind]
    return spread * math.sqrt(n) / errors


def chosen(found: Mapping[str, Protocol], names: Sequence[str]) -> list[Row]:
    """The rows of these protocols, or whose names begin with protocol/row; all if none is named. ValueError if unknown.

    >>> row = Row("p/task/ewc", (), 0.0, 0.0, 1, 1.0, 1.0, "")
    >>> found = {"p": Protocol("p", "", "", "", "average_accuracy", (), (), (row,))}
    >>> [len(chosen(found, names)) for names in ([], ["p"], ["p/task"], ["p/task/ewc"])]
    [1, 1, 1, 1]
    """
    rows = [row for protocol in found.values() for row in protocol.rows]
    for name in names:
        if not any(_within(row.name, name) for row in rows):
            close = nearest(name, [*found, *(row.name for row in rows)])
            meant = f"did you mean {close}?" if close else f"the protocols are {', '.join(found)}"
            raise ValueError(f"verify {name}: no such protocol or row; {meant}")
    return [row for row in rows if not names or any(_within(row.name, name) for name in names)]


def _within(row: str, name: str) -> bool:
    return f"{row}/".startswith(f"{name.rstrip('/')}/")


def _checked(found: Any, where: str, needed: Mapping[str, type], may: Mapping[str, type] | None = None) -> None:
    if not isinstance(found, dict):
        raise ValueError(f"{where}: must hold {', '.join(needed)}")
    if missing := [key for key in needed if key not in found]:
        raise ValueError(f"{where}: {missing[0]} is missing")
    for key, value in found.items():
        kind = {**needed, **(may or {})}.get(key)
        if kind is None:
            raise ValueError(f"{where}: {key}: unknown key")
        if not isinstance(value, (int, float) if kind is float else kind) or isinstance(value, bool) != (kind is bool):
            raise ValueError(f"{where}: {key}: must be {kind.__name__}, not {value!r}")
