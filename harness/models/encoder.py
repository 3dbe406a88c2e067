"""Pre-norm transformer blocks, for vit.py and transformer.py."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import pad

from harness import rng
from harness.models import layers, sequences
from harness.types import Gates, Params, Scale, Slice, Unit

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


class Encoder:
    """Blocks of self-attention and an MLP, each after a norm and added to the residual stream (Xiong et al. 2020).

        x <- x + attention(norm(x))    x <- x + fc2(act(fc1(norm(x))))    logits = head(norm(pool(x)))

    attention: `heads` of width / heads numbers each, softmax(q kᵀ / √(width / heads)) v, mapped by `out`.
    `pool`: class reads a learned token put in front of the sequence, mean averages over the positions. A vector is
    learned for each position; that of the token is the token itself.

    Units: the heads of each block (acts [S, B, heads, width / heads, L], before `out`), the hidden units of each MLP
    (acts [S, B, H, L]), and the channels of the residual stream, which all blocks read and write (act: the stream after
    the last block). A gate of a channel acts behind every norm. Replacing a head redraws its queries, keys and values.
    """

    def __init__(
        self,
        model: str,
        length: int,
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
        embeds: tuple[Slice, ...],
    ) -> None:
        for key, value in (("width", width), ("depth", depth), ("heads", heads), ("mlp", mlp)):
            if value < 1:
                raise ValueError(f"model.{key}={value}: must be at least 1")
        if width % heads:
            raise ValueError(f"model.heads={heads}: must divide model.width={width}")
        for key, chosen, known in (("norm", norm, ("layer", "rms")), ("pool", pool, ("class", "mean"))):
            if chosen not in known:
                raise ValueError(f"model.{key}={chosen}: must be {' or '.join(known)}")
        if not 0 <= dropout < 1:
            raise ValueError(f"model.dropout={dropout}: must be at least 0 and below 1")
        layers.check_init(init)
        self.act, copies = layers.activation(activation)
        if copies > 1:
            raise ValueError(f"model.activation={activation}: has two channels a unit, unlike those of model={model}")
        self.width, self.heads, self.mlp, self.outputs = width, heads, mlp, outputs
        self.norm, self.pool, self.dropout, self.how = norm, pool, dropout, init
        self.length = length + (pool == "class")
        self.blocks = [f"block{i}" for i in range(1, depth + 1)]
        self.maps = [(f"{block}.{part}", *size) for block in self.blocks for part, size in self._sizes().items()]
        self.layers = tuple(sequences.layer(name) for name in (*(name for name, _, _ in self.maps), "head"))
        self.head: tuple[str, ...] = ("head.weight", "head.bias")
        self.norms = [*(f"{block}.norm{i}" for block in self.blocks for i in (1, 2)), "norm"]
        shifts = [f"{name}.shift" if norm == "layer" else None for name in self.norms]
        own = (Scale(f"{name}.gain", shift, name, name) for name, shift in zip(self.norms, shifts, strict=True))
        self.scales = (Scale(None, "position", "", "position"), *own)
        inner = (u for block in self.blocks for u in self._block(block, layers.asymptote(activation)))
        self.units: tuple[Unit, ...] = (*inner, self._stream(embeds))

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

    def _stream(self, embeds: tuple[Slice, ...]) -> Unit:
        writers = (s for block in self.blocks for part in ("out", "fc2") for s in layers.writes(f"{block}.{part}"))
        readers = (s for block in self.blocks for part in ("qkv", "fc1") for s in layers.reads(f"{block}.{part}"))
        parts = ("gain", "shift") if self.norm == "layer" else ("gain",)
        return Unit(
            "stream",
            self.width,
            (*embeds, Slice("position", 2), *writers),
            (*readers, *layers.reads("head")),
            tuple(Slice(f"{norm}.{part}", 1) for norm in self.norms for part in parts),
        )

    def init(self, key: Tensor) -> Params:
        """Maps as `layers.draw_map` draws them; the positions' vectors from N(0, SPREAD²)."""
        params = {"position": SPREAD * rng.normal(rng.fold(key, "position"), self.length, self.width)}
        for name, out, fan_in in self.maps:
            params |= layers.draw_map(key, name, out, fan_in, how=self.how)
        for name in self.norms:
            drawn = layers.draw_norm(key, name, self.width)
            params |= {k: v for k, v in drawn.items() if self.norm == "layer" or k.endswith(".gain")}
        return params | layers.draw_map(key, "head", self.outputs, self.width, how=self.how)

    def __call__(
        self,
        params: Params,
        x: Tensor,
        tape: Tape,
        gates: Gates | None,
        key: Tensor | None,
        real: Tensor | None = None,
    ) -> Tensor:
        """Logits [S, B, outputs] of embedded positions x [S, B, L, width]; `real` [S, B, L] is false where padded.

        `key` fixes dropout, of the outputs of attention and MLP; None: no dropout.
        """
        if self.pool == "class":
            x, real = pad(x, (0, 0, 1, 0)), None if real is None else pad(real, (1, 0), value=True)
        x = x + params["position"][:, None]
        if tape.on:
            tape.preacts["position"] = x
        for block in self.blocks:
            for part, inner in (("norm1", self._attend), ("norm2", self._mlp)):
                seen = sequences.gate(tape.norm(params, f"{block}.{part}", x), gates, "stream")
                found = inner(params, block, seen, tape, gates, real)
                if key is not None and self.dropout:
                    found = layers.dropout(found, self.dropout, rng.fold(key, f"{block}.{part}"))
                x = x + found
        tape.acts["stream"] = sequences.gate(x, gates, "stream").mT
        pooled = x[:, :, :1] if self.pool == "class" else _mean(x, real)
        pooled = sequences.gate(tape.norm(params, "norm", pooled), gates, "stream")[:, :, 0]
        logits = layers.linear(pooled, params["head.weight"], params["head.bias"])
        if tape.on:
            tape.inputs["head"], tape.preacts["head"] = pooled, logits
        return logits

    def _attend(
        self, params: Params, block: str, x: Tensor, tape: Tape, gates: Gates | None, real: Tensor | None
    ) -> Tensor:
        seeds, batch, length, _ = x.shape
        mapped = tape.map(params, f"{block}.qkv", x).view(seeds * batch, length, 3, self.heads, -1)
        q, k, v = mapped.permute(2, 0, 3, 1, 4)  # [S B, heads, L, width / heads]
        scores = (q * q.shape[-1] ** -0.5) @ k.mT
        if real is not None:
            scores = scores.masked_fill(~real.view(seeds * batch, 1, 1, length), -torch.inf)
        h = (scores.softmax(-1) @ v).unflatten(0, (seeds, batch))  # [S, B, heads, L, width / heads]
        if gates is not None and f"{block}.heads" in gates:
            h = h * gates[f"{block}.heads"][..., None, None]
        tape.acts[f"{block}.heads"] = h.mT
        return tape.map(params, f"{block}.out", h.transpose(2, 3).flatten(3))

    def _mlp(
        self, params: Params, block: str, x: Tensor, tape: Tape, gates: Gates | None, real: Tensor | None
    ) -> Tensor:
        name = f"{block}.fc1"
        h = sequences.gate(self.act(tape.map(params, name, x)), gates, name)
        tape.acts[name] = h.mT
        return tape.map(params, f"{block}.fc2", h)


def _mean(x: Tensor, real: Tensor | None) -> Tensor:
    """Mean over the positions of x [S, B, L, H] that are real: [S, B, 1, H]."""
    if real is None:
        return x.mean(2, keepdim=True)
    kept = real[..., None].to(x)
    return (x * kept).sum(2, keepdim=True) / kept.sum(2, keepdim=True)
