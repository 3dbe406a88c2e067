"""Rises of the loss at a boundary: every variant at its own radius, of its own loss."""

from typing import Any

import pytest
import torch
from torch import Tensor

from harness import tree
from harness.boundary import Boundary
from harness.landscape.rises import average_rise, worst_rise
from harness.metrics import own_key
from harness.metrics.rises import COLUMNS, VARIANTS, rises
from harness.rng import fold
from harness.types import Loss, Net, Params, Reading

SETTINGS: dict[str, Any] = {
    "probes": ["first", "current", "joint"], "size": 48, "tasks": 4, "variants": list(VARIANTS),
    "ascent": 4, "pairs": 3, "rho": 0.05, "rho_adaptive": 0.5, "rho_average": 0.01, "rho_average_adaptive": 0.2,
}  # fmt: skip
CHEAP = {**SETTINGS, "probes": ["current"]}


def value(r: Tensor | Reading) -> Tensor:
    return r if isinstance(r, Tensor) else r.value


def normalised_loss(b: Boundary, used: int) -> Loss:
    """Cross-entropy of the current task with (z - mean z) / ||z - mean z|| over the first `used` logits."""
    batch = b.probe(b.t, 48)

    def loss(params: Params) -> Tensor:
        z = b.trained.apply(params, {}, batch.x, batch.t).logits[..., :used]
        z = z - z.mean(2, keepdim=True)
        scaled = z / z.norm(dim=2, keepdim=True)
        return -scaled.log_softmax(2).gather(2, batch.y[..., None]).mean((1, 2))

    return loss


@pytest.mark.parametrize("scenario", ["domain", "class"])
def test_every_variant_is_of_its_own_loss_and_at_its_own_radius(boundary, scenario: str) -> None:  # type: ignore[no-untyped-def]
    b: Boundary = boundary(t=1, scenario=scenario)
    found = rises(b, **CHEAP)
    params, key = b.trained.params, fold(own_key(b, "rises", "current"), "average")
    flat = normalised_loss(b, 2 if scenario == "domain" else 4)
    torch.testing.assert_close(value(found["probe_loss_normalised_current"]), flat(params))
    for variant in VARIANTS:
        loss, adaptive = flat if "normalised" in variant else b.loss([1], 48), "adaptive" in variant
        worst = worst_rise(loss, params, 0.5 if adaptive else 0.05, 4, adaptive=adaptive)
        mean, error = average_rise(loss, params, key, 0.2 if adaptive else 0.01, 3, adaptive=adaptive)
        reading = found[f"rise_average_{variant}_current"]
        assert isinstance(reading, Reading) and reading.stderr is not None
        assert (reading.axis, reading.coords) == ("rho", (0.2 if adaptive else 0.01,))
        tight = {"rtol": 1e-9, "atol": 1e-14}
        torch.testing.assert_close(value(found[f"rise_worst_{variant}_current"])[:, 0], worst.worst, **tight)
        torch.testing.assert_close(value(found[f"rise_onestep_{variant}_current"])[:, 0], worst.one_step, **tight)
        torch.testing.assert_close(reading.value[:, 0], mean, **tight)
        torch.testing.assert_close(reading.stderr[:, 0], error, **tight)


def test_normalised_rises_do_not_see_confidence(boundary) -> None:  # type: ignore[no-untyped-def]
    b: Boundary = boundary(t=1, scenario="class")  # four outputs: of two, normalised logits are ±1/√2 wherever one is
    louder = {k: v * 4 if k.startswith("head") else v for k, v in b.trained.params.items()}
    other = Boundary(**{**b.__dict__, "trained": Net(louder, {}, b.trained.apply)})
    before, after = rises(b, **CHEAP), rises(other, **CHEAP)
    for name in before:
        same = torch.allclose(value(after[name]), value(before[name]), rtol=1e-9, atol=1e-13)
        # the head's weights are in the ball as well: only relative to |w| is a net four times as loud the same net
        assert same == ("adaptive_normalised" in name or name.startswith("probe_loss")), name


def test_columns_are_declared_and_what_is_off_leaves_none(boundary) -> None:  # type: ignore[no-untyped-def]
    assert set(rises(boundary(), **SETTINGS)) == set(COLUMNS)
    assert rises(boundary(phase="start"), **SETTINGS) == {}
    plain = rises(boundary(), **{**CHEAP, "variants": ["plain"], "pairs": 0})
    assert set(plain) == {"rise_worst_plain_current", "rise_onestep_plain_current"}
    assert set(rises(boundary(), **{**CHEAP, "variants": ["plain"], "ascent": 0})) == {"rise_average_plain_current"}
    squared = rises(boundary(loss="mse"), **CHEAP)
    assert squared and not any("normalised" in name for name in squared)
    with pytest.raises(ValueError, match=r"metrics\.rises\.variants=flat: choose from plain"):
        rises(boundary(), **{**CHEAP, "variants": ["flat"]})


def test_row_s_is_seed_s_alone_and_a_diverged_seed_is_nan(boundary) -> None:  # type: ignore[no-untyped-def]
    together, alone = rises(boundary((3, 5, 8)), **CHEAP), rises(boundary((5,)), **CHEAP)
    b: Boundary = boundary((3, 5, 8))
    b.trained.params["head.bias"][0, 0] = torch.nan
    lost = rises(b, **CHEAP)
    for name, r in together.items():
        torch.testing.assert_close(value(r)[1:2], value(alone[name]), rtol=1e-8, atol=1e-12, msg=name)
        assert value(lost[name])[0].isnan().all() and torch.equal(value(lost[name])[1:], value(r)[1:]), name


def test_nothing_is_changed(boundary) -> None:  # type: ignore[no-untyped-def]
    b: Boundary = boundary(dtype=torch.float32)
    kept, rng, count = tree.copy(b.trained.params), torch.get_rng_state(), b.random.count
    first, second = (rises(b, **SETTINGS) for _ in range(2))
    assert all(torch.equal(value(first[n]), value(second[n])) for n in first)
    assert all(torch.equal(v, kept[k]) and v.grad is None and not v.requires_grad for k, v in b.trained.params.items())
    assert torch.equal(torch.get_rng_state(), rng) and b.random.count == count
