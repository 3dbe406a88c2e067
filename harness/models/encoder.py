"""Pre-norm transformer blocks: what vit.py and transformer.py share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from torch import Tensor
from torch.nn.functional import pad

from harness import rng
from harness.models import layers, sequences
from harness.types import Buffers, Gates, Out, Params, Scale, Slice, Unit

SPREAD = 0.02  # standard deviation of the vectors that are added to the positions (Dosovitskiy et al. 2021)


@dataclass
class Tape:
    """What one forward pass records: acts always, inputs and outputs of maps and norms if it is on."""

    on: bool
    acts: dict[str, Tensor] = field(default_factory=dict)
    inputs: dict[str, Tensor] = field(default_factory=dict)
    preacts: dict[str, Tensor] = field(default_factory=dict)

    def map(self, params: Params, name: str, x: Tensor) -> Tensor:
        """The map `name` of all positions."""
        z = sequences.linear(x, params[f"{name}.weight"], params[f"{name}.bias"])
        if self.on:
            self.inputs[name], self.preacts[name] = x, z
        return z

    def norm(self, params: Params, name: str, x: Tensor) -> Tensor:
        """The norm `name`, with its gain, and its shift if it has one."""
        shift = params.get(f"{name}.shift")
        z = sequences.normed(x, centred=shift is not None)
        found = z * params[f"{name}.gain"][:, None, None]
        found = found if shift is None else found + shift[:, None, None]
        if self.on:
            self.inputs[name], self.preacts[name] = z, found
        return found


class Encoder(ABC):
    """Blocks of self-attention and an MLP, each after a norm and added to the residual stream (Xiong et al. 2020).

        x <- x + attention(norm(x))    x <- x + fc2(act(fc1(norm(x))))    logits = head(norm(pool(x)))

    attention: `heads` of width / heads numbers each, softmax(q kᵀ / √(width / heads)) v, mapped by `out`.
    `pool`: class reads a learned token put in front of the sequence, mean averages over the positions. A vector is
    learned for each position; that of the token is the token itself.

    Units: the heads of each block (acts [S, B, heads, width / heads, L], before `out`), the hidden units of each MLP
    (acts [S, B, H, L]), and the channels of the residual stream, which all blocks read and write (act: the stream after
    the last block). A gate of a channel acts behind every norm. Replacing a head redraws its queries, keys and values.

    A model says how an input becomes `length` positions of `features` numbers, which the map EMBED takes to the stream.
    `dropout` is of the outputs of attention and MLP.
    """

    EMBED: str

    def __init__(
        self,
        length: int,
        features: int,
        outputs: int,
        width: int,
        depth: int,
        heads: int,
        mlp: int,
        activation: str,
        norm: str,
        pool: str,
        dropout: float,
        init: str,
    ) -> None:
        for key, value in (("width", width), ("depth", depth), ("heads", heads), ("mlp", mlp)):
            if value < 1:
                raise ValueError(f"model.{key}={value}: must be at least 1")
        if width % heads:
            raise ValueError(f"model.heads={heads}: must divide model.width={width}")
        for key, chosen, known in (("norm", norm, ("layer", "rms")), ("pool", pool, ("class", "mean"))):
            if chosen not in known:
                raise ValueError(f"model.{key}={chosen}: must be {' or '.join(known)}")
        layers.check_rate(dropout)
        layers.check_init(init)
        self.act, copies = layers.activation(activation)
        if copies > 1:
            model = type(self).__name__.lower()
            raise ValueError(f"model.activation={activation}: has two channels a unit, unlike those of model={model}")
        self.features, self.width, self.heads, self.mlp, self.outputs = features, width, heads, mlp, outputs
        self.norm, self.pool, self.dropout, self.how = norm, pool, dropout, init
        self.stochastic = dropout > 0
        self.length = length + (pool == "class")
        self.blocks = [f"block{i}" for i in range(1, depth + 1)]
        self.maps = [(f"{block}.{part}", *size) for block in self.blocks for part, size in self._sizes().items()]
        names = (self.EMBED, *(name for name, _, _ in self.maps), "head")
        self.layers = tuple(sequences.layer(name) for name in names)
        self.head: tuple[str, ...] = ("head.weight", "head.bias")
        self.norms = [*(f"{block}.norm{i}" for block in self.blocks for i in (1, 2)), "norm"]
        shifts = [f"{name}.shift" if norm == "layer" else None for name in self.norms]
        own = (Scale(f"{name}.gain", shift, name, name) for name, shift in zip(self.norms, shifts, strict=True))
        self.scales = (Scale(None, "position", "", "position"), *own)
        inner = (u for block in self.blocks for u in self._block(block, layers.asymptote(activation)))
        self.units: tuple[Unit, ...] = (*inner, self._stream())

    def _sizes(self) -> dict[str, tuple[int, int]]:
        return {
            "qkv": (3 * self.width, self.width),
            "out": (self.width, self.width),
            "fc1": (self.mlp, self.width),
            "fc2": (self.width, self.mlp),
        }

    def _block(self, block: str, asymptote: float | None) -> tuple[Unit, Unit]:
        each = self.width // self.heads
        writes = (
            s._replace(repeat=each, offset=i * self.width) for i in range(3) for s in layers.writes(f"{block}.qkv")
        )
        reads = tuple(s._replace(repeat=each) for s in layers.reads(f"{block}.out"))
        return (
            Unit(f"{block}.heads", self.heads, tuple(writes), reads),
            Unit(f"{block}.fc1", self.mlp, layers.writes(f"{block}.fc1"), layers.reads(f"{block}.fc2"), (), asymptote),
        )

    def _stream(self) -> Unit:
        writers = (s for block in self.blocks for part in ("out", "fc2") for s in layers.writes(f"{block}.{part}"))
        readers = (s for block in self.blocks for part in ("qkv", "fc1") for s in layers.reads(f"{block}.{part}"))
        parts = ("gain", "shift") if self.norm == "layer" else ("gain",)
        return Unit(
            "stream",
            self.width,
            (*layers.writes(self.EMBED), Slice("position", 2), *writers),
            (*readers, *layers.reads("head")),
            tuple(Slice(f"{norm}.{part}", 1) for norm in self.norms for part in parts),
        )

    @abstractmethod
    def positions(self, x: Tensor) -> Tensor:
        """Inputs [S, B, *shape] as sequences [S, B, length, features]."""

    def init(self, key: Tensor) -> tuple[Params, Buffers]:
        """Maps as `layers.draw_map` draws them; the positions' vectors from N(0, SPREAD²)."""
        params = layers.draw_map(key, self.EMBED, self.width, self.features, how=self.how)
        params["position"] = SPREAD * rng.normal(rng.fold(key, "position"), self.length, self.width)
        for name, out, fan_in in self.maps:
            params |= layers.draw_map(key, name, out, fan_in, how=self.how)
        for name in self.norms:
            drawn = layers.draw_norm(key, name, self.width)
            params |= {k: v for k, v in drawn.items() if self.norm == "layer" or k.endswith(".gain")}
        return params | layers.draw_map(key, "head", self.outputs, self.width, how=self.how), {}

    def __call__(
        self,
        params: Params,
        buffers: Buffers,
        x: Tensor,
        t: Tensor,
        *,
        train: bool = False,
        key: Tensor | None = None,
        record: bool = False,
        gates: Gates | None = None,
    ) -> Out:
        tape = Tape(record)
        x = tape.map(params, self.EMBED, self.positions(x.to(params["head.weight"].dtype)))
        if self.pool == "class":
            x = pad(x, (0, 0, 1, 0))
        x = x + params["position"][:, None]
        if record:
            tape.preacts["position"] = x
        for block in self.blocks:
            for part, inner in (("norm1", self._attend), ("norm2", self._mlp)):
                name = f"{block}.{part}"
                found = inner(params, block, layers.gate(tape.norm(params, name, x), gates, "stream"), tape, gates)
                if train and self.dropout:
                    found = layers.dropped(found, self.dropout, key, name)
                x = x + found
        tape.acts["stream"] = layers.gate(x, gates, "stream").mT
        pooled = x[:, :, :1] if self.pool == "class" else x.mean(2, keepdim=True)
        pooled = layers.gate(tape.norm(params, "norm", pooled), gates, "stream")[:, :, 0]
        logits = layers.linear(pooled, params["head.weight"], params["head.bias"])
        if record:
            tape.inputs["head"], tape.preacts["head"] = pooled, logits
        return Out(logits.contiguous(), tape.acts, buffers, tape.inputs, tape.preacts)

    def _attend(self, params: Params, block: str, x: Tensor, tape: Tape, gates: Gates | None) -> Tensor:
        seeds, batch, length, _ = x.shape
        mapped = tape.map(params, f"{block}.qkv", x).view(seeds * batch, length, 3, self.heads, -1)
        q, k, v = mapped.permute(2, 0, 3, 1, 4)  # [S B, heads, L, width / heads]
        scores = (q * q.shape[-1] ** -0.5) @ k.mT
        h = (scores.softmax(-1) @ v).unflatten(0, (seeds, batch))  # [S, B, heads, L, width / heads]
        if gates is not None and f"{block}.heads" in gates:
            h = h * gates[f"{block}.heads"][..., None, None]
        tape.acts[f"{block}.heads"] = h.mT
        return tape.map(params, f"{block}.out", h.transpose(2, 3).flatten(3))

    def _mlp(self, params: Params, block: str, x: Tensor, tape: Tape, gates: Gates | None) -> Tensor:
        name = f"{block}.fc1"
        h = layers.gate(self.act(tape.map(params, name, x)), gates, name)
        tape.acts[name] = h.mT
        return tape.map(params, f"{block}.fc2", h)
