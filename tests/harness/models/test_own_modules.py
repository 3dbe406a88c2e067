"""A user's nn.Module: what it freezes stays frozen, what vmap cannot do runs in a loop, what cannot run says why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness import rng
from harness.landscape import paths
from harness.learner import Budget
from harness.models.mlp import MLP
from harness.models.module import Module
from harness.models.resnet18 import ResNet18
from harness.optim import SGD, Adam
from harness.run import Result, run
from harness.strategy import Strategy
from harness.types import Layer, Net, Slice, Unit
from strategies.ewc import EWC
from strategies.reset import Reset
from tasks.permuted import permuted
from tests.toy import digits

C = 10


def trained(model: Any, *parts: Strategy, seeds: tuple[int, ...] = (0, 1), batch: int = 4, **options: Any) -> Result:
    stream = permuted(dataset=digits(), seeds=list(seeds), n_tasks=2, fixed=False)
    how: dict[str, Any] = {"optimizer": SGD(lr=0.1, weight_decay=0.1), "budget": Budget(steps=2, batch_size=batch)}
    return run(stream, parts, model=model, **{**how, **options})


# --- frozen parameters ------------------------------------------------------------------------------


class Frozen(nn.Module):
    """A frozen body with batch norm, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm, self.fc = nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, C)
        self.body.requires_grad_(False)
        self.units = (Unit("h", 8, (Slice("body.weight", 1),), (Slice("fc.weight", 2),)),)
        self.layers = (Layer("body.weight", "body.bias", "x", "b"), Layer("fc.weight", "fc.bias", "h", "z"))
        self.head = ("fc.weight", "fc.bias")

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.norm(self.body(x.flatten(1))).relu())
        return out


@pytest.mark.parametrize("optimizer", [SGD(lr=0.1, momentum=0.9, weight_decay=0.1), Adam(lr=0.1, weight_decay=0.1)])
def test_a_frozen_parameter_does_not_move(optimizer: Any) -> None:
    found = trained(
        Frozen, EWC(strength=1.0, samples=8, fisher="exact", mode="online", gamma=1.0), optimizer=optimizer
    ).learner
    fresh, buffers = found.fresh(found.key("init"))
    assert "body.weight" not in found.params and torch.equal(found.buffers["body.weight"], buffers["body.weight"])
    assert all(not torch.equal(found.params[k], fresh[k]) for k in ("fc.weight", "norm.weight"))
    assert not torch.equal(found.buffers["norm.running_mean"], buffers["norm.running_mean"])
    assert not torch.equal(buffers["body.weight"][0], buffers["body.weight"][1])  # of each seed's own module


def test_what_is_declared_of_frozen_parameters_is_left_out() -> None:
    model = Module(Frozen, C)
    assert (model.units, [layer.weight for layer in model.layers], model.head) == ((), ["fc.weight"], Frozen().head)


def test_a_module_that_freezes_everything_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^model: Sequential has no parameter that requires"):
        Module(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, C).requires_grad_(False)), C)


def test_its_step_is_torchs() -> None:
    """The gradients of the parameters that are left, against autograd on the module itself."""
    model, key = Module(Frozen, C), rng.keys([0], "init")
    params, buffers = model.init(key)
    with torch.random.fork_rng():
        torch.manual_seed(int(key[0]))
        net = Frozen()
    x, y = torch.randn(6, 64), torch.arange(6)
    leaves = {k: v.clone().requires_grad_() for k, v in params.items()}
    out = model(leaves, buffers, x[None], torch.zeros(1, 6).long(), train=True)
    grads = torch.autograd.grad(F.cross_entropy(out.logits[0], y), list(leaves.values()))
    free = [p for p in net.parameters() if p.requires_grad]
    theirs = torch.autograd.grad(F.cross_entropy(net(x), y), free)
    assert len(grads) == len(free) == 4
    assert all(torch.allclose(a[0], b, atol=1e-6) for a, b in zip(grads, theirs, strict=True))


def test_renewed_statistics_are_those_of_the_frozen_weights() -> None:
    """`refresh` starts every buffer at 0 and at 1 to solve for its statistic: a frozen weight is no statistic."""
    model = Module(Frozen, C)
    params, buffers = model.init(rng.keys([0], "init"))
    x = torch.randn(1, 50, 64)
    found = paths.refresh(Net(params, buffers, model), [(x, torch.zeros(1, 50).long(), None)]).buffers
    h = x[0] @ buffers["body.weight"][0].T + buffers["body.bias"][0]
    assert torch.allclose(found["norm.running_mean"][0], h.mean(0), atol=1e-5)
    assert torch.allclose(found["norm.running_var"][0], h.var(0), atol=1e-4)
    assert torch.equal(found["body.weight"], buffers["body.weight"])


# --- what vmap cannot do ----------------------------------------------------------------------------


class Recurrent(nn.Module):
    """Reads an image row by row."""

    def __init__(self, kind: Any = nn.LSTM, **options: Any) -> None:
        super().__init__()
        self.cell, self.fc = kind(8, 6, batch_first=True, **options), nn.Linear(6, C)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.cell(x[:, 0])[0][:, -1])
        return out


