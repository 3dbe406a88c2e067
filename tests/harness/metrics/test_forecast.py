"""Curvature of the coming task: which task, which net, which learning rate."""

from typing import Any

import pytest
import torch
from torch import Tensor

from harness import tree
from harness.boundary import Boundary
from harness.landscape.curvature import flatten, unflatten
from harness.metrics.forecast import COLUMNS, forecast
from harness.optim import SGD
from harness.types import Reading

F64 = torch.float64
SETTINGS: dict[str, Any] = {
    "size": 48, "steps": 20, "trace_probes": 4, "vectors": 20, "quadrature_steps": 40, "thresholds": [0.1, 0.01],
    "edge_ratio": True,
}  # fmt: skip


def value(r: Tensor | Reading) -> Tensor:
    return r if isinstance(r, Tensor) else r.value


@pytest.mark.parametrize("seeds", [(3,), (3, 5, 8)])
def test_numbers_are_those_of_the_dense_hessian_of_the_coming_tasks_loss(boundary, seeds) -> None:  # type: ignore[no-untyped-def]
    b: Boundary = boundary(seeds, t=2, phase="start")
    b.learner.optimizer = SGD(lr=0.1, momentum=0.5)
    found = forecast(b, **{**SETTINGS, "steps": 400})  # the whole space, which leaves nothing to chance
    assert set(found) == set(COLUMNS)
    rank = found["next_curvature_rank"]
    assert isinstance(rank, Reading) and rank.stderr is None and list(rank.coords) == [0.1, 0.01]
    at = flatten(b.trained.params)
    torch.testing.assert_close(at, flatten(b.nets[1].params))  # where task 1 ended
    for s in range(len(seeds)):

        def f(v: Tensor, s: int = s) -> Tensor:
            params = unflatten(torch.cat([at[:s], v[None], at[s + 1 :]]), b.trained.params)
            batch = b.probe(2, 48)
            logits = b.trained.apply(params, {}, batch.x, batch.t).logits[s]
            return torch.nn.functional.cross_entropy(logits, batch.y[s])

        h = torch.func.jacrev(torch.func.grad(f))(at[s])
        true = torch.linalg.eigvalsh(h)
        torch.testing.assert_close(value(found["next_lambda_max"])[s], true[-1], rtol=1e-9, atol=0)
        torch.testing.assert_close(value(found["next_probe_loss"])[s], f(at[s]))
        torch.testing.assert_close(value(found["next_trace"])[s], true.sum(), rtol=1e-8, atol=0)
        square = true.square().sum() / true[-1].square()
        torch.testing.assert_close(value(found["next_stable_rank"])[s], square, rtol=1e-8, atol=0)
        torch.testing.assert_close(value(found["next_eos_ratio"])[s], 0.1 * true[-1] / (2 * 1.5), rtol=1e-9, atol=0)
        counts = torch.tensor([(true > c * true[-1]).sum() for c in (0.1, 0.01)])
        assert ((rank.value[s] - counts).abs() < 0.3 * counts).all()
        mass = found["next_negative_mass"]
        assert isinstance(mass, Reading) and mass.stderr is not None
        assert (mass.value[s] + true.clamp(max=0).sum() / true.abs().sum()).abs() < 4 * mass.stderr[s]


def test_it_is_taken_at_the_start_only_and_the_quadrature_can_be_left_out(boundary) -> None:  # type: ignore[no-untyped-def]
    assert forecast(boundary(t=2, phase="end"), **SETTINGS) == {}
    cheap = forecast(boundary(t=2, phase="start"), **{**SETTINGS, "vectors": 0, "trace_probes": 0, "edge_ratio": False})
    assert set(cheap) == {"next_lambda_max", "next_lambda_residual", "next_probe_loss", "next_logit_norm"}
    first = forecast(boundary(t=0, phase="start"), **SETTINGS)
    assert all(value(r).isfinite().all() for r in first.values())
    with pytest.raises(ValueError, match=r"metrics\.forecast\.steps=0"):
        forecast(boundary(t=2, phase="start"), **{**SETTINGS, "steps": 0})


def test_row_s_is_seed_s_alone_and_a_diverged_seed_is_nan(boundary) -> None:  # type: ignore[no-untyped-def]
    small = {**SETTINGS, "vectors": 2}
    together = forecast(boundary((3, 5, 8), t=2, phase="start"), **small)
    alone = forecast(boundary((5,), t=2, phase="start"), **small)
    b: Boundary = boundary((3, 5, 8), t=2, phase="start")
    b.trained.params["head.bias"][0, 0] = torch.inf
    lost = forecast(b, **small)
    for name, r in together.items():
        torch.testing.assert_close(value(r)[1:2], value(alone[name]), rtol=1e-8, atol=1e-10, msg=name)
        assert value(lost[name])[0].isnan().all() and torch.equal(value(lost[name])[1:], value(r)[1:]), name


def test_nothing_is_changed(boundary) -> None:  # type: ignore[no-untyped-def]
    b: Boundary = boundary(t=2, phase="start", dtype=torch.float32)
    kept, rng, count, lr = tree.copy(b.trained.params), torch.get_rng_state(), b.random.count, b.learner.optimizer.lr
    first, second = (forecast(b, **{**SETTINGS, "vectors": 2}) for _ in range(2))
    assert all(torch.equal(value(first[n]), value(second[n])) for n in first)
    assert all(torch.equal(v, kept[k]) and v.grad is None and not v.requires_grad for k, v in b.trained.params.items())
    assert torch.equal(torch.get_rng_state(), rng) and b.random.count == count and b.learner.optimizer.lr == lr
