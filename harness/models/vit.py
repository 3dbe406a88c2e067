"""Vision transformer."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from harness.models import layers, sequences
from harness.models.encoder import Encoder, Tape
from harness.types import Buffers, Gates, Out, Params


class ViT:
    """Vision transformer (Dosovitskiy et al. 2021): an image as a sequence of square patches, each mapped to a vector.

    `shape` is (channels, height, width) of one input, `patch` the side of a patch in pixels; see `Encoder` for the
    rest. Patches follow one another in rows from the top left; a patch's numbers are ordered by channel, row, column.
    Raises ValueError for an option out of range, for data that are not images, for sides that are no multiple of
    `patch`, and for training with dropout without a key.
    """

    def __init__(
        self,
        shape: Sequence[int],
        outputs: int,
        patch: int = 4,
        width: int = 64,
        depth: int = 4,
        heads: int = 4,
        mlp: int = 128,
        activation: str = "gelu",
        norm: str = "layer",
        pool: str = "class",
        dropout: float = 0.0,
        init: str = "xavier",
    ) -> None:
        channels, *sides = layers.image(shape, "vit")
        if patch < 1 or any(side % patch for side in sides):
            raise ValueError(
                f"model.patch={patch}: must divide the sides of {sides[0]}x{sides[1]} pixels; dataset.pad or"
                " dataset.size change them"
            )
        self.patch, self.numbers = patch, channels * patch**2
        length = (sides[0] // patch) * (sides[1] // patch)
        self.encoder = Encoder(
            "vit", length, outputs, width, depth, heads, mlp, activation, norm, pool, dropout, init,
            layers.writes("patch"),
        )  # fmt: skip
        self.units, self.head, self.outputs = self.encoder.units, self.encoder.head, outputs
        self.layers = (sequences.layer("patch"), *self.encoder.layers)
        self.scales, self.stochastic = self.encoder.scales, dropout > 0

    def init(self, key: Tensor) -> tuple[Params, Buffers]:
        drawn = layers.draw_map(key, "patch", self.encoder.width, self.numbers, how=self.encoder.how)
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
        h = tape.map(params, "patch", self.patches(x.to(params["head.weight"].dtype)))
        logits = self.encoder(params, h, tape, gates, key if train else None)
        return Out(logits.contiguous(), tape.acts, buffers, tape.inputs, tape.preacts)

    def patches(self, x: Tensor) -> Tensor:
        """Images [S, B, C, h, w] as their patches [S, B, L, C patch²]."""
        side = self.patch
        parts: Tensor = x.unflatten(4, (-1, side)).unflatten(3, (-1, side))  # [S, B, C, h', side, w', side]
        return parts.permute(0, 1, 3, 5, 2, 4, 6).flatten(4).flatten(2, 3)
