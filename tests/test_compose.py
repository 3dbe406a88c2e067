"""Strategies compose: every ordered pair runs, or says in one line why it cannot.

Some two hundred pairs are run in CI, drawn by their names so that a new strategy moves no other pair;
ALL_PAIRS=1 runs all of them.
"""

from __future__ import annotations

import os
import zlib
from itertools import permutations

import pytest
import torch

from harness.strategy import HOOKS
from tests.toy import FILES, go, same, strategy_class

ALL = list(permutations(FILES, 2))
SHARE = 1 if os.environ.get("ALL_PAIRS") else min(1, 200 / len(ALL))
PAIRS = [p for p in ALL if zlib.crc32("-".join(p).encode()) < SHARE * 2**32]


def common(names: tuple[str, ...]) -> str:
    """A scenario that all of them are defined for."""
    known = [s for s in ("domain", "class", "task") if all(s in strategy_class(n).scenarios for n in names)]
    if not known:
        raise ValueError(f"{' and '.join(names)} share no scenario")
    return known[0]


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_every_ordered_pair_runs_or_is_refused_with_a_reason(pair: tuple[str, str]) -> None:
    try:
        run = go(pair, common(pair), "mlp", "momentum")
    except ValueError as refusal:
        reason = str(refusal)
        assert any(strategy_class(n).__name__ in reason or n in reason for n in pair)
        assert "\n" not in reason
        return
    assert all(v.isfinite().all() for v in run.learner.params.values())
    idle = [n for n, part in zip(pair, run.chain.parts) if not any(part.overrides(hook) for hook in HOOKS)]
    for name in idle:  # naive beside another changes nothing
        (other,) = (n for n in pair if n != name)
        assert same(run.logits(), go((other,), common(pair), "mlp", "momentum").logits())


@pytest.mark.parametrize("model", ["mlp", "residual"])
def test_a_chain_of_four_runs_and_repeats(model: str) -> None:
    names = ("replay", "ewc", "l2_init", "cbp")
    first, second = (go(names, "class", model, "adam") for _ in range(2))
    assert same(first.learner.state_dict(), second.learner.state_dict())
    assert all(v.isfinite().all() for v in first.learner.params.values())
    alone = go(names, "class", model, "adam", seeds=(2,))
    for k, v in alone.learner.params.items():
        assert torch.allclose(first.learner.params[k][-1], v[0], rtol=1e-9, atol=1e-10), k


def test_adding_a_strategy_moves_no_other_ones_draws() -> None:
    alone = go(("replay", "cbp"), "domain", "mlp", "sgd")
    assert alone.learner.streams["strategy/CBP"].count > 0
    joined = go(("reset", "replay", "cbp"), "domain", "mlp", "sgd")
    for purpose, stream in alone.learner.streams.items():
        assert torch.equal(stream.base, joined.learner.streams[purpose].base)
        assert stream.count == joined.learner.streams[purpose].count
