"""PIL images as arrays: upright, at their own depth, with a background behind what is transparent."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.datasets.images import resized
from tasks.datasets.values import floats

GREY = ("1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N", "F")
DEEP = ("I", "I;16", "I;16L", "I;16B", "I;16N", "F")  # more than 8 bits
BACKGROUNDS = ("black", "white")
ORIENTATION = 0x0112  # tag of EXIF


class Unsuitable(ValueError):
    """An image that would lose something, with the remedy."""


def decode(image: Any, colour: str, size: int | None) -> NDArray[Any]:
    """A PIL image as [C, h, w]: rgb or grey, resized as in `resized`, turned as its EXIF orientation says.

    8 bits become uint8. More bits keep their values, as float32 or float64. Unsuitable for 16 bits per colour, of
    which PIL reads 8.
    """
    check_depth(image)
    image = upright(image)
    made: NDArray[Any]
    if image.mode in DEEP:
        made = floats(np.array(image)[None], "image")
        made = np.repeat(made, 3, 0) if colour == "rgb" else made
    else:
        pixels = np.array(image.convert("RGB" if colour == "rgb" else "L"), np.uint8)  # a copy: PIL's is read-only
        made = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    if size is not None and made.shape[1:] != (size, size):
        made = resized(np.ascontiguousarray(made)[None], size)[0]
    return made


def upright(image: Any) -> Any:
    """The image turned as its EXIF orientation says."""
    from PIL import ImageOps

    image.load()  # PIL turns TIFF as it loads it, and only then forgets the tag
    return image if image.getexif().get(ORIENTATION, 1) == 1 else ImageOps.exif_transpose(image)


def opaque(image: Any, background: str | None) -> Any:
    """The image without alpha channel, over `background`. Unsuitable if pixels are transparent and there is none."""
    from PIL import Image

    if not image.has_transparency_data:
        return image
    if image.mode in DEEP:
        raise Unsuitable("transparent, with more than 8 bits; save it without transparency")
    whole = image.convert("RGBA")
    lowest = whole.getchannel("A").getextrema()[0]
    if lowest < 255 and background is None:
        raise Unsuitable("has transparent pixels; set dataset.background=black or white to fill them")
    if lowest < 255:
        whole = Image.alpha_composite(Image.new("RGBA", whole.size, background), whole)
    return whole.convert("L" if image.mode in GREY else "RGB")


def check_depth(image: Any) -> None:
    """Unsuitable if PIL would drop bits of an image that is not loaded yet: those beyond 8 per colour."""
    if image.mode in DEEP:
        return
    words = [word for tile in getattr(image, "tile", ()) for word in _flat(tile[3])]
    deep = image.format == "PPM" and any(isinstance(w, int) and w > 255 for w in words)
    if deep or any(isinstance(w, str) and re.search(r";16[BLN]$", w) for w in words):
        raise Unsuitable("more than 8 bits per colour, of which PIL reads 8; save it with 8 bits, or use dataset=npz")


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, tuple):
        for part in value:
            yield from _flat(part)
    else:
        yield value
