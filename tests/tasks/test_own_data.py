"""A user's own data: a folder, an npz file, a parquet file and a function, good and broken."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from tasks.datasets import DataError, arrays, folder, function, npz, parquet

DRAW = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def picture(file: Path, value: int | None = None, size: tuple[int, int] = (6, 5), mode: str = "RGB") -> None:
    """A file of one colour, or of noise; size is width, height."""
    file.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    pixels = np.full(shape, value, np.uint8) if value is not None else DRAW.integers(0, 256, shape).astype(np.uint8)
    Image.fromarray(pixels).save(file)


def pictures(base: Path, parts: tuple[str, ...] = ("train", "test"), n: int = 4) -> Path:
    for p, part in enumerate(parts):
        for c, name in enumerate(("cat", "dog", "eel")):
            for i in range(n):
                picture(base / part / name / f"{i}.png", value=10 * (p + 1) + 50 * c + i)
    return base


# --- a folder ---------------------------------------------------------------------------------------------


def test_a_folder_s_images_are_numbered_by_the_order_of_their_classes(tmp_path: Path) -> None:
    data = folder(pictures(tmp_path / "animals"), normalise="none", val=0.25)

    assert data.name == "animals" and data.names == ("cat", "dog", "eel") and data.classes == 3
    assert data.shape == (3, 5, 6)
    assert data.y.tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [0] * 4 + [1] * 4 + [2] * 4
    expected = [10 * p + 50 * c + i for p in (1, 2) for c in range(3) for i in range(4)]
    assert data.x[:, 0, 0, 0].tolist() == expected  # type: ignore[union-attr]
    assert data.test.tolist() == list(range(12, 24)) and len(data.val) == 3
    assert sorted([*data.train.tolist(), *data.val.tolist()]) == list(range(12))


def test_a_folder_with_a_validation_part_is_split_as_it_is(tmp_path: Path) -> None:
    data = folder(pictures(tmp_path, ("train", "val", "test")), val=0.5, normalise="none")

    assert (data.train.tolist(), data.val.tolist(), data.test.tolist()) == (
        list(range(12)), list(range(12, 24)), list(range(24, 36)),
    )  # fmt: skip
    assert data.x[12, 0, 0, 0] == 20 and data.x[24, 0, 0, 0] == 30


def test_a_folder_without_parts_gets_a_stratified_test_of_its_own(tmp_path: Path) -> None:
    pictures(tmp_path, ("",), n=10)
    data = folder(tmp_path, normalise="none", test=0.2)

    assert torch.bincount(data.y[data.test]).tolist() == [2, 2, 2]
    assert sorted(data.x[:, 0, 0, 0].tolist()) == sorted(10 + 50 * c + i for c in range(3) for i in range(10))
    assert torch.equal(data.y, ((data.x[:, 0, 0, 0] - 10) // 50).long()), "labels no longer belong to their images"
    again = folder(tmp_path, normalise="none", test=0.2)
    assert torch.equal(again.x, data.x) and again.digest == data.digest  # type: ignore[arg-type]


def test_grey_folders_have_one_channel_and_standard_is_of_the_training_images(tmp_path: Path) -> None:
    for part, values in (("train", (0, 100)), ("test", (250, 250))):
        for name, value in zip("ab", values):
            picture(tmp_path / part / name / "1.png", value, mode="L")
    data = folder(tmp_path, val=0)

    assert data.shape == (1, 5, 6)
    torch.testing.assert_close(data.x[:, 0, 0, 0], torch.tensor([-1.0, 1.0, 4.0, 4.0]), atol=1e-3, rtol=0)


def test_sizes_may_differ_where_one_is_asked_for(tmp_path: Path) -> None:
    """The shorter side becomes 4 pixels; what is left of the longer is cut off evenly on both sides."""
    half = np.zeros((8, 16), np.uint8)
    half[:, 8:] = 200
    for part in ("train", "test"):
        for name in "ab":
            (tmp_path / part / name).mkdir(parents=True)
            Image.fromarray(half).save(tmp_path / part / name / "1.png")
            picture(tmp_path / part / name / "2.png", 60, (4, 9), mode="L")
    data = folder(tmp_path, size=4, normalise="none", val=0)

    assert data.shape == (1, 4, 4)
    wide, tall = data.x[0, 0], data.x[1, 0]
    assert torch.equal(tall, torch.full((4, 4), 60.0))
    assert wide[:, 0].eq(0).all() and wide[:, 3].eq(200).all() and wide.mean() == pytest.approx(100, abs=1)


def spoil(file: str) -> Callable[[Path], None]:
    return lambda base: (base / file).write_bytes(b"no image") and None  # type: ignore[func-returns-value]


def truncate(base: Path) -> None:
    file = base / "train/dog/2.png"
    picture(file, size=(40, 40))
    file.write_bytes(file.read_bytes()[:-2000])


def clear(base: Path) -> None:
    for file in (base / "train/dog").iterdir():
        file.unlink()


BROKEN_FOLDERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "no image in an image": (r"train/dog/1\.png: cannot be read as an image .* replace it", spoil("train/dog/1.png")),
    "cut short": (r"train/dog/2\.png: cannot be read as an image", truncate),
    "another size": (r"train/eel/9\.png: 7x5 pixels, but .*train/cat/0\.png has 6x5; set dataset\.size",
                     lambda b: picture(b / "train/eel/9.png", size=(7, 5))),
    "an empty class": (r"train/dog: class without images", clear),
    "a class of the test alone": (r"test/fox: class fox has no folder in .*train",
                                  lambda b: picture(b / "test/fox/1.png")),
    "a class without a test": (r"test: no folder for class fox, which", lambda b: picture(b / "train/fox/1.png")),
    "a class twice": (r"train: Dog and dog differ only by case", lambda b: picture(b / "train/Dog/1.png")),
    "no training part": (r"has a folder test but no folder train", lambda b: (b / "train").rename(b / "first")),
    "a grey image, then colour": (r"train/cat/1\.png: in colour, but .*0\.png is grey; set dataset\.colour",
                                  lambda b: picture(b / "train/cat/0.png", 3, mode="L")),
    "loose images": (r"train: images such as 1\.png are not in a class folder; expected one folder per class, as in",
                     lambda b: [(b / "train").rename(b / "old"), picture(b / "train/1.png")]),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN_FOLDERS)
def test_a_broken_folder_is_named_in_one_line(tmp_path: Path, case: str) -> None:
    says, breaks = BROKEN_FOLDERS[case]
    base = pictures(tmp_path / "mine")
    breaks(base)

    with pytest.raises(DataError, match=says) as caught:
        folder(base)
    assert "\n" not in str(caught.value) and str(base) in str(caught.value)


def test_paths_that_lead_nowhere_say_what_was_meant(tmp_path: Path) -> None:
    pictures(tmp_path / "animals")
    (tmp_path / "a.npz").write_bytes(b"")
    with pytest.raises(DataError, match=r"animal: not found; did you mean .*/animals\?"):
        folder(tmp_path / "animal")
    with pytest.raises(DataError, match=r"not found; the folder .*nowhere does not exist either"):
        folder(tmp_path / "nowhere" / "animals")
    with pytest.raises(DataError, match=r"a file, not a folder; use dataset=npz"):
        folder(tmp_path / "a.npz")
    for kind in (folder, npz, parquet):
        with pytest.raises(ValueError, match=r"dataset\.path=null: must be the path of a"):
            kind(None)
    with pytest.raises(ValueError, match=r"dataset\.colour=red: must be rgb or grey"):
        folder(tmp_path / "animals", colour="red")


def test_an_image_that_changes_is_decoded_anew_and_others_come_from_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    from tasks.datasets import from_folder

    base = pictures(tmp_path / "mine")
    old = 1_600_000_000  # files this old have settled
    for file in base.rglob("*.png"):
        os.utime(file, (old, old))
    decoded: list[str] = []
    real = from_folder._decoded
    monkeypatch.setattr(from_folder, "_decoded", lambda *a: (decoded.append("x"), real(*a))[1])

    first = folder(base)
    assert folder(base).digest == first.digest and len(decoded) == 1
    picture(base / "train/cat/0.png", 99)
    os.utime(base / "train/cat/0.png", (old + 1, old + 1))
    assert folder(base).digest != first.digest and len(decoded) == 2
    (base / "train/cat/1.png").unlink()
    assert len(folder(base).y) == 23 and len(decoded) == 3


# --- arrays -----------------------------------------------------------------------------------------------


def table(n: int = 12, d: int = 3) -> dict[str, Any]:
    x = np.arange(n * d, dtype=np.float64).reshape(n, d)
    return {"x_train": x, "y_train": np.arange(n) % 3, "x_test": x[:6] + 0.5, "y_test": np.arange(6) % 3}


def test_an_npz_s_rows_are_normalised_by_its_training_rows(tmp_path: Path) -> None:
    np.savez(tmp_path / "mine.npz", **table())
    data = npz(tmp_path / "mine.npz", val=0.25)

    assert (data.name, data.shape, data.classes) == ("mine", (3,), 3)
    raw = table()["x_train"]
    torch.testing.assert_close(data.x[:12], torch.from_numpy((raw - raw.mean(0)) / raw.std(0)).float())
    assert data.test.tolist() == list(range(12, 18)) and len(data.val) == 3
    unit = npz(tmp_path / "mine.npz", normalise="unit").x
    assert unit[:12].amin() == 0 and unit[:12].amax() == 1  # type: ignore[union-attr, call-arg, arg-type]
    both = npz(tmp_path / "mine.npz", normalise="symmetric").x
    torch.testing.assert_close(both, 2 * unit - 1)  # type: ignore[operator]
    plain = npz(tmp_path / "mine.npz", normalise="none").x
    assert torch.equal(plain[:12], torch.from_numpy(raw).float())


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((5, 4), (1, 5, 4)),
        ((3, 5, 4), (3, 5, 4)),
        ((5, 4, 3), (3, 5, 4)),
        ((1, 4, 4), (1, 4, 4)),
        ((4, 4, 1), (1, 4, 4)),
    ],
)
def test_images_of_either_layout_come_channels_first(shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    x = DRAW.integers(0, 256, (12, *shape)).astype(np.uint8)
    data = arrays({"x": x, "y": np.arange(12) % 2}, "mine", normalise="none")

    assert data.shape == expected
    assert sorted(data.x[:].sum((1, 2, 3)).tolist()) == sorted(x.reshape(12, -1).sum(1, dtype=float).tolist())
    if shape == (5, 4, 3):
        assert any(torch.equal(data.x[0], torch.from_numpy(v.transpose(2, 0, 1)).float()) for v in x)


def test_a_validation_part_and_words_as_labels_are_taken_as_they_are(tmp_path: Path) -> None:
    words = np.array(["b", "a", "b", "c"])
    x = np.arange(8.0).reshape(4, 2)
    data = arrays({"x_train": x, "y_train": words, "x_val": x, "y_val": words, "x_test": x, "y_test": words[::-1]}, "m")

    assert data.names == ("a", "b", "c") and data.y.tolist() == [1, 0, 1, 2, 1, 0, 1, 2, 2, 1, 0, 1]
    assert (data.train.tolist(), data.val.tolist()) == ([0, 1, 2, 3], [4, 5, 6, 7])


def test_a_feature_that_never_changes_is_no_division_by_zero() -> None:
    x = np.arange(24.0).reshape(12, 2)
    x[:, 1] = 7
    for how in ("standard", "unit"):
        data = arrays({"x": x, "y": np.arange(12) % 2}, "mine", normalise=how)
        assert data.x[:, 1].eq(0).all()


def without(*names: str) -> dict[str, Any]:
    return {k: v for k, v in table().items() if k not in names}


def put(name: str, row: Any, value: Any) -> dict[str, Any]:
    changed = {k: v.copy() for k, v in table().items()}
    changed[name][row] = value
    return changed


BROKEN_ARRAYS: dict[str, tuple[str, Callable[[], dict[str, Any]]]] = {
    "nan": (r": x_train\[5\]: nan; 1 of 12 rows are not finite", lambda: put("x_train", (5, 1), np.nan)),
    "infinity": (r": x_test\[2\]: -inf", lambda: put("x_test", (2, 0), -np.inf)),
    "too large for float32": (r": x_train\[0\]: 1e\+300; 1 of 12 rows are not finite, or beyond",
                              lambda: put("x_train", (0, 0), 1e300)),
    "a label missing": (r": 11 labels in y_train for 12 rows", lambda: table() | {"y_train": np.arange(11) % 3}),
    "negative label": (r": y_train\[4\]: label -1 is not in 0 \.\.\. 2", lambda: put("y_train", 4, -1)),
    "label without training": (r": y_test\[3\]: label 7 is not in 0 \.\.\. 2", lambda: put("y_test", 3, 7)),
    "a gap": (r": y_train\[0\]: labels go up to 9, but class 3 has no training row \(6 such classes\)",
              lambda: put("y_train", 0, 9)),
    "labels from 1": (r"class 0 has no training row",
                      lambda: table() | {k: table()[k] + 1 for k in ("y_train", "y_test")}),
    "labels as fractions": (r": y_train\[1\]: 0\.5 is not a whole number; labels must be whole .* from 0, or words",
                            lambda: table() | {"y_train": np.arange(12) % 3 / 2}),
    "one-hot labels": (r": y_train: shape \[12, 3\]; expected one label per row",
                       lambda: table() | {"y_train": np.eye(3)[np.arange(12) % 3]}),
    "no test": (r": no array x_test; found x_train, y_train, y_test; expected", lambda: without("x_test")),
    "other names": (r": no array x_train; found data, target", lambda: {"data": np.eye(3), "target": np.arange(3)}),
    "another width": (r": rows of x_test are float64 of shape \[2\], those of x_train float64 of shape \[3\]",
                      lambda: table() | {"x_test": np.zeros((6, 2))}),
    "words as inputs": (r": x_train: type <U1; expected numbers",
                        lambda: table() | {"x_train": np.full((12, 3), "a")}),
    "a single axis": (r": x_train: shape \[12\]; expected \[n, features\]",
                      lambda: table() | {"x_train": np.arange(12)}),
    "nothing": (r": x_test: empty, shape \[0, 3\]",
                lambda: table() | {"x_test": np.zeros((0, 3)), "y_test": np.zeros(0, int)}),
    "a class of the test alone": (
        r": y_test\[1\]: class z has no training row",
        lambda: table() | {"y_train": np.array([*"ab"] * 6), "y_test": np.array([*"azazaz"])},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN_ARRAYS)
def test_a_broken_npz_names_the_array_and_the_row(tmp_path: Path, case: str) -> None:
    says, make = BROKEN_ARRAYS[case]
    file = tmp_path / "mine.npz"
    np.savez(file, **make())

    with pytest.raises(DataError, match=says) as caught:
        npz(file)
    assert "\n" not in str(caught.value) and str(file) in str(caught.value)


def test_files_that_are_no_npz_are_named_and_python_objects_are_never_unpickled(tmp_path: Path) -> None:
    file = tmp_path / "mine.npz"
    file.write_bytes(b"\x00" * 50)
    with pytest.raises(DataError, match=r"mine\.npz: cannot be read as npz"):
        npz(file)
    np.savez(file, **table() | {"y_train": np.array([{}] * 12, dtype=object)})
    with pytest.raises(DataError, match=r"mine\.npz: contains Python objects"):
        npz(file)
    np.savez(file, **table())
    damaged = bytearray(file.read_bytes())
    damaged[200] ^= 255
    file.write_bytes(damaged)
    with pytest.raises(DataError, match=r"mine\.npz: cannot be read as npz .*CRC"):
        npz(file)
    with zipfile.ZipFile(file, "w") as packed, pytest.warns(UserWarning, match="Duplicate name"):
        packed.writestr("x.npy", b"a")
        packed.writestr("x.npy", b"b")
    with pytest.raises(DataError, match=r"mine\.npz: array x is stored 2 times"):
        npz(file)


def test_too_few_rows_of_a_class_for_a_test_of_ones_own_are_said() -> None:
    with pytest.raises(DataError, match=r"dataset\.test=0\.2: leaves 2 of 2 rows for training, 0 for testing"):
        arrays({"x": np.eye(2), "y": np.arange(2)}, "mine")
    with pytest.raises(DataError, match=r"dataset\.test=0\.9: leaves class \d without a training row"):
        arrays({"x": np.eye(30), "y": np.arange(30) % 10}, "mine", test=0.9)


def test_what_images_need_is_refused_for_features() -> None:
    with pytest.raises(ValueError, match=r"inputs of shape \[3\] are not images"):
        arrays(table(), "mine", augment=["flip"])


# --- a table ----------------------------------------------------------------------------------------------


def frame(n: int = 12) -> dict[str, Any]:
    return {
        "a": np.arange(n) / 2,
        "b": np.arange(n) % 5,
        "label": np.arange(n) % 3,
        "part": ["train"] * 8 + ["test"] * (n - 8),
    }


def written(file: Path, columns: dict[str, Any]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), file)
    return file


def test_a_parquet_file_s_columns_are_features_and_one_the_label(tmp_path: Path) -> None:
    file = written(tmp_path / "mine.parquet", frame())
    data = parquet(file, columns=["b", "a"], normalise="none", val=0, test=0.25)

    assert (data.name, data.shape, data.classes) == ("mine", (2,), 3)
    rows = {(*x, y) for x, y in zip(data.x[:].tolist(), data.y.tolist(), strict=True) for x in [tuple(x)]}
    assert rows == {(float(i % 5), i / 2, i % 3) for i in range(12)}
    assert len(data.test) == 3

    split = parquet(file, split="part", normalise="none", val=0)
    assert split.shape == (2,) and (len(split.train), len(split.test)) == (8, 4)
    assert torch.equal(split.x[:, 0], torch.arange(12) / 2)


def test_a_folder_of_parquet_files_is_split_as_it_is_and_words_are_classes(tmp_path: Path) -> None:
    words = {"label": ["y", "x", "y"], "f": [1.0, 2.0, 3.0], "g": [True, False, True]}
    for part in ("train", "val", "test"):
        written(tmp_path / "mine" / f"{part}.parquet", words)
    data = parquet(tmp_path / "mine", normalise="none")

    assert data.names == ("x", "y") and data.y.tolist() == [1, 0, 1] * 3
    assert (data.train.tolist(), data.val.tolist(), data.test.tolist()) == ([0, 1, 2], [3, 4, 5], [6, 7, 8])
    assert data.x[0].tolist() == [1, 1]
    coded = words | {"label": pa.array(words["label"]).dictionary_encode()}
    written(tmp_path / "mine" / "train.parquet", coded)
    assert parquet(tmp_path / "mine", normalise="none").digest == data.digest


def test_columns_of_a_second_file_are_taken_by_name(tmp_path: Path) -> None:
    written(tmp_path / "train.parquet", {"a": [1.0, 2.0], "b": [3.0, 4.0], "label": [0, 1]})
    written(tmp_path / "test.parquet", {"label": [1, 0], "b": [7.0, 8.0], "a": [5.0, 6.0]})

    assert parquet(tmp_path, normalise="none", val=0).x[:].tolist() == [[1, 3], [2, 4], [5, 7], [6, 8]]


BROKEN_TABLES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "another label": (r": no column labl; did you mean label\?", frame(), {"label": "labl"}),
    "another column": (r": no column c; it has a, b, label, part", frame(), {"columns": ["a", "c"]}),
    "an empty cell": (r": row 7, a: empty; 1 of 12 rows are empty",
                      frame() | {"a": pa.array([*range(7), None, *range(4)])}, {"columns": ["a"]}),
    "nan": (r": row 3, a: nan; 1 of 12 rows are not finite",
            frame() | {"a": [0.0, 1, 2, float("nan"), *range(8)]}, {"columns": ["a"]}),
    "words as features": (r": column part is string, not a number; encode it, or list", frame(), {}),
    "an empty label": (r": row 1, label: empty",
                       frame() | {"label": pa.array([0, None, *[1] * 10])}, {"split": "part"}),
    "labels as fractions": (r": row 1, a: 0\.5 is not a whole number; labels must be whole numbers",
                         frame(), {"label": "a", "split": "part"}),
    "a negative label": (r": row 2, label: label -3 is not in 0",
                         frame() | {"label": [0, 1, -3, *[1] * 9]}, {"split": "part"}),
    "a class of the test alone": (r": row 9, label: label 4 is not in 0 \.\.\. 2",
                                  frame() | {"label": [0, 1, 2] * 3 + [4, 1, 2]}, {"split": "part"}),
    "a gap": (r"class 1 has no training row", frame() | {"label": [0, 2, 0] * 4}, {"split": "part"}),
    "another split": (r": row 0, part: odd; must be train, val or test", frame() | {"part": ["odd"] + ["train"] * 11},
                      {"split": "part"}),
    "no test rows": (r"column part contains only train", frame() | {"part": ["train"] * 12}, {"split": "part"}),
    "no rows": (r": has no rows", {"a": pa.array([], pa.float64()), "label": pa.array([], pa.int64())}, {}),
    "a label alone": (r": has no feature columns, only the label", {"label": [0, 1]}, {}),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN_TABLES)
def test_a_broken_parquet_file_names_the_column_and_the_row(tmp_path: Path, case: str) -> None:
    says, columns, how = BROKEN_TABLES[case]
    file = written(tmp_path / "mine.parquet", columns)

    with pytest.raises(DataError, match=says) as caught:
        parquet(file, **how)
    assert "\n" not in str(caught.value) and str(file) in str(caught.value)


def test_a_column_twice_or_no_parquet_at_all_is_said(tmp_path: Path) -> None:
    file = tmp_path / "mine.parquet"
    pq.write_table(
        pa.Table.from_arrays([pa.array([1, 2]), pa.array([1, 2]), pa.array([0, 1])], ["a", "a", "label"]), file
    )
    with pytest.raises(DataError, match=r"mine\.parquet: 2 columns are called a"):
        parquet(file)
    file.write_bytes(b"a,b,label\n1,2,0\n")
    with pytest.raises(DataError, match=r"mine\.parquet: cannot be read as parquet"):
        parquet(file)
    file.unlink()
    with pytest.raises(DataError, match=r"found no parquet file; expected train\.parquet and test\.parquet"):
        parquet(tmp_path)


# --- a function -------------------------------------------------------------------------------------------


def test_a_function_gives_arrays_in_a_tuple_or_a_mapping_or_a_data_set() -> None:
    whole = table()
    ordered = tuple(whole[k] for k in ("x_train", "y_train", "x_test", "y_test"))

    assert function(ordered).digest == function(whole).digest
    assert len(function((whole["x_train"], whole["y_train"]), test=0.25).test) == 3
    ready = arrays(whole, "ready")
    assert function(ready) is ready


def test_a_function_s_mistakes_are_said() -> None:
    with pytest.raises(ValueError, match=r"dataset\.make: returned int; expected \(x, y\)"):
        function(3)
    with pytest.raises(DataError, match=r"dataset\.make: y_train\[0\]: labels go up to 9, but class 3"):
        function(put("y_train", 0, 9))
