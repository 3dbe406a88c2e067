"""Units that are silent, stuck, saturated or copies, on hand-made activations."""

import math

import pytest
import torch
from torch import Tensor

from harness.boundary import Boundary
from harness.metrics.dormancy import alike, dormancy, dormant, duplicates, strength
from harness.models.mlp import MLP
from harness.types import Reading, Unit


def value(r: Tensor | Reading) -> Tensor:
    return r if isinstance(r, Tensor) else r.value


def test_dead_and_dormant_units_by_hand() -> None:
    # E|h| of four units in eighths: 0, 0.02, 0.09, 3.89; their mean is 1, so that thresholds are 0, 0.025 and 0.1
    h = 8 * torch.tensor([0.0, 0.02, 0.09, 3.89], dtype=torch.float64)
    sign = torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64)  # E|h|, not |E h|
    acts = {"a": (h * sign[:, None])[None], "b": torch.zeros(1, 3, 2, dtype=torch.float64)}
    found = dormancy(acts, (Unit("a", 4, (), ()), Unit("b", 2, (), ())))
    layers = {
        n: value(r)[0].tolist() for n, r in found.items() if n.endswith("_layer") and n.startswith(("dead_f", "redo"))
    }
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
    assert dormant(h, 0.1)[:, 1].isnan().all()


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


def test_each_definition_of_a_silent_unit_counts_others() -> None:
    rows = 200
    h = torch.zeros(1, rows, 5, dtype=torch.float64)
    h[0, 0, 1] = 1  # fires once in 200 rows: not dead, but rarely active
    h[0, :2, 2] = 1  # on 1 % of the rows, which is not less than 1 %
    h[0, :, 3] = 1e-8  # too small to matter, never 0
    h[0, :, 4] = 2
    found = dormancy({"a": h}, (Unit("a", 5, (), ()),))
    expected = {"dead_frac": 1, "lop_dormant_0.01": 2, "dead_95": 4}
    assert {n: 5 * value(found[n]).item() for n in expected} == pytest.approx(expected)
    assert value(found["zero_act_frac"]).item() == pytest.approx(1 - (1 + 2 + 200 + 200) / 1000)
    half = h.clone()
    half[0, :20, 1] = 1  # above 1e-7 on 10 % of the rows: no longer dead by the 95 % rule
    assert value(dormancy({"a": half}, (Unit("a", 5, (), ()),))["dead_95"]).item() == pytest.approx(3 / 5)


def test_positions_count_as_rows_do() -> None:
    conv = torch.zeros(1, 2, 1, 2, 2, dtype=torch.float64)
    conv[0, 0, 0] = torch.tensor([[1.0, 0.0], [0.0, 0.0]])  # 1 of 8 places
    found = dormancy({"a": conv}, (Unit("a", 1, (), ()),))
    p = 1 / 8
    entropy = -p * math.log2(p) - (1 - p) * math.log2(1 - p)
    assert value(found["unit_sign_entropy"]).item() == pytest.approx(entropy)
    assert value(found["zero_act_frac"]).item() == 7 / 8
    assert value(found["lop_dormant_0.01"]).item() == 0


def test_sign_entropy_is_a_mean_over_units_of_the_pre_activations_sign() -> None:
    z = torch.randn(3, 400, 4, generator=torch.Generator().manual_seed(0)) + torch.tensor([0.0, 1.0, -2.0, -99.0])
    p = (z > 0).float().mean(1)
    bits = -(p * p.clamp(min=1e-9).log2() + (1 - p) * (1 - p).clamp(min=1e-9).log2()).mean(1)
    unit = (Unit("a", 4, (), ()),)
    for act in (z.relu(), z.tanh(), torch.cat([z.relu(), (-z).relu()], 2)):
        torch.testing.assert_close(value(dormancy({"a": act}, unit)["unit_sign_entropy"]), bits)


def test_a_crelu_unit_is_active_if_either_copy_is() -> None:
    z = torch.tensor([[[-1.0, 0.0], [-2.0, 0.0]]])
    found = dormancy({"a": torch.cat([z.relu(), (-z).relu()], 2)}, (Unit("a", 2, (), ()),))
    assert [value(found[n]).item() for n in ("dead_frac", "lop_dormant_0.01", "dead_95")] == [0.5, 0.5, 0.5]
    assert value(found["zero_act_frac"]).item() == 0.75


