"""Data as sequences, and linear maps that all positions of a sequence share.

Letters: L positions, F numbers at each. Inputs and outputs of a shared map are recorded as [S, B, L, features]; hidden
units as [S, B, H, L], as the pixels of a feature map are.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from harness.models.layers import EPS
from harness.types import Layer


def shape_of(shape: Sequence[int], model: str) -> tuple[int, int]:
    """Positions and numbers at each: of a sequence [L, F], or of an image [C, h, w] as h rows of C w numbers.

    Raises ValueError for other data.
    """
    if len(shape) == 2:
        return shape[0], shape[1]
    if len(shape) == 3:
        return shape[1], shape[0] * shape[2]
    raise ValueError(
        f"model={model}: needs sequences [length, features] or images, not {list(shape)}; use model=mlp, or for images"
        " dataset.view=pixels"
    )


def rows(x: Tensor) -> Tensor:
    """[S, B, L, F] of sequences, or of images [S, B, C, h, w], whose rows follow one another from the top."""
    return x if x.dim() == 4 else x.transpose(2, 3).flatten(3)


def linear(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """x [S, B, L, in], w [S, out, in], b [S, out] -> [S, B, L, out], laid out by rows: norms and softmax read those."""
    z = torch.baddbmm(b[:, None], x.flatten(1, 2), w.mT)
    return z.view(*x.shape[:3], z.shape[2])


def normed(x: Tensor, *, centred: bool) -> Tensor:
    """The last axis with mean 0 and variance 1 (Ba, Kiros & Hinton 2016); if not centred, with mean square 1.

    The latter is RMS norm (Zhang & Sennrich 2019).
    """
    size = x.shape[-1:]
    found: Tensor = torch.layer_norm(x, size, eps=EPS) if centred else torch.rms_norm(x, size, eps=EPS)
    return found


def layer(name: str) -> Layer:
    """A map with a bias that is recorded under its own name."""
    return Layer(f"{name}.weight", f"{name}.bias", name, name)
