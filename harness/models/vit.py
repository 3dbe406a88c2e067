"""Vision transformer."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from harness.models import layers
from harness.models.encoder import Encoder


class ViT(Encoder):
    """Vision transformer (Dosovitskiy et al. 2021): an image as a sequence of square patches, each mapped to a vector.

    `shape` is (channels, height, width) of one input, `patch` the side of a patch in pixels; see `Encoder` for the
    rest. Patches follow one another in rows from the top left; a patch's numbers are ordered by channel, row, column.
    Raises ValueError for an option out of range, for data that are not images, for sides that are no multiple of
    `patch`, and for training with dropout without a key.
    """

    EMBED = "patch"

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
        self.patch, length = patch, (sides[0] // patch) * (sides[1] // patch)
        size = (length, channels * patch**2, outputs)
        super().__init__(*size, width, depth, heads, mlp, activation, norm, pool, dropout, init)

    def positions(self, x: Tensor) -> Tensor:
        """Images [S, B, C, h, w] as their patches [S, B, L, C patch²]."""
        side = self.patch
        parts: Tensor = x.unflatten(4, (-1, side)).unflatten(3, (-1, side))  # [S, B, C, h', side, w', side]
        return parts.permute(0, 1, 3, 5, 2, 4, 6).flatten(4).flatten(2, 3)
