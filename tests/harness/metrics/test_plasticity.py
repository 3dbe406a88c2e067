"""Units, ranks, weights, gradients and gaps against hand-made activations and independent formulas."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from harness import tree
from harness.metrics import plasticity as file
from harness.metrics.plasticity import COLUMNS, dormancy, plasticity, singular_values, strength
from harness.models.mlp import MLP
from harness.types import Boundary, Net, Reading, Unit

SETTINGS = {"size": 40, "rank": True, "gradient": True}


def value(r: Tensor | Reading) -> Tensor:
    return r if isinstance(r, Tensor) else r.value


def test_dead_and_dormant_units_by_hand() -> None:
    # E|h| of four units in eighths: 0, 0.02, 0.09, 3.89; their mean is 1, so that thresholds are 0, 0.025 and 0.1
    h = 8 * torch.tensor([0.0, 0.02, 0.09, 3.89], dtype=torch.float64)
    sign = torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64)  # E|h|, not |E h|
    acts = {"a": (h * sign[:, None])[None], "b": torch.zeros(1, 3, 2, dtype=torch.float64)}
    found = dormancy(acts, (Unit("a", 4, (), ()), Unit("b", 2, (), ())))
    layers = {n: value(r)[0].tolist() for n, r in found.items() if n.endswith("_layer")}
    assert layers == {
        "dead_frac_layer": [0.25, 1],
        "redo_dormant_0_layer": [0.25, 1],
        "redo_dormant_0.025_layer": [0.5, 1],
        "redo_dormant_0.1_layer": [0.75, 1],
    }
    # over all units, larger layers count for more: (1 + 2) / 6, ...
    assert value(found["dead_frac"]).item() == pytest.approx(3 / 6)
    assert value(found["redo_dormant_0.1"]).item() == pytest.approx(5 / 6)
    reading = found["dead_frac_layer"]
    assert isinstance(reading, Reading) and (reading.axis, reading.coords) == ("layer", ["a", "b"])


def test_unit_that_overflows_is_unknown_not_alive() -> None:
    h = torch.tensor([[0.0, torch.nan, 2.0], [0.0, torch.inf, 2.0]])
    assert file.dormant(h, 0.1)[:, 1].isnan().all()


def test_score_is_relative_to_the_layer_not_to_the_units_own_mean() -> None:
    # Plasticine's ReDo divides a unit by itself, so that only exactly dead units ever count
    acts = {"a": torch.tensor([[[0.01, 1.0], [0.01, 1.0]]])}
    assert value(dormancy(acts, (Unit("a", 2, (), ()),))["redo_dormant_0.025"]).item() == 0.5


def test_copies_of_a_crelu_unit_and_space_are_folded() -> None:
    crelu = torch.tensor([[[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 3.0, 0.0]]])  # units 0 and 1, positive halves first
    assert strength(crelu, 2).tolist() == [[2.0, 0.0]]
    conv = torch.zeros(1, 2, 3, 2, 2)
    conv[0, 0, 1, 0, 0], conv[0, 1, 1, 1, 1] = 5.0, -3.0
    assert strength(conv, 3).tolist() == [[0.0, 1.0, 0.0]]


def test_ranks_agree_with_the_formulas_on_a_known_spectrum() -> None:
    sigma = torch.tensor([[5.0, 3.0, 2.0, 0.05]], dtype=torch.float64)
    p = [s / 10.05 for s in (5, 3, 2, 0.05)]
    assert file.effective_rank(sigma).item() == pytest.approx(math.exp(-sum(q * math.log(q) for q in p)))
    assert file.srank(sigma, 0.99).item() == 3  # 8 / 10.05 = 0.796, 10 / 10.05 = 0.995
    assert file.stable_rank(sigma).item() == pytest.approx((25 + 9 + 4 + 0.0025) / 25)
    equal = torch.ones(1, 7, dtype=torch.float64)
    assert [file.effective_rank(equal).item(), file.stable_rank(equal).item()] == pytest.approx([7, 7])


def test_ranks_see_orthogonal_features_and_not_their_basis() -> None:
    g = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=g)).Q for n in (20, 6))
    spectrum = torch.tensor([4.0, 2.0, 1.0, 0.5, 0.1, 0.0], dtype=torch.float64)
    features = (left[:, :6] * spectrum) @ right
    torch.testing.assert_close(singular_values(features[None])[0], spectrum, rtol=1e-10, atol=1e-12)
    conv = features[None, :, :, None, None] + torch.tensor([1.0, -1.0], dtype=torch.float64)  # space averages out
    torch.testing.assert_close(singular_values(conv)[0], spectrum, rtol=1e-10, atol=1e-12)


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
    assert set(COLUMNS) - set(found) == {"intransigence", "trainability_gap"}
    expected = torch.cat([(acts[n] == 0).all(1) for n in ("fc1", "fc2")], 1).double().mean(1)
    torch.testing.assert_close(value(found["dead_frac"]), expected)


def test_every_column_is_declared_and_filled(boundary) -> None:  # type: ignore[no-untyped-def]
    b: Boundary = boundary()
    found, batch = plasticity(b, **SETTINGS), b.probe(b.t, 40)
    assert set(found) == set(COLUMNS)
    last = torch.linalg.matrix_norm(b.trained(batch.x, batch.t).acts["fc2"]).square()  # sum of sigma^2
    top = torch.linalg.matrix_norm(b.trained(batch.x, batch.t).acts["fc2"], 2).square()
    torch.testing.assert_close(value(found["stable_rank_true"]), last / top)
    cheap = plasticity(boundary(), size=40, rank=False, gradient=False)
    assert set(COLUMNS) - set(cheap) == {
        "effective_rank", "srank_99", "stable_rank_true", "grad_norm", "grad_zero_frac"
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
    for name, true in {"dead_frac": 1, "effective_rank": 0, "srank_99": 0, "stable_rank_true": 0}.items():
        assert value(found[name]).tolist() == [true, true]


def test_linear_model_has_no_units_to_report(boundary) -> None:  # type: ignore[no-untyped-def]
    found = plasticity(boundary(model=lambda s: MLP(s.shape, s.outputs, ())), **SETTINGS)
    assert "dead_frac" not in found and "effective_rank" not in found and "weight_l2" in found
