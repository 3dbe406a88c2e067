"""Data sets: found, checked, split, normalised; and what happens where they are missing or broken."""

from __future__ import annotations

import functools
import gzip
import hashlib
import http.server
import inspect
import io
import pickle
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray

from tasks.datasets import DataError, load, named
from tasks.datasets import idx as idx_format
from tasks.datasets.table import SPECS
from tests import dataset_files

CONF = dataset_files.CONF
FILES = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
Bytes = NDArray[np.uint8]


def idx(array: Bytes) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def arrays(train: int = 40, test: int = 20, classes: int = 10) -> list[Bytes]:
    draw = np.random.default_rng(0)
    sizes = (train, test)
    images = [draw.integers(0, 256, (n, 28, 28)).astype(np.uint8) for n in sizes]
    labels = [(np.arange(n) % classes).astype(np.uint8) for n in sizes]
    return [images[0], labels[0], images[1], labels[1]]


def write(folder: Path, content: list[Bytes], packed: bool = False, names: list[str] = FILES) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in zip(names, content, strict=True):
        data = idx(array)
        path = folder / (name + ".gz" if packed else name)
        path.write_bytes(gzip.compress(data) if packed else data)


def md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def offline(patch: pytest.MonkeyPatch, port: int = 9) -> None:
    """Every request goes to a proxy on this machine: a closed port, unless one is given."""
    direct(patch)
    for name in ("http_proxy", "https_proxy"):
        patch.setenv(name, f"http://127.0.0.1:{port}")


