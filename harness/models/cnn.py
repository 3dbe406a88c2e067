"""Small convolutional network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

from torch import Tensor

from harness.models import layers, maps
from harness.models.maps import Acts, Maps
from harness.models.mlp import MLP
from harness.types import Buffers, Gates, How, Layer, Out, Params, Slice, Unit


class CNN:
    """Convolutional network: convolution, layer norm (optional), nonlinearity, 2x2 max-pooling per layer; then an MLP.

    `shape` is (channels, height, width) of one input; `channels` are units per convolution, which preserves the
    image size; `hidden` are units per fully connected layer, with dropout. Layer norm uses the mean and variance
    of a convolution over channels and space, with a gain and a shift for each channel.
    Acts of a convolution [S, B, H, h, w] are recorded before pooling.
    Raises ValueError for an option out of range, or for data that are not images.
    """

    def __init__(
        self,
        shape: Sequence[int],
        outputs: int,
        channels: Sequence[int] = (32, 64),
        hidden: Sequence[int] = (128,),
        kernel: int = 3,
        activation: str = "relu",
        layer_norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        fan_in, height, width = layers.image(shape, "cnn")
        if any(c < 1 for c in channels):
            raise ValueError(f"channels={list(channels)}: each must be at least 1")
        if kernel % 2 == 0 or kernel < 1:
            raise ValueError(f"kernel={kernel}: must be odd, to preserve the image size")
        height, width = height >> len(channels), width >> len(channels)
        if not height * width:
            raise ValueError(
                f"channels={list(channels)}: {len(channels)} poolings leave nothing of {shape[1]}x{shape[2]} pixels; "
                "use fewer convolutions"
            )
        self.act, copies = layers.activation(activation)
        inputs = [fan_in, *(copies * c for c in channels)]
        self.fc = MLP((inputs[-1], height, width), outputs, hidden, activation, layer_norm, dropout)
        self.outputs, self.layer_norm, self.stochastic = outputs, layer_norm, self.fc.stochastic
        self.head: tuple[str, ...] = self.fc.head
        self.kernel, self.padding = kernel, kernel // 2

        names = [f"conv{i}" for i in range(1, len(channels) + 1)]
        self.maps = list(zip(names, channels, inputs, strict=False))
        geometry = {"stride": 1, "padding": self.padding}
        convs = (Layer(f"{n}.weight", f"{n}.bias", n, n, geometry) for n in names)
        self.layers: tuple[Layer, ...] = (*convs, *self.fc.layers)
        readers = [(n, 1) for n in names[1:]] + [(self.fc.maps[0][0], height * width)]
        self.units: tuple[Unit, ...] = tuple(
            Unit(
                name,
                size,
                layers.writes(name),
                layers.reads(reader, size, copies, repeat),
                (Slice(f"{name}.norm.gain", 1), Slice(f"{name}.norm.shift", 1)) if layer_norm else (),
                layers.asymptote(activation),
            )
            for name, size, (reader, repeat) in zip(names, channels, readers, strict=False)
        )
        self.units += self.fc.units

    def init(self, key: Tensor) -> tuple[Params, Buffers]:
        params: Params = {}
        for name, out, fan_in in self.maps:
            params |= layers.draw_map(key, name, out, fan_in, self.kernel, self.kernel)
            if self.layer_norm:
                params |= layers.draw_norm(key, f"{name}.norm", out)
        return params | self.fc.init(key)[0], {}

    def __call__(
        self, params: Params, buffers: Buffers, x: Tensor, t: Tensor, *, gates: Gates | None = None, **how: Unpack[How]
    ) -> Out:
        record, seeds = how.get("record", False), len(x)
        acts: dict[str, Maps] = {}
        inputs: dict[str, Tensor] = {}
        preacts: dict[str, Tensor] = {}
        h = maps.apart(x.to(params["head.weight"].dtype))
        for name, _, _ in self.maps:
            z = maps.conv2d(h, params[f"{name}.weight"], params[f"{name}.bias"], padding=self.padding)
            if record:
                inputs[name], preacts[name] = maps.together(h, seeds), maps.together(z, seeds)
                z = maps.apart(preacts[name])
            if self.layer_norm:
                z = maps.group_norm(z, params[f"{name}.norm.gain"], params[f"{name}.norm.shift"], 1)
            acts[name] = maps.gate(maps.activate(self.act, z, seeds), gates, name)
            h = maps.max_pool(acts[name], 2)
        out = self.fc(params, buffers, maps.together(h, seeds), t, gates=gates, **how)
        every = Acts({**acts, **out.acts}, seeds)
        return Out(out.logits, every, buffers, inputs | out.inputs, preacts | out.preacts)
