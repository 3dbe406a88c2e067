"""Data sets by name: found on disk or downloaded once, read, and cached decoded.

The MNIST family is read here with numpy, everything else by torchvision, which checks the MD5 of files that could
contain code (CIFAR's are pickles). torchvision is imported only when needed, and scikit-learn never: the digits are one
of its files, and its import takes longer than all else before the first step.
"""

from __future__ import annotations

import gzip
import http.client
import importlib.util
import os
import socket
import sys
import tempfile
import textwrap
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.store.known import home
from harness.wording import first_line
from tasks.datasets import idx
from tasks.datasets.cache import Arrays, cached, progress
from tasks.datasets.dataset import Dataset, Preparation, Raw, finish, hold_out
from tasks.datasets.decoding import decode
from tasks.datasets.errors import DataError, corrupt
from tasks.datasets.table import SPECS, Spec

_DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # Debian's package dataset-fashion-mnist
_TIMEOUT = 10.0  # seconds to wait for a mirror; torchvision would wait for ever

SIDE = 224  # to which images of various sizes are resized for a pretrained network

Part = tuple[NDArray[np.uint8], NDArray[Any]]  # images [n, *shape], labels [n]


def load(
    name: str,
    root: str | Path | None = None,
    val: float = 0.1,
    normalise: str | None = None,
    pad: int = 0,
    size: int | None = None,
    features: Any = None,
    augment: Sequence[str] = (),
) -> Dataset:
    """The data set `name` on the CPU, with a stratified fraction `val` of its training set held out.

    Inputs are (x - mean) / std per channel (normalise="standard", constants of the training set) or scaled to 0..1
    ("unit"); the default is that of conf/dataset, unit for digits and standard for the others. `size` resizes images,
    `pad` adds black pixels on every side, `features` replaces images with the last hidden layer of a torchvision
    network, and `augment` changes training rows at random (flip, crop). The split depends on `name` and `val`, never on
    a run's seeds. `root` is a folder in torchvision's layout (default: harness/data in the user's cache folder).
    Missing files are downloaded, or for fashion_mnist read from Debian's package dataset-fashion-mnist if it is
    installed. Decoded data is cached.
    Raises ValueError for a bad argument, DataError for missing or corrupt data.

    >>> data = load("digits")
    >>> data.shape, data.classes, len(data.train), len(data.val), len(data.test)
    ((1, 8, 8), 10, 1294, 144, 359)
    """
    if name not in SPECS:
        close = get_close_matches(str(name), SPECS, n=1)
        hint = f"did you mean {close[0]}?" if close else "`python -m harness ls datasets` lists them"
        raise ValueError(f"dataset={name}: unknown data set; {hint}")
    spec = SPECS[name]
    scaling = spec.normalise if normalise is None else normalise
    how = Preparation(val, normalise=scaling, pad=pad, size=size, features=features, augment=augment)
    raw = read(name, root, None if spec.uniform else size or (SIDE if features else None))
    return finish(name, raw, spec.classes, how, (spec.mean, spec.std) if spec.mean else None, spec.top)


def read(name: str, root: str | Path | None = None, size: int | None = None) -> Raw:
    """Images and labels as published, from the cache or from their files; `size` is for images of various sizes."""
    spec, base = SPECS[name], _root(root)
    if name == "digits":
        return _digits(digits_file())
    searched: tuple[Path, ...] = ()
    if spec.idx:
        paths = idx_files(name, base)
        searched = tuple(p for folder in idx_folders(name, base) for f in spec.idx for p in idx.names(folder / f))
        made = cached(
            name,
            paths,
            [name],
            lambda: _packed(*(idx.part(images, labels, spec) for images, labels in (paths[:2], paths[2:]))),
        )
    else:
        side = size or spec.shape[1]
        if not any((base / f).exists() for f in spec.files):
            _download(name, spec, base, f"{base / spec.files[0]} not found")
        sources = [base / f for f in spec.files if (base / f).exists()]
        made = cached(name, sources, [name, side], lambda: _torchvision(name, spec, base, side))
    return Raw(made["x"], made["y"], int(made["train"][0]), None, sources=searched)


