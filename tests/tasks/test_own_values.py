"""What a user's arrays become: labels of any type, numbers that float32 cannot resolve, layouts, names, sizes."""

from __future__ import annotations

import os
import re
import zipfile
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from tasks.datasets import DataError, arrays, function, limits, load, npz
from tasks.datasets.parts import resembled
from tasks.datasets.values import labels

DRAW = np.random.default_rng(0)
N = 60
Y = np.arange(N) % 3


def one(x: Any, y: Any = Y, **how: Any) -> Any:
    """Those rows for training and the same for testing, in this order."""
    return arrays({"x_train": x, "y_train": y, "x_test": x, "y_test": y}, "mine", **{"val": 0} | how)


# --- numbers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [1_700_000_000, 2**30, 10**15, -(10**15)])
@pytest.mark.parametrize("dtype", [np.float64, np.int64, object])
def test_a_feature_far_from_zero_is_centred_before_it_is_rounded(offset: int, dtype: Any) -> None:
    """One feature of offset + 20 y + noise: float32 keeps steps of 128 at 1.7e9, and of 2^26 at 1e15."""
    spread = 20 * Y + DRAW.integers(-3, 4, N)
    x = (offset + spread).astype(dtype)[:, None]
    expected = torch.from_numpy((spread - spread.mean()) / spread.std()).float()
    torch.testing.assert_close(one(x).x[:N, 0], expected, atol=1e-6, rtol=0)
    unit = (spread - spread.min()) / (spread.max() - spread.min())
    torch.testing.assert_close(one(x, normalise="unit").x[:N, 0], torch.from_numpy(unit).float(), atol=1e-6, rtol=0)
    with pytest.raises(DataError, match=r"dataset\.normalise=none: float32 cannot tell values of feature 0 of mine"):
        one(x, normalise="none")


def test_images_of_float64_far_from_zero_are_centred_too() -> None:
    spread = DRAW.normal(size=(N, 3, 4, 4))
    made = one(1e9 + spread, size=2).x[:N]
    plain = one(spread, size=2).x[:N]
    torch.testing.assert_close(made, plain, atol=1e-4, rtol=0)
    bag = one(1e9 + spread, augment=["flip"]).x
    torch.testing.assert_close(bag[3], one(spread).x[3], atol=1e-4, rtol=0)
    mixed = np.stack([1.7e9 + 20 * Y, DRAW.normal(size=N)], 1)
    assert torch.equal(one(mixed).x[:, 1], one(mixed[:, 1:]).x[:, 0]), "the others stay as they are"


def test_what_float64_cannot_resolve_either_is_refused() -> None:
    for x in (2**60 + 20 * Y, (2**63 + 20 * Y.astype(np.uint64))):
        with pytest.raises(DataError, match=r"x_train: values up to \d+ differ by less than float64 resolves"):
            one(x[:, None])
    assert one(DRAW.integers(0, 2**62, (N, 2))).x.isfinite().all(), "a wide spread is kept"
    longs = np.longdouble(2) ** 62 + Y[:, None]
    if longs.dtype.itemsize > 8:
        with pytest.raises(DataError, match="differ by less than float64 resolves"):
            one(longs)


def test_a_constant_stays_a_constant_beside_a_feature_far_from_zero() -> None:
    x = np.stack([1.7e9 + 20 * Y, np.full(N, 0.1)], 1)
    assert one(x).x[:, 1].eq(0).all()


