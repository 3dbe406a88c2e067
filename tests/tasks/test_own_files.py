"""What a user's folders and tables become: bookkeeping of writers, depth, alpha, orientation, what is left out, CSV."""

from __future__ import annotations

import inspect
import os
import struct
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image

import tasks.datasets as ours
from tasks.datasets import DataError, csv, folder, from_folder, limits, load, parquet
from tasks.datasets.decoding import decode
from tests.dataset_files import CONF

DRAW = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def notes(data: Any) -> tuple[str, ...]:
    found: tuple[str, ...] = data.facts.notes
    return found


# --- columns that a writer adds ---------------------------------------------------------------------------


def noise(n: int = 60) -> pd.DataFrame:
    """Five columns of noise, and labels in blocks: the row number tells them."""
    frame = pd.DataFrame(DRAW.normal(size=(n, 5)), columns=[*"abcde"])
    frame["label"] = np.repeat(range(3), n // 3)
    return frame


INDICES: dict[str, Any] = {
    "dropped rows": lambda f: f.drop(index=[3, 50]),
    "shuffled": lambda f: f.sample(frac=1, random_state=0),
    "a named index": lambda f: f.set_index(pd.Index(DRAW.permutation(60), name="patient")),
    "two levels": lambda f: f.set_index([pd.Index(DRAW.permutation(60), name="i"), pd.Index([*"xyz"] * 20)]),
    "a named index, reset": lambda f: f.rename_axis("index").reset_index(),
    "an index, reset": lambda f: f.drop(index=3).reset_index(),
    "a range": lambda f: f,
    "a range that does not begin at 0": lambda f: f[5:],
    "dates": lambda f: f.set_index(pd.date_range("2020", periods=60, name="day")),
    "words": lambda f: f.set_index(pd.Index([f"r{i}" for i in range(60)])),
}


IN_CSV = [c for c in INDICES if c not in ("a named index", "two levels", "dates", "words")]  # they look like features


@pytest.mark.parametrize(("case", "suffix"), [*((c, "parquet") for c in INDICES), *((c, "csv") for c in IN_CSV)])
def test_an_index_of_pandas_is_never_a_feature(case: str, suffix: str, tmp_path: Path) -> None:
    frame = INDICES[case](noise())
    file = tmp_path / f"mine.{suffix}"
    if suffix == "parquet":
        frame.to_parquet(file)
        data, stored = parquet(file), "range" not in case
    else:
        frame.to_csv(file)
        data, stored = csv(file), True
    assert data.shape == (5,)
    assert [n.split()[:2] for n in notes(data)[:1]] == ([["index", "column"]] if stored else [])


def test_the_index_that_was_left_out_is_named_and_can_be_chosen(tmp_path: Path) -> None:
    file = tmp_path / "mine.parquet"
    noise().drop(index=3).to_parquet(file)
    assert notes(parquet(file)) == ("index column __index_level_0__ left out",)
    assert parquet(file, columns=["__index_level_0__", "a"]).shape == (2,)
    labelled = noise().set_index("label")
    labelled.to_parquet(file)
    assert parquet(file).shape == (5,) and notes(parquet(file)) == (), "the label may be the index"
    bare = pa.table({"__index_level_0__": range(60), "__null_dask_index__": range(60), **noise().to_dict("list")})
    pq.write_table(bare, file)
    assert parquet(file).shape == (5,), "a tool that dropped the description"


def test_a_column_called_index_that_does_not_number_the_rows_is_a_feature(tmp_path: Path) -> None:
    file = tmp_path / "mine.parquet"
    for values in (np.arange(60) % 7, np.arange(60) / 2):
        pq.write_table(pa.table({"index": values, **noise().to_dict("list")}), file)
        assert parquet(file).shape == (6,) and notes(parquet(file)) == ()


def test_an_index_in_one_of_two_files_is_left_out_of_both(tmp_path: Path) -> None:
    frame = noise()
    frame.to_parquet(tmp_path / "train.parquet")
    frame[frame.a > 0].to_parquet(tmp_path / "test.parquet")
    assert parquet(tmp_path).shape == (5,)
    frame[frame.a < 1].to_parquet(tmp_path / "train.parquet")
    frame.reset_index(drop=True).to_parquet(tmp_path / "test.parquet")
    assert parquet(tmp_path).shape == (5,)


# --- tables -----------------------------------------------------------------------------------------------


def test_csv_is_read_as_parquet_is(tmp_path: Path) -> None:
    frame = noise().assign(part=["train", "Test", "valid"] * 20, word=[*"xyz"] * 20, whole=range(60), stamp=1.7e9)
    frame["stamp"] += 20 * frame.label
    frame.to_parquet(tmp_path / "mine.parquet", index=False)
    frame.to_csv(tmp_path / "mine.csv", index=False)
    frame.to_csv(tmp_path / "mine.tsv", index=False, sep="\t")
    frame.to_csv(tmp_path / "semicolon" / "mine.csv", index=False, sep=";") if (
        tmp_path / "semicolon"
    ).mkdir() else None
    for how in ({}, {"split": "part"}, {"label": "word"}, {"columns": ["e", "a"]}):
        drop = {} if "columns" in how else {"columns": [c for c in frame if c not in ("label", "word", "part")]}
        expected = parquet(tmp_path / "mine.parquet", **how, **drop)  # type: ignore[arg-type]
        for file in ("mine.csv", "mine.tsv"):
            found = csv(tmp_path / file, **how, **drop)  # type: ignore[arg-type]
            assert found.digest == expected.digest and found.names == expected.names
    frame.to_csv(tmp_path / "zipped.csv.gz", index=False)
    assert csv(tmp_path / "zipped.csv.gz", columns=["a"], val=0, split="part").shape == (1,)
    frame.to_csv(tmp_path / "points.csv", index=False, sep=";")
    with pytest.raises(DataError, match=r"points\.csv: no column label; .*a;b;c"):
        csv(tmp_path / "points.csv")
    made = csv(tmp_path / "points.csv", delimiter=";", columns=["a"], split="part")
    assert made.facts.val == made.facts.test == made.facts.train == 20  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=r"dataset\.delimiter='ab': must be one ASCII character"):
        csv(tmp_path / "points.csv", delimiter="ab")
    with pytest.raises(ValueError, match=r"dataset\.columns=ab: must be a list of columns, as in \[ab\]"):
        csv(tmp_path / "points.csv", columns="ab")