def _packed(*parts: Part) -> Arrays:
    x, y = (np.concatenate(column) for column in zip(*parts))
    return {"x": x, "y": y, "train": np.array([len(parts[0][1])])}


def _root(root: str | Path | None) -> Path:
    return home() / "data" if root is None else Path(root).expanduser()


def digits_file() -> Path:
    """scikit-learn's file of handwritten digits, found without an import of scikit-learn. DataError without it."""
    found = importlib.util.find_spec("sklearn")
    folders = [Path(folder) for folder in (found.submodule_search_locations or ())] if found else []
    files = [file for folder in folders if (file := folder / "datasets" / "data" / "digits.csv.gz").is_file()]
    if not files:
        raise DataError("dataset=digits: is a file of scikit-learn, which is not installed; pip install scikit-learn")
    return files[0]


def _digits(file: Path) -> Raw:
    """A row has 64 pixels of 0 to 16 and the digit. There is no split: a stratified fifth is held out for testing."""
    try:
        with gzip.open(file, "rt", encoding="ascii") as rows:
            table = np.loadtxt(rows, delimiter=",", dtype=np.uint8)
    except (OSError, EOFError, ValueError) as error:
        raise corrupt(file, first_line(error)) from error
    x, y = table[:, :-1].reshape(-1, 1, 8, 8), table[:, -1]
    test = hold_out(y, 0.2, "digits/test")
    return Raw(
        np.concatenate([np.delete(x, test, 0), x[test]]),
        np.concatenate([np.delete(y, test), y[test]]),
        len(y) - len(test),
        None,
        sources=(file,),
    )


def idx_folders(name: str, root: Path) -> list[Path]:
    """Where a data set of the MNIST family is looked for, in this order."""
    return [root / SPECS[name].cls / "raw", *([_DEBIAN] if name == "fashion_mnist" else [])]


def idx_files(name: str, root: Path) -> list[Path]:
    """The four files of a data set of the MNIST family, downloaded if missing."""
    spec = SPECS[name]
    folders = idx_folders(name, root)
    paths = idx.complete(folders, spec.idx)
    if not paths:
        missing = [f for f in spec.idx if not idx.existing(folders[0] / f)]
        where = " or in ".join(map(str, folders))
        _download(name, spec, root, f"{', '.join(missing)} (plain or .gz) not in {where}")
        paths = idx.complete(folders, spec.idx)
    return paths


def _torchvision(name: str, spec: Spec, root: Path, side: int) -> Arrays:
    """All parts, read and decoded by torchvision."""
    parts = [*spec.train, *spec.test]
    cls = _class(name, spec)
    try:
        sets = [cls(root, **part) for part in parts]
    except (RuntimeError, OSError) as error:
        from torchvision.datasets.utils import check_integrity

        files = _checksums(name, cls, root)
        for path, md5 in files:
            if os.path.isfile(path) and not check_integrity(path, md5):
                raise corrupt(path, f"its MD5 is not {md5}") from None
        missing = [path for path, _ in files if not os.path.isfile(path)]
        if files and not missing:
            raise
        more = f" (nor {len(missing) - 1} more)" if missing[1:] else ""
        what = f"{missing[0]} not found{more}" if missing else first_line(error)
        _download(name, spec, root, what)
        sets = [cls(root, **part) for part in parts]
    n = sum(map(len, sets))
    x, y = np.empty((n, spec.shape[0], side, side), np.uint8), np.empty(n, np.int64)
    order = [(s, i) for s in range(len(sets)) for i in range(len(sets[s]))]
    for row, (s, i) in enumerate(progress(order, f"decoding {name}")):
        try:
            image, label = sets[s][i]
            x[row] = decode(image, "rgb" if spec.shape[0] == 3 else "grey", side)
        except (OSError, SyntaxError, ValueError) as error:  # raised by PIL for a damaged file
            raise corrupt(_file(sets[s], i, root), first_line(error)) from error
        if not 0 <= int(label) - spec.first < spec.classes:
            raise corrupt(_file(sets[s], i, root), f"label {label}, but there are {spec.classes} classes")
        y[row] = int(label) - spec.first
    train = sum(len(s) for s in sets[: len(spec.train)])
    if not spec.test:
        held = hold_out(y, 0.2, f"{name}/test")
        kept = np.concatenate([np.delete(np.arange(n), held), held])
        x, y, train = x[kept], y[kept], n - len(held)
    return {"x": x, "y": y, "train": np.array([train])}


