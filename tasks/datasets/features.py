"""Frozen features of images: the last hidden layer of a network pretrained on ImageNet, computed once."""

from __future__ import annotations

import pickle
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from harness.wording import first_line
from tasks.datasets.cache import cached, progress
from tasks.datasets.errors import DataError

BATCH = 64


def extract(network: str, x: NDArray[Any], name: str) -> NDArray[np.float32]:
    """Images [N, C, h, w] of bytes -> features [N, D] of the net called `network` in torchvision.models.

    Features are the input to its last linear layer, in evaluation mode, for images prepared as its weights require
    (resized, cropped, normalised; grey becomes three equal channels). The weights are torchvision's default ones, read
    from torch's download folder (TORCH_HOME) and not downloaded here. Features are kept in the user's cache.
    Raises ValueError for an unknown network, DataError for weights that are missing or do not fit.
    """
    import hashlib

    from torchvision import models

    known = [n for n in models.list_models(module=models) if not n.startswith("quantized_")]
    if network not in known:
        close = get_close_matches(network, known, 1)
        hint = f"did you mean {close[0]}?" if close else "use one of torchvision.models.list_models(), such as resnet18"
        raise ValueError(f"dataset.features={network}: unknown network; {hint}")
    if x.dtype != np.uint8 or x.shape[1] not in (1, 3):
        raise ValueError(
            f"dataset.features={network}: needs grey or RGB images of uint8, not {x.dtype} of shape "
            f"{list(x.shape[1:])}; scale them to 0 ... 255, as uint8"
        )
    weights = models.get_model_weights(network).DEFAULT
    file = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rpartition("/")[2]
    if not file.is_file():
        raise DataError(
            f"dataset.features={network}: weights not found at {file}; download {weights.url} into that folder"
        )
    sha = hashlib.sha256(np.ascontiguousarray(x).data).hexdigest()

    def compute() -> dict[str, NDArray[Any]]:
        net, prepare = body(network, file), weights.transforms()
        made = []
        for start in progress(range(0, len(x), BATCH), f"features of {network}"):
            some = torch.from_numpy(np.ascontiguousarray(x[start : start + BATCH]))
            with torch.no_grad():
                made.append(net(prepare(some.expand(-1, 3, -1, -1))))
        return {"x": torch.cat(made).numpy()}

    return np.asarray(cached(name, [file], [network, sha], compute)["x"], np.float32)


def body(network: str, file: Path) -> nn.Module:
    """The network with these weights, without its last linear layer, in evaluation mode."""
    from torchvision import models

    net: nn.Module = models.get_model(network)
    try:
        net.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    except (OSError, EOFError, RuntimeError, TypeError, AttributeError, pickle.UnpicklingError) as error:
        raise DataError(
            f"{file}: not weights of {network} ({first_line(error)}); delete it and download it again"
        ) from error
    heads = [n for n, part in net.named_modules() if isinstance(part, nn.Linear)]
    if not heads:
        raise ValueError(f"dataset.features={network}: has no linear layer; use another network, such as resnet18")
    parent, _, leaf = heads[-1].rpartition(".")
    setattr(net.get_submodule(parent), leaf, nn.Identity())
    return net.eval()
