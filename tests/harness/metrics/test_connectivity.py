"""The line between boundaries: its points, its weights, its summaries."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from harness import tree
from harness.boundary import Boundary
from harness.metrics.connectivity import COLUMNS, connectivity
from harness.models.maps import apart, batch_norm, together
from harness.types import Net, Out, Reading

SETTINGS: dict[str, Any] = {"size": 30, "tasks": 5, "points": 5, "by_task": True}


def value(r: Tensor | Reading) -> Tensor:
    if isinstance(r, Tensor):
        return r
    return r.value.view(len(r.value), len(set(r.tasks)), -1) if r.tasks else r.value


@pytest.mark.parametrize("scenario", ["domain", "class"])
def test_path_is_loss_and_accuracy_of_the_interpolated_net(boundary, scenario: str) -> None:  # type: ignore[no-untyped-def]
    b: Boundary = boundary(t=2, scenario=scenario)
    found = connectivity(b, **SETTINGS)
    for k, alpha in enumerate((0, 0.25, 0.5, 0.75, 1)):
        params = tree.add(tree.scale(b.nets[1].params, 1 - alpha), b.trained.params, alpha)
        losses, right = [], []
        for i in range(3):
            batch = b.probe(i, 30)
            logits = b.trained.apply(params, {}, batch.x, batch.t).logits[..., : 2 if scenario == "domain" else 6]
            losses.append(-logits.log_softmax(2).gather(2, batch.y[..., None]).mean((1, 2)))
            right.append((logits.argmax(2) == batch.y).double().mean(1))
        for name, true in (("loss", losses), ("accuracy", right)):
            expected = {"old": (true[0] + true[1]) / 2, "new": true[2], "joint": sum(true) / 3}
            torch.testing.assert_close(value(found[f"path_{name}_task"])[:, :, k], torch.stack(true, 1))
            for part, mean in expected.items():
                torch.testing.assert_close(value(found[f"path_{name}_{part}"])[:, k], mean, rtol=1e-10, atol=1e-12)


def test_few_measured_tasks_stand_for_all_that_were_seen(boundary) -> None:  # type: ignore[no-untyped-def]
    b: Boundary = boundary(t=3)
    found = connectivity(b, size=30, tasks=2, points=5, by_task=False)
    old, new, joint = (value(found[f"path_loss_{n}"]) for n in ("old", "new", "joint"))
    torch.testing.assert_close(joint, 0.75 * old + 0.25 * new)
    torch.testing.assert_close(old[:, 0], b.loss([0], 30)(b.nets[2].params))


def test_summaries_are_those_of_the_paths_beside_them(boundary) -> None:  # type: ignore[no-untyped-def]
    found = connectivity(boundary(t=3), **SETTINGS)
    alpha = torch.tensor([0, 0.25, 0.5, 0.75, 1], dtype=torch.float64)
    for kind in ("loss", "error"):
        for part in ("old", "new", "joint"):
            path = value(found[f"path_{kind.replace('error', 'accuracy')}_{part}"])
            path = 1 - path if kind == "error" else path
            a, b = path[:, 0], path[:, -1]
            chord = a[:, None] + alpha * (b - a)[:, None]
            expected = {
                "barrier_entezari": (path - chord).max(1).values,
                "instability_frankle": path.max(1).values - (a + b) / 2,
                "excess": path.max(1).values - torch.max(a, b),
            }
            for name, true in expected.items():
                torch.testing.assert_close(value(found[f"{name}_{kind}_{part}"]), true, rtol=1e-9, atol=1e-12)
        joint = value(found[f"path_{kind.replace('error', 'accuracy')}_joint"])
        lowest = (1 - joint if kind == "error" else joint).min(1)
        assert torch.equal(value(found[f"best_alpha_{kind}_joint"]), alpha[lowest.indices])
        assert (value(found[f"gain_{kind}_joint"]) >= 0).all()


def test_columns_phases_and_the_first_task(boundary) -> None:  # type: ignore[no-untyped-def]
    b: Boundary = boundary(t=2)
    found = connectivity(b, **SETTINGS)
    assert set(found) == set(COLUMNS)
    path = found["path_loss_old"]
    assert isinstance(path, Reading) and (path.axis, path.coords) == ("alpha", (0, 0.25, 0.5, 0.75, 1))
    torch.testing.assert_close(
        value(found["path_length"]), tree.norm(tree.sub(b.nets[1].params, b.trained.params)), rtol=1e-12, atol=0
    )
    each = found["path_loss_task"]
    assert isinstance(each, Reading) and each.tasks == [0] * 5 + [1] * 5 + [2] * 5
    assert set(found) - set(connectivity(b, **{**SETTINGS, "by_task": False})) == {
        "path_loss_task",
        "path_accuracy_task",
    }
    assert connectivity(boundary(t=0), **SETTINGS) == {}
    assert connectivity(boundary(phase="start"), **SETTINGS) == {}
    squared = connectivity(boundary(loss="mse"), **SETTINGS)
    assert set(squared) == {n for n in COLUMNS if "error" not in n and "accuracy" not in n}


def test_row_s_is_seed_s_alone(boundary) -> None:  # type: ignore[no-untyped-def]
    together, alone = (connectivity(boundary(seeds), **SETTINGS) for seeds in ((3, 5, 8), (5,)))
    for name, r in together.items():
        torch.testing.assert_close(value(r)[1:2], value(alone[name]), rtol=1e-10, atol=1e-12, msg=name)


def test_diverged_seed_is_nan_and_leaves_the_other_alone(boundary) -> None:  # type: ignore[no-untyped-def]
    sound = connectivity(boundary(), **SETTINGS)
    b: Boundary = boundary()
    b.trained.params["fc2.bias"][0, 0] = torch.inf
    for name, r in connectivity(b, **SETTINGS).items():
        assert value(r)[0].isnan().all(), name
        assert torch.equal(value(r)[1], value(sound[name])[1]), name


def test_permuting_the_units_of_both_ends_changes_nothing_of_one_end_another_path(boundary) -> None:  # type: ignore[no-untyped-def]
    b: Boundary = boundary()
    order = torch.tensor([3, 1, 4, 0, 5, 9, 2, 6, 8, 7])

    def moved(net: Net) -> Net:
        p = dict(net.params)
        p["fc1.weight"], p["fc1.bias"] = p["fc1.weight"][:, order], p["fc1.bias"][:, order]
        p["fc2.weight"] = p["fc2.weight"][:, :, order]
        return Net(p, {}, net.apply)

    class Moved:
        initial = b.nets.initial

        def __contains__(self, task: int) -> bool:
            return task in b.nets

        def __getitem__(self, task: int) -> Net:
            return moved(b.nets[task])

    before = connectivity(b, **SETTINGS)
    both = connectivity(replace(b, trained=moved(b.trained), nets=Moved()), **SETTINGS)
    one = connectivity(replace(b, trained=moved(b.trained)), **SETTINGS)
    for name, r in before.items():
        torch.testing.assert_close(value(both[name]), value(r), rtol=1e-9, atol=1e-12, msg=name)
    torch.testing.assert_close(value(one["path_loss_new"])[:, -1], value(before["path_loss_new"])[:, -1])
    assert (value(one["path_loss_new"])[:, 2] - value(before["path_loss_new"])[:, 2]).abs().min() > 1e-3


def test_batch_norm_statistics_are_renewed_from_the_measured_rows_at_every_point(boundary) -> None:  # type: ignore[no-untyped-def]
    # dnn-mode-connectivity's issue 8: with the statistics of one end the rest of the path is an artefact
    b: Boundary = boundary(t=2)

    def apply(p, buffers, x, t, *, train=False, key=None, record=False):  # type: ignore[no-untyped-def]
        h = (x.double() @ p["fc1.weight"].mT)[..., None, None]
        one = torch.ones_like(p["fc1.bias"])
        scaled, mean, var = batch_norm(apart(h), one, p["fc1.bias"], buffers["mean"], buffers["var"], train)
        h = together(scaled, len(h)).flatten(2).relu() @ p["fc2.weight"].mT
        return Out(h @ p["head.weight"].mT, {}, {"mean": mean, "var": var})

    buffers = {"mean": torch.full((2, 10), 3.0).double(), "var": torch.full((2, 10), 9.0).double()}
    found = connectivity(replace(b, trained=Net(b.trained.params, buffers, apply)), **SETTINGS)
    batches = [b.probe(i, 30) for i in range(3)]
    z = torch.cat([a.x for a in batches], 1).double() @ b.nets[1].params["fc1.weight"].mT
    at_start = {"mean": z.mean(1), "var": z.var(1)}
    old = torch.stack([b.learner.objective([a], b.stream, 2, at_start, apply)(b.nets[1].params) for a in batches[:2]])
    torch.testing.assert_close(value(found["path_loss_old"])[:, 0], old.mean(0))
    assert buffers["mean"].unique().tolist() == [3.0]


def test_nothing_is_changed(boundary) -> None:  # type: ignore[no-untyped-def]
    b: Boundary = boundary()
    kept, rng, count = tree.copy(b.trained.params), torch.get_rng_state(), b.random.count
    connectivity(b, **SETTINGS)
    assert all(torch.equal(v, kept[k]) and v.grad is None for k, v in b.trained.params.items())
    assert torch.equal(torch.get_rng_state(), rng) and b.random.count == count
