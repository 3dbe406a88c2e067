"""`check` finds each fault of own streams and data sets, by the right check, and passes what is right."""

from __future__ import annotations

import itertools
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harness import cli
from harness.contract import datasets, streams
from harness.contract.check import check
from harness.contract.datasets import few
from harness.contract.strategies import Broken
from harness.contract.streams import Case, repeated, toy_data
from harness.rows import Rows
from harness.types import Stream
from tasks.datasets import Dataset, load
from tests.harness.contract.own_streams import right_same

HERE = Path(__file__).parent


@pytest.fixture(scope="module", autouse=True)
def path() -> Any:
    sys.path.insert(0, str(HERE))
    yield
    sys.path.remove(str(HERE))


def faults(group: str, node: dict[str, Any], **others: Any) -> dict[str, str]:
    """What `check` says is broken: check -> what is wrong."""
    found = list(check({group: node, **others}, [group, *others]))
    assert len(found) > 1 or found[0].fault
    return {f.check: f.fault for f in found if f.fault}


def stream(name: str, **settings: Any) -> dict[str, Any]:
    return {"_target_": f"own_streams.{name}", "n_tasks": 3, **settings}


def data(name: str, **settings: Any) -> dict[str, Any]:
    given = {"val": 0.1, "test": 0.2, "normalise": "standard", "pad": 0, "augment": [], **settings}
    return {"_target_": "tasks.datasets.function", "make": {"_target_": f"own_streams.{name}"}, **given}


STREAMS = [
    ("leaks", {}, "test rows are not trained on", "val of task 0 has train rows of the data set; use dataset.val"),
    ("global_draw", {}, "draws come from its seeds alone", "it draws from torch's global generator"),
    ("mixes_seeds", {}, "row s of three seeds equals seed s alone", "the rows of seed 0 depend on the other seeds"),
    ("loses", {}, "no sample is lost", "4 of 49 train samples of its classes are in no task"),
    (
        "stale_digest",
        {"fixed": False},
        "its digest says what its rows are",
        "rows of another seed have the same digest",
    ),
    ("other_targets", {}, "training targets are those of the test", "on the target 3, and tests it on 2"),
    ("other_validation", {}, "a class has one target in a task", "has the targets"),
    ("made_leak", {"fixed": False}, "test rows are not trained on", "100% of the test inputs of task 0 are training"),
    ("ignores_pin", {"fixed": False}, "pin and fixed give all seeds the same rows", "pin leaves seeds different rows"),
    ("masked_out", {}, "rows, targets and masks fit", "a target is masked out"),
]


@pytest.mark.parametrize(("name", "settings", "title", "line"), STREAMS)
def test_each_fault_of_a_stream_is_found(name: str, settings: dict[str, Any], title: str, line: str) -> None:
    found = faults("tasks", stream(name, **settings))
    assert title in found and line in found[title], found


def plain(**changes: Any) -> Stream:
    return right_same(
        dataset=toy_data(), scenario="domain", classes="seen", n_tasks=2, device="cpu", pin=None, **changes
    )


def with_train(stream: Stream, **changes: Any) -> Stream:
    """The stream, with other fields of the training rows of its first task."""
    first, *rest = stream.tasks
    return replace(stream, tasks=[replace(first, train=replace(first.train, **changes)), *rest])


class OtherLabels(Rows):
    def labels(self) -> Tensor:
        return super().labels().roll(1, 1)


SPOILT: dict[str, tuple[Any, str]] = {
    "type": (lambda s: [s], "it returned a list; return a harness.types.Stream"),
    "scenario": (lambda s: replace(s, scenario="class"), "scenario or seeds are others than those given"),
    "index": (lambda s: replace(s, tasks=[replace(t, index=0) for t in s.tasks]), "task 1 has the index 0"),
    "size": (lambda s: with_train(s, size=torch.tensor([49])), "train of task 0: size is [1]"),
    "empty": (lambda s: with_train(s, size=torch.tensor([49, 0, 49])), "train of task 0 has no row for some seed"),
    "unsaid": (lambda s: with_train(s, size=torch.tensor([49, 48, 49])), "`sizes` [S, T] must give those of each task"),
    "sizes": (lambda s: replace(s, sizes=torch.full((3, 2), 7)), "`sizes` [S, T] must give those of each task"),
    "shape": (lambda s: replace(s, shape=(64,)), "rows are torch.float32 [1, 8, 8]; the stream says [64]"),
    "nan": (lambda s: with_train(s, data=toy_data().x / 0), "has inputs that are not finite"),
    "t": (lambda s: with_train(s, t=torch.ones(3, 1).long()), "t must be 0 outside of scenario=task"),
    "targets": (lambda s: with_train(s, y=s.tasks[0].train.y + 1), "targets must be whole numbers from 0 to 9"),
    "regression": (lambda s: replace(s, loss="mse"), "targets are []; expected 10 finite numbers"),
    "labels": (
        lambda s: replace(s, tasks=[replace(t, train=OtherLabels(**vars(t.train))) for t in s.tasks]),
        "`labels` gives other classes than `take`",
    ),
}