def test_saturation_is_beside_the_asymptote_that_the_model_declares() -> None:
    h = torch.tensor([[[0.95, -0.95, 0.5], [0.9, -0.91, -0.2]]], dtype=torch.float64)
    found = dormancy({"a": h}, (Unit("a", 3, (), (), asymptote=1.0),))
    assert value(found["saturated_0.9"]).item() == pytest.approx(3 / 6)
    assert value(dormancy({"a": 2 * h}, (Unit("a", 3, (), (), asymptote=2.0),))["saturated_0.9"]).item() == 0.5
    assert "saturated_0.9" not in dormancy({"a": h}, (Unit("a", 3, (), ()),))
    made = {a: {u.asymptote for u in MLP((4,), 2, (3, 3), activation=a).units} for a in ("relu", "tanh", "crelu")}
    assert made == {"relu": {None}, "tanh": {1.0}, "crelu": {None}}


def test_duplicates_are_pairs_of_live_units_with_nearly_the_same_direction() -> None:
    g = torch.Generator().manual_seed(1)
    base = torch.randn(50, 3, dtype=torch.float64, generator=g)
    noisy = base[:, :1] + 0.05 * torch.randn(50, 1, dtype=torch.float64, generator=g)
    a = torch.cat([base, 7 * base[:, :1], noisy, -base[:, 1:2], torch.zeros(50, 1, dtype=torch.float64)], 1)  # 7 units
    cos = torch.corrcoef(torch.cat([a.T[:6], -a.T[:6]], 1))  # beside its negative every row is centred
    true = (cos.triu(1) > 0.95).sum().item()
    assert true == 3  # the base unit, its multiple and its noisy copy; not the opposite, not the dead one
    unit = (Unit("a", 7, (), ()), Unit("b", 2, (), ()))
    found = duplicates({"a": a[None], "b": base[None, :, :2]}, unit)
    assert value(found["duplicate_frac_layer"])[0].tolist() == pytest.approx([3 / 15, 0])
    assert value(found["duplicate_frac"]).item() == pytest.approx(3 / 16)
    one = duplicates({"a": a[None, :, 5:]}, (Unit("a", 2, (), ()),))  # a single live unit
    assert value(one["duplicate_frac"]).isnan().all()


@pytest.mark.parametrize(("cosine", "pairs"), [(0.94, 0), (0.96, 1), (-0.96, 0)])
def test_the_cosine_of_duplicates_is_uncentred_and_above_0_95(cosine: float, pairs: int) -> None:
    a, b = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]], dtype=torch.float64)
    c = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)  # as long as a, at right angles to it
    turned = cosine * a + math.sqrt(1 - cosine**2) * c / math.sqrt(2)
    assert [v.tolist() for v in alike(torch.stack([a, 3 * turned])[None])] == [[pairs], [1]]
    # far from 0 all directions are nearly one; centred, these two are opposite
    assert [v.tolist() for v in alike(torch.stack([9 + a, 9 + b])[None])] == [[1], [1]]


def test_duplicates_compare_whole_crelu_units() -> None:
    z = torch.tensor([[[1.0, 1.0], [-1.0, 3.0], [2.0, 2.0]]])  # the positive halves differ in the second row only
    found = duplicates({"a": torch.cat([z.relu(), (-z).relu()], 2)}, (Unit("a", 2, (), ()),))
    assert value(found["duplicate_frac"]).item() == 0
    same = z[:, :, :1].expand(-1, -1, 2)
    found = duplicates({"a": torch.cat([same.relu(), (-same).relu()], 2)}, (Unit("a", 2, (), ()),))
    assert value(found["duplicate_frac"]).item() == 1


def test_what_overflows_is_unknown_in_every_measure(boundary) -> None:  # type: ignore[no-untyped-def]
    b: Boundary = boundary()
    batch = b.probe(0, 20)
    acts = dict(b.trained(batch.x, batch.t).acts)
    acts["fc2"] = acts["fc2"].clone()
    acts["fc2"][0, 0, 0] = torch.inf
    units = b.learner.model.units
    for name, r in {**dormancy(acts, units), **duplicates(acts, units)}.items():
        last = value(r)[:, -1] if name.endswith("_layer") else value(r)
        assert last.isnan().tolist() == [True, False], name
