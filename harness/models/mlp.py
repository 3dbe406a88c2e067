"""Multi-layer perceptron."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from harness.models import layers
from harness.types import Buffers, Gates, Layer, Out, Params, Slice, Unit


class MLP:
    """Fully connected network: linear, layer norm (optional), nonlinearity, dropout (optional) per layer.

    `shape` is that of one input, which is flattened; `widths` are units per hidden layer, () gives a linear
    model. A unit is a pre-activation: CReLU = [relu(x), relu(-x)] and deep Fourier features = [sin x, cos x]
    have two channels per unit in `Out.acts`, all first halves first. Acts are recorded before dropout. `init` is a
    distribution of `layers.draw_map`.
    Raises ValueError for an option out of range, and for training with dropout without a key.
    """

    def __init__(
        self,
        shape: Sequence[int],
        outputs: int,
        widths: Sequence[int] = (100, 100),
        activation: str = "relu",
        layer_norm: bool = False,
        dropout: float = 0.0,
        init: str = "torch",
    ) -> None:
        if any(w < 1 for w in widths):
            raise ValueError(f"widths={list(widths)}: each must be at least 1")
        layers.check_rate(dropout)
        layers.check_init(init)
        self.act, copies = layers.activation(activation)
        self.how = init
        self.outputs, self.layer_norm = outputs, layer_norm
        self.dropout, self.stochastic = dropout, dropout > 0

        names = [*(f"fc{i}" for i in range(1, len(widths) + 1)), "head"]
        inputs = [math.prod(shape), *(copies * w for w in widths)]
        self.maps = [(n, f"{n}.weight", f"{n}.bias") for n in names]
        self.sizes = list(zip(names, [*widths, outputs], inputs, strict=True))
        self.layers: tuple[Layer, ...] = tuple(Layer(f"{n}.weight", f"{n}.bias", n, n) for n in names)
        self.head: tuple[str, ...] = ("head.weight", "head.bias")
        self.units: tuple[Unit, ...] = tuple(
            Unit(
                name,
                width,
                layers.writes(name),
                layers.reads(reader, width, copies),
                (Slice(f"{name}.norm.gain", 1), Slice(f"{name}.norm.shift", 1)) if layer_norm else (),
                layers.asymptote(activation),
            )
            for name, reader, width in zip(names, names[1:], widths, strict=False)
        )

    def init(self, key: Tensor) -> tuple[Params, Buffers]:
        params: Params = {}
        for name, out, fan_in in self.sizes:
            params |= layers.draw_map(key, name, out, fan_in, how=self.how)
            if self.layer_norm and name != "head":
                params |= layers.draw_norm(key, f"{name}.norm", out)
        return params, {}

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
        acts: dict[str, Tensor] = {}
        inputs: dict[str, Tensor] = {}
        preacts: dict[str, Tensor] = {}
        h = x.flatten(2).to(params["head.weight"].dtype)  # [S, B, in]
        for name, weight, bias in self.maps:
            z = layers.linear(h, params[weight], params[bias])
            if record:
                inputs[name], preacts[name] = h, z
            if name == "head":
                break
            if self.layer_norm:
                z = layers.layer_norm(z, params[f"{name}.norm.gain"], params[f"{name}.norm.shift"])
            acts[name] = h = layers.gate(self.act(z), gates, name)
            if train and self.dropout:
                h = layers.dropped(h, self.dropout, key, name)
        return Out(z.contiguous(), acts, buffers, inputs, preacts)
