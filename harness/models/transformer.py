"""Transformer over sequences."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from harness.models import sequences
from harness.models.encoder import Encoder


class Transformer(Encoder):
    """Transformer encoder (Vaswani et al. 2017) over a sequence of vectors, each mapped to the width of the stream.

    `shape` is [L, F] of one input, or that of an image, whose rows are the positions; see `Encoder` for the rest. All
    positions see one another. Raises ValueError for an option out of range, for data that are neither sequences nor
    images, and for training with dropout without a key.
    """

    EMBED = "embed"

    def __init__(
        self,
        shape: Sequence[int],
        outputs: int,
        width: int = 64,
        depth: int = 2,
        heads: int = 4,
        mlp: int = 128,
        activation: str = "gelu",
        norm: str = "layer",
        pool: str = "mean",
        dropout: float = 0.0,
        init: str = "xavier",
    ) -> None:
        size = (*sequences.shape_of(shape, "transformer"), outputs)
        super().__init__(*size, width, depth, heads, mlp, activation, norm, pool, dropout, init)

    def positions(self, x: Tensor) -> Tensor:
        return sequences.rows(x)
