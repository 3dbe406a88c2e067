"""Gates: a silenced unit is a unit that nobody reads, in every model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness import rng
from harness.models.cnn import CNN
from harness.models.mlp import MLP
from harness.models.module import Module
from harness.models.recurrent import GRU, LSTM
from harness.models.resnet18 import ResNet18
from harness.models.vit import ViT
from harness.optim import SGD
from harness.rng import RandomStream
from harness.toolbox import surgery
from harness.toolbox.gating import gate
from harness.types import Gates, Params
from tests.toy import gaussian

SHAPE = (2, 8, 8)
MODELS: dict[str, Any] = {
    "mlp": lambda: MLP((2, 8, 8), 3, (6, 5), layer_norm=True),
    "crelu": lambda: MLP((2, 8, 8), 3, (6, 5), "crelu"),
    "cnn": lambda: CNN(SHAPE, 3, (4, 3), (5,)),
    "resnet18": lambda: ResNet18(SHAPE, 3, 2),
    "gru": lambda: GRU(SHAPE, 3, (6, 5)),
    "lstm": lambda: LSTM(SHAPE, 3, (6, 5)),
    "vit": lambda: ViT(SHAPE, 3, 4, 8, 2, 4, 7),
    "vit_mean": lambda: ViT(SHAPE, 3, 4, 6, 1, 3, 7, norm="rms", pool="mean"),
}


def setting(name: str) -> tuple[Any, Params, Params, Tensor, Tensor, Gates]:
    model, key = MODELS[name](), rng.keys([0, 1], "gates")
    params, buffers = ({k: v.double() for k, v in part.items()} for part in model.init(key))
    x = rng.normal(rng.fold(key, "x"), 7, *SHAPE, dtype=torch.float64)
    gates = {u.act: (rng.uniform(rng.fold(key, u.act), 7, u.size) < 0.6).double() for u in model.units}
    return model, params, buffers, x, torch.zeros(2, 7).long(), gates


@pytest.mark.parametrize("name", MODELS)
def test_gates_of_one_change_nothing_bitwise(name: str) -> None:
    model, params, buffers, x, t, gates = setting(name)
    ones = {k: torch.ones_like(v) for k, v in gates.items()}
    plain, gated = model(params, buffers, x, t), model(params, buffers, x, t, gates=ones)
    assert torch.equal(plain.logits, gated.logits)
    assert torch.equal(plain.logits, model(params, buffers, x, t, gates={}).logits)


@pytest.mark.parametrize("name", MODELS)
def test_a_silent_unit_is_one_that_no_weight_reads(name: str) -> None:
    model, params, buffers, x, t, gates = setting(name)
    same = {k: v[:, :1].expand_as(v) for k, v in gates.items()}  # the same gates in every row
    got = model(params, buffers, x, t, gates=same)
    cut = dict(params)
    for unit in model.units:
        for s in unit.consumers:
            cut[s.name] = cut[s.name] * (1 - surgery.spread(s, 1 - same[unit.act][:, 0], params[s.name]))
    expected = model(cut, buffers, x, t)
    torch.testing.assert_close(got.logits, expected.logits, rtol=1e-11, atol=1e-12)
    assert not torch.allclose(got.logits, model(params, buffers, x, t).logits)
    for unit in model.units:  # what is reported is what is read
        dead = (1 - same[unit.act]).repeat(1, 1, surgery.copies(unit))
        act = got.acts[unit.act]
        assert (act * dead.view(*dead.shape, *[1] * (act.dim() - 3)) == 0).all()


@pytest.mark.parametrize("name", MODELS)
def test_every_row_has_gates_of_its_own(name: str) -> None:
    model, params, buffers, x, t, gates = setting(name)
    together = model(params, buffers, x, t, gates=gates).logits
    for i in range(7):
        alone = model(params, buffers, x[:, i : i + 1], t, gates={k: v[:, i : i + 1] for k, v in gates.items()})
        torch.testing.assert_close(together[:, i : i + 1], alone.logits, rtol=1e-11, atol=1e-12)


def test_two_gatings_multiply() -> None:
    made = gaussian(lambda s: MLP(s.shape, s.outputs, (3, 3)), SGD(lr=0.1))
    a, b = (torch.rand(2, 1, 3, generator=torch.Generator().manual_seed(i), dtype=torch.float64) for i in (0, 1))
    batch = made.make_batch(*made.stream.tasks[0].train.take(torch.arange(5).expand(2, 5)))
    gate(made, "one", lambda params, t, train: {"fc1": a.expand(-1, t.shape[1], -1)})
    gate(
        made,
        "two",
        lambda params, t, train: {k: (b if k == "fc1" else a).expand(-1, t.shape[1], -1) for k in ("fc1", "fc2")},
    )
    both = {"fc1": (a * b).expand(-1, 5, -1), "fc2": a.expand(-1, 5, -1)}
    expected = made.model(made.params, {}, batch.x, batch.t, gates=both)  # type: ignore[call-arg]
    torch.testing.assert_close(made.net(batch.x, batch.t).logits, expected.logits)


def test_fisher_information_sees_the_gates() -> None:
    from harness.landscape.fisher import diagonal

    made = gaussian(lambda s: MLP(s.shape, s.outputs, (3,)), SGD(lr=0.1), rows=8)
    silent = torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64)
    gate(made, "x", lambda params, t, train: {"fc1": silent.expand(*t.shape, 3)})
    found = diagonal(made, made.stream.tasks[0].train, "exact", RandomStream(made.key("f")))
    assert (found["fc1.weight"][:, 0] == 0).all() and (found["head.weight"][:, :, 0] == 0).all()
    assert (found["fc1.weight"][:, 1:].sum((1, 2)) > 0).all()


def test_a_model_that_cannot_be_gated_is_refused_in_one_line() -> None:
    own = gaussian(lambda s: Module(lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), 2), SGD(lr=0.1))
    with pytest.raises(ValueError, match="xdg: Module does not support gates; use one of ours, such as model=mlp"):
        gate(own, "xdg", lambda params, t, train: {})
    linear = gaussian(lambda s: MLP(s.shape, s.outputs, ()), SGD(lr=0.1))
    with pytest.raises(ValueError, match="xdg: MLP has no hidden units to gate"):
        gate(linear, "xdg", lambda params, t, train: {})