def test_labels_in_csv_are_numbers_unless_that_would_merge_some(tmp_path: Path) -> None:
    def of(*words: str) -> Any:
        lines = [f"{i},{word}" for i, word in enumerate(words * 10)]
        (tmp_path / "mine.csv").write_text("\n".join(["a,label", *lines]) + "\n")
        data = csv(tmp_path / "mine.csv", val=0)
        assert torch.bincount(data.y).tolist() == [10] * len(words)
        return data.names

    assert of("0", "1") == of("1.0", "0.0") == of(" 0", "1") == ()
    assert of("07", "7") == ("07", "7") and of("NA", "x") == ("NA", "x") and of("0", "b") == ("0", "b")
    assert of("2020-01-01", "2021-01-01") == ("2020-01-01", "2021-01-01") and of("true", "false") == ("false", "true")


def test_a_line_of_csv_may_be_longer_than_a_block_of_pyarrow(tmp_path: Path) -> None:
    """A megabyte: lines of a table of 20,000 columns are half of it."""
    lines = [
        "a,s,label",
        *(f"{i},{part},{i % 2}{'x' * 1_500_000}" for i, part in enumerate(["train"] * 2 + ["test"] * 2)),
    ]
    (tmp_path / "mine.csv").write_text("\n".join(lines) + "\n")
    assert csv(tmp_path / "mine.csv", split="s", val=0).y.tolist() == [0, 1, 0, 1]


