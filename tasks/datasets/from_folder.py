"""A user's folder of images."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from harness.wording import first_line
from tasks.datasets.cache import Arrays, cached, progress
from tasks.datasets.dataset import Dataset, Preparation
from tasks.datasets.decoding import BACKGROUNDS, GREY, Unsuitable, check_depth, decode, opaque, upright
from tasks.datasets.errors import DataError
from tasks.datasets.limits import check_memory
from tasks.datasets.own import existing, finished
from tasks.datasets.parts import PARTS, by_part, part_of, refuse_near
from tasks.datasets.values import alike

UNREAD = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF")  # formats that PIL knows and cannot decode by itself


def folder(
    path: str | Path | None,
    colour: str | None = None,
    val: float = 0.1,
    test: float = 0.2,
    normalise: str = "standard",
    pad: int = 0,
    size: int | None = None,
    features: Any = None,
    augment: Sequence[str] = (),
    background: str | None = None,
) -> Dataset:
    """A folder of images, one folder per class (torchvision's ImageFolder).

    PATH/train/CLASS/*.png, PATH/test/CLASS/*.png and optionally PATH/val/CLASS/*.png; or PATH/CLASS/*.png, of which a
    stratified fraction `test` is held out, the same for all seeds. Without a val folder, the fraction `val` of the
    training images is held out. Other spellings of the parts, such as Train and valid, are understood. Classes are
    numbered in alphabetical order. All formats that PIL decodes are read; hidden and other files are counted and left
    out. Images are grey if the first one is (or as `colour` says), turned upright as their EXIF orientation says, and
    keep values of more than 8 bits. Transparent pixels need a `background`. If sizes differ, `size` must be set.
    Raises DataError for unreadable files, and for sizes or classes that do not fit.
    """
    how = Preparation(val, test, normalise, pad, size, features, augment)
    base = existing(path, "a folder with one folder of images per class")
    if colour not in (None, "rgb", "grey"):
        raise ValueError(f"dataset.colour={colour}: must be rgb or grey, or null for the mode of the first image")
    if background not in (None, *BACKGROUNDS):
        raise ValueError(f"dataset.background={background}: must be {' or '.join(BACKGROUNDS)}, or null for none")
    if not base.is_dir():
        raise DataError(
            f"dataset.path={path}: a file, not a folder; use dataset=npz, dataset=parquet or dataset=csv to read a file"
        )
    others: Counter[str] = Counter()
    parts = _parts(base, f"dataset.path={path}", others)
    if parts and "train" not in parts:
        first = next(iter(parts.values())).name
        raise DataError(f"dataset.path={path}: has a folder {first} but no folder train; add it")
    listed = {p: _listed(f, others) for p, f in (parts or {"train": base}).items()}
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
        [str(base.resolve()), colour, size, background],
        lambda: _decoded(files, colour, size, background),
    )
    y = np.array([label for _, label in files], np.int64)
    notes = [*_left_out(len(files), others), *alike(names, str(parts.get("train", base)))]
    if several := int(made["several"][0]):
        notes.append(f"first of several frames used in {several:,} images")
    return finished(base.name, made["x"], y, counts, names, how, notes)


def _parts(base: Path, where: str, others: Counter[str]) -> dict[str, Path]:
    """Part -> its folder; {} if the folders are the classes. DataError for a name that resembles a part."""
    folders = {e.name: e for e in sorted(base.iterdir()) if e.is_dir() and not e.name.startswith(".")}
    deep = {n for n, e in folders.items() if any(c.is_dir() and not c.name.startswith(".") for c in e.iterdir())}
    meant = [n for n in folders if part_of(n)]
    if len(meant) == 1 and len(folders) > 1 and meant[0] not in deep:
        meant = []  # a class of trains among other classes
    refuse_near((n for n in folders if n not in meant and (meant or n in deep)), where, "folder")
    if not meant:
        return {}
    for entry in base.iterdir():
        if entry.name in folders and entry.name not in meant:
            others[f"in {entry.name}"] += sum(not f.is_dir() for f in entry.rglob("*"))
        elif not entry.is_dir():
            others[_kind(entry)] += 1
    return {part: base / name for part, name in by_part(meant, where, "folders").items()}


def _left_out(used: int, others: Counter[str]) -> list[str]:
    """
    >>> _left_out(24, Counter({".jfif": 16, ".heic": 20}))
    ['24 of 60 files used: 36 left out (20 .heic, 16 .jfif)']
    """
    n = others.total()
    kinds = [f"{count:,} {kind}" for kind, count in others.most_common(5) if count]
    more = [f"{len(others) - 5} other kinds"] if len(others) > 5 else []
    return [f"{used:,} of {used + n:,} files used: {n:,} left out ({', '.join([*kinds, *more])})"] if n else []


@cache
def suffixes() -> frozenset[str]:
    """Suffixes of the formats that PIL decodes."""
    from PIL import Image

    Image.init()
    known = Image.registered_extensions().items()
    return frozenset(suffix for suffix, name in known if name in Image.OPEN and name not in UNREAD)


def _kind(file: Path) -> str:
    """Why a file is left out; empty for an image."""
    if file.name.startswith("."):
        return "hidden"
    if not file.is_file():
        return "not readable as files"  # a fifo, a device, a broken link
    suffix = file.suffix.lower()
    return "" if suffix in suffixes() else suffix or "without suffix"


def _listed(base: Path, others: Counter[str]) -> dict[str, list[Path]]:
    """Class -> its images, both sorted by name; other files are counted by kind."""
    found: dict[str, list[Path]] = {}
    loose: list[str] = []
    for entry in sorted(base.iterdir()):
        if not entry.is_dir():
            kind = _kind(entry)
            loose += [entry.name] if not kind else []
            others[kind or "images outside the class folders"] += 1
        elif not entry.name.startswith("."):
            if inner := sorted(e.name for e in entry.iterdir() if e.is_dir() and part_of(e.name)):
                raise DataError(
                    f"{entry}: has folders {', '.join(inner)} within a class; use dataset.path={entry} if its folders "
                    f"are the data set, or put parts above classes, as in {base / inner[0] / entry.name}"
                )
            kinds = [(f, _kind(f)) for f in sorted(entry.rglob("*")) if not f.is_dir()]
            images = [f for f, kind in kinds if not kind]
            others.update(kind for _, kind in kinds if kind)
            if not images:
                raise DataError(
                    f"{entry}: class without images (.png, .jpg and others that PIL reads); add some or delete the "
                    "folder"
                )
            found[entry.name] = images
    if not found:
        there = f"images such as {loose[0]} are not in a class folder" if loose else "no folders found"
        raise DataError(f"{base}: {there}; expected one folder per class, as in {base / 'cat' / '1.png'}")
    for name, count in Counter(n.lower() for n in found).items():
        if count > 1:
            twins = [n for n in found if n.lower() == name]
            raise DataError(f"{base}: {' and '.join(twins)} differ only by case; use one folder per class")
    return found


def _decoded(files: Sequence[tuple[Path, int]], colour: str | None, size: int | None, background: str | None) -> Arrays:
    from PIL import Image

    first, asked = files[0][0], colour
    x, several = np.empty(0, np.uint8), 0
    for row, (file, _) in enumerate(progress(files, "decoding images")):
        try:
            # not by its name: PIL maps such TIFFs into memory, and mixes up the pixels of those that it turns
            with file.open("rb") as stream, Image.open(stream) as image:
                grey = image.mode in GREY
                colour = colour or ("grey" if grey else "rgb")
                several += getattr(image, "n_frames", 1) > 1
                check_depth(image)
                pixels = decode(opaque(upright(image), background), colour, size)
        except Unsuitable as error:
            raise DataError(f"{file}: {error}") from error
        except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
            raise DataError(
                f"{file}: cannot be read as an image ({first_line(error)}); replace it or delete it"
            ) from error
        if row == 0:
            check_memory(len(files) * pixels.nbytes, f"{first} and {len(files) - 1:,} more", "set dataset.size")
            x = np.empty((len(files), *pixels.shape), pixels.dtype)
        if asked is None and colour == "grey" and not grey:
            raise DataError(f"{file}: in colour, but {first} is grey; set dataset.colour=rgb or grey")
        if (pixels.dtype == np.uint8) != (x.dtype == np.uint8):
            more, less = (file, first) if x.dtype == np.uint8 else (first, file)
            raise DataError(f"{more}: more than 8 bits, but {less} has 8; save all images with the same depth")
        if pixels.shape != x.shape[1:]:
            sides = [f"{s[2]}x{s[1]}" for s in (pixels.shape, x.shape[1:])]
            raise DataError(f"{file}: {sides[0]} pixels, but {first} has {sides[1]}; set dataset.size to resize all")
        if pixels.dtype == np.float64:
            x = x.astype(np.float64, copy=False)
        x[row] = pixels
    return {"x": x, "several": np.array([several])}
