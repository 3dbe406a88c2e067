"""Transforms of inputs when they are gathered, by each row's transform id: pure functions of (x, id)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from harness import rng

NOISE = (0.0, 0.04, 0.06, 0.08, 0.09, 0.10)  # standard deviation at severities 0 to 5, for a range of 1
CONTRAST = (1.0, 0.75, 0.5, 0.4, 0.3, 0.15)  # factor
BLUR = (0.0, 0.4, 0.6, 0.7, 0.8, 1.0)  # standard deviation in pixels
OCCLUDED = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)  # side of the square, relative to the image's
KINDS = ("gaussian_noise", "gaussian_blur", "contrast", "occlusion")


class Permute:
    """Reorders the inputs of each row by its task's permutation: x'[i] = x[permutation[i]]."""

    def __init__(self, permutation: Tensor) -> None:
        """permutation [S, T, D], of any integer type; small types save memory in long streams."""
        self.permutation = permutation

    def __call__(self, x: Tensor, task: Tensor) -> Tensor:
        """x [S, B, *shape], task [S, B or 1] -> [S, B, *shape]."""
        seed = torch.arange(len(task), device=task.device)[:, None]
        flat = x.flatten(2)
        return flat.gather(2, self.permutation[seed, task].long().expand_as(flat)).view_as(x)


class Rotate:
    """Rotates the images of each row by the angle of its id, in degrees anticlockwise, about their centre.

    Pixels are interpolated linearly between their four neighbours, or take the value of the nearest; pixels from
    outside the image are `blank`.
    """

    def __init__(self, angle: Tensor, shape: Sequence[int], blank: Tensor, interpolation: str = "linear") -> None:
        """angle [S, T], shape (C, h, w), blank [C], interpolation linear or nearest."""
        self.mode = {"linear": "bilinear", "nearest": "nearest"}[interpolation]
        h, w = shape[1:]
        self.angle, self.blank, self.half = angle, blank, (w / 2, h / 2)
        self.y = torch.arange(h, device=angle.device, dtype=torch.float64)[:, None] - (h - 1) / 2
        self.x = torch.arange(w, device=angle.device, dtype=torch.float64) - (w - 1) / 2

    def grid(self, angle: Tensor) -> Tensor:
        """The source of each pixel, in grid_sample's units (edges of the image at -1 and 1): [..., h, w, 2]."""
        turn = torch.deg2rad(angle.double())[..., None, None]
        x, y = turn.cos() * self.x - turn.sin() * self.y, turn.sin() * self.x + turn.cos() * self.y
        return torch.stack([x / self.half[0], y / self.half[1]], -1).float()

    def __call__(self, x: Tensor, task: Tensor) -> Tensor:
        """x [S, B, C, h, w], task [S, B or 1] -> [S, B, C, h, w]."""
        grid = self.grid(self.angle.gather(1, task))  # [S, B or 1, h, w, 2]
        blank = self.blank[:, None, None]
        # if all rows of a seed have one angle, they become the channels of one image and share the weights
        images = (x - blank).flatten(1, 2) if task.shape[1] == 1 else (x - blank).flatten(0, 1)
        grid = grid[:, 0] if task.shape[1] == 1 else grid.flatten(0, 1)
        turned = torch.nn.functional.grid_sample(images, grid, mode=self.mode, align_corners=False)
        return turned.view_as(x) + blank


class Corrupt:
    """Applies its task's corruption to each image, on a range of 0 to 1, to which the result is clipped.

    gaussian_noise, gaussian_blur and contrast use the constants of CIFAR-10-C (Hendrycks & Dietterich 2019); occlusion
    is a black square at a random place inside the image, half its side at severity 5 (DeVries & Taylor 2017: 16 of 32
    pixels). Noise and square of a row are drawn from (seed, id), the same every time.
    """

    def __init__(
        self, severity: Tensor, samples: int, key: Tensor, low: Tensor, high: Tensor, side: Sequence[int]
    ) -> None:
        """severity [S, T, 4] of each kind, 0 to 5; ids are task * samples + sample; low, high [C]; side (h, w)."""
        self.severity, self.samples, self.key = severity, samples, key
        self.low, self.range = low[:, None, None], (high - low)[:, None, None]
        self.used = [bool((severity[..., k] > 0).any()) for k in range(len(KINDS))]
        self.blur = [torch.stack([_smooth(s, n) for s in BLUR]).to(severity.device) for n in side]  # [6, n, n]
        self.noise, self.contrast, self.side = (
            severity.new_tensor(c, dtype=torch.float32) for c in (NOISE, CONTRAST, OCCLUDED)
        )

    def __call__(self, x: Tensor, number: Tensor) -> Tensor:
        """x [S, B, C, h, w], number [S, B] -> [S, B, C, h, w]."""
        task = (number // self.samples)[..., None].expand(-1, -1, len(KINDS))
        level = self.severity.gather(1, task)  # [S, B, 4]
        key = rng.fold(self.key[:, None].expand_as(number).flatten(), number.flatten())
        z = (x - self.low) / self.range
        # a row with level 0 must stay bitwise unchanged, regardless of the kinds of other rows
        if self.used[0]:
            draw = rng.normal(key, *x.shape[2:]).view_as(x)
            noisy = (z + _wide(self.noise[level[..., 0]]) * draw).clamp(0, 1)
            z = torch.where(_wide(level[..., 0] > 0), noisy, z)
        if self.used[1]:
            smooth = self.blur[0][level[..., 1]][:, :, None] @ z @ self.blur[1][level[..., 1]][:, :, None].mT
            z = torch.where(_wide(level[..., 1] > 0), smooth, z)
        if self.used[2]:
            mean = z.mean((3, 4), keepdim=True)
            flat = (z - mean) * _wide(self.contrast[level[..., 2]]) + mean
            z = torch.where(_wide(level[..., 2] > 0), flat, z)
        if self.used[3]:
            u = rng.uniform(rng.fold(key, "square"), 2).view(*number.shape, 2)
            rows, columns = (_inside(u[..., k], self.side[level[..., 3]], x.shape[3 + k]) for k in (0, 1))
            z = z.masked_fill((rows[..., :, None] & columns[..., None, :])[:, :, None], 0)
        return torch.where(_wide(level.sum(2) > 0), z * self.range + self.low, x)


def _wide(v: Tensor) -> Tensor:
    return v[..., None, None, None]


def _inside(u: Tensor, side: Tensor, n: int) -> Tensor:
    """Pixels of an axis of n covered by a randomly placed interval of round(side n) pixels: [S, B, n]."""
    length = (side * n).round()
    start = (u * (n - length + 1)).floor()
    pixel = torch.arange(n, device=u.device)
    return (pixel >= start[..., None]) & (pixel < (start + length)[..., None])


def _smooth(sigma: float, n: int) -> Tensor:
    """Gaussian smoothing of an axis of n pixels as a matrix [n, n]; cut off at 4 sigma, border pixels repeated."""
    reach = int(4 * sigma + 0.5)
    offset = torch.arange(-reach, reach + 1)
    weight = torch.exp(-0.5 * (offset.double() / max(sigma, 1e-9)).square())
    source = (torch.arange(n)[:, None] + offset).clamp(0, n - 1)
    return torch.zeros(n, n, dtype=torch.float64).scatter_add_(1, source, (weight / weight.sum()).expand(n, -1)).float()
