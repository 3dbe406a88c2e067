"""Corruptions: against scipy and the published constants, and that a row looks the same whenever it is taken."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from harness.rng import keys, uniform
from harness.rows import Rows, union
from harness.types import Stream
from tasks.corrupted import corrupted
from tasks.datasets import Dataset
from tasks.transforms import KINDS

SIGMA, CONTRAST, SMOOTH = [0.04, 0.06, 0.08, 0.09, 0.10], [0.75, 0.5, 0.4, 0.3, 0.15], [0.4, 0.6, 0.7, 0.8, 1.0]


@cache
def data() -> Dataset:
    """Two channels of different ranges, as normalised images have."""
    n = 120
    x = uniform(keys([0], "x"), n, 2, 12, 9)[0] * torch.tensor([2.0, 5.0])[:, None, None] + torch.tensor(
        [-1.0, 3.0]
    ).view(2, 1, 1)
    parts = torch.arange(0, 80), torch.arange(80, 100), torch.arange(100, 120)
    return Dataset("toy", x, torch.arange(n) % 3, *parts, 3, "digest")


def make(**options: Any) -> Stream:
    given = {"dataset": data(), "seeds": (0, 1, 2), "n_tasks": 3, "fixed": False, "kinds": list(KINDS), **options}
    return corrupted(**given)


def scaled(x: Tensor) -> Tensor:
    low, high = data().x.amin((0, 2, 3)), data().x.amax((0, 2, 3))
    return (x - low[:, None, None]) / (high - low)[:, None, None]


def taken(kind: str, severity: int, part: str = "train") -> tuple[Tensor, Tensor]:
    """Rows of the second task, corrupted and as they were, on a range of 0 to 1: [S, n, C, h, w] and [n, C, h, w]."""
    source = getattr(make(kinds=[kind], severity=severity).tasks[1], part)
    index = getattr(data(), part)
    return scaled(source.take(torch.arange(len(index)).expand(3, -1))[0]), scaled(data().x[index])


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_blur_is_scipy_s_gaussian_filter(severity: int) -> None:
    found, plain = taken("gaussian_blur", severity)
    sigma = SMOOTH[severity - 1]
    expected = np.stack([[gaussian_filter(c, sigma, mode="nearest") for c in image] for image in plain.numpy()])
    assert torch.allclose(found, torch.from_numpy(expected).expand_as(found), atol=1e-5)


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_contrast_pulls_each_channel_to_its_mean(severity: int) -> None:
    found, plain = taken("contrast", severity)
    for i in (0, 7):
        for c in range(2):
            mean = float(plain[i, c].mean())
            expected = mean + CONTRAST[severity - 1] * (plain[i, c] - mean)
            assert torch.allclose(found[:, i, c], expected.clamp(0, 1).expand(3, -1, -1), atol=1e-5)


@pytest.mark.parametrize("severity", [1, 5])
def test_noise_has_the_published_size_and_is_each_row_s_own(severity: int) -> None:
    found, plain = taken("gaussian_noise", severity)
    inner = (plain > 0.4) & (plain < 0.6)  # where nothing is clipped
    noise = (found - plain)[:, inner]
    assert float(noise.std()) == pytest.approx(SIGMA[severity - 1], rel=0.03)
    assert float(noise.mean()) == pytest.approx(0, abs=4 * SIGMA[severity - 1] / noise.numel() ** 0.5)
    assert float(found.min()) >= -1e-6 and float(found.max()) <= 1 + 1e-6
    assert abs(float(torch.corrcoef((found - plain)[:, :2].flatten(2).flatten(0, 1))[0, 1])) < 0.3  # rows
    assert not torch.allclose(found[0], found[1])  # seeds


@pytest.mark.parametrize(("severity", "height", "width"), [(1, 1, 1), (3, 4, 3), (5, 6, 4)])
def test_occlusion_is_one_black_rectangle_anywhere(severity: int, height: int, width: int) -> None:
    """round(0.1 k 12) by round(0.1 k 9) pixels."""
    found, plain = taken("occlusion", severity)
    hidden = (found - plain).abs().amax(2) > 1e-6  # [S, n, h, w]
    rows, columns = hidden.any(3), hidden.any(2)
    assert int(rows.sum(2).max()) == height and int(columns.sum(2).max()) == width
    assert torch.equal(hidden, hidden & rows[..., :, None] & columns[..., None, :])
    assert (found[hidden[:, :, None].expand_as(found)].abs() < 1e-6).all()
    starts = rows.int().argmax(2).flatten().bincount()
    assert len(starts) == 12 - height + 1 and int(starts.min()) > 0  # every place there is


def test_severities_follow_the_schedule_and_the_clean_task_is_untouched_to_the_last_bit() -> None:
    rising = make(n_tasks=6)
    x = rising.tasks[0].train.take(torch.arange(80).expand(3, -1))[0]
    assert torch.equal(x, data().x[:80].expand_as(x))

    def change(stream: Stream) -> list[float]:
        found = [task.test.take(torch.arange(20).expand(3, -1))[0] for task in stream.tasks]
        return [float((f - data().x[100:]).square().mean()) for f in found]

    size = change(make(n_tasks=6, kinds=["contrast"]))
    assert size == sorted(size) and len(set(size)) == 6
    assert change(make(n_tasks=6, kinds=["contrast"], severity="falling")) == size[::-1]
    assert change(make(n_tasks=3, kinds=["contrast"], severity=2))[1] == pytest.approx(size[2])
    drawn = {round(c, 6) for c in change(make(seeds=(4, 5, 6), n_tasks=40, kinds=["contrast"], severity="random"))}
    assert len(drawn) > 5 and 0.0 not in drawn


def test_a_row_looks_the_same_in_any_batch_and_differs_between_tasks() -> None:
    stream = make(kinds=["gaussian_noise"], severity=4)
    a, b = stream.tasks[0].train, stream.tasks[1].train
    assert isinstance(a, Rows) and isinstance(b, Rows)
    whole = a.take(torch.arange(80).expand(3, -1))[0]
    some = a.take(torch.tensor([[5, 3], [5, 9], [5, 79]]))[0]
    assert torch.equal(some, torch.stack([whole[0, [5, 3]], whole[1, [5, 9]], whole[2, [5, 79]]]))
    both = union([a, b]).take(torch.tensor([[5, 85]] * 3))[0]
    assert torch.equal(both[:, 0], whole[:, 5])
    assert not torch.equal(both[:, 0], both[:, 1])  # the same sample in another task


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kinds": ["fog"]}, r"tasks\.kinds=\[fog\]: must list some of gaussian_noise"),
        ({"kinds": []}, r"tasks\.kinds=\[\]"),
        ({"severity": 6}, r"tasks\.severity=6: must be rising, falling, random or a number from 0 to 5"),
        ({"severity": "x"}, r"tasks\.severity=x"),
        ({"n_tasks": 0}, r"tasks\.n_tasks=0"),
    ],
)
def test_what_cannot_be_corrupted_is_refused_by_name(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**wrong)


def test_inputs_that_are_no_images_are_refused() -> None:
    with pytest.raises(ValueError, match=r"toy has inputs of shape \[216\]; needs images"):
        make(dataset=replace(data(), x=data().x.flatten(1)))
