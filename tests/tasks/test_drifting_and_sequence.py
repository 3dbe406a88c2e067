"""A drift that moves with every row, and data sets of different shapes in one stream."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import resize, rotate

from harness.rng import keys, uniform
from harness.rows import Rows
from tasks.datasets import Dataset
from tasks.drifting import drifting
from tasks.sequence import sequence


def images(name: str, shape: tuple[int, ...], classes: int, n: int = 30) -> Dataset:
    x = uniform(keys([0], name), n, *shape)[0] - 0.5
    parts = torch.arange(0, n - 12), torch.arange(n - 12, n - 6), torch.arange(n - 6, n)
    return Dataset(name, x, torch.arange(n) % classes, *parts, classes, name)


def test_row_i_of_the_stream_is_turned_by_its_share_of_the_spread() -> None:
    data = images("toy", (1, 9, 9), 3)
    data.x[0, 0, 0, 0] = float(data.x.min()) - 0.1
    stream = drifting(dataset=data, seeds=(0, 1), n_tasks=4, fixed=False, spread=120.0)
    n, dark = len(data.train), float(data.x.min())
    for t, task in enumerate(stream.tasks):
        assert task.ordered and task.rows == n and isinstance(task.train, Rows)
        x, _, _ = task.train.take(torch.arange(n).expand(2, -1))
        for s in range(2):
            assert torch.equal(task.train.index[s].sort().values, data.train)  # each once a pass
            for i in (0, 5, n - 1):
                angle = (t * n + i) / (4 * n) * 120
                plain = data.x[task.train.index[s, i]]
                expected = rotate(plain - dark, angle, InterpolationMode.BILINEAR) + dark
                assert torch.allclose(x[s, i], expected, atol=1e-4)
        test, _, _ = task.test.take(torch.arange(6).expand(2, -1))
        expected = rotate(data.x[data.test] - dark, (t + 1) / 4 * 120, InterpolationMode.BILINEAR) + dark
        assert torch.allclose(test[1], expected, atol=1e-4)
    orders = [task.train.index.tolist() for task in stream.tasks if isinstance(task.train, Rows)]
    assert len({str(o) for pair in orders for o in pair}) == 8  # passes and seeds differ


@pytest.mark.parametrize(
    ("wrong", "message"), [({"spread": 0.0}, r"tasks\.spread=0\.0"), ({"n_tasks": 0}, r"tasks\.n_tasks=0")]
)
def test_what_cannot_drift_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        drifting(**{"dataset": images("toy", (1, 4, 4), 2), "seeds": (0,), "n_tasks": 2, "fixed": False, **wrong})
    flat = replace(images("toy", (1, 4, 4), 2), x=torch.zeros(30, 16))
    with pytest.raises(ValueError, match=r"toy has inputs of shape \[16\]; needs images"):
        drifting(dataset=flat, seeds=(0,), n_tasks=2, fixed=False)


SMALL, TALL, COLOURED = images("small", (1, 4, 4), 3), images("tall", (1, 9, 6), 5), images("coloured", (3, 6, 6), 2)
GIVEN: dict[str, Any] = {"dataset": SMALL, "then": [TALL, COLOURED], "seeds": (0, 1), "fixed": False}


def test_images_are_resized_to_the_largest_shape_and_grey_is_every_channel() -> None:
    stream = sequence(**GIVEN)
    assert stream.shape == (3, 9, 6) and len(stream.tasks) == 3
    for task, data in zip(stream.tasks, (SMALL, TALL, COLOURED)):
        for part in ("train", "val", "test"):
            rows = getattr(data, part)
            x, _, _ = getattr(task, part).take(torch.arange(len(rows)).expand(2, -1))
            expected = resize(data.x[rows], [9, 6], antialias=True)
            assert torch.allclose(x, expected.expand(2, -1, 3, -1, -1), atol=1e-5)


def test_padded_images_stand_in_the_middle_of_their_darkest_value() -> None:
    x, _, _ = sequence(**GIVEN, fit="pad").tasks[0].train.take(torch.zeros(2, 1).long())
    assert torch.equal(x[0, 0, 1, 2:6, 1:5], SMALL.x[0, 0])
    border = torch.ones(9, 6, dtype=torch.bool)
    border[2:6, 1:5] = False
    assert ((x[0, 0][:, border] - SMALL.x.min()).abs() < 1e-6).all()


def test_labels_are_shared_or_stand_in_blocks() -> None:
    for scenario, outputs, first in (("domain", 5, (0, 0, 0)), ("task", 10, (0, 3, 8)), ("class", 10, (0, 3, 8))):
        stream = sequence(**GIVEN, scenario=scenario)
        assert stream.outputs == outputs
        for task, data, offset in zip(stream.tasks, (SMALL, TALL, COLOURED), first):
            assert torch.equal(task.train.labels(), (data.y[data.train] + offset).expand(2, -1))
    assert stream.masks is not None and stream.masks[0].sum(1).tolist() == [3, 5, 2]


def test_rows_are_drawn_for_each_seed_and_each_data_set() -> None:
    stream = sequence(**GIVEN, rows=10)
    for task in stream.tasks:
        assert task.rows == 10 and isinstance(task.train, Rows)
        assert not torch.equal(task.train.index[0].sort().values, task.train.index[1].sort().values)
    with pytest.raises(ValueError, match=r"tasks\.rows=19: must be from 1 to 18, the training rows of small"):
        sequence(**GIVEN, rows=19).tasks[0]


def test_vectors_get_zeros_behind_them_and_what_has_no_common_shape_is_refused() -> None:
    a, b = (replace(SMALL, x=torch.ones(30, d), name=f"v{d}") for d in (3, 5))
    x, _, _ = sequence(dataset=a, then=[b], seeds=(0,), fixed=False).tasks[0].train.take(torch.zeros(1, 1).long())
    assert x.tolist() == [[[1, 1, 1, 0, 0]]]
    with pytest.raises(ValueError, match=r"tasks\.then: inputs of shapes \[1, 4, 4\], \[5\] have no common shape"):
        sequence(dataset=SMALL, then=[b], seeds=(0,), fixed=False)
    two = replace(SMALL, x=torch.zeros(30, 2, 4, 4))
    with pytest.raises(ValueError, match="no common shape"):
        sequence(dataset=two, then=[COLOURED], seeds=(0,), fixed=False)
    with pytest.raises(ValueError, match=r"tasks\.fit=x: must be resize or pad"):
        sequence(**GIVEN, fit="x")
