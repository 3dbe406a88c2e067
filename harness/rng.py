"""Counter-based randomness: one stream per (seed, purpose), independent of the number of seeds.

A key is an int64 tensor [S]. A draw hashes (key, counter) with the splitmix64 finaliser (Steele,
Lea & Flood 2014): row s depends only on `key[s]`, integer draws agree on CPU and CUDA, and the whole
state of a stream is one Python integer.

>>> key = keys([7, 8], "order")
>>> torch.equal(permutation(key, 5)[1:], permutation(keys([8], "order"), 5))
True
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence

import torch
from torch import Tensor

# splitmix64's constants as signed 64-bit integers: torch has no wrapping uint64 arithmetic
_GAMMA = -0x61C8864680B583EB
_M1 = -0x40A7B892E31B1A47
_M2 = -0x6B2FB644ECCEEE15


def _shift(z: Tensor, n: int) -> Tensor:
    """Logical right shift."""
    return (z >> n) & ((1 << (64 - n)) - 1)


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shift(z, 30)) * _M1
    z = (z ^ _shift(z, 27)) * _M2
    return z ^ _shift(z, 31)


def keys(seeds: Sequence[int], purpose: str, device: torch.device | str = "cpu") -> Tensor:
    """Keys [S] for one purpose."""
    return fold(torch.tensor(list(seeds), dtype=torch.int64, device=device), purpose)


def fold(key: Tensor, data: int | str | Tensor) -> Tensor:
    """A key [S] derived from `key` and a number (or one per seed) or a name."""
    if isinstance(data, str):
        data = zlib.crc32(data.encode())
    data = data * _GAMMA
    if isinstance(data, int):
        data = (data + 2**63) % 2**64 - 2**63  # wrap as 64-bit arithmetic does
    return _mix(_mix(key + _GAMMA) + data)


def bits(key: Tensor, *shape: int) -> Tensor:
    """Uniform int64 [S, *shape]."""
    counter = torch.arange(1, math.prod(shape) + 1, dtype=torch.int64, device=key.device)
    return _mix(key[:, None] + counter * _GAMMA).view(len(key), *shape)


def uniform(key: Tensor, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Uniform on [0, 1): [S, *shape], 24 random bits in float32, 53 in float64."""
    kept = 53 if dtype == torch.float64 else 24
    return _shift(bits(key, *shape), 64 - kept).to(dtype) * 2.0**-kept


def normal(key: Tensor, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal [S, *shape] (Box & Muller 1958: two from each pair of uniform numbers)."""
    n = math.prod(shape)
    u = uniform(key, 2, (n + 1) // 2, dtype=dtype)
    radius, angle = (-2 * torch.log1p(-u[:, 0])).sqrt(), 2 * math.pi * u[:, 1]
    return torch.cat([radius * angle.cos(), radius * angle.sin()], 1)[:, :n].view(len(key), *shape)


def rademacher(key: Tensor, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """+1 or -1 with equal probability: [S, *shape]."""
    return (_shift(bits(key, *shape), 63) * 2 - 1).to(dtype)


def integers(key: Tensor, high: int | Tensor, *shape: int) -> Tensor:
    """Uniform on 0 ... high - 1: [S, *shape]; `high` may broadcast, e.g. [S, 1]."""
    return (uniform(key, *shape, dtype=torch.float64) * high).long()


def permutation(key: Tensor, n: int, size: Tensor | None = None) -> Tensor:
    """A random order of 0 ... n - 1 for each seed: [S, n].

    With `size` [S], at most n, the first size[s] entries of row s are a permutation of
    0 ... size[s] - 1, the same as with n = size[s].
    """
    score = _shift(bits(key, n), 1)  # non-negative: the padding sorts last
    if size is not None:
        score = score.masked_fill(torch.arange(n, device=key.device) >= size[:, None], torch.iinfo(torch.int64).max)
    return score.argsort(dim=1, stable=True)


class RandomStream:
    """A sequence of keys for one purpose; its state is the number of keys drawn."""

    def __init__(self, key: Tensor, count: int = 0) -> None:
        self.base, self.count = key, count

    def key(self) -> Tensor:
        """The next key [S]."""
        self.count += 1
        return fold(self.base, self.count)

    def state_dict(self) -> dict[str, int]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.count = state["count"]