@pytest.mark.parametrize("name", SPOILT)
def test_rows_that_do_not_fit_are_found(name: str) -> None:
    spoil, line = SPOILT[name]
    streams.fits(Case(plain, "domain", (toy_data(),)))
    with pytest.raises(Broken, match=re.escape(line)):
        streams.fits(Case(lambda **how: spoil(plain(**how)), "domain", (toy_data(),)))


def test_a_digest_of_too_little_or_too_much_and_a_loss_of_infinity_are_found() -> None:
    def stale(n_tasks: int = 2, **how: Any) -> Stream:
        given = {"scenario": "domain", "classes": "seen", "device": "cpu", "pin": None, **how}
        made: Stream = right_same(n_tasks=n_tasks, **given)
        return replace(made, hash=how["dataset"].digest)

    given = {"dataset": toy_data()}
    case = Case(lambda **how: stale(**{**given, **how}), "domain", (toy_data(),), arguments={"n_tasks": 2})
    with pytest.raises(Broken, match="its digest is the same with n_tasks=3"):
        streams.says(case)
    case = Case(lambda **how: replace(plain(**how), hash=str(how["seeds"])), "domain", (toy_data(),))
    with pytest.raises(Broken, match="rows of another seed are the same, but have another digest"):
        streams.says(case)
    case = Case(lambda **how: with_train(plain(**how), data=toy_data().x * 1e38), "domain", (toy_data(),))
    with pytest.raises(Broken, match="a loss or a score is not finite"):
        streams.trains(case)


