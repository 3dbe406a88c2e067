"""Two strategies together: do they run, and does their order matter? tests/pairs.csv lists those worth a row.

    python -m tests.pairs              runs what is listed and the sample, and writes the file
    python -m tests.pairs NAME...      tries NAME beside every other strategy

A row is an unordered pair on the toy stream (tests/toy.py; an MLP under momentum): `commute`, `ordered` (both orders
run and give different nets), `only a+b` (the other order is refused) or `refused`. The file lists the sample, and every
known pair that does not commute. A new strategy need not be in it.
"""

from __future__ import annotations

import csv
import sys
import zlib
from collections.abc import Iterable
from itertools import combinations
from pathlib import Path

import torch

from tests.toy import FILES, Run, go, strategy_class

FILE = Path(__file__).with_name("pairs.csv")
SCENARIOS = ("domain", "class", "task")
EACH = 3
Pair = tuple[str, str]


def sample(names: Iterable[str], each: int = EACH) -> list[Pair]:
    """Every name in at least `each` pairs, drawn by their names: a new one displaces few pairs of others."""
    by_hash = sorted(combinations(sorted(names), 2), key=lambda pair: zlib.crc32("-".join(pair).encode()))
    drawn = {pair for name in names for pair in [p for p in by_hash if name in p][:each]}
    return sorted(drawn)


def outcome(first: str, second: str) -> tuple[str, str]:
    """What became of the two in either order, and the reason of a refusal."""
    known = [s for s in SCENARIOS if all(s in strategy_class(n).scenarios for n in (first, second))]
    if not known:
        return "refused", f"{first} and {second} have no scenario in common"
    runs: dict[str, Run] = {}
    refused: dict[str, str] = {}
    for pair in ((first, second), (second, first)):
        try:
            runs["+".join(pair)] = go(pair, known[0], "mlp", "momentum")
        except ValueError as refusal:
            refused["+".join(pair)] = str(refusal)
    if refused:
        return " ".join(["only", *runs]) if runs else "refused", next(iter(refused.values()))
    close = all(torch.allclose(a, b, rtol=1e-9, atol=1e-9) for a, b in zip(*(run.logits() for run in runs.values())))
    return "commute" if close else "ordered", ""


def read() -> dict[Pair, str]:
    with FILE.open(encoding="utf-8", newline="") as file:
        return {(row["first"], row["second"]): row["outcome"] for row in csv.DictReader(file)}


def write(rows: dict[Pair, str]) -> None:
    with FILE.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["first", "second", "outcome"])
        writer.writerows([*pair, text] for pair, text in sorted(rows.items()))


def main(names: list[str]) -> None:
    torch.set_num_threads(1)
    drawn = sample(FILES)
    rows = {pair: text for pair, text in read().items() if set(pair) <= set(FILES)}
    tried = [p for p in combinations(sorted(FILES), 2) if set(p) & set(names)] if names else sorted({*rows, *drawn})
    for pair in tried:
        rows[pair], reason = outcome(*pair)
        print(*pair, ": ".join(filter(None, (rows[pair], reason))), flush=True)
    write({pair: text for pair, text in rows.items() if text != "commute" or pair in drawn})


if __name__ == "__main__":
    main(sys.argv[1:])
