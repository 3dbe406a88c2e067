"""Transformer over sequences."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from harness.models import layers, sequences
from harness.models.encoder import Encoder, Tape
from harness.types import Buffers, Gates, Out, Params


class Transformer:
    """Transformer encoder (Vaswani et al. 2017) over a sequence of vectors, each mapped to the width of the stream.

    `shape` is [L, F] of one input, or that of an image, whose rows are the positions; see `Encoder` for the rest. All
    positions see one another. Raises ValueError for an option out of range, for data that are neither sequences nor
    images, and for training with dropout without a key.
    """

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
        length, self.features = sequences.shape_of(shape, "transformer")
        self.encoder = Encoder(
            "transformer", length, outputs, width, depth, heads, mlp, activation, norm, pool, dropout, init,
            layers.writes("embed"),
        )  # fmt: skip
        self.units, self.head, self.outputs = self.encoder.units, self.encoder.head, outputs
        self.layers = (sequences.layer("embed"), *self.encoder.layers)
        self.scales, self.stochastic = self.encoder.scales, dropout > 0

    def init(self, key: Tensor) -> tuple[Params, Buffers]:
        drawn = layers.draw_map(key, "embed", self.encoder.width, self.features, how=self.encoder.how)
        return drawn | self.encoder.init(key), {}

    def __call__(
        self,
        params: Params,
        buffers: Buffers,
        x: Tensor,
        t: Tensor,
        *,
        train: bool = False,
        key: Tensor | None = None,
        record: bool = False,
        gates: Gates | None = None,
    ) -> Out:
        if train and self.stochastic and key is None:
            raise ValueError(f"dropout={self.encoder.dropout}: training needs a key that fixes the masks")
        tape = Tape(record)
        h = tape.map(params, "embed", sequences.rows(x).to(params["head.weight"].dtype))
        logits = self.encoder(params, h, tape, gates, key if train else None)
        return Out(logits.contiguous(), tape.acts, buffers, tape.inputs, tape.preacts)