def _file(data: Any, row: int, root: Path) -> Path:
    """The file of a row, if torchvision's class lists its files; else the class and the row number."""
    for key in ("samples", "imgs", "_image_files", "_samples", "_images"):
        known = getattr(data, key, None)
        if known is not None and len(known) == len(data):
            entry = known[row][0] if isinstance(known[row], tuple) else known[row]
            if isinstance(entry, (str, Path)):
                return Path(entry)
    return root / f"{type(data).__name__}[{row}]"


def _checksums(name: str, cls: Any, root: Path) -> list[tuple[Path, str]]:
    """Files and their MD5, if torchvision's class lists them; those of CIFAR are pickles."""
    if name == "svhn":
        return [(root / file, md5) for _, file, md5 in (cls.split_list["train"], cls.split_list["test"])]
    if not hasattr(cls, "train_list") or not hasattr(cls, "meta"):
        return []
    files = [*cls.train_list, *cls.test_list, (cls.meta["filename"], cls.meta["md5"])]
    return [(root / cls.base_folder / file, md5) for file, md5 in files]


def _class(name: str, spec: Spec) -> Any:
    try:
        from torchvision import datasets
    except (ImportError, RuntimeError, OSError) as error:  # RuntimeError: built for another torch
        raise DataError(f"dataset={name}: needs torchvision, which cannot be imported ({first_line(error)})") from error
    return getattr(datasets, spec.cls)


def _download(name: str, spec: Spec, root: Path, missing: str) -> None:
    """Download into a temporary folder and move only finished files: an interrupted download leaves nothing behind."""
    packed = root / spec.archive
    there = ", ".join(spec.files or (f"{spec.cls}/raw",))
    remedy = f"put {packed.name} into {packed.parent}" if spec.archive else f"put {there} into {root}"
    if name == "fashion_mnist":
        remedy += ", or apt-get install dataset-fashion-mnist (Debian)"
    remedy += ", or set dataset.root to a folder that has them in torchvision's layout"
    if not spec.fetched:
        raise DataError(f"dataset={name}: {missing}; it must be downloaded by hand; {remedy}")
    print(f"dataset={name}: not found, downloading it to {root}", file=sys.stderr)
    cls, timeout = _class(name, spec), socket.getdefaulttimeout()
    try:
        socket.setdefaulttimeout(_TIMEOUT)
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=root) as folder:
            part = Path(folder)
            if spec.archive and packed.is_file():  # torchvision unpacks it if its MD5 matches
                (part / spec.archive).parent.mkdir(parents=True, exist_ok=True)
                (part / spec.archive).symlink_to(packed.resolve())
            for arguments in (*spec.train, *spec.test):
                cls(part, download=True, **arguments)
            for path in [p for p in part.rglob("*") if p.is_file() and not p.is_symlink()]:
                target = root / path.relative_to(part)
                target.parent.mkdir(parents=True, exist_ok=True)
                path.replace(target)
    except (RuntimeError, OSError, ValueError, ImportError, http.client.HTTPException) as error:
        reason = textwrap.shorten(str(error), 240) or first_line(error)  # torchvision's has a line for each mirror
        raise DataError(f"dataset={name}: {missing}; the download failed ({reason}); {remedy}") from error
    finally:
        socket.setdefaulttimeout(timeout)