class Centred(Rows):
    def take(self, position: Tensor, key: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        x, y, t = super().take(position, key)
        return x - x[:, :1], y, t


def test_rows_that_depend_on_each_other_come_twice_or_share_a_target_are_found() -> None:
    def case(spoil: Any) -> Case:
        return Case(lambda **how: spoil(plain(**how)), "domain", (toy_data(),))

    def centred(s: Stream) -> Stream:
        return replace(s, tasks=[replace(t, train=Centred(**vars(t.train))) for t in s.tasks])

    with pytest.raises(Broken, match="train of task 0: a row depends on the rows that are taken with it"):
        streams.repeats(case(centred))
    twice = plain(seeds=(0, 1, 2)).tasks[0].train.index.clone()  # type: ignore[attr-defined]
    twice[:, 1] = twice[:, 0]
    with pytest.raises(Broken, match="train of task 0 has a sample twice"):
        streams.apart(case(lambda s: with_train(s, index=twice)))

    def merged(s: Stream) -> Stream:
        rows = [(t, {p: replace(getattr(t, p), y=getattr(t, p).y // 2) for p in ("val", "test")}) for t in s.tasks]
        return replace(s, tasks=[replace(t, **parts) for t, parts in rows])

    with pytest.raises(Broken, match="two classes of task 0 have one target"):
        streams.targets(case(merged))


def test_a_stream_that_changes_from_one_making_to_the_next_is_found() -> None:
    names = itertools.count()
    case = Case(lambda **how: replace(plain(**how), name=f"own {next(names)}"), "domain", (toy_data(),))
    with pytest.raises(Broken, match="its name is another when it is made again"):
        streams.repeats(case)
    rows = itertools.count()
    case = Case(lambda **how: with_train(plain(**how), data=toy_data().x + next(rows)), "domain", (toy_data(),))
    with pytest.raises(Broken, match="it has other rows when it is made again"):
        streams.repeats(case)


@pytest.mark.parametrize("name", ["right_same", "right_permuted", "right_split", "right_halves", "right_made"])
def test_right_streams_pass(name: str) -> None:
    node = stream(name) if name == "right_same" else stream(name, fixed=False)
    if name == "right_halves":
        del node["n_tasks"]
    assert faults("tasks", node) == {}


def test_a_stream_is_tried_on_the_chosen_data_set() -> None:
    assert faults("tasks", stream("right_permuted", fixed=False), dataset=data("right_pair")) == {}
    assert "5 of 86" in faults("tasks", stream("loses"), dataset=data("right_pair"))["no sample is lost"]


DATASETS = [
    ("overlapping", "test rows are not trained on", "10 rows are in train and test"),
    ("unseeded", "read again, it is the same", "y is another when it is read again"),
    ("global_split", "reading it draws from no global generator", "draws from numpy's global generator"),
    ("oversampled", "test rows are not trained on", "of the test inputs are training inputs; remove doubles"),
    ("unscaled", "inputs are normalised as it says", "but normalise=standard means 0 and 1"),
    ("untrained_class", "every class can be learnt and tested", "class 2 has no training row"),
    ("infinite", "inputs, classes and parts fit", "some not finite"),
]


@pytest.mark.parametrize(("name", "title", "line"), DATASETS)
def test_each_fault_of_a_data_set_is_found(name: str, title: str, line: str) -> None:
    found = faults("dataset", data(name))
    assert title in found and line in found[title], found


SPOILT_DATA: dict[str, tuple[dict[str, Any], str]] = {
    "rows": ({"x": torch.zeros(3, 2)}, "it has 3 inputs for 79 classes"),
    "y": ({"y": toy_data().y.float()}, "y is torch.float32 [79]; expected int64 [N]"),
    "range": ({"classes": 9}, "y has values from 0 to 9; expected 0 to 8"),
    "names": ({"names": ("a", "b")}, "it names 2 of 10 classes"),
    "digest": ({"digest": ""}, "its name or digest is empty"),
    "position": ({"test": torch.tensor([78, 79])}, "test must be positions of rows: int64 [n] from 0 to 78"),
    "order": ({"val": torch.tensor([50, 50])}, "val must rise, without a row twice"),
    "bytes": ({"x": (toy_data().x * 9).byte()}, "inputs are torch.uint8, some not finite"),
}  # fmt: skip


@pytest.mark.parametrize("name", SPOILT_DATA)
def test_arrays_that_do_not_fit_are_found(name: str) -> None:
    changes, line = SPOILT_DATA[name]
    datasets.fits(datasets.Case(toy_data))
    with pytest.raises(Broken, match=re.escape(line)):
        datasets.fits(datasets.Case(lambda: replace(toy_data(), **changes)))


def test_data_that_cannot_be_learnt_or_is_not_scaled_is_found() -> None:
    whole = toy_data()
    for changes, line in (
        ({"test": whole.test[:0]}, "it has no test row"),
        ({"y": whole.y * 0, "classes": 1}, "it has one class"),
        ({"x": torch.ones_like(whole.x[:])}, "all training inputs are equal"),
    ):
        with pytest.raises(Broken, match=line):
            datasets.trainable(datasets.Case(lambda changes=changes: replace(whole, **changes)))  # type: ignore[misc]
    with pytest.raises(Broken, match="but normalise=unit means 0 to 1"):
        datasets.scaled(datasets.Case(toy_data, "unit"))
    with pytest.raises(Broken, match=r"it is a list; expected a tasks\.datasets\.Dataset"):
        datasets.fits(datasets.Case(lambda: []))  # type: ignore[arg-type,return-value]


def test_a_digest_that_no_setting_changes_is_found() -> None:
    found = faults("dataset", {"_target_": "own_streams.stale_data", "val": 0.1})
    assert found == {
        "its digest says what it is": "its digest is the same with val=0.37; make it from x, y and the parts"
    }


def test_what_cannot_be_made_is_said() -> None:
    found = faults("tasks", {"_target_": "own_streams.right_same"})
    assert list(found) == ["it can be made with scenario=task"] and "n_tasks" in found.popitem()[1]
    found = faults("dataset", {"_target_": "own_streams.nowhere"})
    assert list(found) == ["it can be read"]


@pytest.mark.parametrize("name", ["right_pair", "right_parts", "right_validated", "right_images", "right_object"])
def test_right_data_sets_pass(name: str) -> None:
    assert faults("dataset", data(name)) == {}
    assert faults("dataset", data(name, normalise="unit", val=0.0)) == {} or name == "right_object"  # made by itself


def rows(data: Dataset, index: Tensor) -> set[tuple[bytes, int]]:
    """Input and class of each of these rows."""
    return {(x.numpy().tobytes(), int(y)) for x, y in zip(data.x[index], data.y[index])}


def test_a_few_rows_keep_their_part_and_their_class() -> None:
    whole = load("digits")
    some = few(whole, most=50)
    for part in ("train", "val", "test"):
        index = getattr(some, part)
        assert some.y[index].bincount().tolist() == [5] * 10
        # its rows are rows of this part of the whole, with their classes
        assert rows(some, index) <= rows(whole, getattr(whole, part))
    assert len(some.y) == 150 and repeated(some.x, whole.x[:]) == 1


def test_the_command_checks_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for group, text in (
        ("tasks", "_target_: own_streams.leaks\nn_tasks: 3\n"),
        ("dataset", "_target_: tasks.datasets.function\nmake: {_target_: own_streams.right_pair}\nval: 0.1\n"),
    ):
        (tmp_path / "mine" / group).mkdir(parents=True)
        (tmp_path / "mine" / group / "own.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["harness", "check", "tasks=own", "dataset=own", "--config-dir", "mine"])
    assert cli.main() == 1
    out, err = capsys.readouterr()
    assert err == "" and "ok    dataset=right_pair: a stream of it trains" in out
    assert "FAILS tasks=leaks: test rows are not trained on: val of task 0" in out
    assert out.splitlines()[-1].endswith("checks failed")