class Spectral(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.utils.parametrizations.spectral_norm(nn.Linear(64, 6))
        self.fc = nn.Linear(6, C)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.hidden(x.flatten(1)).relu())
        return out


class Decides(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(64, C), nn.Linear(64, C)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = (self.a if x.mean() > 0.3 else self.b)(x.flatten(1))
        return out


class Attention(nn.Module):
    def __init__(self, dropout: float = 0.1) -> None:
        super().__init__()
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=dropout, batch_first=True)
        self.fc = nn.Linear(64, C)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.block(x[:, 0]).flatten(1))
        return out


class Averaging(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.fc = nn.BatchNorm1d(64, momentum=None), nn.Linear(64, C)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.norm(x.flatten(1)))
        return out


LOOPED: dict[str, Callable[[], nn.Module]] = {
    "lstm": Recurrent,
    "gru": lambda: Recurrent(nn.GRU),
    "rnn": lambda: Recurrent(nn.RNN),
    "deep_lstm_with_dropout": lambda: Recurrent(nn.LSTM, num_layers=2, dropout=0.3),
    "spectral": Spectral,
    "decides": Decides,
    "attention": Attention,
    "averaging": Averaging,
}


@pytest.mark.parametrize("name", LOOPED)
def test_it_trains_in_a_loop_and_a_seed_does_not_depend_on_the_others(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Module, "noted", set())
    state = torch.get_rng_state()
    together = trained(LOOPED[name], seeds=(0, 1, 2)).learner
    assert torch.equal(torch.get_rng_state(), state)
    note = capsys.readouterr().err
    assert note.count("does not run under vmap") == 1 and "as long as 3 single ones" in note
    alone = trained(LOOPED[name], seeds=(2,)).learner
    start, _ = together.fresh(together.key("init"))
    for k, v in together.params.items():
        assert torch.allclose(v[2], alone.params[k][0], atol=1e-6), k
    assert any(not torch.equal(v, start[k]) for k, v in together.params.items())
    for k, v in together.buffers.items():
        assert torch.allclose(v[2], alone.buffers[k][0], atol=1e-6), k


@pytest.mark.parametrize("name", ["lstm", "spectral", "averaging"])
def test_the_loop_gives_each_seed_its_modules_outputs_gradients_and_buffers(name: str) -> None:
    model, keys = Module(LOOPED[name], C), rng.keys([3, 4], "init")
    params, buffers = model.init(keys)
    x, y = torch.randn(2, 6, 1, 8, 8), torch.arange(6)
    leaves = {k: v.clone().requires_grad_() for k, v in params.items()}
    out = model(leaves, buffers, x, torch.zeros(2, 6).long(), train=True)
    losses = torch.stack([F.cross_entropy(out.logits[s], y) for s in range(2)])
    grads = dict(zip(leaves, torch.autograd.grad(losses.sum(), list(leaves.values()))))
    for s in range(2):
        with torch.random.fork_rng():
            torch.manual_seed(int(keys[s]))
            net = LOOPED[name]()
        logits = net(x[s])
        assert torch.allclose(out.logits[s], logits, atol=1e-6)
        theirs = torch.autograd.grad(F.cross_entropy(logits, y), list(net.parameters()))
        for (k, _), g in zip(net.named_parameters(), theirs, strict=True):
            assert torch.allclose(grads[k][s], g, atol=1e-6), k
        for k, v in net.named_buffers():
            assert torch.allclose(out.buffers[k][s], v, atol=1e-6), k


@pytest.mark.parametrize("name", ["attention", "deep_lstm_with_dropout"])
def test_dropout_inside_a_layer_is_that_of_the_key(name: str) -> None:
    model = Module(LOOPED[name], C)
    params, buffers = model.init(rng.keys([3, 4], "init"))
    x, t = torch.randn(2, 6, 1, 8, 8), torch.zeros(2, 6).long()

    def forward(seeds: list[int], noise: int) -> Tensor:
        with torch.random.fork_rng():
            torch.manual_seed(noise)
            return model(params, buffers, x, t, train=True, key=rng.keys(seeds, "dropout")).logits

    first, other = forward([3, 4], 0), forward([3, 5], 0)
    assert torch.equal(first, forward([3, 4], 1))
    assert torch.equal(first[0], other[0]) and not torch.equal(first[1], other[1])
    still = model(params, buffers, x, t).logits
    assert torch.equal(still, model(params, buffers, x, t).logits) and not torch.equal(still, first)


def test_dropout_inside_a_layer_is_found() -> None:
    found = {name: Module(LOOPED[name], C).stochastic for name in LOOPED}
    assert [name for name, drops in found.items() if drops] == ["deep_lstm_with_dropout", "attention"]


def test_draws_that_no_key_fixes_are_refused_in_a_loop_as_well() -> None:
    class Noisy(Recurrent):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + torch.randn(C)  # after the layer for which vmap gives up

    state = torch.get_rng_state()
    with pytest.raises(ValueError, match="Noisy draws random numbers in forward that no key fixes"):
        trained(Noisy)
    assert torch.equal(torch.get_rng_state(), state)


