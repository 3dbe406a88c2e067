"""Frozen features of images: what a pretrained network makes of each, computed once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from harness.wording import first_line
from tasks.datasets.backbones import KEY, Backbone, named
from tasks.datasets.cache import cached, progress
from tasks.datasets.own_net import checkpoint, function

BATCH = 32


def backbone(setting: Any) -> Backbone:
    """The network of a setting: a library's name, {net, weights, ...}, or a function that a `_target_` made.

    ValueError for a setting that is not understood, DataError for a package or weights that are missing or do not fit.
    """
    if isinstance(setting, str):
        return named(setting, None)
    if isinstance(setting, Mapping):
        return checkpoint(setting)
    if callable(setting):
        return function(setting)
    raise ValueError(
        f"{KEY}={setting!r}: must be a network's name, {{net:NAME,weights:FILE}} or {{_target_:my_module.net}}"
    )


def extract(setting: Any, x: NDArray[Any], name: str) -> tuple[NDArray[np.float32], str]:
    """Images [N, C, h, w] of bytes -> features [N, D] of the network of this setting, and one line on what it is.

    A library's network gives the input to its last linear layer, in evaluation mode, for images prepared as its weights
    require (grey becomes three equal channels). Features are kept in the user's cache under the digests of the network
    and of the images.
    Raises ValueError as `backbone` does, and for images or features that do not fit.
    """
    net = backbone(setting)
    if x.dtype != np.uint8 or x.shape[1] not in (1, 3):
        raise ValueError(
            f"{KEY}={net.name}: needs grey or RGB images of uint8, not {x.dtype} of shape "
            f"{list(x.shape[1:])}; scale them to 0 ... 255, as uint8"
        )
    sha = hashlib.sha256(np.ascontiguousarray(x).data).hexdigest()
    files = net.files if net.digest else ()
    made = cached(f"{name}-{net.name}", files, [net.digest, sha], lambda: {"x": compute(net, x)})["x"]
    return np.asarray(made, np.float32), f"features: {made.shape[1]:,} of {net.about}"


def compute(net: Backbone, x: NDArray[Any]) -> NDArray[np.float32]:
    """Features of all images, batch by batch."""
    run, made = net.load(), []
    for start in progress(range(0, len(x), BATCH), f"features of {net.name}, batches"):
        some = torch.from_numpy(np.ascontiguousarray(x[start : start + BATCH]))
        with torch.no_grad():
            try:
                found = torch.as_tensor(run(some))
            except (RuntimeError, TypeError, ValueError) as error:
                where = f"images [{', '.join(map(str, some.shape))}] of uint8"
                raise ValueError(f"{KEY}={net.name}: failed on {where}: {first_line(error)}") from error
        if found.dim() != 2 or len(found) != len(some) or not found.is_floating_point():
            raise ValueError(
                f"{KEY}={net.name}: returned {found.dtype} of shape {list(found.shape)} for {len(some)} images; "
                f"expected floats of shape [{len(some)}, features]"
            )
        if not bool(found.isfinite().all()):
            raise ValueError(
                f"{KEY}={net.name}: returned values that are not finite; check its weights and preparation"
            )
        made.append(found.float())
    return np.asarray(torch.cat(made).numpy(), np.float32)
