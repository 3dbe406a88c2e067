"""Data sets as tensors: found on disk or fetched once, split, normalised, digested.

The MNIST family is read here with numpy. CIFAR's batches are pickles, so that torchvision reads them, after
it has checked their MD5; SVHN goes the same way. torchvision and scikit-learn are imported when needed only.
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import math
import os
import socket
import struct
import sys
import tempfile
import textwrap
import zlib
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.random import keys
from harness.sampling import stratified

INFO = {  # a literal: `ls` reads it without importing torch
    "digits": "handwritten digits, 10 classes, 1x8x8, 1,438 + 359, no download (Alpaydin & Kaynak 1998)",
    "mnist": "handwritten digits, 10 classes, 1x28x28, 60,000 + 10,000 (LeCun et al. 1998)",
    "fashion_mnist": "clothing, 10 classes, 1x28x28, 60,000 + 10,000 (Xiao, Rasul & Vollgraf 2017)",
    "kmnist": "cursive Japanese characters, 10 classes, 1x28x28, 60,000 + 10,000 (Clanuwat et al. 2018)",
    "emnist": "digits and letters, balanced split, 47 classes, 1x28x28, 112,800 + 18,800 (Cohen et al. 2017)",
    "cifar10": "photographs, 10 classes, 3x32x32, 50,000 + 10,000 (Krizhevsky 2009)",
    "cifar100": "photographs, 100 fine classes, 3x32x32, 50,000 + 10,000 (Krizhevsky 2009)",
    "svhn": "house numbers, 10 classes, 3x32x32, 73,257 + 26,032 (Netzer et al. 2011)",
}

_DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # Debian's package dataset-fashion-mnist
_TIMEOUT = 10.0  # seconds without an answer from a mirror; torchvision sets none and would wait for ever
_IDX = tuple(f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))
_EMNIST = tuple("emnist-balanced-" + file.replace("t10k", "test") for file in _IDX)
_TRAIN_TEST: tuple[dict[str, Any], ...] = ({"train": True}, {"train": False})

Part = tuple[NDArray[np.uint8], NDArray[np.uint8]]  # images [n, *shape], labels [n]


class DataError(ValueError):
    """Data that is missing or corrupt: one line with what, where, and the remedy."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training samples first, then test samples; `train`, `val` and `test` are sorted indices into them."""

    name: str
    x: Tensor  # [N, *shape] float32, normalised
    y: Tensor  # [N] int64
    train: Tensor
    val: Tensor  # carved from the training samples
    test: Tensor
    classes: int
    digest: str  # of raw bytes, labels, normalisation and split

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one input."""
        return tuple(self.x.shape[1:])

    def to(self, device: torch.device | str) -> Dataset:
        """The same data on another device."""
        return replace(self, **{k: getattr(self, k).to(device) for k in ("x", "y", "train", "val", "test")})


class _Spec(NamedTuple):
    shape: tuple[int, ...]
    classes: int
    mean: tuple[float, ...]  # per channel, over the whole training set scaled to 0..1
    std: tuple[float, ...]
    top: int = 255  # largest pixel value
    cls: str = ""  # torchvision's class, whose folders and mirrors are used
    parts: tuple[dict[str, Any], ...] = _TRAIN_TEST  # its arguments for the training set and for the test set
    idx: tuple[str, ...] = ()  # files below <cls>/raw: training images and labels, test images and labels
    archive: str = ""  # what a user without network may copy into the root instead
    transposed: bool = False


# Constants of digits and fashion_mnist: computed (a test repeats it). The others are the published ones of
# the training set, not recomputed here. Traps: .1904, .3475 circulate for KMNIST too; the std often seen for
# CIFAR-10 (.2023, .1994, .2010) is the mean over images of each image's own std, not that of the pixels.
_SPECS = {
    "digits": _Spec((1, 8, 8), 10, (0.3047,), (0.3756,), top=16),
    "mnist": _Spec((1, 28, 28), 10, (0.1307,), (0.3081,), cls="MNIST", idx=_IDX),
    "fashion_mnist": _Spec((1, 28, 28), 10, (0.2860,), (0.3530,), cls="FashionMNIST", idx=_IDX),
    "kmnist": _Spec((1, 28, 28), 10, (0.1918,), (0.3483,), cls="KMNIST", idx=_IDX),
    "emnist": _Spec(
        (1, 28, 28),
        47,
        (0.1751,),
        (0.3332,),
        cls="EMNIST",
        parts=({"split": "balanced", "train": True}, {"split": "balanced", "train": False}),
        idx=_EMNIST,
        archive="EMNIST/raw/gzip.zip",
        transposed=True,  # its images are stored column by column
    ),
    "cifar10": _Spec(
        (3, 32, 32),
        10,
        (0.4914, 0.4822, 0.4465),
        (0.2470, 0.2435, 0.2616),
        cls="CIFAR10",
        archive="cifar-10-python.tar.gz",
    ),
    "cifar100": _Spec(
        (3, 32, 32),
        100,
        (0.5071, 0.4865, 0.4409),
        (0.2673, 0.2564, 0.2762),
        cls="CIFAR100",
        archive="cifar-100-python.tar.gz",
    ),
    "svhn": _Spec(
        (3, 32, 32),
        10,
        (0.4377, 0.4438, 0.4728),
        (0.1980, 0.2010, 0.1970),
        cls="SVHN",
        parts=({"split": "train"}, {"split": "test"}),
    ),
}


def load(
    name: str, root: str | Path | None = None, val: float = 0.1, normalise: str = "standard", pad: int = 0
) -> Dataset:
    """The data set `name` on the CPU, with a stratified fraction `val` of its training set held out.

    Inputs are (x - mean) / std per channel (normalise="standard", constants of the training set) or scaled
    to 0..1 ("unit"). `pad` puts so many black pixels on every side of an image. The split is fixed: it depends
    on `name` and `val`, never on a run's seeds. `root` is a folder in torchvision's layout (default:
    harness/data in the user's cache folder); what it lacks is downloaded, or (fashion_mnist) taken from
    Debian's package dataset-fashion-mnist where that is installed.
    Raises ValueError for a bad argument, DataError for data that is missing or corrupt.

    >>> data = load("digits")
    >>> data.shape, data.classes, len(data.train), len(data.val), len(data.test)
    ((1, 8, 8), 10, 1294, 144, 359)
    """
    if name not in _SPECS:
        close = get_close_matches(str(name), _SPECS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"choose one of {', '.join(_SPECS)}"
        raise ValueError(f"dataset={name}: no such data set; {hint}")
    if not isinstance(val, (int, float)) or not 0 <= val < 1:
        raise ValueError(f"dataset.val={val}: the fraction held out for validation is at least 0 and below 1")
    if normalise not in ("standard", "unit"):
        raise ValueError(f"dataset.normalise={normalise}: choose standard (mean 0, std 1) or unit (0..1)")
    if isinstance(pad, bool) or not isinstance(pad, int) or pad < 0:
        raise ValueError(f"dataset.pad={pad}: pixels put around an image are a whole number of at least 0")
    spec = _SPECS[name]
    if name == "digits":
        train, test = _digits()
    elif spec.idx:
        train, test = _read_idx(name, spec, _root(root))
    else:
        train, test = _read_checked(name, spec, _root(root))
    return _assemble(name, spec, train, test, val, normalise, pad)


def _assemble(name: str, spec: _Spec, train: Part, test: Part, val: float, normalise: str, pad: int) -> Dataset:
    raw = np.concatenate([train[0], test[0]]).reshape(-1, *spec.shape)  # [N, *shape] uint8
    if pad:
        raw = np.pad(raw, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    raw = np.ascontiguousarray(raw)  # concatenate keeps the strides of a transposed input
    y = torch.from_numpy(np.concatenate([train[1], test[1]]).astype(np.int64))
    n = len(train[1])
    held = stratified(y[:n], min(round(val * n), n - 1), keys([0], f"{name}/val"))[0]
    kept = torch.ones(n, dtype=torch.bool).index_fill(0, held, False).nonzero()[:, 0]
    split = kept, held, torch.arange(n, len(y))

    zero, one = (0.0,) * len(spec.mean), (1.0,) * len(spec.std)
    mean, std = (spec.mean, spec.std) if normalise == "standard" else (zero, one)
    x = torch.from_numpy(raw).to(torch.float32).div_(spec.top)
    x.sub_(torch.tensor(mean)[:, None, None]).div_(torch.tensor(std)[:, None, None])

    sha = hashlib.sha256(repr((raw.shape, spec.top, mean, std, [len(i) for i in split])).encode())
    for part in (raw, *(i.numpy() for i in (y, *split))):
        sha.update(part.data)
    return Dataset(name, x, y, *split, spec.classes, sha.hexdigest()[:16])


def _root(root: str | Path | None) -> Path:
    if root is None:
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "harness" / "data"
    return Path(root).expanduser()


def _digits() -> tuple[Part, Part]:
    """scikit-learn ships one set without a split: a fixed stratified fifth is ours for the test."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    test = stratified(torch.from_numpy(labels), round(len(labels) / 5), keys([0], "digits/test"))[0].numpy()
    x, y = images.astype(np.uint8), labels.astype(np.uint8)
    return (np.delete(x, test, 0), np.delete(y, test)), (x[test], y[test])


def _read_idx(name: str, spec: _Spec, root: Path) -> tuple[Part, Part]:
    folders = [root / spec.cls / "raw", *([_DEBIAN] if name == "fashion_mnist" else [])]
    paths = _complete(folders, spec.idx)
    if not paths:
        missing = [f for f in spec.idx if not _existing(folders[0] / f)]
        where = " or in ".join(map(str, folders))
        _download(name, spec, root, f"{', '.join(missing)} (plain or .gz) not in {where}")
        paths = _complete(folders, spec.idx)
    return _idx_part(paths[0], paths[1], spec), _idx_part(paths[2], paths[3], spec)


def _existing(path: Path) -> Path | None:
    """`path` unpacked (faster) or as .gz."""
    return next((p for p in (path, path.with_name(path.name + ".gz")) if os.path.isfile(p)), None)


def _complete(folders: list[Path], names: tuple[str, ...]) -> list[Path]:
    """The files from the first folder that has them all: never a mixture of two folders."""
    for folder in folders:
        found = [p for p in (_existing(folder / name) for name in names) if p]
        if len(found) == len(names):
            return found
    return []


def _idx_part(images: Path, labels: Path, spec: _Spec) -> Part:
    x, y = _idx(images, 3), _idx(labels, 1)
    if x.shape[1:] != spec.shape[1:]:
        raise _corrupt(images, f"images of {x.shape[1:]} pixels, expected {spec.shape[1:]}")
    if not len(x) or len(x) != len(y):
        raise _corrupt(labels, f"{len(y)} labels for {len(x)} images of {images.name}")
    if y.max() >= spec.classes:
        raise _corrupt(labels, f"label {y.max()} of {spec.classes} classes")
    return (x.swapaxes(1, 2) if spec.transposed else x), y


def _idx(path: Path, ndim: int) -> NDArray[np.uint8]:
    """Bytes of an idx file: 0, 0, type 8, number of axes, big-endian lengths, data; plain or gzip."""
    try:
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise _corrupt(path, _line(error)) from error
    head = 4 + 4 * ndim
    if data[:4] != bytes((0, 0, 8, ndim)) or len(data) < head:
        raise _corrupt(path, f"no idx file of bytes with {ndim} axes")
    shape = struct.unpack(f">{ndim}I", data[4:head])
    if len(data) != head + math.prod(shape):
        raise _corrupt(path, f"{len(data)} bytes, but its header promises {head + math.prod(shape)}")
    return np.frombuffer(data, np.uint8, offset=head).reshape(shape)


def _read_checked(name: str, spec: _Spec, root: Path) -> tuple[Part, Part]:
    """CIFAR and SVHN as torchvision reads them, which refuses any file whose MD5 is not the published one."""
    cls = _torchvision(name, spec)
    try:
        sets = [cls(root, **part) for part in spec.parts]
    except RuntimeError:
        from torchvision.datasets.utils import check_integrity

        files = _checksums(name, cls, root)
        for path, md5 in files:
            if os.path.isfile(path) and not check_integrity(path, md5):
                raise _corrupt(path, f"its MD5 is not {md5}") from None
        missing = [path for path, _ in files if not os.path.isfile(path)]
        if not missing:
            raise
        _download(name, spec, root, f"no {missing[0]}" + (f" nor {len(missing) - 1} more" if missing[1:] else ""))
        sets = [cls(root, **part) for part in spec.parts]
    train, test = (_checked_part(s) for s in sets)
    return train, test


def _checked_part(data: Any) -> Part:
    if hasattr(data, "labels"):  # SVHN: channels first
        return data.data, data.labels.astype(np.uint8)
    return data.data.transpose(0, 3, 1, 2), np.asarray(data.targets, np.uint8)


def _checksums(name: str, cls: Any, root: Path) -> list[tuple[Path, str]]:
    if name == "svhn":
        return [(root / file, md5) for _, file, md5 in (cls.split_list["train"], cls.split_list["test"])]
    files = [*cls.train_list, *cls.test_list, (cls.meta["filename"], cls.meta["md5"])]
    return [(root / cls.base_folder / file, md5) for file, md5 in files]


def _torchvision(name: str, spec: _Spec) -> Any:
    try:
        from torchvision import datasets
    except (ImportError, RuntimeError, OSError) as error:  # RuntimeError: built for another torch
        raise DataError(f"dataset={name}: torchvision, which it needs, does not import: {_line(error)}") from error
    return getattr(datasets, spec.cls)


def _download(name: str, spec: _Spec, root: Path, missing: str) -> None:
    """Fetch into a temporary folder, move finished files only: one cut short leaves nothing to trip over."""
    print(f"dataset={name}: not found, fetching it into {root}", file=sys.stderr)
    cls, timeout = _torchvision(name, spec), socket.getdefaulttimeout()
    try:
        socket.setdefaulttimeout(_TIMEOUT)
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=root) as folder:
            part = Path(folder)
            if spec.archive and (root / spec.archive).is_file():  # torchvision unpacks it if its MD5 is right
                (part / spec.archive).parent.mkdir(parents=True, exist_ok=True)
                (part / spec.archive).symlink_to((root / spec.archive).resolve())
            for arguments in spec.parts:
                cls(part, download=True, **arguments)
            for path in [p for p in part.rglob("*") if p.is_file() and not p.is_symlink()]:
                target = root / path.relative_to(part)
                target.parent.mkdir(parents=True, exist_ok=True)
                path.replace(target)
    except (RuntimeError, OSError, ValueError, http.client.HTTPException) as error:
        packed = root / spec.archive
        remedy = f"put {packed.name} into {packed.parent}" if spec.archive else "put the files there"
        if name == "fashion_mnist":
            remedy += ", or apt-get install dataset-fashion-mnist (Debian)"
        raise DataError(
            f"dataset={name}: {missing}; the download failed ({_line(error)}); {remedy}, "
            "or set dataset.root to a folder in torchvision's layout that has them"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)


def _corrupt(path: Path, reason: str) -> DataError:
    return DataError(f"{path}: unreadable or corrupt data file ({reason}); replace it, or delete it and run again")


def _line(error: Exception) -> str:
    return textwrap.shorten(f"{type(error).__name__}: {error}", 240)
