"""Models against torch.nn, seed by seed, and their units against what the network computes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn

from harness import rng, tree
from harness.models import layers, maps
from harness.models.cnn import CNN
from harness.models.mlp import MLP
from harness.models.module import Module
from harness.models.recurrent import GRU, LSTM
from harness.models.resnet18 import ResNet18
from harness.models.transformer import Transformer
from harness.models.vit import ViT
from harness.types import Buffers, Layer, Model, Out, Params, Slice, Unit

CONF = Path(__file__).parents[3] / "conf" / "model"
IMAGE = (2, 6, 6)

MODELS: dict[str, Model] = {
    "linear": MLP(IMAGE, 3, ()),
    "relu": MLP(IMAGE, 3, (7, 5)),
    "tanh": MLP(IMAGE, 3, (7, 5), "tanh"),
    "crelu": MLP(IMAGE, 3, (7, 5), "crelu"),
    "layer_norm": MLP(IMAGE, 3, (7, 5), layer_norm=True),
    "fourier": MLP(IMAGE, 3, (7, 5), "fourier"),
    "crelu_layer_norm": MLP(IMAGE, 3, (7, 5), "crelu", layer_norm=True),
    "mlp_dropout": MLP(IMAGE, 3, (7, 5), dropout=0.4),
    "cnn": CNN(IMAGE, 3, (4, 3), (6,)),
    "cnn_crelu": CNN(IMAGE, 3, (4, 3), (6,), 5, "crelu", dropout=0.4),
    "cnn_layer_norm": CNN(IMAGE, 3, (4, 3), (6,), 3, "fourier", layer_norm=True),
    "cnn_no_hidden": CNN(IMAGE, 3, (4,), (), activation="crelu"),
    "resnet_batch": ResNet18(IMAGE, 3, 2),
    "resnet_group": ResNet18(IMAGE, 3, 4, "group", 2),
    "gru": GRU(IMAGE, 3, (5, 4)),
    "lstm": LSTM(IMAGE, 3, (5, 4)),
    "gru_dropout": GRU(IMAGE, 3, (5, 4), dropout=0.4),
    "vit_norm": ViT(IMAGE, 3, 3, 6, 2, 3, 7),
    "vit_rms_norm": ViT(IMAGE, 3, 2, 6, 1, 2, 5, "relu", "rms", "mean"),
    "transformer_plain_norm": Transformer(IMAGE, 3, 6, 2, 2, 5),
    "transformer_norm": Transformer(IMAGE, 3, 6, 2, 2, 5, dropout=0.4),
}
UNITS = [name for name, model in MODELS.items() if model.units]
# a norm over units couples them: no unit is independent of the others there
SEPARATE = [name for name in UNITS if "norm" not in name and "group" not in name]


def key(*seeds: int) -> Tensor:
    return rng.keys(seeds, "test")


def double(p: Params) -> Params:
    return {k: v.double() for k, v in p.items()}


def start(model: Model, *seeds: int) -> tuple[Params, Buffers]:
    """An initialisation in float64 with live units, and norms and running statistics that are not trivial."""
    params, buffers = (double(p) for p in model.init(key(*seeds)))
    for name, value in (params | buffers).items():
        if name.endswith(".bias"):
            value.add_(0.4)
        elif name.endswith(".weight"):
            value.mul_(2)
        elif ".norm." in name:
            drawn = rng.uniform(rng.fold(key(*seeds), name), *value.shape[1:], dtype=torch.float64)
            value.add_(drawn - 0.5 * (value == 0))
    return params, buffers


def data(*seeds: int, batch: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    x = rng.normal(key(*seeds), batch, *IMAGE, dtype=torch.float64)
    y = rng.integers(rng.fold(key(*seeds), "y"), 3, batch)
    return x, y, torch.zeros_like(y)


def loss_of(model: Model, params: Params, buffers: Buffers, x: Tensor, y: Tensor, **how: Any) -> tuple[Tensor, Out]:
    out = model(params, buffers, x, torch.zeros_like(y), **how)
    nll = F.cross_entropy(out.logits.flatten(0, 1), y.flatten(), reduction="none").view(y.shape)
    return nll.mean(1), out


def gradient(loss: Tensor, params: Params) -> Params:
    grads = torch.autograd.grad(loss.sum(), list(params.values()), create_graph=True)
    return dict(zip(params, grads, strict=True))


def leaves(params: Params) -> Params:
    return {k: v.detach().clone().requires_grad_() for k, v in params.items()}


def close(a: Tensor, b: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


# --- against torch.nn ---------------------------------------------------------------------------


class CReLU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([F.relu(x), F.relu(-x)], 1)


class Fourier(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([torch.sin(x), torch.cos(x)], 1)


class Block(nn.Module):
    """He et al.'s basic block."""

    def __init__(self, fan_in: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(fan_in, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.skip: nn.Module = nn.Identity()
        if stride != 1:
            self.skip = nn.Sequential(nn.Conv2d(fan_in, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(h)) + self.skip(x))


def plain_resnet(w: int, group: int | None) -> nn.Module:
    stem = [nn.Conv2d(2, w, 3, 1, 1, bias=False), nn.BatchNorm2d(w), nn.ReLU()]
    sizes = [(w, w, 1), (w, w, 1)]
    for factor in (2, 4, 8):
        sizes += [(factor * w // 2, factor * w, 2), (factor * w, factor * w, 1)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8 * w, 3)]
    net = nn.Sequential(*stem, *(Block(*s) for s in sizes), *head)
    if group:
        for module in list(net.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, nn.BatchNorm2d):
                    setattr(module, name, nn.GroupNorm(group, child.num_features))
    return net


class Rows(nn.Module):
    """A recurrent net of torch over the rows of an image, read at the last row."""

    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.cells = nn.ModuleList([kind(12, 5, batch_first=True), kind(5, 4, batch_first=True)])
        self.head = nn.Linear(4, 3)

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """In our order: torch's has the two biases last."""
        for cell in self.cells:
            for name in ("weight_ih_l0", "bias_ih_l0", "weight_hh_l0", "bias_hh_l0"):
                yield cell.get_parameter(name)
        yield from self.head.parameters()

    def forward(self, x: Tensor) -> Tensor:
        h = x.transpose(1, 2).flatten(2)  # channels side by side
        for cell in self.cells:
            h, _ = cell(h)
        return torch.as_tensor(self.head(h[:, -1]))


class Transformers(nn.Module):
    """Pre-norm blocks from torch's own parts, of patches of an image or its rows."""

    def __init__(self, patch: int | None, width: int, depth: int, heads: int, mlp: int, act: Any, norm: Any) -> None:
        super().__init__()
        self.patch, count = patch, 6 if patch is None else (6 // patch) ** 2
        self.embed = nn.Linear(12 if patch is None else 2 * patch**2, width)
        self.position = nn.Parameter(torch.zeros(count + (patch == 3), width))
        self.blocks = nn.ModuleList(
            nn.ModuleList([nn.MultiheadAttention(width, heads, batch_first=True), nn.Linear(width, mlp)])
            for _ in range(depth)
        )
        self.backs = nn.ModuleList(nn.Linear(mlp, width) for _ in range(depth))
        self.norms = nn.ModuleList(norm(width) for _ in range(2 * depth + 1))
        self.act, self.head = act, nn.Linear(width, 3)

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        yield from self.embed.parameters()
        yield self.position
        for (attention, into), back in zip(self.blocks, self.backs, strict=True):  # type: ignore[misc]
            yield from (attention.in_proj_weight, attention.in_proj_bias, *attention.out_proj.parameters())
            yield from (*into.parameters(), *back.parameters())
        for norm in self.norms:
            yield from norm.parameters()
        yield from self.head.parameters()

    def forward(self, x: Tensor) -> Tensor:
        parts = x.transpose(1, 2).flatten(2) if self.patch is None else F.unfold(x, self.patch, stride=self.patch).mT
        h = self.embed(parts)
        if self.patch == 3:
            h = torch.cat([torch.zeros_like(h[:, :1]), h], 1)
        h = h + self.position
        for i, ((attention, into), back) in enumerate(zip(self.blocks, self.backs, strict=True)):  # type: ignore[misc]
            z = self.norms[2 * i](h)
            h = h + attention(z, z, z, need_weights=False)[0]
            h = h + back(self.act(into(self.norms[2 * i + 1](h))))
        pooled = h[:, 0] if self.patch == 3 else h.mean(1)
        return torch.as_tensor(self.head(self.norms[-1](pooled)))


PLAIN: dict[str, Any] = {
    "vit_norm": lambda: Transformers(3, 6, 2, 3, 7, F.gelu, nn.LayerNorm),
    "vit_rms_norm": lambda: Transformers(2, 6, 1, 2, 5, F.relu, lambda n: nn.RMSNorm(n, eps=1e-5)),
    "transformer_plain_norm": lambda: Transformers(None, 6, 2, 2, 5, F.gelu, nn.LayerNorm),
    "gru": lambda: Rows(nn.GRU),
    "lstm": lambda: Rows(nn.LSTM),
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(72, 3)),
    "relu": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(72, 7), nn.ReLU(), nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 3)
    ),
    "tanh": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(72, 7), nn.Tanh(), nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 3)
    ),
    "crelu_layer_norm": lambda: nn.Sequential(
        nn.Flatten(),
        *(nn.Linear(72, 7), nn.LayerNorm(7), CReLU()),
        *(nn.Linear(14, 5), nn.LayerNorm(5), CReLU()),
        nn.Linear(10, 3),
    ),
    "fourier": lambda: nn.Sequential(
        *(nn.Flatten(), nn.Linear(72, 7), Fourier(), nn.Linear(14, 5), Fourier(), nn.Linear(10, 3))
    ),
    "cnn_layer_norm": lambda: nn.Sequential(
        *(nn.Conv2d(2, 4, 3, padding=1), nn.GroupNorm(1, 4), Fourier(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 3, 3, padding=1), nn.GroupNorm(1, 3), Fourier(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(6, 6), nn.LayerNorm(6), Fourier(), nn.Linear(12, 3)),
    ),
    "cnn": lambda: nn.Sequential(
        *(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(4, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 3)),
    ),
    "resnet_batch": lambda: plain_resnet(2, None),
    "resnet_group": lambda: plain_resnet(4, 2),
}


def load(net: nn.Module, params: Params, buffers: Buffers, seed: int) -> nn.Module:
    """Row `seed` of our tensors in a plain module that registers its own in the same order."""
    net = net.double()
    with torch.no_grad():
        theirs = [*net.parameters(), *running(net)]
        for value, ours in zip(theirs, [*params.values(), *buffers.values()], strict=True):
            value.copy_(ours[seed])
    return net


def running(net: nn.Module) -> list[Tensor]:
    return [b for b in net.buffers() if b.is_floating_point()]


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", PLAIN)
def test_each_seed_is_the_plain_module(name: str, train: bool) -> None:
    model = MODELS[name]
    params, buffers = start(model, 3, 4)
    params = leaves(params)
    x, y, _ = data(3, 4)
    before = {k: v.clone() for k, v in buffers.items()}
    loss, out = loss_of(model, params, buffers, x, y, train=train)
    grads = gradient(loss, params)
    _, again = loss_of(model, params, out.buffers, x.flip(1), y, train=train)

    for s in range(2):
        net = load(PLAIN[name](), params, buffers, s).train(train)
        logits = net(x[s])
        close(out.logits[s], logits)
        theirs = torch.autograd.grad(F.cross_entropy(logits, y[s]), list(net.parameters()))
        for ours, reference in zip(grads.values(), theirs, strict=True):
            close(ours[s], reference)
        for ours, reference in zip(out.buffers.values(), running(net), strict=True):
            close(ours[s], reference)
        # a second batch goes on from the statistics of the first
        net(x[s].flip(0))
        for ours, reference in zip(again.buffers.values(), running(net), strict=True):
            close(ours[s], reference)
    # pure: the buffers that went in are as they were
    assert all(torch.equal(buffers[k], before[k]) for k in buffers)


CONVOLUTIONAL = [name for name in MODELS if "cnn" in name or "resnet" in name]


@pytest.mark.parametrize("record", [False, True])
@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_seeds_side_by_side_as_on_a_gpu_are_seeds_apart(
    name: str, record: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = MODELS[name]
    params, buffers = start(model, 1, 2, 3)
    params = leaves(params)
    x, y, _ = data(1, 2, 3)
    gates = {
        u.act: rng.uniform(rng.fold(key(1, 2, 3), u.act), 6, u.size, dtype=torch.float64) + 0.5 for u in model.units
    }
    how = {"train": True, "key": key(4, 5, 6), "gates": gates, "record": record}
    stacks: list[int] = []
    stack = torch.stack
    monkeypatch.setattr(torch, "stack", lambda *a, **k: [stacks.append(1), stack(*a, **k)][1])
    loss, out = loss_of(model, params, buffers, x, y, **how)
    apart = gradient(loss, params)
    forward = len(stacks)
    kept = dict(out.acts)
    # two ways indeed: nothing but the input of the fully connected part is stacked, until an act is read
    assert record or forward == 1
    assert len(stacks) == forward + sum(v.dim() == 5 for v in kept.values())
    monkeypatch.setattr(Tensor, "is_cuda", True)
    loss, beside = loss_of(model, params, buffers, x, y, **how)
    assert len(stacks) == forward + sum(v.dim() == 5 for v in kept.values())
    for part in ("acts", "buffers", "inputs", "preacts"):
        ours, theirs = getattr(out, part), getattr(beside, part)
        assert ours.keys() == theirs.keys()
        for k in ours:
            close(ours[k], theirs[k], 1e-12)
    for k, g in gradient(loss, params).items():
        close(apart[k], g, 1e-11)


def test_a_gate_of_a_convolution_scales_both_channels_of_a_crelu_unit() -> None:
    model = MODELS["cnn_crelu"]
    params, buffers = start(model, 1, 2)
    x, _, t = data(1, 2)
    factor = rng.uniform(key(5, 6), 6, 4, dtype=torch.float64)
    open_, gated = (model(params, buffers, x, t, gates=g).acts["conv1"] for g in (None, {"conv1": factor}))
    for half in (slice(0, 4), slice(4, 8)):
        close(gated[:, :, half], open_[:, :, half] * factor[..., None, None], 1e-14)


def test_an_act_may_be_penalised() -> None:
    model = MODELS["cnn"]
    params = leaves(start(model, 1, 2)[0])
    x, _, t = data(1, 2)
    act = model(params, {}, x, t).acts["conv2"]
    (grad,) = torch.autograd.grad(act.square().sum(), params["conv1.weight"])
    for s in range(2):
        row = leaves({k: v[s : s + 1] for k, v in params.items()})
        alone = model(row, {}, x[s : s + 1], t[s : s + 1]).acts["conv2"]
        close(grad[s : s + 1], torch.autograd.grad(alone.square().sum(), row["conv1.weight"])[0])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", MODELS)
def test_a_gpu_computes_what_a_cpu_does(name: str) -> None:
    model = MODELS[name]
    params, buffers = start(model, 1, 2)
    x, y, _ = data(1, 2)
    here, out = loss_of(model, leaves(params), buffers, x, y, train=True, key=key(3, 4))
    params, buffers = ({k: v.cuda() for k, v in part.items()} for part in (params, buffers))
    there, out_there = loss_of(model, leaves(params), buffers, x.cuda(), y.cuda(), train=True, key=key(3, 4).cuda())
    close(there.cpu(), here)
    for k, v in out.acts.items():
        close(out_there.acts[k].cpu(), v)


def test_running_statistics_of_any_layout_are_updated() -> None:
    x = rng.normal(key(1, 2), 4, 3, 2, 2)
    gain, mean = torch.ones(2, 3), torch.zeros(2, 3)
    apart = maps.apart(x)
    _, expected, _ = maps.batch_norm(apart, gain, gain, mean, gain, True)
    close(expected, 0.1 * x.mean((1, 3, 4)), 1e-6)
    for other in (torch.zeros(3, 2).mT, torch.zeros(1).expand(2, 3)):
        close(maps.batch_norm(apart, gain, gain, other, gain, True)[1], expected, 0)


def test_resnet18_has_the_known_number_of_parameters() -> None:
    params, _ = ResNet18((3, 32, 32), 10, 64).init(key(0))
    assert sum(v.numel() for v in params.values()) == 11_173_962


def test_initialisation_is_torchs_uniform_with_the_bound_of_the_fan_in() -> None:
    params, _ = CNN((3, 8, 8), 10, (64,), (50,), 5).init(key(0, 1))
    for name, fan_in in {"conv1": 75, "fc1": 1024, "head": 50}.items():
        drawn = torch.cat([params[f"{name}.weight"].flatten(), params[f"{name}.bias"].flatten()])
        bound = fan_in**-0.5
        assert drawn.dtype == torch.float32
        assert 0.98 * bound < drawn.abs().max() <= bound
        assert abs(drawn.std() / bound - 3**-0.5) < 0.05
        assert abs(drawn.mean()) < 0.15 * bound
    close(params["conv1.weight"].std(), nn.Conv2d(3, 64, 5).weight.std().detach(), 0.01)
    # two layers of one shape, or weight and bias, do not share their draws
    twins, _ = MLP((5,), 5, (5, 5)).init(key(0))
    assert not torch.equal(twins["fc1.weight"], twins["fc2.weight"])
    assert not torch.equal(twins["fc1.weight"][0, 0], twins["fc1.bias"][0])


@pytest.mark.parametrize(
    ("init", "reference"), [("xavier", nn.init.xavier_uniform_), ("kaiming", nn.init.kaiming_uniform_)]
)
def test_other_initialisations_have_the_spread_of_torchs(init: str, reference: Callable[..., Tensor]) -> None:
    gain = {"nonlinearity": "relu"} if init == "kaiming" else {}
    params, _ = MLP((120,), 10, (80,), init=init).init(rng.keys(range(20), "init"))
    torch.manual_seed(0)
    for name, shape in (("fc1", (80, 120)), ("head", (10, 80))):
        bound = reference(torch.empty(shape), **gain).abs().max()
        found = params[f"{name}.weight"]
        assert found.abs().max() == pytest.approx(float(bound), rel=0.01)
        assert found.std() == pytest.approx(float(bound) / 3**0.5, rel=0.02), "uniform"
        assert not params[f"{name}.bias"].any()


def test_an_unknown_initialisation_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model.init=normal: must be torch, xavier or kaiming"):
        MLP((3,), 2, init="normal")


# --- seeds --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_row_of_three_seeds_is_the_seed_alone(name: str) -> None:
    model = MODELS[name]
    seeds = (5, 0, 9)
    all_params, all_buffers = model.init(key(*seeds))
    for s, seed in enumerate(seeds):
        params, buffers = model.init(key(seed))
        for ours, own in ((all_params, params), (all_buffers, buffers)):
            assert ours.keys() == own.keys()
            assert all(torch.equal(ours[k][s], own[k][0]) for k in ours)

    def run(*seeds: int) -> tuple[Tensor, Params, Out]:
        params, buffers = start(model, *seeds)
        params = leaves(params)
        x, y, _ = data(*seeds)
        loss, out = loss_of(model, params, buffers, x, y, train=True, key=rng.fold(key(*seeds), "drop"))
        return loss, gradient(loss, params), out

    loss, grads, out = run(*seeds)
    for s, seed in enumerate(seeds):
        alone_loss, alone_grads, alone = run(seed)
        close(loss[s], alone_loss[0], 1e-13)
        for k in grads:
            close(grads[k][s], alone_grads[k][0], 1e-12)
        for k in out.acts:
            close(out.acts[k][s], alone.acts[k][0], 1e-13)
        for k in out.buffers:
            close(out.buffers[k][s], alone.buffers[k][0], 1e-13)


@pytest.mark.parametrize("name", MODELS)
def test_the_parameters_decide_the_precision(name: str) -> None:
    model = MODELS[name]
    params, buffers = model.init(key(1, 2))
    x, _, t = data(1, 2)
    single = model(params, buffers, x, t)
    exact = model(double(params), double(buffers), x.float(), t)
    assert single.logits.dtype == torch.float32 and exact.logits.dtype == torch.float64
    assert {v.dtype for v in exact.buffers.values()} <= {torch.float64}
    close(single.logits.double(), exact.logits, 1e-4)


# --- units and layers ---------------------------------------------------------------------------


def owned(part: Slice, unit: int) -> slice:
    return slice(part.offset + unit * part.repeat, part.offset + (unit + 1) * part.repeat)


def edit(tensors: Params, parts: Sequence[Slice], units: list[int], change: Callable[[Tensor], Tensor]) -> Params:
    """A copy with what `units` own in `parts` replaced by change(entries)."""
    new = dict(tensors)
    for part in parts:
        new[part.name] = new[part.name].clone()
        moved = new[part.name].movedim(part.axis, 0)
        for unit in units:
            moved[owned(part, unit)] = change(moved[owned(part, unit)])
    return new


def louder(v: Tensor) -> Tensor:
    return v + torch.linspace(0.1, 0.4, v.numel(), dtype=v.dtype).view(v.shape)


def softer(v: Tensor) -> Tensor:
    return v - torch.linspace(0.05, 0.4, v.numel(), dtype=v.dtype).view(v.shape)


@pytest.mark.parametrize("name", SEPARATE)
def test_units_are_read_by_their_consumers_and_by_nothing_else(name: str) -> None:
    model = MODELS[name]
    params, buffers = start(model, 1)
    x, _, t = data(1)

    def effect(tensors: Params, parts: Sequence[Slice], units: list[int]) -> float:
        """How far the logits move, at most, when the units' share of `parts` is changed."""
        reference = model(tensors, buffers, x, t).logits
        moves = [torch.zeros(())]
        for change in (louder, softer):
            new = edit({**tensors, **buffers}, parts, units, change)
            out = model({k: new[k] for k in params}, {k: new[k] for k in buffers}, x, t)
            moves.append((out.logits - reference).abs().max())
        return float(max(moves))

    for unit in model.units:
        units = list(range(0, unit.size, 2))
        deaf = edit(params, unit.consumers, units, torch.zeros_like)
        for part in (*unit.producers, *unit.norm):
            assert effect(params, [part], units) > 1e-4, (unit.act, part)
            assert effect(deaf, [part], units) < 1e-12, (unit.act, part)
        for kept in unit.consumers:  # each is needed: with one of them left, the unit is heard
            others = [c for c in unit.consumers if c != kept]
            half_deaf = edit(params, others, units, torch.zeros_like)
            assert effect(half_deaf, unit.producers, units) > 1e-4, (unit.act, kept)


def rearranged(tensors: Params, part: Slice, order: Tensor) -> Params:
    index = torch.arange(tensors[part.name].shape[part.axis])
    steps = torch.arange(part.repeat)
    places = part.offset + (torch.arange(len(order))[:, None] * part.repeat + steps).flatten()
    index[places] = part.offset + (order[:, None] * part.repeat + steps).flatten()
    return {**tensors, part.name: tensors[part.name].index_select(part.axis, index)}


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", [n for n in UNITS if not MODELS[n].stochastic])
def test_renaming_units_changes_no_output(name: str, train: bool) -> None:
    model = MODELS[name]
    params, buffers = start(model, 1, 2)
    x, _, t = data(1, 2)
    reference = model(params, buffers, x, t, train=train)
    for unit in model.units:
        order = torch.arange(unit.size).roll(1)
        if "group" in name:  # only within a group, and groups are neighbours
            order = torch.arange(unit.size).view(2, -1).roll(1, 1).flatten()
        p, b = params, buffers
        for part in (*unit.producers, *unit.norm, *unit.consumers):
            p, b = (rearranged(p, part, order), b) if part.name in p else (p, rearranged(b, part, order))
        out = model(p, b, x, t, train=train)
        close(out.logits, reference.logits, 1e-12)
        # the act is the one that the unit names, and the new statistics follow it
        act, permuted = reference.acts[unit.act], out.acts[unit.act]
        close(permuted, torch.cat([half[:, :, order] for half in torch.split(act, unit.size, 2)], 2), 1e-12)
        assert not torch.allclose(act, permuted)
        expected = reference.buffers
        for part in unit.norm:
            if part.name in expected:
                expected = rearranged(expected, part, order)
        for k, v in expected.items():
            close(out.buffers[k], v, 1e-12)


def tables_of(params: Params) -> set[str]:
    return {k for k, v in params.items() if v.dim() > 2 and not k.endswith(".weight")}


@pytest.mark.parametrize("name", MODELS)
def test_every_weight_belongs_to_units_once(name: str) -> None:
    """Each row of each map but the head is written by one unit, each column behind the input read by one.

    A table of vectors (positions, class token) is written by the units of its columns.
    """
    model = MODELS[name]
    params, buffers = model.init(key(1))
    tables = tables_of(params)
    owners = {k: torch.zeros(v.shape[1 + (k in tables)], dtype=torch.int64) for k, v in (params | buffers).items()}
    readers = {k: torch.zeros(v.shape[2], dtype=torch.int64) for k, v in params.items() if v.dim() > 2}
    readers = {k: v for k, v in readers.items() if k not in tables}
    for unit in model.units:
        for part in (*unit.producers, *unit.norm):
            assert part.bias == part.name.endswith(".bias") and part.axis == 1 + (part.name in tables)
            for j in range(unit.size):
                owners[part.name][owned(part, j)] += 1
        for part in unit.consumers:
            for j in range(unit.size):
                readers[part.name][owned(part, j)] += 1
    first = model.layers[0].weight
    assert all((count == (k not in model.head)).all() for k, count in owners.items())
    assert all((count == (k != first)).all() for k, count in readers.items())


@pytest.mark.parametrize("name", MODELS)
def test_layers_record_what_goes_in_and_comes_out_of_each_map(name: str) -> None:
    model = MODELS[name]
    params, buffers = start(model, 1, 2)
    params = leaves(params)
    x, y, _ = data(1, 2)
    loss, out = loss_of(model, params, buffers, x, y, train=True, key=key(8, 9), record=True)
    weights = [layer.weight for layer in model.layers]
    assert weights == [k for k, v in params.items() if v.dim() > 2 and k not in tables_of(params)]
    assert (*(n for n in (model.layers[-1].weight, model.layers[-1].bias) if n),) == model.head
    for layer in model.layers:
        a, z = out.inputs[layer.input], out.preacts[layer.preact]
        for s in range(2):
            w, b = params[layer.weight][s], params[layer.bias][s] if layer.bias else None
            close(F.linear(a[s], w, b) if layer.conv is None else F.conv2d(a[s], w, b, **layer.conv), z[s])
        # the loss runs through the recorded tensors: a weight's gradient is made of them
        g = torch.autograd.grad(loss.sum(), z, retain_graph=True)[0]
        if layer.conv is None:
            g, a = (v.flatten(1, -2) for v in (g, a))
            close(g.mT @ a, torch.autograd.grad(loss.sum(), params[layer.weight], retain_graph=True)[0])
        assert g.abs().max() > 0
    silent = loss_of(model, params, buffers, x, y, train=True, key=key(8, 9))[1]
    assert silent.inputs == {} and silent.preacts == {}
    close(silent.logits, out.logits, 1e-14)


def test_act_of_a_convolution_is_that_before_pooling() -> None:
    params, _ = start(MODELS["cnn"], 1)
    x, _, t = data(1)
    out = MODELS["cnn"](params, {}, x, t, record=True)
    assert out.acts["conv1"].shape == (1, 6, 4, 6, 6)
    assert torch.equal(out.acts["conv1"], out.preacts["conv1"].clamp(min=0))


def test_crelu_gives_two_channels_a_unit() -> None:
    model = MODELS["crelu"]
    params, _ = start(model, 1)
    x, _, t = data(1)
    out = model(params, {}, x, t, record=True)
    z = out.preacts["fc1"]
    assert torch.equal(out.acts["fc1"], torch.cat([z.clamp(min=0), (-z).clamp(min=0)], 2))
    assert params["fc2.weight"].shape == (1, 5, 14) and model.units[0].size == 7


def test_a_fourier_unit_is_a_point_on_the_circle() -> None:
    model = MODELS["fourier"]
    params, _ = start(model, 1)
    x, _, t = data(1)
    act = model(params, {}, x, t).acts["fc1"]
    close(act[:, :, :7].square() + act[:, :, 7:].square(), torch.ones(1, 6, 7).double())  # no unit is ever dormant


@pytest.mark.parametrize("activation", ["crelu", "fourier"])
def test_presets_with_two_channels_a_unit_have_the_parameters_of_relu(activation: str) -> None:
    widths = OmegaConf.load(CONF.parent / "experiment" / f"{activation.replace('fourier', 'fourier_features')}.yaml")
    nets = MLP((64,), 10, (100, 100)), MLP((64,), 10, widths.model.widths, activation)
    relu, other = (sum(v.numel() for v in net.init(key(0))[0].values()) for net in nets)
    assert abs(other / relu - 1) < 0.01


def test_stream_act_is_the_output_of_the_stages_last_block() -> None:
    model = MODELS["resnet_batch"]
    params, buffers = start(model, 1)
    x, _, t = data(1)
    out = model(params, buffers, x, t, record=True)
    assert [tuple(out.acts[f"stage{i}"].shape[2:]) for i in (1, 2, 3, 4)] == [
        (2, 6, 6),
        (4, 3, 3),
        (8, 2, 2),
        (16, 1, 1),
    ]
    assert torch.equal(out.acts["stage1"], out.inputs["stage2.block1.conv1"])
    assert torch.equal(out.acts["stage4"].mean((3, 4)), out.inputs["head"])
    streams = {u.act: u for u in model.units if "conv" not in u.act}
    written = {act: [p.name.removesuffix(".weight") for p in u.producers] for act, u in streams.items()}
    read = {act: [c.name.removesuffix(".weight") for c in u.consumers] for act, u in streams.items()}
    assert written["stage1"] == ["stem", "stage1.block1.conv2", "stage1.block2.conv2"]
    assert written["stage3"] == ["stage3.block1.shortcut", "stage3.block1.conv2", "stage3.block2.conv2"]
    assert read["stage1"] == [
        *("stage1.block1.conv1", "stage1.block2.conv1", "stage2.block1.conv1", "stage2.block1.shortcut")
    ]
    assert read["stage4"] == ["stage4.block2.conv1", "head"]


# --- second derivatives -------------------------------------------------------------------------


class Own(nn.Module):
    """A user's net: batch norm, dropout, declared layers and units, and a layer that is called head."""

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.conv, self.bn, self.drop = nn.Conv2d(2, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.Dropout(rate)
        self.fc, self.head = nn.Linear(36, 4), nn.Linear(4, 3)
        self.layers = (
            Layer("conv.weight", "conv.bias", "pixels", "maps", {"stride": 2, "padding": 1}),
            Layer("fc.weight", "fc.bias", "features", "hidden"),
        )
        self.units = (Unit("h", 4, (Slice("fc.weight", 1), Slice("fc.bias", 1)), (Slice("head.weight", 2),)),)

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        h = torch.tanh(self.fc(self.drop(F.relu(self.bn(self.conv(x)))).flatten(1)))
        return self.head(h), {"h": h}


@pytest.mark.parametrize("name", [*MODELS, "module"])
def test_hessian_vector_product_is_the_difference_of_gradients(name: str) -> None:
    model = MODELS[name] if name in MODELS else Module(Own, 3)
    params, buffers = start(model, 1, 2)
    params = leaves(params)
    buffers = {k: v.double() if v.is_floating_point() else v for k, v in buffers.items()}
    x, y, _ = data(1, 2)
    drawn = {k: rng.normal(rng.fold(key(1, 2), k), *v.shape[1:], dtype=v.dtype) for k, v in params.items()}
    direction = tree.scale(drawn, 1 / tree.norm(drawn))

    def grad_at(p: Params) -> Params:
        return gradient(loss_of(model, p, buffers, x, y)[0], p)

    product = gradient(tree.dot(grad_at(params), direction), params)
    step = 1e-5
    ahead, behind = (grad_at(leaves(tree.add(params, direction, c))) for c in (step, -step))
    numeric = tree.scale(tree.sub(ahead, behind), 1 / (2 * step))
    assert (tree.norm(product) > 1e-3).all()
    assert (tree.norm(tree.sub(product, numeric)) < 1e-6 * tree.norm(product)).all()


# --- dropout ------------------------------------------------------------------------------------


def test_dropout_scales_what_it_keeps() -> None:
    x = rng.normal(key(1, 2), 50, 400)
    y = layers.dropout(x, 0.3, key(1, 2))
    kept = y != 0
    close(y[kept], x[kept] / 0.7, 1e-6)
    assert ((kept.float().mean((1, 2)) - 0.7).abs() < 0.02).all()  # 20000 draws: 0.003 a standard error
    assert not torch.equal(kept[0], kept[1]) and not torch.equal(kept[0, 0], kept[0, 1])
    assert torch.equal(layers.dropout(x.double(), 0.3, key(1, 2)) != 0, kept)


def own_dropout() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 8, 3), nn.Dropout2d(0.5), nn.Flatten(), nn.Dropout(0.3), nn.Linear(128, 3))


@pytest.mark.parametrize("name", ["mlp_dropout", "cnn_crelu", "module"])
def test_appended_rows_leave_the_masks_of_earlier_rows_alone(name: str) -> None:
    model = MODELS[name] if name in MODELS else Module(own_dropout, 3)
    params, buffers = start(model, 1, 2)
    x, _, t = data(1, 2)
    short = model(params, buffers, x[:, :4], t[:, :4], train=True, key=key(3, 4))
    long = model(params, buffers, x, t, train=True, key=key(3, 4))
    close(short.logits, long.logits[:, :4], 1e-13)
    other = model(params, buffers, x, t, train=True, key=key(5, 4))
    close(other.logits[1], long.logits[1], 1e-13)
    assert not torch.allclose(other.logits[0], long.logits[0])
    still = model(params, buffers, x, t, key=key(3, 4))
    close(still.logits, model(params, buffers, x, t).logits, 0)
    assert not torch.allclose(still.logits, long.logits)


def test_layers_of_one_width_have_masks_of_their_own() -> None:
    model = MLP((4,), 3, (64, 64), "tanh", dropout=0.5)
    params, _ = model.init(key(1))
    t = torch.zeros(1, 8, dtype=torch.int64)
    out = model(params, {}, torch.ones(1, 8, 4), t, train=True, key=key(2), record=True)
    assert (out.acts["fc1"] != 0).all()  # recorded before dropout
    assert not torch.equal(out.inputs["fc2"] == 0, out.inputs["head"] == 0)


@pytest.mark.parametrize("model", [MODELS["mlp_dropout"], Module(lambda: Own(0.5), 3)])
def test_dropout_without_a_key_is_refused(model: Model) -> None:
    params, buffers = start(model, 1)
    x, _, t = data(1)
    assert model.stochastic and not MODELS["relu"].stochastic
    with pytest.raises(ValueError, match="needs a key"):
        model(params, buffers, x, t, train=True)
    model(params, buffers, x, t)


# --- a user's own module ------------------------------------------------------------------------


def seeded(seed: int) -> Own:
    """What a user gets who seeds torch by hand."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Own().double()


def test_module_rows_are_the_modules_that_its_seeds_make() -> None:
    state = torch.get_rng_state()
    model = Module(Own, 3)
    drawn = key(3, 4)
    params, buffers = model.init(drawn)
    assert torch.equal(torch.get_rng_state(), state)
    params = leaves(double(params))
    buffers = {k: v.double() if v.is_floating_point() else v for k, v in buffers.items()}
    x, y, t = data(3, 4)

    before = {k: v.clone() for k, v in buffers.items()}
    loss, out = loss_of(model, params, buffers, x, y, train=True)
    grads = gradient(loss, params)
    later = model(params, out.buffers, x.flip(1), t)
    assert all(torch.equal(buffers[k], before[k]) for k in buffers)
    for s in range(2):
        net = seeded(int(drawn[s]))
        logits, acts = net(x[s])
        close(out.logits[s], logits)
        close(out.acts["h"][s], acts["h"])
        theirs = torch.autograd.grad(F.cross_entropy(logits, y[s]), list(net.parameters()))
        for (name, _), reference in zip(net.named_parameters(), theirs, strict=True):
            close(grads[name][s], reference)
        for name, reference in net.named_buffers():
            assert torch.allclose(out.buffers[name][s], reference)
        close(later.logits[s], net.eval()(x[s].flip(0))[0])
    # evaluation leaves the statistics alone
    assert all(torch.equal(later.buffers[k], out.buffers[k]) for k in buffers)


def test_module_declares_only_what_it_says() -> None:
    model = Module(Own, 3)
    # its `head` is a layer, which declares nothing
    assert (len(model.units), len(model.layers), model.head, model.outputs) == (1, 2, (), 3)
    bare = Module(lambda: nn.Sequential(nn.Flatten(), nn.Linear(72, 3)), 3)
    assert (bare.units, bare.layers, bare.head, bare.stochastic) == ((), (), (), False)
    assert Module(lambda: Own(0.5), 3).stochastic and not model.stochastic


def test_module_records_its_declared_layers() -> None:
    model = Module(Own, 3)
    params, buffers = (double(p) for p in model.init(key(1, 2)))
    params = leaves(params)
    x, y, _ = data(1, 2)
    loss, out = loss_of(model, params, buffers, x, y, record=True)
    close(out.inputs["pixels"], x)
    close(torch.tanh(out.preacts["hidden"]), out.acts["h"])
    g = torch.autograd.grad(loss.sum(), out.preacts["hidden"], retain_graph=True)[0]
    close(g.mT @ out.inputs["features"], torch.autograd.grad(loss.sum(), params["fc.weight"])[0])
    assert model(params, buffers, x, y).inputs == {}
    assert not any(m._forward_hooks for m in model.template.modules())


@pytest.mark.parametrize("call", ["module", "function"])
def test_module_dropout_of_a_row_depends_on_its_own_key(call: str) -> None:
    class Functional(nn.Module):
        stochastic = True

        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(72, 40)

        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(self.fc(x.flatten(1)), 0.25, self.training)

    layered = nn.Sequential(nn.Flatten(), nn.Linear(72, 40), nn.Dropout(0.25, inplace=True))
    model = Module(Functional if call == "function" else lambda: layered, 40)
    x, _, t = data(1, 2, 3, batch=60)
    params, buffers = model.init(key(1, 2, 3))
    torch.manual_seed(0)
    state = torch.get_rng_state()
    out = model(params, buffers, x, t, train=True, key=key(7, 8, 9)).logits
    assert torch.equal(torch.get_rng_state(), state)
    alone = model({k: v[1:2] for k, v in params.items()}, {}, x[1:2], t[1:2], train=True, key=key(8)).logits
    close(out[1], alone[0], 1e-6)
    whole = model(params, buffers, x, t).logits
    kept = out != 0
    close(out[kept], whole[kept] / 0.75, 1e-5)
    assert ((kept.float().mean((1, 2)) - 0.75).abs() < 0.03).all()  # 2400 draws: 0.009 a standard error
    assert not torch.equal(kept[0], kept[1])


def test_module_dropout_layers_have_masks_of_their_own() -> None:
    model = Module(lambda: nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Dropout(0.5), nn.Linear(72, 72)), 72)
    params = {"3.weight": torch.eye(72)[None], "3.bias": torch.zeros(1, 72)}
    kept = model(params, {}, torch.ones(1, 60, *IMAGE), torch.zeros(1, 60), train=True, key=key(1)).logits != 0
    assert abs(kept.float().mean() - 0.25) < 0.03  # one mask for both would keep half


def test_module_drops_whole_channels_where_the_layer_does() -> None:
    model = Module(lambda: nn.Sequential(nn.Conv2d(2, 50, 1), nn.Dropout2d(0.5), nn.Flatten()), 1800)
    params, _ = model.init(key(1, 2))
    x, _, t = data(1, 2)
    kept = model(params, {}, x, t, train=True, key=key(1, 2)).logits.view(2, 6, 50, 36) != 0
    assert torch.equal(kept.any(3), kept.all(3))
    assert 0.4 < kept.float().mean() < 0.6


def test_module_that_draws_by_itself_is_refused() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(72, 3)

        def forward(self, x: Tensor) -> Tensor:
            noise = torch.randn_like(x.flatten(1))
            return F.linear(x.flatten(1) + noise, self.fc.weight, self.fc.bias)

    model = Module(Noisy, 3)
    params, buffers = model.init(key(1))
    x, _, t = data(1)
    for given in (None, key(1)):
        with pytest.raises(ValueError, match="Noisy draws random numbers"):
            model(params, buffers, x, t, train=True, key=given)


def test_module_may_read_the_task() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.gate = nn.Linear(72, 3), nn.Embedding(4, 3)

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return torch.mul(self.fc(x.flatten(1)), self.gate(t))

    model = Module(Gated, 3)
    params, buffers = model.init(key(1))
    x, _, t = data(1)
    close(
        model(params, buffers, x, t + 2).logits,
        model(params, buffers, x, t).logits / params["gate.weight"][:, 0] * params["gate.weight"][:, 2],
        1e-4,
    )


# --- options ------------------------------------------------------------------------------------


ENCODER = {
    "width": 6, "depth": 1, "heads": 2, "mlp": 5, "activation": "relu", "norm": "rms", "pool": "mean", "dropout": 0.1,
    "init": "torch",
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "cls", "options"),
    [
        ("mlp", MLP, {"widths": [6], "activation": "crelu", "layer_norm": True, "dropout": 0.1, "init": "xavier"}),
        (
            "cnn",
            CNN,
            {"channels": [3], "hidden": [], "kernel": 5, "activation": "tanh", "layer_norm": True, "dropout": 0.1},
        ),
        ("resnet18", ResNet18, {"width": 4, "norm": "group", "groups": 4}),
        ("gru", GRU, {"widths": [4, 3], "dropout": 0.1}),
        ("lstm", LSTM, {"widths": [4, 3], "dropout": 0.1}),
        ("vit", ViT, {"patch": 2, **ENCODER}),
        ("transformer", Transformer, ENCODER),
    ],
)
def test_yaml_holds_the_signature_with_a_comment_for_every_key(name: str, cls: Any, options: dict[str, Any]) -> None:
    text = (CONF / f"{name}.yaml").read_text()
    cfg = OmegaConf.create(text)
    signature = inspect.signature(cls).parameters
    defaults = {k: p.default for k, p in signature.items() if k not in ("shape", "outputs")}
    assert {k: tuple(v) if OmegaConf.is_list(v) else v for k, v in cfg.items() if k != "_target_"} == defaults
    assert options.keys() == defaults.keys()
    lines = text.splitlines()
    assert all(lines[i - 1].startswith("#") for i, line in enumerate(lines) if not line.startswith("#"))
    for chosen in ({}, options):
        model = instantiate({**cfg, **chosen}, shape=(1, 8, 8), outputs=5)
        assert isinstance(model, cls)
        params, buffers = model.init(key(1))
        x = torch.rand(1, 4, 1, 8, 8)
        out = model(params, buffers, x, torch.zeros(1, 4, dtype=torch.int64), train=True, key=key(1))
        assert out.logits.shape == (1, 4, 5) and out.logits.is_contiguous()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MLP((4,), 2, (3, 0)), r"widths=\[3, 0\]"),
        (lambda: MLP((4,), 2, activation="mish"), "activation=mish: choose one of relu, tanh, gelu"),
        (lambda: MLP((4,), 2, dropout=1.0), "dropout=1.0: must be"),
        (lambda: MLP((4,), 2, dropout=-0.1), "dropout=-0.1: must be"),
        (lambda: CNN((64,), 2), r"model=cnn: needs images .* not \[64\]; use model=mlp"),
        (lambda: CNN((1, 8, 8), 2, kernel=4), "kernel=4: must be odd"),
        (lambda: CNN((1, 8, 8), 2, (4, 4, 4, 4)), "4 poolings leave nothing of 8x8"),
        (lambda: CNN((1, 8, 8), 2, (4, 0)), r"channels=\[4, 0\]"),
        (lambda: ResNet18((64,), 2), "model=resnet18: needs images"),
        (lambda: ResNet18((1, 8, 8), 2, norm="layer"), "norm=layer: choose one of batch, group"),
        (lambda: ResNet18((1, 8, 8), 2, 20, "group", 3), "groups=3: must divide width=20"),
        (lambda: ResNet18((1, 8, 8), 2, 0), "width=0"),
        (lambda: GRU((64,), 2), r"model=gru: needs sequences .* not \[64\]; use model=mlp"),
        (lambda: LSTM((4, 2), 2, ()), r"widths=\[\]: model=lstm needs one or more layers"),
        (lambda: GRU((4, 2), 2, dropout=1.0), "dropout=1.0: must be"),
        (lambda: ViT((64,), 2), "model=vit: needs images"),
        (lambda: ViT((1, 8, 6), 2), "model.patch=4: must divide the sides of 8x6 pixels; dataset.pad"),
        (lambda: ViT((1, 8, 8), 2, width=6), "model.heads=4: must divide model.width=6"),
        (lambda: ViT((1, 8, 8), 2, depth=0), "model.depth=0: must be at least 1"),
        (lambda: Transformer((4, 2), 2, norm="batch"), "model.norm=batch: must be layer or rms"),
        (lambda: Transformer((4, 2), 2, pool="last"), "model.pool=last: must be class or mean"),
        (
            lambda: Transformer((4, 2), 2, activation="crelu"),
            "model.activation=crelu: has two channels",
        ),
        (lambda: Transformer((4, 2), 2, init="normal"), "model.init=normal: must be torch"),
        (lambda: Transformer((4,), 2), "model=transformer: needs sequences"),
        (lambda: Module(lambda: 3, 2), "returned a int, not a torch.nn.Module"),  # type: ignore[arg-type,return-value]
    ],
)
def test_an_option_out_of_range_is_named(build: Callable[[], Model], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_maps_stay_apart_when_they_are_detached_or_cast(monkeypatch: pytest.MonkeyPatch) -> None:
    model = CNN((1, 8, 8), 3, channels=(4,), hidden=(5,))
    params, buffers = model.init(rng.keys([0, 1], "init"))
    params = {k: v.requires_grad_() for k, v in params.items()}
    out = model(params, buffers, rng.normal(rng.keys([0, 1], "x"), 2, 1, 8, 8), torch.zeros(2, 2, dtype=torch.int64))
    with monkeypatch.context() as patch:
        patch.setattr(maps, "together", lambda *_: pytest.fail("put together"))
        detached, cast = out.detach(), out.to(torch.float64)
    for name, act in out.acts.items():
        assert torch.equal(detached.acts[name], act) and not detached.acts[name].requires_grad and act.requires_grad
        assert cast.acts[name].dtype == torch.float64 and torch.equal(cast.acts[name].float(), act)
    assert torch.equal(detached.logits, out.logits) and not detached.logits.requires_grad
