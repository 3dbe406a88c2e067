"""The leak probe where the answer is known: classes that are clusters, noise, and a net that knows them already."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from harness import rng
from harness.boundary import Boundary
from harness.learner import Budget, Learner
from harness.metrics.leak import COLUMNS, leak, matched
from harness.models.mlp import MLP
from harness.optim import SGD
from harness.rng import RandomStream, keys
from harness.rows import Rows
from harness.types import Stream, Task

S, K, N, D = 2, 6, 60, 8  # seeds, classes, rows of a class in each part, inputs
HOW = {"size": 120, "tasks": 10, "restarts": 5, "ridge": 0.05}


def boundary(spread: float, widths: tuple[int, ...] = (), phase: str = "start", t: int = 0) -> Boundary:
    """Three tasks of two classes: class c lies at `spread` times the c-th unit vector, in unit noise."""
    y = torch.arange(K).repeat_interleave(2 * N)
    x = rng.normal(keys([7], "x"), len(y), D, dtype=torch.float64)[0] + spread * torch.eye(D).double()[y]
    zero, size = torch.zeros(S, 1).long(), torch.full((S,), 2 * N)

    def task(i: int) -> Task:
        index = torch.cat([torch.arange(N) + 2 * N * c for c in (2 * i, 2 * i + 1)])
        parts = [Rows(x, at.expand(S, -1), y[at].expand(S, -1), zero, size) for at in (index, index + N)]
        return Task(i, parts[0], parts[1], parts[1])

    stream = Stream("blobs", 1, "class", tuple(map(task, range(3))), (D,), K, (0, 1), "")
    learner = Learner(MLP((D,), K, widths), stream, SGD(lr=0.1), Budget(steps=1, batch_size=8), dtype=torch.float64)
    nothing: Any = None
    return Boundary(
        t, phase, stream, learner, learner.net, learner.net, nothing, torch.zeros(S, 4, 3), torch.zeros(S, 0),
        RandomStream(keys([0, 1], "probe")),
    )  # fmt: skip


def values(b: Boundary) -> dict[str, Tensor]:
    found = leak(b, **HOW)
    assert set(found) <= set(COLUMNS) and all(isinstance(v, Tensor) and v.shape == (S,) for v in found.values())
    return {k: v for k, v in found.items() if isinstance(v, Tensor)}


def test_classes_that_are_clusters_are_known_without_a_label() -> None:
    found = values(boundary(30.0))
    for name in ("clusters", "neighbour", "linear"):
        assert found[f"leak_{name}_input"].tolist() == [1.0, 1.0]
    assert bool((found["leak_chance_input"] < 0.3).all()) and "leak_clusters_head" not in found


def test_noise_is_known_by_chance_alone() -> None:
    found = values(boundary(0.0))
    chance = 1 / K
    for name in ("neighbour", "linear"):
        assert bool((found[f"leak_{name}_input"] - chance).abs().max() < 4 * (chance * (1 - chance) / (K * N)) ** 0.5)
    # the best of 720 matchings is above 1 / 6, as it is for shuffled classes
    assert bool(((found["leak_clusters_input"] - found["leak_chance_input"]).abs() < 0.07).all())
    assert bool((found["leak_chance_input"] > chance).all())


def test_half_known_classes_lie_between() -> None:
    found = values(boundary(3.0))
    assert bool((found["leak_clusters_input"] < 0.95).all())
    assert bool((found["leak_clusters_input"] > found["leak_chance_input"] + 0.3).all())


def test_the_head_s_input_is_measured_beside_the_inputs() -> None:
    b = boundary(30.0, (9,))
    found = values(b)
    assert set(found) == set(COLUMNS) and found["leak_clusters_input"].tolist() == [1.0, 1.0]
    blind = {k: torch.zeros_like(v) if k.startswith("fc1") else v for k, v in b.trained.params.items()}
    dead = values(replace(b, trained=replace(b.trained, params=blind)))
    assert dead["leak_clusters_input"].tolist() == [1.0, 1.0] and bool((dead["leak_clusters_head"] == 1 / K).all())


def test_a_read_out_that_knows_the_classes_by_other_numbers_is_found() -> None:
    b = boundary(30.0)
    shifted = torch.eye(K, D).double().roll(1, 0).expand(S, K, D)  # class c by output c + 1
    net = replace(b.trained, params={"head.weight": shifted, "head.bias": torch.zeros(S, K).double()})
    assert values(replace(b, trained=net))["leak_readout"].tolist() == [1.0, 1.0]
    flat = replace(net, params={k: 0 * v for k, v in net.params.items()})
    assert values(replace(b, trained=flat))["leak_readout"].tolist() == [pytest.approx(1 / K)] * 2  # one output


def test_it_is_measured_once_and_not_for_regression() -> None:
    assert leak(boundary(1.0, phase="end"), **HOW) == {} == leak(boundary(1.0, t=1), **HOW)
    b = boundary(1.0)
    assert leak(replace(b, stream=replace(b.stream, loss="mse")), **HOW) == {}


def test_a_seed_is_measured_as_if_alone_and_twice_the_same() -> None:
    b = boundary(3.0, (9,))
    found, again = values(b), values(b)
    other = values(replace(b, random=RandomStream(keys([5, 1], "probe"))))
    for k, v in found.items():
        assert torch.equal(v, again[k]) and torch.equal(v[1], other[k][1])


def test_matching_is_the_best_of_all() -> None:
    draw = np.random.default_rng(0)
    for _ in range(20):
        groups, y = draw.integers(0, 4, 30), draw.integers(0, 4, 30)
        best = max(np.mean(np.array(p)[groups] == y) for p in itertools.permutations(range(4)))
        assert matched(groups, y) == pytest.approx(best)
