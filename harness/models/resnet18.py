"""Residual network of 18 layers for small images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from harness.models import layers, maps
from harness.models.maps import Acts, Maps
from harness.types import Buffers, Gates, Layer, Out, Params, Slice, Unit


class ResNet18:
    """ResNet-18 (He et al. 2016) for small images: 3x3 stem, no max-pooling, four stages of two blocks.

    Stages have 1, 2, 4 and 8 times `width` channels: 64 is the usual net, 20 the slim one of Lopez-Paz &
    Ranzato (2017). `norm` is "batch" (running statistics are buffers, momentum 0.1) or "group" (Wu & He
    2018, `groups` a layer). `shape` is (channels, height, width).

    Units are the inner channels of each block, and the channels of each stage's residual stream. Every block of
    a stage writes its stream (as does the stem in stage 1, the shortcut convolution in later stages), and every
    block, the next stage's shortcut or the head reads it. A channel exists through the whole stage, so it is one
    unit; its act is the output of the stage's last block.
    Raises ValueError for an option out of range, or for data that are not images.
    """

    stochastic = False
    head: tuple[str, ...] = ("head.weight", "head.bias")

    def __init__(
        self, shape: Sequence[int], outputs: int, width: int = 20, norm: str = "batch", groups: int = 4
    ) -> None:
        channels = layers.image(shape, "resnet18")[0]
        if norm not in ("batch", "group"):
            raise ValueError(f"norm={norm}: choose one of batch, group")
        if width < 1:
            raise ValueError(f"width={width}: must be at least 1")
        if norm == "group" and (groups < 1 or width % groups):
            raise ValueError(f"groups={groups}: must divide width={width}")
        self.outputs, self.norm, self.groups, self.features = outputs, norm, groups, 8 * width

        # name -> (channels out, channels in, kernel, stride)
        self.convs: dict[str, tuple[int, int, int, int]] = {"stem": (width, channels, 3, 1)}
        self.stages: dict[str, tuple[str, ...]] = {}
        units: list[Unit] = []
        writers, size = ["stem"], width
        readers: list[str] = []
        for stage, factor in enumerate((1, 2, 4, 8), 1):
            blocks = self.stages[f"stage{stage}"] = (f"stage{stage}.block1", f"stage{stage}.block2")
            for block in blocks:
                fan_in, out = size, factor * width
                self.convs[f"{block}.conv1"] = (out, fan_in, 3, out // fan_in)
                self.convs[f"{block}.conv2"] = (out, out, 3, 1)
                readers.append(f"{block}.conv1")
                if out != fan_in:  # the previous stage's stream ends here
                    shortcut = f"{block}.shortcut"
                    self.convs[shortcut] = (out, fan_in, 1, 2)
                    units.append(self._unit(f"stage{stage - 1}", fan_in, writers, [*readers, shortcut]))
                    writers, readers, size = [shortcut], [], out
                units.append(self._unit(f"{block}.conv1", out, [f"{block}.conv1"], [f"{block}.conv2"]))
                writers.append(f"{block}.conv2")
        units.append(self._unit("stage4", size, writers, [*readers, "head"]))
        self.units: tuple[Unit, ...] = tuple(units)
        self.layers: tuple[Layer, ...] = (
            *(
                Layer(f"{name}.weight", None, name, name, {"stride": stride, "padding": kernel // 2})
                for name, (_, _, kernel, stride) in self.convs.items()
            ),
            Layer("head.weight", "head.bias", "head", "head"),
        )

    def _unit(self, act: str, size: int, writers: Sequence[str], readers: Sequence[str]) -> Unit:
        per_channel = ("gain", "shift", "mean", "var") if self.norm == "batch" else ("gain", "shift")
        return Unit(
            act,
            size,
            tuple(s for name in writers for s in layers.writes(name, bias=False)),
            tuple(s for name in readers for s in layers.reads(name)),
            tuple(Slice(f"{name}.norm.{part}", 1) for name in writers for part in per_channel),
        )

    def init(self, key: Tensor) -> tuple[Params, Buffers]:
        params: Params = {}
        buffers: Buffers = {}
        for name, (out, fan_in, kernel, _) in self.convs.items():
            params |= layers.draw_map(key, name, out, fan_in, kernel, kernel, bias=False)
            params |= layers.draw_norm(key, f"{name}.norm", out)
            if self.norm == "batch":
                buffers[f"{name}.norm.mean"] = torch.zeros(len(key), out, device=key.device)
                buffers[f"{name}.norm.var"] = torch.ones(len(key), out, device=key.device)
        return params | layers.draw_map(key, "head", self.outputs, self.features), buffers

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
        acts: dict[str, Maps] = {}
        inputs: dict[str, Tensor] = {}
        preacts: dict[str, Tensor] = {}
        new, seeds = dict(buffers), len(x)

        def conv(name: str, h: Maps) -> Maps:
            """The convolution and its norm."""
            _, _, kernel, stride = self.convs[name]
            z = maps.conv2d(h, params[f"{name}.weight"], None, stride, kernel // 2)
            if record:
                inputs[name], preacts[name] = maps.together(h, seeds), maps.together(z, seeds)
                z = maps.apart(preacts[name])
            gain, shift = params[f"{name}.norm.gain"], params[f"{name}.norm.shift"]
            if self.norm == "group":
                return maps.group_norm(z, gain, shift, self.groups)
            mean, var = f"{name}.norm.mean", f"{name}.norm.var"
            z, new[mean], new[var] = maps.batch_norm(z, gain, shift, buffers[mean], buffers[var], train)
            return z

        def relu(name: str, z: Maps) -> Maps:
            return maps.gate([m.relu() for m in z], gates, name)

        h = relu("stage1", conv("stem", maps.apart(x.to(params["head.weight"].dtype))))
        for stage, blocks in self.stages.items():
            for block in blocks:
                name = f"{block}.conv1"
                acts[name] = relu(name, conv(name, h))
                skip = conv(f"{block}.shortcut", h) if f"{block}.shortcut" in self.convs else h
                h = relu(stage, [a + b for a, b in zip(conv(f"{block}.conv2", acts[name]), skip, strict=True)])
            acts[stage] = h
        pooled = maps.together(h, seeds).mean((3, 4))  # [S, B, 8 width]
        logits = layers.linear(pooled, params["head.weight"], params["head.bias"])
        if record:
            inputs["head"], preacts["head"] = pooled, logits
        return Out(logits.contiguous(), Acts(acts, seeds), new, inputs, preacts)
