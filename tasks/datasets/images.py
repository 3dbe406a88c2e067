"""Images stored as bytes until they are gathered, their scaling, and augmentation of batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from harness import rng

AUGMENTATIONS = ("flip", "crop")
MARGIN = 8  # a crop shifts by up to 1 / MARGIN of the side: 4 pixels of 32, as for CIFAR (He et al. 2016)


@dataclass(frozen=True)
class Scale:
    """(x / top - mean) / std, with constants per channel or feature (axis 1)."""

    top: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, x: Tensor) -> Tensor:
        """x [N, C, ...] of any type -> float32."""
        shape = (-1, *(1,) * (x.dim() - 2))
        mean, std = (torch.tensor(v, device=x.device).view(shape) for v in (self.mean, self.std))
        return x.to(torch.float32, copy=True).div_(self.top).sub_(mean).div_(std)


@dataclass(frozen=True, eq=False)
class Images:
    """A source of rows in place of a float tensor: it takes a quarter of the memory, or augments."""

    raw: Tensor  # [N, C, h, w] uint8, or float32
    scale: Scale
    augment: Augment | None = None

    @property
    def shape(self) -> torch.Size:
        return self.raw.shape

    @property
    def device(self) -> torch.device:
        return self.raw.device

    def index_select(self, dim: int, index: Tensor) -> Tensor:
        """The images at `index` as floats, bit for bit as in the float tensor."""
        return self.scale(self.raw.index_select(dim, index))

    def __getitem__(self, index: Any) -> Tensor:
        picked = self.raw[index]
        return self.scale(picked) if picked.dim() == self.raw.dim() else self.scale(picked[None])[0]

    def amin(self, dim: Sequence[int]) -> Tensor:
        """Smallest value of each channel [C]: `dim` must be all axes except the channels."""
        return self._extreme(dim, torch.amin)

    def amax(self, dim: Sequence[int]) -> Tensor:
        """Largest value of each channel [C]; `dim` as for amin."""
        return self._extreme(dim, torch.amax)

    def _extreme(self, dim: Sequence[int], of: Callable[[Tensor, tuple[int, ...]], Tensor]) -> Tensor:
        if tuple(dim) != (0, 2, 3):
            raise ValueError(f"amin and amax over axes {list(dim)}: must be (0, 2, 3), all except the channels")
        return self.scale(of(self.raw, (0, 2, 3))[None])[0]

    def drawn(self, x: Tensor, key: Tensor) -> Tensor:
        """x [S, B, C, h, w] augmented, seed s with draws from key[s]."""
        if self.augment is None:
            return x
        black = self.scale(torch.zeros(1, x.shape[2], 1, 1, device=x.device))[0]
        return self.augment(x, key, black)

    def to(self, device: torch.device | str) -> Images:
        return replace(self, raw=self.raw.to(device))


@dataclass(frozen=True)
class Augment:
    """Random changes of training images: flip (left and right with probability 1/2), crop (a shift).

    crop pads with black and cuts out the original size, all offsets equally likely. Batched over seeds and rows, unlike
    torchvision's transforms, which draw once per batch.
    """

    flip: bool
    margin: bool

    @classmethod
    def of(cls, names: Sequence[str]) -> Augment | None:
        """The augmentation of these names. ValueError for an unknown name."""
        if isinstance(names, str) or any(n not in AUGMENTATIONS for n in names):
            raise ValueError(f"dataset.augment={names}: must be a list of {', '.join(AUGMENTATIONS)}; []: none")
        return cls("flip" in names, "crop" in names) if names else None

    def __call__(self, x: Tensor, key: Tensor, black: Tensor) -> Tensor:
        """x [S, B, C, h, w], key [S], black [C, 1, 1] -> [S, B, C, h, w]."""
        s, b, c, h, w = x.shape
        if self.flip:
            turned = rng.uniform(rng.fold(key, "flip"), b) < 0.5
            x = torch.where(turned[:, :, None, None, None], x.flip(-1), x)
        if self.margin:
            p, q = -(-h // MARGIN), -(-w // MARGIN)
            down = rng.integers(rng.fold(key, "down"), 2 * p + 1, b) - p  # [S, B]
            right = rng.integers(rng.fold(key, "right"), 2 * q + 1, b) - q
            row = torch.arange(h, device=x.device) + down[:, :, None]  # [S, B, h]
            column = torch.arange(w, device=x.device) + right[:, :, None]
            inside = ((row >= 0) & (row < h))[..., :, None] & ((column >= 0) & (column < w))[..., None, :]
            place = row.clamp(0, h - 1)[..., :, None] * w + column.clamp(0, w - 1)[..., None, :]  # [S, B, h, w]
            moved = x.flatten(3).gather(3, place.view(s, b, 1, h * w).expand(-1, -1, c, -1)).view_as(x)
            x = torch.where(inside[:, :, None], moved, black)
        return x


def resized(x: NDArray[Any], size: int) -> NDArray[Any]:
    """Images [N, C, h, w] with the shorter side resized to `size`, then cropped to a square at the centre.

    Antialiased linear interpolation, as in PIL; bytes stay bytes.
    """
    made = np.empty((*x.shape[:2], size, size), x.dtype)
    h, w = x.shape[2:]
    tall, wide = (max(size, round(side * size / min(h, w))) for side in (h, w))
    top, left = (tall - size) // 2, (wide - size) // 2
    floating = torch.float64 if x.dtype == np.float64 else torch.float32
    for start in range(0, len(x), 1000):
        part = torch.from_numpy(x[start : start + 1000]).to(floating)
        part = F.interpolate(part, (tall, wide), mode="bilinear", antialias=True)
        part = part[..., top : top + size, left : left + size]
        if x.dtype == np.uint8:
            part = part.round().clamp(0, 255)
        made[start : start + 1000] = part.numpy()
    return made