def test_a_folder_of_csv_files_is_split_as_it_is(tmp_path: Path) -> None:
    for name, value in (("Train.csv", 1), ("validation.csv", 2), ("test.csv", 3)):
        (tmp_path / name).write_text(f"a,label\n{value},x\n{value + 0.5},y\n")
    (tmp_path / "more.csv").write_text("a\n1\n")
    data = csv(tmp_path, normalise="none")
    assert data.x[:].tolist() == [[1], [1.5], [2], [2.5], [3], [3.5]] and data.names == ("x", "y")
    assert notes(data) == ("3 of 4 .csv files used",)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("1,2\n3,0\n", r": its first line is 1, 2; expected names of the columns"),
        ("a,label\n1,0\n,1\n", r": row 1, a: empty; 1 of 2 rows are empty"),
        ("a,label\n1,x\n2,\n", r": row 1, label: empty"),
        ("a,label\n1,0\nnan,1\n", r": row 1, a: (empty|nan)"),
        ("a,label\n1,0\nx,1\n", r": column a is string, not a number"),
        ("a,label\n1,0.5\n2,1\n", r": row 0, label: 0\.5 is not a whole number"),
        ("a,label\n1,7\n2,99999999999999999999\n", r": row 1, label: 1e\+20 is not a whole number"),
        ("a,label\n1\n", r": cannot be read as CSV .*, or set dataset\.delimiter"),
        ("a,a,label\n1,2,0\n", r": 2 columns are called a; rename them"),
        ("a,label\n", r": has no rows"),
        ("", r": cannot be read as CSV"),
        ("a,lable\n1,2\n", r": no column label; did you mean lable\?"),
    ],
)
def test_a_broken_csv_file_is_named_with_its_column_and_row(text: str, says: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.csv"
    file.write_text(text)
    with pytest.raises(DataError, match=r"mine\.csv" + says) as caught:
        csv(file)
    assert "\n" not in str(caught.value)


def test_labels_of_a_table_are_those_of_any_type(tmp_path: Path) -> None:
    words, file = [*"abc"] * 20, tmp_path / "mine.parquet"
    x = DRAW.normal(size=60)
    columns = [
        pa.array(words), pa.array(words, pa.large_string()), pa.array([w.encode() for w in words]),
        pa.array(words, pa.string_view()), pa.array(words).dictionary_encode(), pa.array(pd.Categorical(words)),
    ]  # fmt: skip
    found = set()
    for column in columns:
        pq.write_table(pa.table({"x": x, "label": column}), file)
        found.add((parquet(file).digest, parquet(file).names))
    assert len(found) == 1
    numbers = [0, 1, 2] * 20
    found = set()
    for kind in (pa.int8(), pa.uint64(), pa.float32(), pa.float64(), pa.decimal128(22, 2)):
        pq.write_table(pa.table({"x": x, "label": pa.array(numbers).cast(kind)}), file)
        found.add((parquet(file).digest, parquet(file).names))
    pq.write_table(pa.table({"x": x, "label": pa.array(numbers).dictionary_encode()}), file)
    assert found == {(parquet(file).digest, ())}


def test_a_split_is_understood_or_refused_by_its_name(tmp_path: Path) -> None:
    frame = noise()
    for name in ("train", "tests"):
        frame.to_parquet(tmp_path / f"{name}.parquet")
    with pytest.raises(DataError, match=r": file tests resembles test; rename it to test"):
        parquet(tmp_path)
    (tmp_path / "tests.parquet").rename(tmp_path / "TEST.parquet")
    assert parquet(tmp_path).facts.test == 60  # type: ignore[union-attr]
    frame.to_parquet(tmp_path / "testing.parquet")
    with pytest.raises(DataError, match=r": files TEST and testing both mean test; keep one"):
        parquet(tmp_path)


def test_a_wide_table_loads_in_time_linear_in_its_columns(tmp_path: Path) -> None:
    seconds = []
    for d in (2_000, 4_000, 8_000):
        file = tmp_path / f"{d}.parquet"
        x = DRAW.normal(size=(10, d))
        table = pa.Table.from_arrays([*x.T, np.arange(10) % 2], [*(f"c{i}" for i in range(d)), "label"])
        pq.write_table(table, file)
        began = time.process_time()
        assert parquet(file).shape == (d,)
        seconds.append(time.process_time() - began)
    assert seconds[2] < 3 * seconds[1] + 0.5, seconds  # four times would be quadratic


def test_a_table_larger_than_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise().to_parquet(tmp_path / "mine.parquet")
    noise().to_csv(tmp_path / "mine.csv")
    monkeypatch.setattr(limits, "memory", lambda: 1000)
    with pytest.raises(DataError, match=r"mine\.parquet: needs 2\.81 kB of memory, but this machine has 0\.977 kB"):
        parquet(tmp_path / "mine.parquet")
    with pytest.raises(DataError, match=r"mine\.csv: needs .* of memory"):
        csv(tmp_path / "mine.csv")


# --- images -----------------------------------------------------------------------------------------------


def png(file: Path, pixels: Any, kind: int) -> None:
    """A PNG of 16 bits: kind 0 is grey, 2 RGB, 4 grey with alpha, 6 RGB with alpha."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = b"".join(b"\0" + np.asarray(row, ">u2").tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, kind, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def classes(base: Path, write: Any, suffix: str, n: int = 2) -> list[Any]:
    """Folders a and b of train and test with the images that `write(file)` makes; what it returned, in order."""
    made = []
    for part in ("train", "test"):
        for name in "ab":
            (base / part / name).mkdir(parents=True, exist_ok=True)
            made += [write(base / part / name / f"{i}.{suffix}") for i in range(n)]
    return made


@pytest.mark.parametrize("high", [4096, 65536])
@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_images_of_12_and_16_bits_keep_them(suffix: str, high: int, tmp_path: Path) -> None:
    def write(file: Path) -> Any:
        pixels = DRAW.integers(0, high, (5, 4)).astype(np.uint16)
        if suffix == "png":
            png(file, pixels, 0)
        else:
            Image.fromarray(pixels).save(file)
        return pixels

    x = np.stack(classes(tmp_path, write, suffix)).astype(np.float64)
    none = folder(tmp_path, normalise="none", val=0)
    assert none.shape == (1, 5, 4) and torch.equal(none.x[:, 0], torch.from_numpy(x).float())
    train = x[:4]
    expected = torch.from_numpy((x - train.mean()) / train.std()).float()
    torch.testing.assert_close(folder(tmp_path, val=0).x[:, 0], expected)
    rgb = folder(tmp_path, normalise="none", val=0, colour="rgb")
    assert rgb.shape == (3, 5, 4) and all(torch.equal(rgb.x[:, c], none.x[:, 0]) for c in range(3))
    small = folder(tmp_path, normalise="none", val=0, size=2).x
    assert (small[:].amax() > 1000) and small.shape[2:] == (2, 2)


def test_images_of_floats_and_32_bits_keep_their_values(tmp_path: Path) -> None:
    def floating(file: Path) -> Any:
        pixels = DRAW.random((5, 4)).astype(np.float32)
        Image.fromarray(pixels).save(file)
        return pixels

    def whole(file: Path) -> Any:
        pixels = 2**30 + DRAW.integers(0, 40, (5, 4)).astype(np.int32)
        Image.fromarray(pixels).save(file)
        return pixels

    x = np.stack(classes(tmp_path / "f", floating, "tiff"))
    assert torch.equal(folder(tmp_path / "f", normalise="none").x[:, 0], torch.from_numpy(x))
    x = np.stack(classes(tmp_path / "i", whole, "tiff")).astype(np.float64)
    expected = torch.from_numpy((x - x[:4].mean()) / x[:4].std()).float()
    torch.testing.assert_close(folder(tmp_path / "i", val=0).x[:, 0], expected)


@pytest.mark.parametrize(("kind", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_colours_of_16_bits_are_refused_since_pil_reads_8(kind: int, channels: int, tmp_path: Path) -> None:
    classes(tmp_path, lambda f: png(f, np.full((5, 4, channels), 65535), kind), "png")
    with pytest.raises(DataError, match=r"0\.png: more than 8 bits per colour, of which PIL reads 8; save it"):
        folder(tmp_path)
    file = next(tmp_path.rglob("*.png"))
    with pytest.raises(ValueError, match="more than 8 bits per colour"), Image.open(file) as image:
        decode(image, "rgb", None)  # as named sets are read
    for file in tmp_path.rglob("*.png"):
        file.unlink()
    classes(tmp_path, lambda f: f.write_bytes(b"P6 2 1 65535\n" + bytes(12)), "ppm")
    with pytest.raises(DataError, match=r"0\.ppm: more than 8 bits per colour, of which PIL reads 8; save it"):
        folder(tmp_path)


def test_depths_are_not_mixed(tmp_path: Path) -> None:
    classes(tmp_path, lambda f: Image.fromarray(np.full((5, 4), 9, np.uint8)).save(f), "png")
    png(tmp_path / "train" / "b" / "1.png", np.full((5, 4), 9), 0)
    with pytest.raises(DataError, match=r"b/1\.png: more than 8 bits, but .*a/0\.png has 8"):
        folder(tmp_path)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L"])
def test_transparent_pixels_need_a_background(mode: str, tmp_path: Path) -> None:
    def write(file: Path, alpha: int) -> None:
        value = np.full((2, 2), 200, np.uint8)
        a = np.array([[255, alpha], [255, 255]], np.uint8)
        if mode in ("P", "L"):
            index = np.array([[1, 0], [1, 1]], np.uint8)
            image = Image.fromarray(index * (100 if mode == "L" else 1))
            if mode == "P":
                image.putpalette([9, 9, 9, 200, 200, 200])
            image.save(file, **({"transparency": 0} if alpha == 0 else {}))
            return
        layers = [value] * (3 if mode == "RGBA" else 1)
        image = Image.fromarray(np.stack([*layers, a], 2))
        image.save(file)

    classes(tmp_path / "clear", lambda f: write(f, 0), "png")
    classes(tmp_path / "full", lambda f: write(f, 255), "png")
    with pytest.raises(DataError, match=r"0\.png: has transparent pixels; set dataset\.background=black or white"):
        folder(tmp_path / "clear")
    with pytest.raises(ValueError, match=r"dataset\.background=red: must be black or white"):
        folder(tmp_path / "clear", background="red")
    for background, value in (("black", 0), ("white", 255)):
        x = folder(tmp_path / "clear", background=background, normalise="none").x
        assert x[0, 0].tolist() == [[100 if mode == "L" else 200, value], [100 if mode == "L" else 200] * 2]
    full = folder(tmp_path / "full", normalise="none").x
    assert full[0, 0, 0, 0] == (100 if mode == "L" else 200)
    assert torch.equal(full[:], folder(tmp_path / "full", normalise="none", background="white").x[:])


def test_an_opaque_alpha_channel_changes_nothing(tmp_path: Path) -> None:
    x = DRAW.integers(0, 256, (9, 6, 5, 3)).astype(np.uint8)
    full = np.full((9, 6, 5, 1), 255, np.uint8)
    for name, pixels in (("rgb", iter(x)), ("rgba", iter(np.concatenate([x, full], 3)))):
        classes(tmp_path / name / "m", lambda f, at=pixels: Image.fromarray(next(at)).save(f), "png")
    assert folder(tmp_path / "rgb" / "m").digest == folder(tmp_path / "rgba" / "m").digest


@pytest.mark.parametrize(
    ("suffix", "mode"),
    [
        ("png", "RGB"),
        ("png", "RGBA"),
        ("webp", "RGB"),
        ("tiff", "RGB"),
        ("tiff", "RGBA"),
        ("tiff", "L"),
        ("tiff", "I;16"),
    ],
)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_stand_upright_as_exif_says(orientation: int, suffix: str, mode: str, tmp_path: Path) -> None:
    """Tags 1 to 8 of the same picture, each stored turned the other way."""
    upright = np.arange(0, 240, 40, dtype=np.uint8).reshape(2, 3)
    undo: dict[int, Any] = {
        1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: np.transpose,
        6: lambda a: np.rot90(a, 1), 7: lambda a: np.rot90(a.T, 2), 8: lambda a: np.rot90(a, 3),
    }  # fmt: skip
    tag = Image.Exif()
    tag[0x0112] = orientation

    def write(file: Path) -> None:
        image = Image.fromarray(np.ascontiguousarray(undo[orientation](upright))).convert(mode)
        image.save(file, exif=tag, **({"lossless": True} if suffix == "webp" else {}))

    classes(tmp_path, write, suffix)
    data = folder(tmp_path, normalise="none")
    assert data.x[0, 0].tolist() == upright.tolist()


def test_a_palette_is_looked_up_and_the_first_frame_is_said(tmp_path: Path) -> None:
    def write(file: Path) -> None:
        image = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8))
        image.putpalette([255, 0, 0, 0, 0, 255])
        image.save(file, save_all=True, append_images=[image.rotate(90)] if file.stem == "1" else [])

    classes(tmp_path, write, "gif")
    data = folder(tmp_path, normalise="none")
    assert data.x[0].tolist() == [[[255, 0], [0, 255]], [[0, 0], [0, 0]], [[0, 255], [255, 0]]]
    assert notes(data) == ("first of several frames used in 4 images",)


def test_images_larger_than_memory_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classes(tmp_path, lambda f: Image.new("RGB", (20, 20)).save(f), "png")
    monkeypatch.setattr(limits, "memory", lambda: 9000)
    with pytest.raises(DataError, match=r"0\.png and 7 more: needs 9\.38 kB of memory, .*; set dataset\.size"):
        folder(tmp_path)


# --- what a folder leaves out -----------------------------------------------------------------------------


def test_what_is_left_out_is_counted_in_one_line(tmp_path: Path) -> None:
    classes(tmp_path, lambda f: Image.new("RGB", (4, 4)).save(f), "png")
    for kind in ("gif", "jfif", "bmp"):
        Image.new("RGB", (4, 4)).save(tmp_path / "train" / "a" / f"x.{kind}", format="jpeg" if kind == "jfif" else None)
    assert notes(folder(tmp_path)) == () and folder(tmp_path).facts.train + folder(tmp_path).facts.val == 7  # type: ignore[union-attr]
    for name in ("train/a/1.heic", "train/a/2.HEIC", "test/b/3.npy", "train/a/.png", "train/list.txt", "README"):
        (tmp_path / name).write_bytes(b"x")
    os.mkfifo(tmp_path / "train" / "a" / "pipe.png")
    (tmp_path / "train" / "a" / "broken.png").symlink_to("nowhere")
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "1.png").write_bytes(b"x")
    Image.new("RGB", (4, 4)).save(tmp_path / "train" / "loose.png")
    (line,) = notes(folder(tmp_path))
    assert line == (
        "11 of 21 files used: 10 left out (2 .heic, 2 not readable as files, 1 in raw, 1 without suffix, 1 hidden, "
        "3 other kinds)"
    )


@pytest.mark.parametrize("names", [("Train", "Test"), ("training", "testing"), ("TRAIN", "tst"), ("trn", "test")])
def test_other_spellings_of_the_parts_are_the_parts(names: tuple[str, str], tmp_path: Path) -> None:
    classes(tmp_path, lambda f: Image.new("RGB", (4, 4)).save(f), "png")
    for part, name in zip(("train", "test"), names, strict=True):
        (tmp_path / part).rename(tmp_path / "moved")
        (tmp_path / "moved").rename(tmp_path / name)
    data = folder(tmp_path, val=0)
    assert data.names == ("a", "b") and (len(data.train), len(data.test)) == (4, 4)
    for more, says in {
        "Valid": None,
        "dev": None,
        "trian": "folder trian resembles train; rename it to train, or move it away",
        "test_set": "folder test_set resembles test",
        "evaluation": "folder evaluation resembles test",
        "training" if names[0] != "training" else "trn": "both mean train; keep one of them",
    }.items():
        (tmp_path / more / "a").mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / more / "a" / "1.png")
        if says is None:
            assert len(folder(tmp_path).val) == 1
        else:
            with pytest.raises(DataError, match=says):
                folder(tmp_path)
        (tmp_path / more).rename(tmp_path / f".{more}")


def test_misspelt_parts_alone_are_no_classes_and_a_class_may_be_called_train(tmp_path: Path) -> None:
    for part in ("trian", "tset"):
        (tmp_path / "m" / part / "a").mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "m" / part / "a" / "1.png")
    with pytest.raises(DataError, match=r"dataset\.path=.*m: folder trian resembles train"):
        folder(tmp_path / "m")
    for name in ("bus", "car", "train"):
        (tmp_path / "v" / name).mkdir(parents=True)
        for i in range(10):
            Image.new("RGB", (4, 4)).save(tmp_path / "v" / name / f"{i}.png")
    assert folder(tmp_path / "v").names == ("bus", "car", "train")


def test_parts_within_a_class_are_refused(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        for part in ("train", "test"):
            (tmp_path / name / part).mkdir(parents=True)
            Image.new("RGB", (4, 4)).save(tmp_path / name / part / "1.png")
    says = r"cat: has folders test, train within a class; use dataset\.path=.*cat if .* as in .*/test/cat"
    with pytest.raises(DataError, match=says):
        folder(tmp_path)


# --- all loaders ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["folder", "npz", "parquet", "csv", "function"])
def test_the_keys_and_defaults_in_conf_are_those_of_the_loader(name: str) -> None:
    config = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    assert config.pop("_target_") == f"tasks.datasets.{name}"
    known = {k: p.default for k, p in inspect.signature(getattr(ours, name)).parameters.items()}
    required = {"path": None} if "path" in known else {"make": config["make"]}
    assert config == known | required | ({"augment": []} if "augment" in known else {})


def test_formats_that_pil_decodes_are_read() -> None:
    assert {".png", ".jpg", ".gif", ".jfif", ".webp", ".tif", ".avif"} <= from_folder.suffixes()
    assert not {".eps", ".h5", ".wmf", ".npy", ".heic"} & from_folder.suffixes()


def test_a_run_says_its_data_at_the_start_and_in_the_manifest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import json

    from hydra import compose, initialize_config_dir

    from harness.config.catalogue import CONF as HOME
    from harness.jobs.job import from_config

    noise(90).drop(index=3).to_parquet(tmp_path / "mine.parquet")
    small = ["train.steps=2", "metrics=off", "gap=false", "control=false", "seeds=[0]", "tracker.mode=disabled"]
    own = ["dataset=parquet", f"dataset.path={tmp_path / 'mine.parquet'}", "tasks.n_tasks=1", f"results={tmp_path}"]
    with initialize_config_dir(version_base="1.3", config_dir=str(HOME)):
        cfg = compose("config", [*small, *own])
        other = compose(
            "config", [*small, "tasks=slowly_changing_regression", "tasks.n_tasks=1", f"results={tmp_path}"]
        )
    run = from_config(cfg)
    data = json.loads((run / "manifest.json").read_text())["data"]
    assert data == {
        "train": 64, "val": 7, "test": 18, "classes": 3, "smallest": 21, "untested": 0,
        "notes": ["index column __index_level_0__ left out"],
    }  # fmt: skip
    line = "mine: 64 train, 7 val, 18 test, 3 classes; smallest class 21 rows; index column __index_level_0__ left out"
    assert line in capsys.readouterr().out.splitlines()
    assert json.loads((from_config(other) / "manifest.json").read_text())["data"] is None
    assert "digits:" not in capsys.readouterr().out, "a stream with data of its own"


def test_exif_is_read_alike_for_named_sets(tmp_path: Path) -> None:
    """EuroSAT in torchvision's layout, one picture of which is turned."""
    names = ["AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial", "Pasture", "PermanentCrop",
             "Residential", "River", "SeaLake"]  # fmt: skip
    picture = DRAW.integers(0, 256, (64, 64, 3)).astype(np.uint8)
    tag = Image.Exif()
    tag[0x0112] = 6
    for name in names:
        file = tmp_path / "eurosat" / "2750" / name / f"{name}_1.png"
        file.parent.mkdir(parents=True)
        turned = name == "River"
        Image.fromarray(np.rot90(picture, 1) if turned else picture).save(file, **({"exif": tag} if turned else {}))
        Image.fromarray(picture).save(file.with_name(f"{name}_2.png"))
    assert torch.equal(*(load("eurosat", tmp_path, normalise="none").x[i] for i in (0, 16)))
