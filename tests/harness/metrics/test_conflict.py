"""Angles between the tasks' gradients: each seed's own, under which mask, in closed cases."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from harness import tree
from harness.boundary import Boundary
from harness.landscape.curvature import flatten
from harness.metrics.conflict import COLUMNS, conflict, cosines
from harness.models.mlp import MLP
from harness.types import Reading
from tests.harness.metrics.nets import normed, relabelled, seed_loss

SETTINGS: dict[str, Any] = {"size": 30, "tasks": 5}


def value(r: Tensor | Reading) -> Tensor:
    if isinstance(r, Tensor):
        return r
    return r.value.view(len(r.value), len(set(r.tasks)), -1) if r.tasks else r.value


@pytest.mark.parametrize("seeds", [(5,), (3, 5, 8)])
@pytest.mark.parametrize("scenario", ["domain", "task", "class"])
def test_cosines_are_those_of_each_seeds_own_gradients(boundary, scenario: str, seeds: tuple[int, ...]) -> None:  # type: ignore[no-untyped-def]
    b: Boundary = boundary(seeds, t=2, scenario=scenario)
    found = {n: value(r) for n, r in conflict(b, **SETTINGS).items()}
    flat = flatten(b.trained.params)
    for s in range(len(seeds)):
        gradients = []
        for i in range(3):
            batch = b.probe(i, 30)
            used = {"domain": slice(0, 2), "task": slice(2 * i, 2 * i + 2), "class": slice(0, 6)}[scenario]
            f = seed_loss(b.trained.apply, b.trained.params, batch, s, used, {})
            gradients.append(torch.func.grad(f)(flat[s]))
        true = torch.tensor([[float(g @ h / g.norm() / h.norm()) for h in gradients] for g in gradients]).double()
        torch.testing.assert_close(found["gradient_cosine"][s], true, rtol=1e-6, atol=1e-7)
        pairs = [true[0, 1], true[0, 2], true[1, 2]]
        assert found["gradient_cosine_mean"][s] == pytest.approx(sum(map(float, pairs)) / 3, abs=1e-6)
        assert found["gradient_cosine_new"][s] == pytest.approx(float(true[0, 2] + true[1, 2]) / 2, abs=1e-6)
        assert found["gradient_conflict"][s] == pytest.approx(sum(float(p) < 0 for p in pairs) / 3)
        norms = torch.stack([g.norm() for g in gradients])
        torch.testing.assert_close(found["gradient_norm_task"][s], norms)


def test_equal_tasks_agree_and_opposite_targets_conflict(boundary) -> None:  # type: ignore[no-untyped-def]
    b: Boundary = boundary(t=1)
    tasks = b.stream.tasks
    twice = replace(
        b,
        stream=replace(b.stream, tasks=(tasks[0], replace(tasks[0], index=1))),
    )
    batch = b.probe(0, 60)  # all rows, so that both probes are the same set
    same = conflict(twice, size=60, tasks=2)
    torch.testing.assert_close(value(same["gradient_cosine"]), torch.ones(2, 2, 2).double())
    assert value(same["gradient_conflict"]).tolist() == [0, 0] and batch.x.shape[1] == 60

    # a linear model at 0 with squared loss: the gradient is - x y' / n, so -y turns it round
    m: Boundary = boundary(t=1, loss="mse", model=lambda s: MLP(s.shape, s.outputs, ()))
    for v in m.trained.params.values():
        v.zero_()
    source = m.stream.tasks[0].train
    flipped = replace(source, y=-source.y)  # type: ignore[type-var, attr-defined]
    against = replace(m.stream, tasks=(m.stream.tasks[0], replace(m.stream.tasks[0], index=1, train=flipped)))
    found = conflict(replace(m, stream=against), size=60, tasks=2)
    torch.testing.assert_close(value(found["gradient_cosine"])[:, 0, 1], torch.full((2,), -1.0).double())
    assert value(found["gradient_conflict"]).tolist() == [1, 1]


def test_a_gradient_of_zero_has_no_direction(boundary) -> None:  # type: ignore[no-untyped-def]
    found = cosines(torch.tensor([[[1.0, 0.0], [0.0, 0.0]], [[1.0, 0.0], [1.0, 0.0]]]))
    assert found.isnan().tolist() == [[[False, True], [True, True]], [[False, False], [False, False]]]
    b: Boundary = boundary(t=1, loss="mse", model=lambda s: MLP(s.shape, s.outputs, ()))
    for v in b.trained.params.values():
        v.zero_()
    for task in b.stream.tasks[:2]:
        task.train.y.zero_()  # type: ignore[attr-defined]
    flat = conflict(b, **SETTINGS)
    assert value(flat["gradient_norm_task"]).tolist() == [[0, 0], [0, 0]]
    assert value(flat["gradient_conflict"]).isnan().all() and value(flat["gradient_cosine_mean"]).isnan().all()


def test_row_s_is_seed_s_alone_and_a_diverged_one_is_nan(boundary) -> None:  # type: ignore[no-untyped-def]
    together, alone = (conflict(boundary(seeds), **SETTINGS) for seeds in ((3, 5, 8), (5,)))
    b: Boundary = boundary((3, 5, 8))
    b.trained.params["fc2.bias"][0, 0] = torch.inf
    lost = conflict(b, **SETTINGS)
    for name, r in together.items():
        torch.testing.assert_close(value(r)[1:2], value(alone[name]), rtol=1e-9, atol=1e-12, msg=name)
        assert value(lost[name])[0].isnan().all() and torch.equal(value(lost[name])[1:], value(r)[1:]), name


def test_columns_and_what_is_left_as_it_was(boundary) -> None:  # type: ignore[no-untyped-def]
    b: Boundary = boundary(model=lambda s: MLP(s.shape, s.outputs, (10, 6), dropout=0.5))
    n = normed(boundary())
    kept, stats = tree.copy(b.trained.params), tree.copy(n.trained.buffers)
    rng, count = torch.get_rng_state(), b.random.count
    found = conflict(b, **{**SETTINGS, "tasks": 3})
    conflict(n, **SETTINGS)
    assert set(found) == set(COLUMNS)
    matrix = found["gradient_cosine"]
    assert isinstance(matrix, Reading) and matrix.axis == "other_task"
    assert matrix.tasks == [0, 0, 0, 1, 1, 1, 3, 3, 3] and matrix.coords == [0, 1, 3] * 3
    assert all(torch.equal(v, kept[k]) and v.grad is None and not v.requires_grad for k, v in b.trained.params.items())
    assert all(torch.equal(v, stats[k]) for k, v in n.trained.buffers.items())
    assert torch.equal(torch.get_rng_state(), rng) and b.random.count == count
    plain, moved = conflict(boundary(), **SETTINGS), conflict(relabelled(boundary()), **SETTINGS)
    for name, r in plain.items():
        torch.testing.assert_close(value(moved[name]), value(r), rtol=1e-9, atol=1e-12, msg=name)
    few = conflict(boundary(), **{**SETTINGS, "tasks": 3})
    assert all(torch.equal(value(r), value(few[name])) for name, r in found.items())
    assert conflict(boundary(t=0), **SETTINGS) == {} and conflict(boundary(phase="start"), **SETTINGS) == {}
