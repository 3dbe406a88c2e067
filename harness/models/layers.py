"""Layers and initial values with the seed axis first."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from harness import rng
from harness.types import Gates, Params, Slice

EPS = 1e-5
MOMENTUM = 0.1


def activation(name: str) -> tuple[Callable[[Tensor], Tensor], int]:
    """The function and its channels per unit. Raises ValueError for an unknown name."""
    known: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
        "relu": (torch.relu, 1),
        "tanh": (torch.tanh, 1),
        "crelu": (lambda x: torch.cat([x, -x], 2).relu(), 2),  # Shang et al. 2016
        "fourier": (lambda x: torch.cat([x.sin(), x.cos()], 2), 2),  # Lewandowski, Schuurmans & Machado 2024
    }
    if name not in known:
        raise ValueError(f"activation={name}: choose one of {', '.join(known)}")
    return known[name]


def asymptote(name: str) -> float | None:
    """Limit of the absolute value of this activation as it saturates, if it does."""
    return {"tanh": 1.0}.get(name)


def image(shape: Sequence[int], model: str) -> tuple[int, int, int]:
    """Channels, height, width. Raises ValueError for data that are not images."""
    if len(shape) != 3:
        raise ValueError(f"model={model}: needs images [channels, height, width], not {list(shape)}; use model=mlp")
    return shape[0], shape[1], shape[2]


def linear(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """x [S, B, in], w [S, out, in], b [S, out] -> [S, B, out], laid out with the batch innermost."""
    # Written as w xᵀ, not x wᵀ: autograd then returns the gradient of w in w's layout; a transposed one
    # slows every elementwise operation of the optimizer. Measured on two cores, a step with SGD against
    # nn.Linear at S=1: 0.91-1.08 (x wᵀ: 1.06-1.18); at S=10, 64-100-100-10, per seed: 0.20-0.23 (0.23-0.26).
    return torch.baddbmm(b[:, :, None], w, x.mT).mT


def conv2d(x: Tensor, w: Tensor, b: Tensor | None, stride: int = 1, padding: int = 0) -> Tensor:
    """x [S, B, C, h, w], w [S, O, C, k, k], b [S, O] -> [S, B, O, h', w']."""
    seeds = len(w)
    if seeds == 1 or x.is_cuda:
        bias = None if b is None else b.flatten()
        return _split(F.conv2d(_merge(x), w.flatten(0, 1), bias, stride, padding, groups=seeds), seeds)
    # Grouped, a CPU takes up to twice as long unless channels are a multiple of 16 (40 to 80 on 8x8: 19 ms
    # against 10, one thread).
    biases = [None] * seeds if b is None else b.unbind()
    rows = zip(x.unbind(), w.unbind(), biases, strict=True)
    return torch.stack([F.conv2d(xs, ws, bs, stride, padding) for xs, ws, bs in rows])


def max_pool(x: Tensor, size: int) -> Tensor:
    """Non-overlapping windows: [S, B, C, h, w] -> [S, B, C, h // size, w // size]."""
    y = F.max_pool2d(x.flatten(0, 1), size)
    return y.view(*x.shape[:2], *y.shape[1:])


def layer_norm(x: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
    """Normalises the last axis of [S, B, H] (Ba, Kiros & Hinton 2016)."""
    return torch.addcmul(shift[:, None], F.layer_norm(x, x.shape[-1:], eps=EPS), gain[:, None])


def group_norm(x: Tensor, gain: Tensor, shift: Tensor, groups: int) -> Tensor:
    """Normalises each group of channels of [S, B, C, h, w] (Wu & He 2018)."""
    y = F.group_norm(x.flatten(0, 1), groups, eps=EPS).view(x.shape)
    return torch.addcmul(shift[:, None, :, None, None], y, gain[:, None, :, None, None])


def batch_norm(
    x: Tensor, gain: Tensor, shift: Tensor, mean: Tensor, var: Tensor, train: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalises [S, B, C, h, w] over B, h, w (Ioffe & Szegedy 2015).

    Returns it with the new running mean and variance [S, C]. As in torch, a batch is normalised by its biased
    variance, and the running variance averages the unbiased one.
    Raises ValueError if a channel has a single value to train on.
    """
    if train:
        if x[:, :, 0].numel() == len(x):
            raise ValueError(
                f"train.batch_size={x.shape[1]}: batch norm needs more than one value a channel; use a larger batch,"
                " or a model without batch norm (model.norm=group)"
            )
        # F.batch_norm writes into them through flat views: they must be contiguous
        mean, var = (v.clone(memory_format=torch.contiguous_format) for v in (mean, var))
    stats = mean.flatten(), var.flatten()
    y = F.batch_norm(_merge(x), *stats, gain.flatten(), shift.flatten(), train, MOMENTUM, EPS)
    return _split(y, len(x)), mean, var


def dropout(x: Tensor, rate: float, key: Tensor) -> Tensor:
    """Zeroes entries of [S, B, ...] with probability `rate` and scales the rest by 1 / (1 - rate).

    Draws run row-major: appending rows to a batch does not change the masks of earlier rows.
    """
    kept = rng.uniform(key, *x.shape[1:]) >= rate  # always float32: the same mask in both precisions
    return x * kept / (1 - rate)


def gate(x: Tensor, gates: Gates | None, name: str) -> Tensor:
    """The hidden units x [S, B, k H, ...] times their gate [S, B, H], the same for all k copies of a unit (CReLU).

    >>> gate(torch.ones(1, 1, 4), {"h": torch.tensor([[[0.0, 0.5]]])}, "h")
    tensor([[[0.0000, 0.5000, 0.0000, 0.5000]]])
    """
    if gates is None or name not in gates:
        return x
    g = gates[name].repeat(1, 1, x.shape[2] // gates[name].shape[2])
    return x * g.view(*g.shape, *[1] * (x.dim() - 3))


def draw_map(key: Tensor, name: str, out: int, *fan_in: int, bias: bool = True) -> Params:
    """PyTorch's default for linear and convolutional maps: U(-a, a) with a = 1 / sqrt(fan in)."""
    bound = math.prod(fan_in) ** -0.5
    shapes = {f"{name}.weight": (out, *fan_in)} | ({f"{name}.bias": (out,)} if bias else {})
    return {n: (2 * rng.uniform(rng.fold(key, n), *s) - 1) * bound for n, s in shapes.items()}


def draw_norm(key: Tensor, name: str, channels: int) -> Params:
    """Gain 1 and shift 0."""
    shape = (len(key), channels)
    return {
        f"{name}.gain": torch.ones(shape, device=key.device),
        f"{name}.shift": torch.zeros(shape, device=key.device),
    }


def writes(name: str, bias: bool = True) -> tuple[Slice, ...]:
    """The rows of a weight, and bias, that write the units."""
    rows = Slice(f"{name}.weight", 1)
    return (rows, Slice(f"{name}.bias", 1, bias=True)) if bias else (rows,)


def reads(name: str, size: int = 0, copies: int = 1, repeat: int = 1) -> tuple[Slice, ...]:
    """The columns of a weight that read `size` units: `copies` blocks with `repeat` columns per unit."""
    return tuple(Slice(f"{name}.weight", 2, repeat, i * size * repeat) for i in range(copies))


def _merge(x: Tensor) -> Tensor:
    """[S, B, C, h, w] -> [B, S C, h, w]."""
    return x.transpose(0, 1).flatten(1, 2)


def _split(x: Tensor, seeds: int) -> Tensor:
    """[B, S C, h, w] -> [S, B, C, h, w]."""
    return x.view(len(x), seeds, -1, *x.shape[2:]).transpose(0, 1)
