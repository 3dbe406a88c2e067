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


def activation(name: str) -> tuple[Callable[[Tensor], Tensor], int]:
    """The function and its channels per unit, with torch's constants. Raises ValueError for an unknown name."""
    known: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
        "relu": (torch.relu, 1),
        "tanh": (torch.tanh, 1),
        "gelu": (F.gelu, 1),  # Hendrycks & Gimpel 2016, exact
        "silu": (F.silu, 1),  # the same
        "leaky_relu": (F.leaky_relu, 1),  # slope 0.01 (Maas, Hannun & Ng 2013)
        "elu": (F.elu, 1),  # alpha 1 (Clevert, Unterthiner & Hochreiter 2016)
        "softplus": (F.softplus, 1),  # Dugas et al. 2001
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


def layer_norm(x: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
    """Normalises the last axis of [S, B, H] (Ba, Kiros & Hinton 2016)."""
    return torch.addcmul(shift[:, None], F.layer_norm(x, x.shape[-1:], eps=EPS), gain[:, None])


def dropout(x: Tensor, rate: float, key: Tensor) -> Tensor:
    """Zeroes entries of [S, B, ...] with probability `rate` and scales the rest by 1 / (1 - rate).

    Draws run row-major: appending rows to a batch does not change the masks of earlier rows.
    """
    kept = rng.uniform(key, *x.shape[1:]) >= rate  # always float32: the same mask in both precisions
    return x * kept / (1 - rate)


def dropped(x: Tensor, rate: float, key: Tensor | None, name: str) -> Tensor:
    """`dropout` in a layer, with masks of its own. ValueError without a key."""
    if key is None:
        raise ValueError(f"dropout={rate}: training needs a key that fixes the masks")
    return dropout(x, rate, rng.fold(key, name))


def check_rate(rate: float) -> None:
    """ValueError for a dropout rate out of range."""
    if not 0 <= rate < 1:
        raise ValueError(f"model.dropout={rate}: must be at least 0 and below 1")


def gate(x: Tensor, gates: Gates | None, name: str) -> Tensor:
    """Hidden units x [S, B, ..., k H] times their gate [S, B, H], for all positions and k copies of a unit (CReLU).

    >>> gate(torch.ones(1, 1, 4), {"h": torch.tensor([[[0.0, 0.5]]])}, "h")
    tensor([[[0.0000, 0.5000, 0.0000, 0.5000]]])
    """
    if gates is None or name not in gates:
        return x
    factor = gates[name].repeat(1, 1, x.shape[-1] // gates[name].shape[2])
    return x * factor.view(*factor.shape[:2], *[1] * (x.dim() - 3), -1)


INITS = ("torch", "xavier", "kaiming")  # of `draw_map`


def check_init(init: str) -> None:
    """ValueError for an unknown distribution of initial weights."""
    if init not in INITS:
        raise ValueError(f"model.init={init}: must be {', '.join(INITS[:-1])} or {INITS[-1]}")


def draw_map(key: Tensor, name: str, out: int, *fan_in: int, bias: bool = True, how: str = "torch") -> Params:
    """Weights of a linear or convolutional map, drawn from U(-a, a).

    torch: a = 1 / sqrt(fan in), for biases too: PyTorch's default; xavier: a = sqrt(6 / (fan in + fan out)) (Glorot &
    Bengio 2010), kaiming: a = sqrt(6 / fan in) (He et al. 2015, for relu), both with biases of 0.
    """
    inputs, outputs = math.prod(fan_in), out * math.prod(fan_in[1:])
    bound = {"torch": inputs**-0.5, "xavier": (6 / (inputs + outputs)) ** 0.5, "kaiming": (6 / inputs) ** 0.5}[how]
    shapes = {f"{name}.weight": (out, *fan_in)} | ({f"{name}.bias": (out,)} if bias else {})
    drawn = {n: (2 * rng.uniform(rng.fold(key, n), *s) - 1) * bound for n, s in shapes.items()}
    if bias and how != "torch":
        drawn[f"{name}.bias"].zero_()
    return drawn


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
