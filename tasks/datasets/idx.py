"""The file format of the MNIST family, read with numpy."""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harness.wording import first_line
from tasks.datasets.errors import corrupt
from tasks.datasets.table import Spec

CHUNK = 2**24  # bytes to read at once


def names(path: Path) -> tuple[Path, Path]:
    """`path`, unpacked (faster) and as .gz."""
    return path, path.with_name(path.name + ".gz")


def existing(path: Path) -> Path | None:
    """The first of `names` that exists."""
    return next((p for p in names(path) if os.path.isfile(p)), None)


def complete(folders: list[Path], names: tuple[str, ...]) -> list[Path]:
    """The files from the first folder that has all of them; two folders are never mixed."""
    for folder in folders:
        found = [p for p in (existing(folder / name) for name in names) if p]
        if len(found) == len(names):
            return found
    return []


def part(images: Path, labels: Path, spec: Spec) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Images [n, 1, h, w] and labels [n] from 0, checked against each other and the table."""
    x, y = idx(images, 3), idx(labels, 1)
    if x.shape[1:] != spec.shape[1:]:
        raise corrupt(images, f"images have {x.shape[1:]} pixels, expected {spec.shape[1:]}")
    if not len(x) or len(x) != len(y):
        raise corrupt(labels, f"{len(y)} labels for {len(x)} images in {images.name}")
    if y.max() >= spec.classes + spec.first or y.min() < spec.first:
        worst = y.max() if y.max() >= spec.classes + spec.first else y.min()
        raise corrupt(labels, f"label {worst}, but there are {spec.classes} classes")
    return (x.swapaxes(1, 2) if spec.transposed else x)[:, None], y - spec.first


def idx(path: Path, ndim: int) -> NDArray[np.uint8]:
    """Bytes of an idx file: 0, 0, type 8, number of axes, big-endian lengths, data; plain or gzip.

    It is read up to the length in its header, however much a compressed file would unpack to.
    """
    head = 4 + 4 * ndim
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            stream = gzip.GzipFile(fileobj=raw) if packed else raw
            start = stream.read(head)
            if start[:4] != bytes((0, 0, 8, ndim)) or len(start) < head:
                raise corrupt(path, f"not an idx file of bytes with {ndim} axes")
            shape = struct.unpack(f">{ndim}I", start[4:])
            wanted, data = math.prod(shape), bytearray()
            while chunk := stream.read(min(wanted + 1 - len(data), CHUNK)):  # reading past the end checks gzip's sum
                data += chunk
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise corrupt(path, first_line(error)) from error
    if len(data) != wanted:
        more = "at least " if len(data) > wanted else ""
        raise corrupt(path, f"{more}{head + len(data)} bytes, but its header says {head + wanted}")
    return np.frombuffer(data, np.uint8).reshape(shape)
