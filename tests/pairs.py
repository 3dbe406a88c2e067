"""Every two strategies together: do they run, and does their order matter? Kept in tests/pairs.csv.

    python -m tests.pairs [NAME...]    runs the pairs that the file lacks, and those of NAME again

A row is an unordered pair on the toy stream (tests/toy.py; an MLP under momentum): commute, ordered (both orders run
and give different nets), only one order, or refused, each of these with the reason.
"""

from __future__ import annotations

import csv
import sys
from itertools import combinations
from pathlib import Path

import torch

from tests.toy import FILES, Run, go, strategy_class

FILE = Path(__file__).with_name("pairs.csv")
SCENARIOS = ("domain", "class", "task")


def outcome(first: str, second: str) -> str:
    """What became of the two in either order."""
    known = [s for s in SCENARIOS if all(s in strategy_class(n).scenarios for n in (first, second))]
    if not known:
        return "refused: no scenario is common to both"
    runs: dict[str, Run] = {}
    refused: dict[str, str] = {}
    for pair in ((first, second), (second, first)):
        try:
            runs["+".join(pair)] = go(pair, known[0], "mlp", "momentum")
        except ValueError as refusal:
            refused["+".join(pair)] = str(refusal)
    if len(refused) == 2:
        return f"refused: {refused[f'{first}+{second}']}"
    if refused:
        return f"only {next(iter(runs))}: {next(iter(refused.values()))}"
    close = all(torch.allclose(a, b, rtol=1e-9, atol=1e-9) for a, b in zip(*(run.logits() for run in runs.values())))
    return "commute" if close else "ordered"


def read() -> dict[tuple[str, str], str]:
    if not FILE.exists():
        return {}
    with FILE.open(encoding="utf-8", newline="") as file:
        return {(row["first"], row["second"]): row["outcome"] for row in csv.DictReader(file)}


def write(rows: dict[tuple[str, str], str]) -> None:
    with FILE.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["first", "second", "outcome"])
        writer.writerows([*pair, text] for pair, text in sorted(rows.items()))


def main(names: list[str]) -> None:
    torch.set_num_threads(1)
    rows = {pair: text for pair, text in read().items() if set(pair) <= set(FILES)}
    for pair in combinations(FILES, 2):
        if pair not in rows or set(pair) & set(names):
            rows[pair] = outcome(*pair)
            print(*pair, rows[pair], flush=True)
            write(rows)


if __name__ == "__main__":
    main(sys.argv[1:])