def direct(patch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        patch.delenv(name, raising=False)
        patch.delenv(name.upper(), raising=False)
    patch.setattr(urllib.request, "_opener", None)  # it remembers the proxies of its first use


@pytest.fixture(autouse=True)
def no_system_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without Debian's files, without network, without the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(named, "_DEBIAN", tmp_path / "debian")
    offline(monkeypatch)


# --- what is read -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True])
def test_idx_files_become_normalised_tensors_with_three_disjoint_splits(tmp_path: Path, packed: bool) -> None:
    content = arrays()
    write(tmp_path / "MNIST" / "raw", content, packed)

    data = load("mnist", tmp_path, val=0.25)

    assert data.shape == (1, 28, 28)
    assert data.x.dtype == torch.float32 and data.y.dtype == torch.int64
    assert data.classes == 10
    expected = (content[0][7, 3, 5] / 255 - 0.1307) / 0.3081
    assert data.x[7, 0, 3, 5].item() == pytest.approx(expected, abs=1e-5)
    # the test file follows the training file, and is all of the test split
    assert data.test.tolist() == list(range(40, 60))
    np.testing.assert_array_equal(data.y[data.test], content[3])
    assert data.x[41, 0, 2, 27].item() == pytest.approx((content[2][1, 2, 27] / 255 - 0.1307) / 0.3081, abs=1e-5)
    # validation is a stratified part of train, and only of train
    assert data.train.tolist() == sorted(set(range(40)) - set(data.val.tolist()))
    assert torch.bincount(data.y[data.val]).tolist() == [1] * 10
    assert data.val.tolist() == sorted(data.val.tolist())


def test_unit_inputs_are_the_pixels_scaled_to_one(tmp_path: Path) -> None:
    content = arrays()
    content[0][0, 0, :2] = 0, 255
    write(tmp_path / "KMNIST" / "raw", content)

    data = load("kmnist", tmp_path, normalise="unit")

    assert data.x[0, 0, 0, :2].tolist() == [0.0, 1.0]
    np.testing.assert_allclose(data.x[:40, 0].numpy() * 255, content[0], atol=1e-4)


def test_padding_is_black_on_every_side_and_changes_neither_the_image_nor_the_split(tmp_path: Path) -> None:
    write(tmp_path / "MNIST" / "raw", arrays())
    plain, padded = (load("mnist", tmp_path, pad=p) for p in (0, 2))

    assert padded.shape == (1, 32, 32)
    assert torch.equal(padded.x[:, :, 2:-2, 2:-2], plain.x)
    around = torch.ones(32, 32, dtype=torch.bool)
    around[2:-2, 2:-2] = False
    assert torch.allclose(padded.x[:, :, around], torch.tensor(-0.1307 / 0.3081))
    assert torch.equal(padded.val, plain.val) and padded.digest != plain.digest
    with pytest.raises(ValueError, match=r"dataset\.pad=-1: "):
        load("mnist", tmp_path, pad=-1)


def test_no_validation_leaves_an_empty_index_and_all_of_train(tmp_path: Path) -> None:
    write(tmp_path / "MNIST" / "raw", arrays())

    data = load("mnist", tmp_path, val=0)

    assert data.val.tolist() == [] and data.val.dtype == torch.int64
    assert data.train.tolist() == list(range(40))


def test_emnist_images_stand_upright(tmp_path: Path) -> None:
    names = [f"emnist-balanced-{p}-{k}-ubyte" for p in ("train", "test") for k in ("images-idx3", "labels-idx1")]
    content = arrays(94, 47, classes=47)
    content[0][0] = 0
    content[0][0, 3, 20] = 255  # stored column by column: column 3, row 20
    write(tmp_path / "EMNIST" / "raw", content, names=names)

    data = load("emnist", tmp_path, normalise="unit")

    assert data.x[0, 0].nonzero().tolist() == [[20, 3]]
    assert data.x.is_contiguous()
    assert data.classes == 47 and int(data.y.max()) == 46


def test_the_split_and_the_digest_do_not_depend_on_global_randomness(tmp_path: Path) -> None:
    write(tmp_path / "MNIST" / "raw", arrays())
    torch.manual_seed(1)
    before = torch.random.get_rng_state()

    one = load("mnist", tmp_path)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(2)
    two = load("mnist", tmp_path)

    assert torch.equal(one.val, two.val) and one.digest == two.digest


def test_the_digest_tells_data_labels_split_and_normalisation_apart(tmp_path: Path) -> None:
    def digest(content: list[Bytes], **options: Any) -> str:
        write(tmp_path / "MNIST" / "raw", content)
        return load("mnist", tmp_path, **options).digest

    pixel, label = arrays(), arrays()
    pixel[2][0, 0, 0] ^= 1
    label[3][0] ^= 1
    seen = [digest(arrays()), digest(pixel), digest(label), digest(arrays(), val=0.2)]
    seen.append(digest(arrays(), normalise="unit"))

    assert len(set(seen)) == 5
    assert digest(arrays()) == seen[0]
    assert all(len(s) == 16 and int(s, 16) >= 0 for s in seen)


def test_a_data_set_moves_as_a_whole(tmp_path: Path) -> None:
    write(tmp_path / "MNIST" / "raw", arrays())

    moved = load("mnist", tmp_path).to("meta")

    assert {t.device.type for t in (moved.x, moved.y, moved.train, moved.val, moved.test)} == {"meta"}
    assert moved.shape == (1, 28, 28)


# --- where it is looked for -------------------------------------------------------------------------------


def test_own_files_come_before_the_systems_and_the_two_are_never_mixed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system, own = tmp_path / "system", tmp_path / "root" / "FashionMNIST" / "raw"
    monkeypatch.setattr(named, "_DEBIAN", system)
    write(system, arrays(30, 10), packed=True)

    assert len(load("fashion_mnist", tmp_path / "root").y) == 40
    write(own, arrays(50, 20))
    assert len(load("fashion_mnist", tmp_path / "root").y) == 70
    (own / FILES[3]).unlink()  # incomplete: the system's files, all four of them
    assert len(load("fashion_mnist", tmp_path / "root").y) == 40


def test_the_default_folder_is_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    write(tmp_path / "xdg" / "harness" / "data" / "MNIST" / "raw", arrays(40, 10))
    assert len(load("mnist").y) == 50

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    write(tmp_path / "home" / ".cache" / "harness" / "data" / "MNIST" / "raw", arrays(40, 20))
    assert len(load("mnist").y) == 60
    write(tmp_path / "home" / "mine" / "MNIST" / "raw", arrays(40, 30))
    assert len(load("mnist", "~/mine").y) == 70


def test_what_is_there_is_used_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was used")

    write(tmp_path / "MNIST" / "raw", arrays())
    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(named, "_download", refuse)

    assert len(load("mnist", tmp_path).y) == 60


# --- what is broken ---------------------------------------------------------------------------------------

BROKEN: dict[str, tuple[str, Callable[[list[bytes]], bytes], int]] = {
    # what the line says, how the file is broken, which file
    "truncated": ("header says", lambda f: f[0][:-1], 0),
    "trailing bytes": ("header says", lambda f: f[1] + b"\0", 1),
    "truncated gz": ("ended before the end-of-stream marker", lambda f: gzip.compress(f[0])[:-9], 0),
    "bits flipped in gz": ("CRC check failed", lambda f: gzip.compress(f[0])[:-8] + bytes(8), 0),
    "empty": ("not an idx file", lambda f: b"", 2),
    "header alone": ("not an idx file", lambda f: f[0][:9], 0),
    "a web page": ("not an idx file", lambda f: b"<html>not found</html>", 3),
    "labels as images": ("not an idx file of bytes with 3 axes", lambda f: f[1], 0),
    "other type": ("not an idx file", lambda f: f[0][:2] + b"\x0d" + f[0][3:], 0),
    "other size": ("(32, 32) pixels, expected (28, 28)", lambda f: idx(np.zeros((40, 32, 32), np.uint8)), 0),
    "fewer labels": ("39 labels for 40 images", lambda f: idx(np.zeros(39, np.uint8)), 1),
    "other labels": ("label 10, but there are 10 classes", lambda f: idx(np.full(20, 10, np.uint8)), 3),
    "huge header": ("header says", lambda f: f[1][:4] + b"\xff" * 4 + f[1][8:], 1),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_gets_one_line_that_names_it(tmp_path: Path, case: str) -> None:
    says, breaks, which = BROKEN[case]
    folder = tmp_path / "MNIST" / "raw"
    write(folder, arrays())
    (folder / FILES[which]).write_bytes(breaks([idx(a) for a in arrays()]))

    with pytest.raises(DataError) as caught:
        load("mnist", tmp_path)

    line = str(caught.value)
    assert says in line and str(folder / FILES[which]) in line and "delete it" in line
    assert "\n" not in line


def test_no_images_at_all_is_an_error_too(tmp_path: Path) -> None:
    write(tmp_path / "MNIST" / "raw", arrays(0, 10))

    with pytest.raises(DataError, match="0 labels for 0 images"):
        load("mnist", tmp_path)


def test_no_damage_to_a_packed_file_goes_unnoticed_or_escapes_as_another_error(tmp_path: Path) -> None:
    file, labels = tmp_path / "labels.gz", np.arange(50, dtype=np.uint8)
    whole = gzip.compress(idx(labels))
    damaged = [whole[:n] for n in range(len(whole))]
    damaged += [whole[:i] + bytes([whole[i] ^ 64]) + whole[i + 1 :] for i in range(len(whole))]
    harmless = 0
    for data in damaged:
        file.write_bytes(data)
        try:
            np.testing.assert_array_equal(idx_format.idx(file, 1), labels)
            harmless += 1  # the time stamp, the flags and the system in gzip's header
        except DataError:
            pass

    assert harmless <= 10


def test_a_packed_file_is_read_no_further_than_its_header_says(tmp_path: Path) -> None:
    """A gigabyte of zeros behind a header of 50: it would take a gigabyte to unpack."""
    import resource

    file, content = tmp_path / "labels.gz", idx(np.zeros(50, np.uint8))
    with gzip.open(file, "wb", compresslevel=1) as stream:
        stream.write(content)
        for _ in range(64):
            stream.write(bytes(2**24))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match="at least 59 bytes, but its header says 58"):
        idx_format.idx(file, 1)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 200_000  # kilobytes


# --- what is missing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in SPECS if name != "digits"])
def test_missing_without_network_says_what_where_and_how_at_once(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, start = tmp_path / "data", time.perf_counter()

    with pytest.raises(DataError) as caught:
        load(name, root)

    assert time.perf_counter() - start < 20  # mostly the import of torchvision
    line = str(caught.value)
    assert "\n" not in line and len(line) < 900
    assert f"dataset={name}" in line and str(root) in line and "dataset.root" in line
    spec = SPECS[name]
    for wanted in (spec.idx or spec.files)[:1] + ((Path(spec.archive).name,) if spec.archive else ()):
        assert wanted in line
    assert ("apt-get install dataset-fashion-mnist" in line) == (name == "fashion_mnist")
    assert ("downloading" in capsys.readouterr().err) == spec.fetched == ("by hand" not in line)
    assert list(root.rglob("*")) == [], "something half-written was left"


def test_only_the_missing_file_is_named(tmp_path: Path) -> None:
    write(tmp_path / "MNIST" / "raw", arrays())
    (tmp_path / "MNIST" / "raw" / FILES[3]).unlink()

    with pytest.raises(DataError) as caught:
        load("mnist", tmp_path)

    assert FILES[3] in str(caught.value) and FILES[2] not in str(caught.value)


def test_a_mirror_that_never_answers_does_not_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(named, "_TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        offline(monkeypatch, silent.getsockname()[1])
        start = time.perf_counter()
        with pytest.raises(DataError, match="timed out"):
            load("mnist", tmp_path)

    assert time.perf_counter() - start < 10
    assert socket.getdefaulttimeout() is None, "the timeout leaked out"


def test_a_root_that_cannot_be_written_is_reported_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(DataError, match=r"dataset=cifar10: .*(Not a directory|File exists)"):
        load("cifar10", tmp_path / "file")


# --- what is downloaded -----------------------------------------------------------------------------------


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder served as torchvision's only mirror of MNIST."""
    import torchvision.datasets

    folder = tmp_path / "mirror"
    write(folder, arrays(), packed=True)
    sums = [(f"{name}.gz", md5((folder / f"{name}.gz").read_bytes())) for name in FILES]
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        url = f"http://127.0.0.1:{server.server_address[1]}/"
        monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [url])
        monkeypatch.setattr(torchvision.datasets.MNIST, "resources", sums)
        direct(monkeypatch)
        yield folder
        server.shutdown()
        thread.join()


def test_a_download_arrives_whole_and_is_not_repeated(
    mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "data"
    direct = tmp_path / "direct"
    write(direct / "MNIST" / "raw", arrays())

    fetched = load("mnist", root)

    assert f"dataset=mnist: not found, downloading it to {root}" in capsys.readouterr().err
    assert fetched.digest == load("mnist", direct).digest
    assert [p.name for p in root.iterdir()] == ["MNIST"], "the temporary folder was left"
    offline(monkeypatch)
    assert load("mnist", root).digest == fetched.digest


def test_a_download_cut_short_leaves_nothing_and_the_next_one_succeeds(mirror: Path, tmp_path: Path) -> None:
    root, last = tmp_path / "data", mirror / f"{FILES[3]}.gz"
    whole = last.read_bytes()
    last.write_bytes(whole[:20])

    with pytest.raises(DataError, match="corrupted"):
        load("mnist", root)
    assert list(root.rglob("*")) == []

    last.write_bytes(whole)
    assert len(load("mnist", root).y) == 60


# --- CIFAR and SVHN: torchvision's readers behind their checksums -----------------------------------------


class Trap:
    """Unpickled, it leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Bytes]:
    """A tiny CIFAR-10 in torchvision's layout, whose checksums torchvision is told."""
    import torchvision.datasets

    cls = torchvision.datasets.CIFAR10
    images = np.random.default_rng(0).integers(0, 256, (30, 3, 32, 32)).astype(np.uint8)
    labels = [i % 10 for i in range(30)]
    folder = tmp_path / "data" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    content = {
        "data_batch_1": {"data": images[:10].reshape(10, -1), "labels": labels[:10]},
        "data_batch_2": {"data": images[10:20].reshape(10, -1), "labels": labels[10:20]},
        "test_batch": {"data": images[20:].reshape(10, -1), "labels": labels[20:]},
        "batches.meta": {"label_names": list("abcdefghij")},
    }
    sums = {}
    for name, value in content.items():
        (folder / name).write_bytes(pickle.dumps(value))
        sums[name] = md5((folder / name).read_bytes())
    monkeypatch.setattr(cls, "train_list", [[n, sums[n]] for n in ("data_batch_1", "data_batch_2")])
    monkeypatch.setattr(cls, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(cls, "meta", {**cls.meta, "md5": sums["batches.meta"]})
    return folder, images


def test_cifar_images_keep_their_channels_first(cifar: tuple[Path, Bytes]) -> None:
    folder, images = cifar

    data = load("cifar10", folder.parent)

    assert data.shape == (3, 32, 32) and data.x.is_contiguous()
    assert data.test.tolist() == list(range(20, 30)) and data.y[:12].tolist() == [*range(10), 0, 1]
    mean, std = np.array([0.4914, 0.4822, 0.4465]), np.array([0.2470, 0.2435, 0.2616])
    expected = (images / 255 - mean[:, None, None]) / std[:, None, None]
    np.testing.assert_allclose(data.x, expected, atol=2e-6)


def test_a_cifar_batch_with_another_checksum_is_named_and_never_unpickled(
    cifar: tuple[Path, Bytes], tmp_path: Path
) -> None:
    batch, mark = cifar[0] / "data_batch_2", tmp_path / "unpickled"
    batch.write_bytes(pickle.dumps(Trap(mark)))

    with pytest.raises(DataError, match="MD5") as caught:
        load("cifar10", batch.parent.parent)

    assert str(batch) in str(caught.value) and "\n" not in str(caught.value)
    assert not mark.exists()


def test_a_copied_archive_is_unpacked_without_network(
    cifar: tuple[Path, Bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torchvision.datasets

    packed, root = io.BytesIO(), tmp_path / "lab"
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        tar.add(cifar[0], "cifar-10-batches-py")
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "tgz_md5", md5(packed.getvalue()))
    root.mkdir()
    (root / "cifar-10-python.tar.gz").write_bytes(packed.getvalue())

    data = load("cifar10", root)

    assert data.digest == load("cifar10", cifar[0].parent).digest
    assert (root / "cifar-10-python.tar.gz").read_bytes() == packed.getvalue(), "the user's archive changed"
    assert sorted(p.name for p in root.iterdir()) == ["cifar-10-batches-py", "cifar-10-python.tar.gz"]


def test_svhn_reads_its_digit_zero_and_its_channels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import scipy.io
    import torchvision.datasets

    images = np.random.default_rng(0).integers(0, 256, (20, 3, 32, 32)).astype(np.uint8)
    labels = np.arange(20) % 10 + 1  # the files call the digit 0 class 10
    sums = {}
    for part, rows in (("train", slice(0, 12)), ("test", slice(12, 20))):
        file = f"{part}_32x32.mat"
        scipy.io.savemat(tmp_path / file, {"X": images[rows].transpose(2, 3, 1, 0), "y": labels[rows][:, None]})
        sums[part] = ["", file, md5((tmp_path / file).read_bytes())]
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", sums)

    data = load("svhn", tmp_path, normalise="unit")

    np.testing.assert_allclose(data.x, images / 255, atol=1e-6)
    assert data.y[:11].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert data.test.tolist() == list(range(12, 20))

    (tmp_path / "test_32x32.mat").write_bytes(b"\0" * 500)
    with pytest.raises(DataError, match=r"test_32x32\.mat: .*MD5"):
        load("svhn", tmp_path)


# --- the real data ----------------------------------------------------------------------------------------


def test_digits_are_split_in_fixed_stratified_fifths_and_normalised_by_their_training_set() -> None:
    from sklearn.datasets import load_digits

    data = load("digits", val=0)
    images, labels = load_digits(return_X_y=True)

    assert data.shape == (1, 8, 8) and (len(data.train), len(data.test)) == (1438, 359)
    counts = torch.bincount(data.y[data.test]).double()
    ideal = torch.from_numpy(np.bincount(labels)) * 359 / 1797
    assert ((counts - ideal).abs() < 1).all()
    # every image of the set once, with its own label
    unit = load("digits", normalise="unit").x
    ours = {(*(16 * x).round().int().flatten().tolist(), y) for x, y in zip(unit, data.y.tolist(), strict=True)}
    assert ours == {(*x.astype(int).tolist(), int(y)) for x, y in zip(images, labels, strict=True)}
    pixels = unit[data.train].double()
    assert pixels.mean().item() == pytest.approx(0.3047, abs=5.1e-5)
    assert pixels.std(unbiased=False).item() == pytest.approx(0.3756, abs=5.1e-5)
    torch.testing.assert_close(load("digits", normalise="symmetric").x, 2 * unit - 1)


def test_the_published_split_of_digits_stays_as_it_is() -> None:
    assert load("digits").digest == "35385199c92b732b"  # results of the default command rest on it


@pytest.mark.skipif(
    not Path("/usr/share/datasets/fashion-mnist").is_dir(), reason="Debian's package dataset-fashion-mnist"
)
def test_fashion_mnist_as_debian_installs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(named, "_DEBIAN", Path("/usr/share/datasets/fashion-mnist"))

    data = load("fashion_mnist", tmp_path)

    assert (len(data.train), len(data.val), len(data.test)) == (54000, 6000, 10000)
    assert torch.bincount(data.y[data.train]).tolist() == [5400] * 10
    assert torch.bincount(data.y[data.val]).tolist() == [600] * 10
    assert torch.bincount(data.y[data.test]).tolist() == [1000] * 10
    train = data.x[:60000].double()
    assert train.mean().item() == pytest.approx(0, abs=1e-3)
    assert train.std().item() == pytest.approx(1, abs=1e-3)
    assert data.y[:8].tolist() == [9, 0, 0, 3, 0, 2, 7, 2]  # the first labels of the published file


# --- configuration ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"name": "fashon_mnist"}, "dataset=fashon_mnist: unknown data set; did you mean fashion_mnist?"),
        ({"name": "xyz"}, "`python -m harness ls datasets` lists them"),
        ({"name": None}, "dataset=None"),
        ({"name": "digits", "val": 1.0}, "dataset.val=1.0"),
        ({"name": "digits", "val": -0.1}, "dataset.val=-0.1"),
        ({"name": "digits", "val": float("nan")}, "dataset.val=nan"),
        ({"name": "digits", "val": "some"}, "dataset.val=some"),
        ({"name": "digits", "normalise": "zscore"}, "dataset.normalise=zscore: must be standard"),
    ],
)
def test_a_bad_value_gets_one_line_with_key_value_and_remedy(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError) as caught:
        load(**options)

    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_a_fraction_near_one_still_leaves_a_training_sample(tmp_path: Path) -> None:
    write(tmp_path / "MNIST" / "raw", arrays())

    assert len(load("mnist", tmp_path, val=0.999).train) == 1


@pytest.mark.parametrize("name", SPECS)
def test_every_data_set_has_a_file_whose_keys_and_values_are_those_of_load(name: str) -> None:
    text = (CONF / f"{name}.yaml").read_text()
    config = yaml.safe_load(text)

    assert config.pop("_target_") == "tasks.datasets.load"
    assert config.pop("name") == name
    parameters = inspect.signature(load).parameters
    assert parameters["normalise"].default is None, "the default is the data set's"
    # blank pixels of digits are 0 in the published permuted streams
    own = {"normalise": "unit" if name == "digits" else "standard", "augment": []}
    assert config == {k: p.default for k, p in parameters.items() if k != "name"} | own
    assert SPECS[name].normalise == own["normalise"]
    assert text == dataset_files.text(name), "python -m tests.dataset_files writes it"
    assert text.startswith(f"# {SPECS[name].text}\n\n") and "\n" not in SPECS[name].text


def test_all_that_torchvision_ships_for_classification_is_there_or_left_out_for_a_reason() -> None:
    """`others`: those of other problems (flow, stereo, detection, video, captions)."""
    import torchvision.datasets

    left_out = {
        "CelebA",  # forty attributes, no single class
        "LFWPeople",  # 4,069 of its 5,749 people have a single picture: no test row for them
        "LSUN",  # needs lmdb, and torchvision cannot download it
        "LSUNClass",  # a part of LSUN
        "FakeData",  # random pixels with random labels
    }
    others = {
        "CREStereo", "CarlaStereo", "Cityscapes", "CocoCaptions", "CocoDetection", "DatasetFolder", "ETH3DStereo",
        "FallingThingsStereo", "Flickr30k", "Flickr8k", "FlyingChairs", "FlyingThings3D", "HD1K", "HMDB51",
        "ImageFolder", "InStereo2k", "Kinetics", "Kitti", "Kitti2012Stereo", "Kitti2015Stereo", "KittiFlow", "LFWPairs",
        "Middlebury2014Stereo", "MovingMNIST", "PhotoTour", "SBDataset", "SBU", "SceneFlowStereo", "Sintel",
        "SintelStereo", "UCF101", "VOCDetection", "VOCSegmentation", "VisionDataset", "WIDERFace",
        "wrap_dataset_for_transforms_v2",
    }  # fmt: skip
    ours = {spec.cls for spec in SPECS.values()} - {""}
    assert set(torchvision.datasets.__all__) - others == ours | left_out
    assert not ours & left_out


@pytest.mark.parametrize("name", [name for name in SPECS if name != "digits"])
def test_torchvision_s_class_takes_the_arguments_of_the_table(name: str) -> None:
    import torchvision.datasets

    spec = SPECS[name]
    cls = getattr(torchvision.datasets, spec.cls)
    for part in (*spec.train, *spec.test):
        inspect.signature(cls).bind("root", **part)
        assert not spec.fetched or "download" in _parameters(cls), "fetched by hand only"


def _parameters(cls: Any) -> set[str]:
    """Names of a constructor's arguments, with those of the base class behind **kwargs."""
    found = inspect.signature(cls.__init__).parameters
    more = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in found.values())
    return set(found) | (_parameters(cls.__mro__[1]) if more else set())


def test_the_files_in_conf_are_those_of_the_table_and_of_a_users_own() -> None:
    assert {p.stem for p in CONF.glob("*.yaml")} == {*SPECS, "folder", "npz", "parquet", "csv", "function"}


def test_importing_the_module_and_reading_idx_files_needs_neither_torchvision_nor_scikit_learn(
    tmp_path: Path,
) -> None:
    write(tmp_path / "MNIST" / "raw", arrays())
    code = (
        "import sys; from tasks.datasets import load; load('mnist', sys.argv[1]);"
        "sys.exit(str({'torchvision', 'sklearn', 'scipy', 'hydra', 'pandas', 'wandb'} & set(sys.modules)))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=CONF.parent.parent, capture_output=True, text=True
    )

    assert run.stderr.strip() == "set()"
