"""Which of Avalanche's strategies run here, and what the others say: strategies/AVALANCHE.md.

    python -m tests.avalanche_table [FOLDER] > strategies/AVALANCHE.md

Each one trains a small net on three tasks of ninety digits, in every scenario, as strategy=avalanche would have it. A
test runs every row again.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from harness import loop
from harness.config.catalogue import ROOT
from harness.learner import Budget, Learner
from harness.optim import SGD
from harness.strategy import Chain
from harness.toolbox.avalanche_bridge import apart
from strategies.avalanche import FAIL, WORK, Avalanche
from tests.observer import Blind
from tests.toy import MODELS, stream

PAGE = ROOT / "strategies" / "AVALANCHE.md"
NOT_TRIED = ("AR1",)  # it goes to the network
SCENARIOS = ("task", "domain", "class")
OPTIONS: dict[str, dict[str, Any]] = {  # what Avalanche has no default for, and sizes that suit ninety rows
    "Replay": {"mem_size": 20},
    "GDumb": {"mem_size": 20},
    "MIR": {"mem_size": 20, "subsample": 10, "batch_size_mem": 4},
    "AGEM": {"patterns_per_exp": 10, "sample_size": 6},
    "GEM": {"patterns_per_exp": 10},
    "ER_ACE": {"mem_size": 20, "batch_size_mem": 4},
    "DER": {"mem_size": 20, "batch_size_mem": 4},
    "EWC": {"ewc_lambda": 5.0},
    "MAS": {"lambda_reg": 1.0},
    "LwF": {"alpha": 1.0, "temperature": 2.0},
    "SynapticIntelligence": {"si_lambda": 1.0},
    "LFL": {"lambda_e": 0.1},
    "PackNet": {"post_prune_epochs": 1, "prune_proportion": 0.5},
    "BiC": {"mem_size": 20, "stage_2_epochs": 1},
    "GSS_greedy": {"mem_size": 20, "mem_strength": 2, "input_size": [1, 8, 8]},
    "MER": {"mem_size": 20, "batch_size_mem": 4, "n_inner_steps": 1},
    "SCR": {"mem_size": 20, "batch_size_mem": 4},
    "FeatureReplay": {"mem_size": 20, "batch_size_mem": 4, "last_layer_name": "head"},
    "CoPE": {"mem_size": 20, "n_classes": 6, "p_size": 6},
    "CWRStar": {"cwr_layer_name": "head"},
}
HEAD = """\
# Avalanche's strategies

Made by `python -m tests.avalanche_table > strategies/AVALANCHE.md`; not edited by hand, and a test runs every row
again. What `strategy=avalanche strategy.avalanche.name=NAME` does with Avalanche {avalanche} under torch {torch}: each
strategy of `avalanche.training.supervised` trains a small net on three split tasks of ninety digits, on a CPU.

"yes": it trains, and its weights come back finite; tests/strategies/test_avalanche.py asks more of these. "refused":
its loss lets outputs compete that do not compete here. What does not run is refused when it is chosen, with the reason
that stands below; what it says where it is let through stands behind it.
"""


def names() -> list[str]:
    """Avalanche's strategies, those that run first."""
    with apart(0):
        from avalanche.training import supervised
    found = {n for n in dir(supervised) if n[0].isupper() and isinstance(getattr(supervised, n), type)}
    return [*WORK, *sorted(found - set(WORK))]


def outcome(name: str, scenario: str) -> str:
    """yes, refused, or the first line of what it says, whether strategy=avalanche would refuse it or not."""
    made = stream(scenario, (0,))
    part = Avalanche.__new__(Avalanche)
    part.method, part.options = name, OPTIONS.get(name, {})
    learner = Learner(MODELS["mlp"](made), made, SGD(lr=0.05), Budget(steps=4, batch_size=8))
    chain = Chain([part])
    try:
        loop.prepare(learner, chain)
        loop.train(learner, chain, Blind())
    except Exception as error:
        return "refused" if "lets all outputs compete" in str(error) else said(error)
    finite = all(bool(torch.isfinite(v).all()) for v in learner.params.values())
    return "yes" if finite else "weights are not finite"


def said(error: BaseException) -> str:
    """The cause in one line, without addresses or paths, which change."""
    while error.__cause__ is not None:
        error = error.__cause__
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    first = re.sub(r"0x[0-9a-f]+|/\S+/", "...", first)
    return textwrap.shorten(f"{type(error).__name__}: {first}", 110).replace("|", "/")


def row(name: str) -> str:
    """One line of the table."""
    if name in NOT_TRIED:
        return f"| {name} | - | - | - | {FAIL[name]} | not tried |"
    found = [outcome(name, s) for s in SCENARIOS]
    errors = [f for f in dict.fromkeys(found) if f not in ("yes", "refused")]
    cells = [f if f in ("yes", "refused") else "no" for f in found]
    why = "" if name in WORK else FAIL.get(name, "?")
    return f"| {name} | {' | '.join(cells)} | {why} | {'; '.join(f'`{e}`' for e in errors)} |"


def measured(folders: Sequence[Path]) -> Iterator[str]:
    """Finished runs of ours beside theirs, a table for each setting."""
    from harness.leaderboard import heading, leaderboard, piped, table

    shown = ("average accuracy", "new-task accuracy", "forgetting", "memory")
    for board in leaderboard(folders).boards:
        yield f"\n## Beside ours\n\n`python -m harness experiment=versus_avalanche`: {heading(board)}\n"
        yield from piped(*table(board, shown))


def page(folders: Sequence[Path] = ()) -> str:
    from importlib.metadata import version

    head = HEAD.format(avalanche=version("avalanche-lib"), torch=version("torch").partition("+")[0])
    top = f"| strategy | {' | '.join(SCENARIOS)} | why not | what it says |\n| --- | --- | --- | --- | --- | --- |"
    return "\n".join([head, top, *(row(n) for n in names()), *(measured(folders) if folders else ())])


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(page([Path(name) for name in sys.argv[1:]]))