STRANGE: dict[str, tuple[Any, str]] = {
    "a generator": ((i for i in range(3)), r"x: type object; expected numbers"),
    "nothing": (None, r"x: type object; expected numbers"),
    "words": (pd.DataFrame({"a": ["u", "v"]}), r"x: type object; expected numbers"),
    "words called index": (pd.DataFrame({"index": ["u", "v"]}), r"x: type object; expected numbers"),
    "complex numbers": (np.eye(2) + 1j, r"x: type complex128; expected numbers"),
    "a missing Int64": (pd.DataFrame({"a": pd.Series([1, None], dtype="Int64")}), r"x\[1\]: nan; 1 of 2 rows are not"),
    "infinity as float16": (np.full((2, 1), np.inf, np.float16), r"x\[0\]: inf; 2 of 2 rows are not finite"),
    "masked values": (np.ma.masked_array(np.eye(2), np.eye(2)), r"x: 2 values are masked; fill or drop them"),
    "rows of two lengths": ([[1, 2], [3]], r"x: cannot be read as an array"),
    "five axes": (np.zeros((2, 1, 1, 1, 1)), r"x: shape \[2, 1, 1, 1, 1\]; expected \[n, features\]"),
    "no features": (np.zeros((2, 0)), r"x: empty, shape \[2, 0\]"),
}


@pytest.mark.parametrize("case", STRANGE)
def test_what_is_no_table_of_numbers_is_refused_in_one_line(case: str) -> None:
    given, says = STRANGE[case]
    with pytest.raises(DataError, match=rf"^dataset=m: {says}") as caught:
        arrays({"x": given, "y": [0, 1]}, "m")
    assert "\n" not in str(caught.value)


# --- labels -----------------------------------------------------------------------------------------------

WORDS = ["b", "a", "b", "c"]
NUMBERS = [1, 0, 1, 2]
SAME: dict[str, tuple[Any, list[Any]]] = {
    "a list of words": (WORDS, WORDS),
    "pandas' strings": (pd.Series(WORDS, dtype="str"), WORDS),
    "pandas' string[python]": (pd.Series(WORDS, dtype="string[python]"), WORDS),
    "pandas' objects": (pd.Series(WORDS, dtype=object), WORDS),
    "categories of words": (pd.Series(WORDS, dtype="category"), WORDS),
    "a Categorical": (pd.Categorical(WORDS), WORDS),
    "an Index": (pd.Index(WORDS), WORDS),
    "bytes": (np.array(WORDS, "S"), WORDS),
    "a list of bytes": ([w.encode() for w in WORDS], WORDS),
    "bytes as objects": (np.array([w.encode() for w in WORDS], object), WORDS),
    "NumPy's StringDType": (np.array(WORDS, np.dtypes.StringDType()), WORDS),  # type: ignore[attr-defined]
    "a list of numbers": (NUMBERS, NUMBERS),
    "whole floats": (np.array(NUMBERS, np.float32), NUMBERS),
    "a list of whole floats": ([float(v) for v in NUMBERS], NUMBERS),
    "a mixture of whole numbers": ([1, 0.0, Decimal(1), np.int8(2)], NUMBERS),
    "categories of numbers": (pd.Series(NUMBERS, dtype="category"), NUMBERS),
    "pandas' Int64": (pd.Series(NUMBERS, dtype="Int64"), NUMBERS),
    "pandas' Float64": (pd.Series(NUMBERS, dtype="Float64"), NUMBERS),
    "pandas' boolean": (pd.Series([True, False], dtype="boolean"), [1, 0]),
    "bools": (np.array([True, False]), [1, 0]),
    "a list of bools": ([True, False], [1, 0]),
    "uint8": (np.array(NUMBERS, np.uint8), NUMBERS),
    "a tensor": (torch.tensor(NUMBERS), NUMBERS),
    "a tensor of bfloat16": (torch.tensor(NUMBERS, dtype=torch.bfloat16), NUMBERS),
    "a tensor with a gradient": (torch.tensor([1.0, 0, 1, 2], requires_grad=True), NUMBERS),
    "a range": (range(3), [0, 1, 2]),
}


@pytest.mark.parametrize("case", SAME)
def test_labels_of_every_type_are_words_or_whole_numbers(case: str) -> None:
    given, expected = SAME[case]
    made = labels(given, "y")
    assert made.tolist() == expected and made.dtype.kind in ("U" if isinstance(expected[0], str) else "biu")


