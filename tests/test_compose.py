"""Strategies compose: two of them run in either order, or say in one line why they cannot.

tests/pairs.csv keeps what became of all pairs (`python -m tests.pairs` makes it). CI repeats some hundred of them,
drawn by their names so that a new strategy moves no other pair.
"""

from __future__ import annotations

import zlib
from itertools import combinations

import pytest
import torch

from tests import pairs
from tests.toy import FILES, go, same

ALL = list(combinations(FILES, 2))
SAMPLE = [p for p in ALL if zlib.crc32("-".join(p).encode()) < 2**32 * min(1, 100 / len(ALL))]
REMEDY = "run python -m tests.pairs"


def test_every_pair_was_tried() -> None:
    assert set(pairs.read()) == set(ALL), REMEDY


def test_a_refusal_is_one_line_that_names_one_of_the_two() -> None:
    for pair, text in pairs.read().items():
        if ": " in text and "no scenario" not in text:
            reason = text.split(": ", 1)[1].lower().replace("_", "")
            assert "\n" not in reason
            assert any(n.replace("_", "") in reason for n in pair), text


@pytest.mark.parametrize("pair", SAMPLE, ids="-".join)
def test_a_pair_does_what_the_file_says(pair: tuple[str, str]) -> None:
    assert pairs.outcome(*pair) == pairs.read()[pair], REMEDY


def test_naive_beside_another_changes_nothing() -> None:
    for other in ("replay", "ewc"):
        assert same(
            go(("naive", other), "domain", "mlp", "momentum").logits(),
            go((other,), "domain", "mlp", "momentum").logits(),
        )


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
