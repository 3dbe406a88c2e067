"""Lines from every old task's net: their points, the convex case, batch norm, what was not kept."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from harness import tree
from harness.boundary import Boundary
from harness.landscape import paths
from harness.metrics.anchors import COLUMNS, anchors
from harness.metrics.ledger import ledger
from harness.models.mlp import MLP
from harness.types import Net, Reading
from tests.harness.metrics.nets import holding, normed, relabelled

SETTINGS: dict[str, Any] = {"size": 30, "tasks": 5, "points": 5}
ALPHAS = (0, 0.25, 0.5, 0.75, 1)


def value(r: Tensor | Reading) -> Tensor:
    if isinstance(r, Tensor):
        return r
    return r.value.view(len(r.value), len(set(r.tasks)), -1) if r.tasks else r.value


@pytest.mark.parametrize("scenario", ["domain", "class"])
def test_points_are_loss_and_accuracy_of_the_net_between(boundary, scenario: str) -> None:  # type: ignore[no-untyped-def]
    b: Boundary = boundary(t=2, scenario=scenario)
    found = anchors(b, **SETTINGS)
    for i in (0, 1):
        batch = b.probe(i, 30)
        for k, alpha in enumerate(ALPHAS):
            params = tree.add(tree.scale(b.nets[i].params, 1 - alpha), b.trained.params, alpha)
            logits = b.trained.apply(params, {}, batch.x, batch.t).logits[..., : 2 if scenario == "domain" else 6]
            loss = -logits.log_softmax(2).gather(2, batch.y[..., None]).mean((1, 2))
            torch.testing.assert_close(value(found["anchor_loss"])[:, i, k], loss, rtol=1e-10, atol=1e-12)
            right = (logits.argmax(2) == batch.y).double().mean(1)
            torch.testing.assert_close(value(found["anchor_accuracy"])[:, i, k], right)
    moved = value(found["anchor_loss"])[..., -1] - value(found["anchor_loss"])[..., 0]
    account = ledger(b, size=30, tasks=5, steps=1, k=1)
    torch.testing.assert_close(moved, value(account["ledger_loss"]))


def test_numbers_are_those_of_the_points_beside_them(boundary) -> None:  # type: ignore[no-untyped-def]
    found = anchors(boundary(), **SETTINGS)
    alpha = torch.tensor(ALPHAS, dtype=torch.float64)
    for kind, path in (("loss", value(found["anchor_loss"])), ("error", 1 - value(found["anchor_accuracy"]))):
        a, b = path[..., :1], path[..., -1:]
        lowest = path.min(2)
        expected = {
            "barrier_entezari": (path - a - alpha * (b - a)).amax(2),
            "instability_frankle": path.amax(2) - ((a + b) / 2)[..., 0],
            "excess": path.amax(2) - a.maximum(b)[..., 0],
            "best_alpha": alpha[lowest.indices],
            "gain": a.minimum(b)[..., 0] - lowest.values,
        }
        for name, true in expected.items():
            torch.testing.assert_close(value(found[f"anchor_{name}_{kind}"]), true, rtol=1e-9, atol=1e-12, msg=name)


def test_a_convex_loss_has_no_barrier(boundary) -> None:  # type: ignore[no-untyped-def]
    b: Boundary = boundary((3, 5, 8), model=lambda s: MLP(s.shape, s.outputs, ()))
    found = anchors(b, **SETTINGS)
    for name in ("barrier_entezari", "excess"):
        assert value(found[f"anchor_{name}_loss"]).abs().max() < 1e-12
    assert value(found["anchor_instability_frankle_loss"]).max() > 1e-3


def test_statistics_are_renewed_from_the_tasks_own_rows_at_both_ends(boundary) -> None:  # type: ignore[no-untyped-def]
    b = normed(boundary(t=2))
    found = value(anchors(b, **SETTINGS)["anchor_loss"])
    for i in (0, 1):
        batch = b.probe(i, 30)
        for k, params in ((0, b.nets[i].params), (4, b.trained.params)):
            z = batch.x.double() @ params["fc1.weight"].mT
            net = Net(params, {"mean": z.mean(1), "var": z.var(1)}, b.trained.apply)
            logits = net(batch.x, batch.t).logits
            true = torch.stack([cross_entropy(row, y) for row, y in zip(logits, batch.y)])
            torch.testing.assert_close(found[:, i, k], true)


def test_row_s_is_seed_s_alone_and_a_diverged_one_is_nan(boundary) -> None:  # type: ignore[no-untyped-def]
    together, alone = (anchors(boundary(seeds), **SETTINGS) for seeds in ((3, 5, 8), (5,)))
    b: Boundary = boundary((3, 5, 8))
    b.trained.params["fc2.bias"][0, 0] = torch.inf
    lost = anchors(b, **SETTINGS)
    for name, r in together.items():
        torch.testing.assert_close(value(r)[1:2], value(alone[name]), rtol=1e-10, atol=1e-12, msg=name)
        assert value(lost[name])[0].isnan().all() and torch.equal(value(lost[name])[1:], value(r)[1:]), name


def test_a_net_that_was_not_kept_is_nan(boundary) -> None:  # type: ignore[no-untyped-def]
    b: Boundary = boundary()
    whole, few = anchors(b, **SETTINGS), anchors(holding(b, {1: b.nets[1]}), **SETTINGS)
    for name, r in few.items():
        assert value(r)[:, [0, 2]].isnan().all(), name
        assert torch.equal(value(r)[:, 1], value(whole[name])[:, 1]), name


def test_relabelled_units_change_nothing(boundary) -> None:  # type: ignore[no-untyped-def]
    b: Boundary = boundary()
    before = anchors(b, **SETTINGS)
    for name, r in anchors(relabelled(b), **SETTINGS).items():
        torch.testing.assert_close(value(r), value(before[name]), rtol=1e-9, atol=1e-12, msg=name)


def test_columns_phases_and_what_is_left_as_it_was(boundary) -> None:  # type: ignore[no-untyped-def]
    b: Boundary = boundary(model=lambda s: MLP(s.shape, s.outputs, (10, 6), dropout=0.5))
    kept, rng, count = tree.copy(b.trained.params), torch.get_rng_state(), b.random.count
    found = anchors(b, **{**SETTINGS, "tasks": 3})
    assert set(found) == set(COLUMNS)
    path, barrier = found["anchor_loss"], found["anchor_excess_loss"]
    assert isinstance(path, Reading) and isinstance(barrier, Reading)
    assert path.axis == "alpha" and tuple(path.coords) == 2 * ALPHAS and path.tasks == [0] * 5 + [1] * 5
    assert (barrier.axis, list(barrier.coords), barrier.value.shape) == ("task", [0, 1], (2, 2))
    assert all(torch.equal(v, kept[k]) and v.grad is None for k, v in b.trained.params.items())
    assert torch.equal(torch.get_rng_state(), rng) and b.random.count == count
    plain = anchors(boundary(), **{**SETTINGS, "tasks": 3})
    assert all(torch.equal(value(r), value(plain[name])) for name, r in found.items())
    assert anchors(boundary(t=0), **SETTINGS) == {} and anchors(boundary(phase="start"), **SETTINGS) == {}
    squared = anchors(boundary(loss="mse"), **SETTINGS)
    assert set(squared) == {n for n in COLUMNS if "error" not in n and "accuracy" not in n}
    assert paths.grid(5) == ALPHAS