REFUSED: dict[str, tuple[Any, str]] = {
    "fractions": (
        [0.0, 0.5],
        r"y\[1\]: 0\.5 is not a whole number; labels must be whole numbers from 0, or words; round",
    ),
    "a fraction among integers": ([0, Decimal("0.5")], r"y\[1\]: 0\.5 is not a whole number"),
    "nan": (np.array([0.0, np.nan]), r"y\[1\]: empty; 1 of 2 rows are empty"),
    "infinity": ([1, float("inf")], r"y\[1\]: inf is not a whole number"),
    "None": (["a", None], r"y\[1\]: empty; fill or drop it"),
    "pd.NA": (pd.Series([1, None], dtype="Int64"), r"y\[1\]: empty"),
    "a missing string": (pd.Series(["a", None], dtype="str"), r"y\[1\]: empty"),
    "a missing category": (pd.Series(["a", None], dtype="category"), r"y\[1\]: empty"),
    "a blank word": (["a", " "], r"y\[1\]: empty; 1 of 2 rows are empty"),
    "words and numbers": (["a", 1], r"y\[1\]: 1, but y\[0\] is 'a'; use words or numbers, not both"),
    "bytes that are no text": ([b"\xff"], r"y\[0\]: b'\\xff' is not UTF-8"),
    "dates": (np.array(["2020-01-01"], "M8[D]"), r"y: type datetime64\[D\]; expected whole numbers from 0, or words"),
    "objects": ([{}], r"y\[0\]: type dict; labels must be whole numbers"),
    "complex": (np.array([1j]), r"y: type complex128; expected"),
    "one-hot": (np.eye(3), r"y: shape \[3, 3\]; expected one label per row, \[n\]; use y\.argmax\(1\)"),
    "a column": (np.zeros((3, 1)), r"y: shape \[3, 1\]; expected one label per row, \[n\]; use y\.ravel\(\)"),
    "beyond int64": (np.array([2**63], np.uint64), r"y\[0\]: label 9223372036854775808 is too large"),
    "a list beyond int64": ([0, 2**70], r"y\[1\]: label 1180591620717411303424 is too large"),
    "floats beyond int64": (np.array([1e30]), r"y\[0\]: 1e\+30 is not a whole number"),
    "a number": (3, r"y: type int; expected one label per row, \[n\]"),
    "a set": ({"a", "b"}, r"y: type set; expected one label per row, \[n\]"),
    "intervals": (pd.cut(np.arange(4), 2), r"y\[0\]: type Interval; labels must be"),
    "masked": (np.ma.masked_array([0, 1], [False, True]), r"y: 1 values are masked"),
    "ragged": ([[1], [1, 2]], r"y: cannot be read as an array"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_labels_that_are_neither_are_refused_with_the_remedy(case: str) -> None:
    given, says = REFUSED[case]
    with pytest.raises(DataError, match=says) as caught:
        labels(given, "y")
    assert "\n" not in str(caught.value)


def test_labels_of_every_type_come_through_a_function() -> None:
    x, words = np.arange(15.0)[:, None], [*"abc"] * 5
    expected = function({"x": x, "y": np.array(words)})
    for y in (pd.Series(words), pd.Series(words, dtype="category"), np.array(words, "S"), words):
        made = function((pd.DataFrame({"a": x[:, 0]}), y))
        assert made.digest == expected.digest and made.names == ("a", "b", "c")


def test_pandas_rows_keep_their_labels_and_no_row_numbers() -> None:
    frame = pd.DataFrame({"a": DRAW.normal(size=15), "b": range(15)})
    y = pd.Series([*"abc"] * 5)
    plain = function((frame, y))
    kept = frame.a > frame.a.min()
    assert function((frame[kept], y[kept])).shape == plain.shape == (2,)
    mixed = frame.sample(frac=1, random_state=1)
    with pytest.raises(DataError, match=r"dataset\.make: x and y have the same pandas index in another order"):
        function((mixed, y))
    assert function((mixed, y.loc[mixed.index])).shape == (2,)
    assert function((mixed.reset_index(drop=True), y)).shape == (2,)
    with pytest.raises(DataError, match=r"dataset\.make: x: column index numbers the rows; drop it, or rename it"):
        function((mixed.reset_index(), y))
    assert function((frame.rename(columns={"a": "index"}), y)).shape == (2,)


def test_labels_that_look_alike_are_refused_or_said() -> None:
    def of(*words: str) -> Any:
        return one(np.arange(2.0 * len(words))[:, None], [*words] * 2)

    for pair in (("cat", "cat "), ("a b", "a  b"), ("caf\u00e9", "cafe\u0301")):
        with pytest.raises(DataError, match=r"classes .* and .* differ only by spaces or by the encoding of a letter"):
            of("dog", *pair)
    assert of("cat", "Cat", "dog").facts.notes == ("Cat and cat differ only by case",)
    assert of("cat", "dog").facts.notes == ()
    with pytest.raises(DataError, match=r"y_test\[0\]: labels are numbers, those of the training rows words"):
        arrays({"x_train": np.eye(2), "y_train": ["a", "b"], "x_test": np.eye(2), "y_test": [0, 1]}, "m")


# --- layouts and names ------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(8, 8, 4), (8, 8, 8), (5, 6, 7), (3, 5, 3), (1, 9, 1), (3, 9, 1), (4, 8, 4)])
def test_a_shape_that_could_be_either_layout_needs_the_key(shape: tuple[int, int, int], tmp_path: Path) -> None:
    x = DRAW.integers(0, 256, (N, *shape)).astype(np.uint8)
    a, b, c = shape
    says = rf"\[{a}, {b}, {c}\] are {a} channels of {b}x{c}, or {c} channels of {a}x{b}; set dataset\.layout"
    with pytest.raises(DataError, match=says):
        one(x)
    np.savez(tmp_path / "a.npz", x=x, y=Y)
    with pytest.raises(DataError, match=says):
        npz(tmp_path / "a.npz")
    assert npz(tmp_path / "a.npz", layout="channels_first").shape == shape
    last = one(x, layout="channels_last", normalise="none")
    assert last.shape == (c, a, b)
    assert torch.equal(last.x[:N], torch.from_numpy(x.transpose(0, 3, 1, 2)).float())
    with pytest.raises(ValueError, match=r"dataset\.layout=last: must be channels_first or channels_last, or null"):
        one(x, layout="last")


@pytest.mark.parametrize("shape", [(16, 8, 8), (4, 8, 8), (3, 8, 4), (1, 8, 8), (3, 3, 8), (3, 4, 4)])
def test_a_shape_that_can_be_one_layout_needs_none(shape: tuple[int, int, int]) -> None:
    assert one(DRAW.normal(size=(N, *shape))).shape == shape
    if shape[0] in (1, 3) and shape[1] != 3:
        assert one(DRAW.normal(size=(N, *shape)).transpose(0, 2, 3, 1)).shape == shape


def test_other_spellings_of_the_arrays_are_understood_or_refused() -> None:
    x, y = np.arange(15.0)[:, None], np.arange(15) % 3
    names = ("x_train", "y_train", "x_val", "y_val", "x_test", "y_test")
    expected = arrays(dict(zip(names, (x, y) * 3)), "m")
    for other in (
        ("X_train", "Y_train", "X_valid", "y_valid", "x_Test", "y_test"),
        ("train_x", "train_y", "validation_x", "validation_y", "test_x", "test_y"),
        ("xtrain", "ytrain", "xdev", "ydev", "xtest", "ytest"),
        ("x_training", "y_training", "x_dev", "y_dev", "x_testing", "y_testing"),
    ):
        assert arrays(dict(zip(other, (x, y) * 3)), "m").digest == expected.digest
    assert arrays({"X": x, "Y": y}, "m").digest == arrays({"x": x, "y": y}, "m").digest
    base = dict(zip(names[:2] + names[4:], (x, y) * 2))
    for more, says in {
        "x_tset": "array x_tset resembles x_test; rename it",
        "x_holdout": "array x_holdout resembles x_test",
        "x_train2": "array x_train2 resembles x_train",
        "x_training": "arrays x_train and x_training mean the same; keep one",
        "x": "has x and x_train; keep either x and y, or the arrays of each part",
        "x_valid": "no array y_val; found",
    }.items():
        with pytest.raises(DataError, match=re.escape(f"dataset=m: {says}")):
            arrays(base | {more: x}, "m")
    assert arrays(base | {"ids": y, "mean": 3}, "m").facts.notes == ("arrays left out: ids, mean",)  # type: ignore[union-attr]


def test_misspelt_parts_are_recognised_and_other_words_left_alone() -> None:
    near = {"tset": "test", "trian": "train", "vaild": "val", "tests": "test", "trainset": "train", "testset": "test",
            "test-0000-of-1": "test", "Validation_2": "val", "holdout": "test", "my_dev": "val"}  # fmt: skip
    assert {name: resembled(name) for name in near} == near
    for name in ("tent", "rain", "text", "valley", "cat", "strain", "1", "", "devil", "Test", "valid"):
        assert resembled(name) is None, name


# --- sizes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.int64, np.float64])
def test_a_huge_label_takes_no_memory(dtype: Any) -> None:
    y = (np.arange(12) % 3).astype(dtype)
    y[5] = 10**12
    with pytest.raises(
        DataError, match=r"y_train\[5\]: labels go up to 1000000000000, but class 3 has no training row"
    ):
        one(np.eye(12), y)


def test_eight_rows_in_four_classes_are_refused_in_one_line() -> None:
    for n, classes in ((8, 4), (5, 5), (6, 4), (9, 8)):
        with pytest.raises(DataError, match=r"dataset\.(test|val)=0\.\d: leaves (class \d without|\d test rows for)"):
            arrays({"x": np.eye(n), "y": np.arange(n) % classes}, "mine")
    with pytest.raises(DataError, match=r"dataset\.val=0\.5: leaves class \d without a training row; lower it or add"):
        one(np.eye(5), np.arange(5), val=0.5)
    enough = arrays({"x": np.eye(40), "y": np.arange(40) % 4}, "mine")
    assert torch.bincount(enough.y[enough.train]).min() > 0 and torch.bincount(enough.y[enough.test]).min() > 0


def test_sizes_in_an_npz_are_checked_before_memory_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.npz"
    np.savez(file, x=np.eye(12), y=np.arange(12) % 3)
    with zipfile.ZipFile(file) as packed:
        whole = {name: packed.read(name) for name in packed.namelist()}
    whole["x.npy"] = whole["x.npy"].replace(b"(12, 12), }                    ", b"(12, 400000000000), }          ", 1)
    with zipfile.ZipFile(file, "w") as packed:
        for name, content in whole.items():
            packed.writestr(name, content)
    with pytest.raises(DataError, match=r"a\.npz: x: its header says 35 TB, but it has 1\.12 kB; write the file again"):
        npz(file)
    np.savez_compressed(file, x=np.zeros((1000, 1000)), y=np.arange(1000) % 3)
    monkeypatch.setattr(limits, "memory", lambda: 2**22)
    with pytest.raises(DataError, match=r"a\.npz: x: needs 7\.63 MB of memory, but this machine has 4 MB; store fewer"):
        npz(file)


def test_a_damaged_header_in_an_npz_is_said_in_one_line(tmp_path: Path) -> None:
    file, whole = tmp_path / "a.npz", tmp_path / "whole.npy"
    np.save(whole, np.eye(3))
    content = whole.read_bytes()
    for damaged in (
        b"",
        content[:20],
        content.replace(b"(3, 3), }", b"(3, 3)+()", 1),
        content.replace(b"(3, 3)", b"(-3,3)", 1),
        content.replace(b"'<f8'", b"'|O8'", 1),
        content.replace(b"'<f8'", b"'<zz'", 1),
        content[:6] + b"\x02\0\xff\xff\xff\x7f" + content[10:],
        content[:6] + b"\x09\0" + content[8:],
    ):
        with zipfile.ZipFile(file, "w") as packed:
            packed.writestr("x.npy", damaged)
            packed.writestr("y.npy", content)
        with pytest.raises(DataError, match=rf"^{file}: ") as caught:
            npz(file)
        assert "\n" not in str(caught.value)


def test_a_path_of_any_kind_is_answered_in_one_line() -> None:
    for path in (3, "a\0b", "a" * 5000, "~no-such-user/x"):
        with pytest.raises((DataError, ValueError), match=r"^dataset\.path=.*: (not found|cannot be read)") as caught:
            npz(path)  # type: ignore[arg-type]
        assert len(str(caught.value)) < 300


def test_a_fifo_or_a_device_is_refused_at_once(tmp_path: Path) -> None:
    from tasks.datasets import csv, folder, parquet

    os.mkfifo(tmp_path / "a.npz")
    for loader in (npz, parquet, csv, folder):
        with pytest.raises(DataError, match=r"dataset\.path=.*a\.npz: a fifo; expected a file or a folder"):
            loader(tmp_path / "a.npz")
        with pytest.raises(DataError, match=r"dataset\.path=/dev/zero: a device; expected a file or a folder"):
            loader("/dev/zero")


# --- the line at the start --------------------------------------------------------------------------------


def test_a_data_set_says_its_rows_classes_and_splits() -> None:
    assert str(load("digits", val=0).facts) == "1,438 train, 359 test, 10 classes; smallest class 139 rows"
    data = load("digits")
    counts = torch.bincount(data.y[data.train])
    assert str(data.facts) == f"1,294 train, 144 val, 359 test, 10 classes; smallest class {counts.min()} rows"
    x = np.arange(8.0)[:, None]
    few = arrays({"x_train": x, "y_train": [0, 0, 0, 0, 0, 1, 1, 2], "x_test": x[:2], "y_test": [0, 1]}, "m", val=0)
    assert str(few.facts) == "8 train, 2 test, 3 classes; smallest class 1 row; 1 class without a test row"


# --- what was valid before --------------------------------------------------------------------------------


def test_digests_of_plain_data_are_those_of_the_first_version() -> None:
    """Run ids rest on them: computed before any of the above was read differently."""
    draw = np.random.default_rng(0)
    given = {
        "normal": draw.normal(size=(60, 4)),
        "offset": 1000 + draw.normal(size=(60, 4)),
        "big": draw.integers(0, 2**40, (60, 4)),
        "float32": draw.normal(size=(60, 4)).astype(np.float32),
        "bytes": draw.integers(0, 256, (60, 5, 4)).astype(np.uint8),
        "last": draw.integers(0, 256, (60, 5, 4, 3)).astype(np.uint8),
        "maps": draw.normal(size=(60, 16, 4, 4)),
    }
    found = {k: arrays({"x": x, "y": np.arange(60) % 3}, "mine").digest for k, x in given.items()}
    assert found == DIGESTS


DIGESTS = {
    "normal": "f50c8ba3f53b67b3",
    "offset": "6eb88cdfe69b8cc4",
    "big": "42ac1245f0fb4aee",
    "float32": "0c9fc4dc5ad0792f",
    "bytes": "9cbc604cc6bb37db",
    "last": "4160d7794885385f",
    "maps": "ab9d1414eaad5b12",
}
