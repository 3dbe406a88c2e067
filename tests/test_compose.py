"""Strategies compose: two of them run in either order, or say in one line why they cannot.

A sample of the pairs is run, with every strategy in at least three; nightly all that tests/pairs.csv lists. What it
lists must stay so. A pair that it does not list must run, or be refused properly.
"""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from tests import pairs
from tests.toy import FILES, go, same

LISTED, SAMPLE = pairs.read(), pairs.sample(FILES)
REST = sorted(set(LISTED) - set(SAMPLE))
REMEDY = "run python -m tests.pairs"


def test_every_strategy_is_in_three_pairs_of_the_sample_and_a_new_one_moves_few_others() -> None:
    count = Counter(name for pair in SAMPLE for name in pair)
    assert all(count[name] >= pairs.EACH for name in FILES)
    more = pairs.sample([*FILES, "zzz"])
    assert len(set(SAMPLE) - set(more)) < 20 and sum("zzz" in pair for pair in more) < 20
    assert {name for pair in LISTED for name in pair} <= set(FILES), REMEDY


@pytest.mark.parametrize(
    "pair", [*SAMPLE, *(pytest.param(pair, marks=pytest.mark.nightly) for pair in REST)], ids="-".join
)
def test_a_pair_does_what_the_file_says_and_a_refusal_is_one_line_that_names_one_of_the_two(
    pair: tuple[str, str],
) -> None:
    found, reason = pairs.outcome(*pair)
    assert found == LISTED.get(pair, found), REMEDY
    assert bool(reason) == (found.split()[0] in ("refused", "only")) and "\n" not in reason
    if reason:
        plain = reason.lower().replace("_", "")
        assert any(name.replace("_", "") in plain for name in pair), reason


def test_a_strategy_that_must_come_first_says_so() -> None:
    found, reason = pairs.outcome("agem", "hat")
    assert found == "only hat+agem"
    assert all(word in reason.lower() for word in ("hat", "agem", "first")), reason


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
