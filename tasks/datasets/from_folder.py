"""A user's folder of images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from harness.wording import first_line
from tasks.datasets.cache import Arrays, cached, progress
from tasks.datasets.dataset import Dataset, Preparation
from tasks.datasets.errors import DataError
from tasks.datasets.images import decode
from tasks.datasets.own import PARTS, existing, finished

IMAGES = (".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp")


def folder(
    path: str | Path | None,
    colour: str | None = None,
    val: float = 0.1,
    test: float = 0.2,
    normalise: str = "standard",
    pad: int = 0,
    size: int | None = None,
    features: str | None = None,
    augment: Sequence[str] = (),
) -> Dataset:
    """A folder of images, one folder per class (torchvision's ImageFolder).

    PATH/train/CLASS/*.png, PATH/test/CLASS/*.png and optionally PATH/val/CLASS/*.png; or PATH/CLASS/*.png, of which a
    stratified fraction `test` is held out, the same for all seeds. Without a val folder, the fraction `val` of the
    training images is held out. Classes are numbered in alphabetical order. Images are grey if the first one is (or as
    `colour` says). If their sizes differ, `size` must be set.
    Raises DataError for unreadable files, and for sizes or classes that do not fit.
    """
    how = Preparation(val, test, normalise, pad, size, features, augment)
    base = existing(path, "a folder with one folder of images per class")
    if colour not in (None, "rgb", "grey"):
        raise ValueError(f"dataset.colour={colour}: must be rgb or grey, or null for the mode of the first image")
    if not base.is_dir():
        raise DataError(f"dataset.path={path}: a file, not a folder; use dataset=npz or dataset=parquet to read a file")
    parts = {p: base / p for p in PARTS if (base / p).is_dir()}
    if parts and "train" not in parts:
        raise DataError(f"dataset.path={path}: has a folder {next(iter(parts))} but no folder train; add it")
    listed = {p: _listed(f) for p, f in (parts or {"train": base}).items()}
    names = list(listed["train"])
    for part, classes in listed.items():
        for name in classes:
            if name not in names:
                raise DataError(f"{parts[part] / name}: class {name} has no folder in {parts['train']}")
        for name in names:
            if name not in classes and part == "test":
                raise DataError(f"{parts[part]}: no folder for class {name}, which is in {parts['train']}")
    files = [(f, names.index(c)) for p in PARTS if p in listed for c, fs in listed[p].items() for f in fs]
    counts = {p: sum(map(len, classes.values())) for p, classes in listed.items()}
    made = cached(
        f"folder-{base.name}",
        [base.resolve()],
        [str(base.resolve()), colour, size],
        lambda: _decoded(files, colour, size),
    )
    y = np.array([label for _, label in files], np.int64)
    return finished(base.name, made["x"], y, counts, names, how)


def _listed(base: Path) -> dict[str, list[Path]]:
    """Class -> its images, both sorted by name; hidden files and other file types are skipped."""
    found: dict[str, list[Path]] = {}
    for entry in sorted(base.iterdir()):
        if entry.is_dir() and not entry.name.startswith("."):
            images = sorted(f for f in entry.rglob("*") if f.suffix.lower() in IMAGES and not f.name.startswith("."))
            if not images:
                raise DataError(f"{entry}: class without images ({', '.join(IMAGES)}); add some or delete the folder")
            found[entry.name] = images
    if not found:
        loose = next((f for f in base.iterdir() if f.suffix.lower() in IMAGES), None)
        there = f"images such as {loose.name} are not in a class folder" if loose else "no folders found"
        raise DataError(f"{base}: {there}; expected one folder per class, as in {base / 'cat' / '1.png'}")
    for name, count in Counter(n.lower() for n in found).items():
        if count > 1:
            twins = [n for n in found if n.lower() == name]
            raise DataError(f"{base}: {' and '.join(twins)} differ only by case; use one folder per class")
    return found


def _decoded(files: Sequence[tuple[Path, int]], colour: str | None, size: int | None) -> Arrays:
    from PIL import Image

    first, asked = files[0][0], colour
    x = np.empty(0, np.uint8)
    for row, (file, _) in enumerate(progress(files, "decoding images")):
        try:
            with Image.open(file) as image:
                grey = image.mode in ("1", "L", "LA", "I", "I;16", "F")
                colour = colour or ("grey" if grey else "rgb")
                pixels = decode(image, colour, size)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise DataError(
                f"{file}: cannot be read as an image ({first_line(error)}); replace it or delete it"
            ) from error
        if row == 0:
            x = np.empty((len(files), *pixels.shape), np.uint8)
        if asked is None and colour == "grey" and not grey:
            raise DataError(f"{file}: in colour, but {first} is grey; set dataset.colour=rgb or grey")
        if pixels.shape != x.shape[1:]:
            sides = [f"{s[2]}x{s[1]}" for s in (pixels.shape, x.shape[1:])]
            raise DataError(f"{file}: {sides[0]} pixels, but {first} has {sides[1]}; set dataset.size to resize all")
        x[row] = pixels
    return {"x": x}
