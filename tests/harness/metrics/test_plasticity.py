"""Units, ranks, weights, gradients and gaps against hand-made activations and independent formulas."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from harness import tree
from harness.boundary import Boundary
from harness.metrics import ranks
from harness.metrics.plasticity import COLUMNS, plasticity
from harness.models.mlp import MLP
from harness.types import Net, Reading

SETTINGS = {"size": 40, "duplicates": True, "rank": True, "gradient": True}
SATURATED = {"saturated_0.9", "saturated_0.9_layer"}  # relu does not


def value(r: Tensor | Reading) -> Tensor:
    return r if isinstance(r, Tensor) else r.value


def test_weights_and_gradient_are_what_torch_says_of_each_seed(boundary) -> None:  # type: ignore[no-untyped-def]
    b: Boundary = boundary((3, 5))
    found = plasticity(b, **SETTINGS)
    batch, first = b.probe(b.t, 40), b.nets.initial.params
    for s in range(2):
        p = {k: v[s].clone().requires_grad_() for k, v in b.trained.params.items()}
        h = batch.x[s].double()
        for name in ("fc1", "fc2", "head"):
            h = h @ p[f"{name}.weight"].T + p[f"{name}.bias"]
            h = h if name == "head" else h.relu()
        torch.nn.functional.cross_entropy(h, batch.y[s]).backward()
        grad = torch.cat([v.grad.flatten() for v in p.values() if v.grad is not None])
        flat = torch.cat([v.detach().flatten() for v in p.values()])
        start = torch.cat([v[s].flatten() for v in first.values()])
        only = torch.cat([v.detach().flatten() for k, v in p.items() if k.endswith("weight")])
        expected = {
            "grad_norm": grad.norm(),
            "grad_zero_frac": (grad == 0).double().mean(),
            "weight_mag": only.abs().mean(),
            "weight_l2": flat.norm(),
            "dist_init_l2": (flat - start).norm(),
        }
        for name, true in expected.items():
            torch.testing.assert_close(value(found[name])[s], true, rtol=1e-10, atol=0)


def test_gaps_compare_with_the_fresh_net_on_the_new_task(boundary) -> None:  # type: ignore[no-untyped-def]
    r = torch.zeros(2, 5, 4, dtype=torch.float64)
    r[:, 3, 2] = torch.tensor([0.6, 0.9], dtype=torch.float64)  # after task 2, on task 2
    control = torch.zeros(2, 4, dtype=torch.float64)
    control[:, 2] = torch.tensor([0.8, 0.7], dtype=torch.float64)
    gap = torch.tensor([0.75, 0.7], dtype=torch.float64)
    found = plasticity(boundary(t=2, accuracy=r, control=control, gap=gap), **SETTINGS)
    assert value(found["intransigence"]).tolist() == pytest.approx([0.2, -0.2])
    assert torch.equal(value(found["intransigence"]), value(found["intransigence_deployed"]))  # one net is both
    own = torch.tensor([0.5, 0.95], dtype=torch.float64)
    other = plasticity(boundary(t=2, accuracy=r, control=control, gap=gap, trained_score=own), **SETTINGS)
    assert value(other["intransigence"]).tolist() == pytest.approx([0.3, -0.25])
    assert torch.equal(value(other["intransigence_deployed"]), value(found["intransigence"]))
    assert value(found["trainability_gap"]).tolist() == pytest.approx([0.05, 0.0])
    for missing in ({"control": None, "gap": gap}, {"control": control, "gap": None}):
        part = plasticity(boundary(t=2, accuracy=r, **missing), **SETTINGS)
        assert value(part["trainability_gap"]).isnan().all()
        assert value(part["intransigence"]).isnan().all() == (missing["control"] is None)


def test_start_looks_at_the_new_task_before_training_on_it(boundary) -> None:  # type: ignore[no-untyped-def]
    b: Boundary = boundary(t=2, phase="start")
    found = plasticity(b, **SETTINGS)
    batch = b.probe(2, 40)
    acts = b.trained(batch.x, batch.t).acts
    assert set(COLUMNS) - set(found) == {"intransigence", "intransigence_deployed", "trainability_gap"} | SATURATED
    expected = torch.cat([(acts[n] == 0).all(1) for n in ("fc1", "fc2")], 1).double().mean(1)
    torch.testing.assert_close(value(found["dead_frac"]), expected)


def test_every_column_is_declared_and_filled(boundary) -> None:  # type: ignore[no-untyped-def]
    b: Boundary = boundary()
    found, batch = plasticity(b, **SETTINGS), b.probe(b.t, 40)
    assert set(found) == set(COLUMNS) - SATURATED
    last = torch.linalg.matrix_norm(b.trained(batch.x, batch.t).acts["fc2"]).square()  # sum of sigma^2
    top = torch.linalg.matrix_norm(b.trained(batch.x, batch.t).acts["fc2"], 2).square()
    torch.testing.assert_close(value(found["stable_rank_true"]), last / top)
    bent = plasticity(boundary(model=lambda s: MLP(s.shape, s.outputs, (10, 6), activation="tanh")), **SETTINGS)
    assert set(bent) == set(COLUMNS)
    cheap = plasticity(boundary(), size=40, duplicates=False, rank=False, gradient=False)
    assert set(COLUMNS) - set(cheap) - SATURATED == {
        *ranks.COLUMNS, "duplicate_frac", "duplicate_frac_layer", "grad_norm", "grad_zero_frac"
    }  # fmt: skip


def test_diverged_seed_is_nan_and_leaves_the_other_alone(boundary) -> None:  # type: ignore[no-untyped-def]
    control = torch.ones(2, 4, dtype=torch.float64)
    sound = plasticity(boundary(control=control, gap=control[:, 0]), **SETTINGS)
    b: Boundary = boundary(control=control, gap=control[:, 0])
    b.trained.params["fc1.weight"][1, 0, 0] = math.nan
    found = plasticity(b, **SETTINGS)
    for name, r in found.items():
        assert value(r)[1].isnan().all(), name
        assert torch.equal(value(r)[0], value(sound[name])[0]), name
    stopped = plasticity(replace(boundary(), alive=torch.tensor([True, False])), **SETTINGS)
    assert all(value(r)[1].isnan().all() for r in stopped.values())


def test_collapsed_net_has_rank_zero_and_every_unit_dead(boundary) -> None:  # type: ignore[no-untyped-def]
    b: Boundary = boundary()
    net = Net(tree.zeros(b.trained.params), {}, b.trained.apply)
    found = plasticity(replace(b, trained=net), **SETTINGS)
    for name, true in {"dead_frac": 1, **dict.fromkeys(ranks.COLUMNS, 0)}.items():
        assert value(found[name]).tolist() == [true, true]


def test_linear_model_has_no_units_to_report(boundary) -> None:  # type: ignore[no-untyped-def]
    found = plasticity(boundary(model=lambda s: MLP(s.shape, s.outputs, ())), **SETTINGS)
    assert "dead_frac" not in found and "effective_rank" not in found and "weight_l2" in found