# --- what cannot run --------------------------------------------------------------------------------


class Returns(nn.Module):
    """A linear net that returns a function of its logits."""

    def __init__(self, change: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.fc, self.change = nn.Linear(64, C), change

    def forward(self, x: Tensor) -> Any:
        return self.change(self.fc(x.flatten(1)))


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda z: {"logits": z}, r"returns a dict; return logits \[B, 10\]"),
        (lambda z: [z], r"returns a list of Tensor; return logits \[B, 10\]"),
        (lambda z: (z, z), r"returns a tuple of Tensor, Tensor; return logits"),
        (lambda z: (z, {}, z), r"returns a tuple of Tensor, dict, Tensor; return logits"),
        (lambda z: z[:, :5], r"returns \[2, 5\] for 2 rows; expected \[2, 10\]"),
        (lambda z: z[None], r"returns \[1, 2, 10\] for 2 rows; expected \[2, 10\]"),
        (lambda z: z.mean(), r"returns \[\] for 2 rows; expected \[2, 10\]"),
    ],
)
def test_outputs_of_another_form_are_refused(change: Any, line: str) -> None:
    with pytest.raises(ValueError, match=rf"^model: Returns\.forward {line}"):
        trained(lambda: Returns(change))


def test_an_error_in_forward_is_one_line_that_says_where() -> None:
    line = r"^model: Sequential\.forward failed on x \[2, 1, 8, 8\].*: RuntimeError: .*mat1 .*HARNESS_TRACEBACK"
    with pytest.raises(ValueError, match=line) as caught:
        trained(lambda: nn.Sequential(nn.Flatten(), nn.Linear(100, C)))
    assert "\n" not in str(caught.value)

    class Broken(Returns):
        def forward(self, x: Tensor) -> Any:
            raise KeyError("where")

    with pytest.raises(ValueError, match=r"Broken\.forward .* \(test_own_modules\.py:\d+\): KeyError: 'where'"):
        trained(lambda: Broken(lambda z: z))


def test_batch_norm_on_a_batch_of_one_is_refused_with_the_remedy() -> None:
    stream = permuted(dataset=digits(), seeds=[0], n_tasks=2, fixed=False)
    for model in (Frozen, ResNet18(stream.shape, stream.outputs, width=2)):
        with pytest.raises(ValueError, match=r"^train\.batch_size=1: .*batch norm.* more than one value a channel"):
            trained(model, batch=1)
    trained(MLP(stream.shape, stream.outputs, (4,)), batch=1)


def test_reset_draws_frozen_weights_afresh_too() -> None:
    found = trained(Frozen, Reset()).learner
    assert not torch.equal(found.buffers["body.weight"], found.fresh(found.key("init"))[1]["body.weight"])


# --- run's arguments --------------------------------------------------------------------------------


def test_a_factory_and_a_class_are_taken_as_on_the_command_line() -> None:
    class Sized(nn.Sequential):
        def __init__(self, shape: tuple[int, ...], outputs: int) -> None:
            super().__init__(nn.Flatten(), nn.Linear(shape[1] * shape[2], outputs))

    by_class = trained(Sized).learner
    by_function = trained(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, C))).learner
    assert all(torch.equal(v, by_function.params[k]) for k, v in by_class.params.items())
    ready = trained(lambda shape, outputs: MLP(shape, outputs, (5,))).learner
    assert isinstance(ready.model, MLP) and list(ready.params) == list(trained(MLP((1, 8, 8), C, (5,))).learner.params)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"model": nn.Linear(64, C)}, "^model: Linear is one net, and each seed needs its own; pass a function"),
        ({"model": "mlp"}, "^model: a str is not a model"),
        ({"model": lambda: 3}, "^model: .* returned a int; expected an nn.Module"),
        ({"optimizer": torch.optim.SGD}, r"^optimizer: .* is not one of ours.* pass SGD\(lr=0\.1\)"),
        ({"optimizer": SGD}, "^optimizer: the class SGD is not one of ours"),
        (
            {"optimizer": torch.optim.SGD([torch.zeros(1)], lr=0.1)},
            "^optimizer: a value of class SGD is not",
        ),
    ],
)
def test_what_is_taken_for_a_model_or_an_optimizer_is_refused(given: dict[str, Any], line: str) -> None:
    model = given.pop("model", MLP((1, 8, 8), C, (5,)))
    with pytest.raises(ValueError, match=line):
        trained(model, **given)


def test_what_is_taken_for_a_list_of_strategies_is_refused() -> None:
    stream = permuted(dataset=digits(), seeds=[0], n_tasks=2, fixed=False)
    how: Any = {"model": MLP(stream.shape, stream.outputs, (4,)), "optimizer": SGD(lr=0.1)}
    with pytest.raises(ValueError, match=r"^strategies: .* is not a list; pass one, as in run\(stream, \[EWC\("):
        run(stream, Reset(), **how)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^strategies: .*Reset is not a .*\.Strategy; make one, as in Reset\("):
        run(stream, [Reset], **how)  # type: ignore[list-item]
