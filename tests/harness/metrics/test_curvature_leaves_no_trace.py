"""Curvature metrics leave a learner as they found it: with dropout, with batch norm, and as somebody's own module."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness.boundary import Boundary
from harness.metrics.forecast import forecast
from harness.metrics.rises import rises
from harness.metrics.sharpness import sharpness
from harness.metrics.spectrum import spectrum
from harness.models.cnn import CNN
from harness.models.module import Module
from harness.optim import Adam
from harness.types import Reading
from tests.toy import OneStage, gaussian, same

ROWS = {"probes": ["current"], "size": 12, "tasks": 2}
METRICS: dict[str, tuple[str, Callable[..., Any], dict[str, Any]]] = {
    "sharpness": (
        "end",
        sharpness,
        {**ROWS, "k": 2, "lowest": 1, "steps": 40, "trace_probes": 2, "adaptive_steps": 2, "fisher": True,
         "edge_ratio": True},
    ),
    "rises": (
        "end",
        rises,
        {**ROWS, "variants": ["plain", "adaptive_normalised"], "ascent": 2, "pairs": 2, "rho": 0.05,
         "rho_adaptive": 0.5, "rho_average": 0.01, "rho_average_adaptive": 0.1},
    ),
    "spectrum": ("end", spectrum, {**ROWS, "vectors": 2, "steps": 3, "points": 9, "width": 0.1, "thresholds": [0.1]}),
    "forecast": (
        "start",
        forecast,
        {"size": 12, "steps": 3, "trace_probes": 2, "vectors": 2, "quadrature_steps": 2, "thresholds": [0.1],
         "edge_ratio": True},
    ),
}  # fmt: skip


def own() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 2)
    )


MODELS: dict[str, Any] = {
    "dropout": lambda s: CNN(s.shape, 2, (3,), (5,), dropout=0.5),
    "batch norm": lambda s: OneStage(s.shape, 2),
    "own module": lambda s: Module(own, 2),
}


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("model", MODELS)
def test_parameters_buffers_modes_gradients_and_random_streams_are_restored(model: str, metric: str) -> None:
    phase, function, settings = METRICS[metric]
    learner = gaussian(MODELS[model], Adam(lr=0.01), shape=(3, 6, 6), steps=2)
    task = learner.stream.tasks[0]
    learner.plan(task)
    gradient = learner.value_and_grad(lambda *_: 0.0)
    for batch in learner.batches(task):
        learner.advance(gradient, batch)
    whole = learner.net
    nothing: Any = None
    zeros = torch.zeros(2, 2, 1)
    b = Boundary(0, phase, learner.stream, learner, whole, whole, nothing, zeros, zeros[0], learner.random("metrics"))

    def pass_in_training() -> Tensor:
        batch = next(learner.batches(task))
        learner.random("dropout").count -= 1 if learner.model.stochastic else 0
        return learner.apply(learner.params, learner.buffers, batch.x, batch.t, train=True, key=batch.key).logits

    before, kept, rng = pass_in_training(), copy.deepcopy(learner.state_dict()), torch.get_rng_state()
    tensors = {**learner.params, **learner.buffers}
    attributes = {k: id(v) for k, v in learner.__dict__.items()}
    first, second = (function(b, **settings) for _ in range(2))
    for name, reading in first.items():
        value, again = (r.value if isinstance(r, Reading) else r for r in (reading, second[name]))
        assert torch.equal(value, again) and value.isfinite().all(), name
    assert same(learner.state_dict(), kept) and torch.equal(torch.get_rng_state(), rng)
    assert {k: id(v) for k, v in learner.__dict__.items()} == attributes
    assert all(v is {**learner.params, **learner.buffers}[k] for k, v in tensors.items())
    assert all(v.grad is None and not v.requires_grad for v in tensors.values())
    assert torch.equal(pass_in_training(), before)
