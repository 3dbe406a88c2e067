"""Rotated streams: the same samples in every task, each task turned by its own angle."""

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import rotate

from harness.rng import integers, keys, uniform
from harness.rows import union
from harness.types import Source, Stream
from tasks.datasets import Dataset
from tasks.rotated import ANGLES, rotated

CLASSES, SHAPE = 4, (2, 6, 6)
PARTS = ("train", "val", "test")


@cache
def data() -> Dataset:
    n = 40
    x = uniform(keys([0], "x"), n, *SHAPE)[0] + torch.tensor([-3.0, 5.0])[:, None, None]  # channels differ in range
    y = integers(keys([0], "y"), CLASSES, n)[0]
    parts = torch.arange(0, 25), torch.arange(25, 32), torch.arange(32, 40)
    return Dataset("toy", x, y, *parts, CLASSES, "digest")


def make(seeds: tuple[int, ...] = (0, 1, 2), n_tasks: int = 3, fixed: bool = False, **options: Any) -> Stream:
    return rotated(dataset=data(), seeds=seeds, n_tasks=n_tasks, fixed=fixed, **options)


def read(source: Source, s: int) -> tuple[Tensor, Tensor, Tensor]:
    """All rows of seed s."""
    n = int(source.size[s])
    x, y, t = source.take(torch.arange(n).expand(len(source.size), -1))
    return x[s], y[s], t[s]


def turned(angle: float, x: Tensor | None = None) -> Tensor:
    """Images turned by a stream, whose second task of two steps has the angle."""
    toy = data() if x is None else replace(data(), x=x)
    stream = rotated(dataset=toy, seeds=(0,), n_tasks=2, fixed=False, angles="steps", spread=2 * angle)
    return read(stream.tasks[1].train, 0)[0]


options = st.fixed_dictionaries(
    {
        "seeds": st.lists(st.integers(0, 2**40), min_size=1, max_size=3).map(tuple),
        "n_tasks": st.integers(1, 4),
        "fixed": st.booleans(),
        "scenario": st.sampled_from(["task", "domain", "class"]),
        "angles": st.sampled_from(ANGLES),
    }
)


@settings(max_examples=40, deadline=None)
@given(options)
def test_every_task_is_the_whole_data_set_with_each_sample_in_its_part_and_its_class_kept(o: dict[str, Any]) -> None:
    stream = make(**o)
    for i, task in enumerate(stream.tasks):
        assert task.rows == 25
        for part in PARTS:
            for s in range(len(o["seeds"])):
                x, y, t = read(getattr(task, part), s)
                rows = getattr(data(), part)
                assert x.shape == data().x[rows].shape
                assert torch.equal(y, data().y[rows] + (0 if o["scenario"] == "domain" else CLASSES * i))
                assert (t == (i if o["scenario"] == "task" else 0)).all()
    assert stream.outputs == (CLASSES if o["scenario"] == "domain" else CLASSES * o["n_tasks"])


@settings(max_examples=25, deadline=None)
@given(options)
def test_a_seed_s_rows_repeat_and_do_not_depend_on_its_companions(o: dict[str, Any]) -> None:
    together, again = make(**o), make(**o)
    assert together.hash == again.hash
    for s, seed in enumerate(o["seeds"]):
        alone = make(**{**o, "seeds": (seed,)})
        for a, b, c in zip(together.tasks, alone.tasks, again.tasks):
            for part in PARTS:
                mine = read(getattr(a, part), s)
                assert all(torch.equal(x, y) for x, y in zip(mine, read(getattr(b, part), 0)))
                assert all(torch.equal(x, y) for x, y in zip(mine, read(getattr(c, part), s)))


@settings(max_examples=40, deadline=None)
@given(options, st.floats(1, 360))
def test_angles_lie_where_the_option_says(o: dict[str, Any], spread: float) -> None:
    n = o["n_tasks"]
    for seed in make(**o, spread=spread).info["angles"]:
        for t, angle in enumerate(seed):
            assert 0 <= angle < spread
            if o["angles"] == "steps":
                assert angle == pytest.approx(t * spread / n)
            if o["angles"] == "bands":
                assert t * spread / n <= angle <= (t + 1) * spread / n


def test_uniform_angles_fill_the_spread_evenly() -> None:
    stream = make(seeds=tuple(range(100)), n_tasks=10, spread=180.0)
    counts = (torch.tensor(stream.info["angles"]) / 30).long().flatten().bincount(minlength=6)
    assert ((counts - 1000 / 6).square() / (1000 / 6)).sum() < 20.5  # chi-square with 5 degrees of freedom, p = 0.001


def test_angles_are_the_seed_s_own_unless_fixed_or_pinned_and_do_not_depend_on_how_many_tasks_follow() -> None:
    own = make(seeds=(0, 1, 2, 3)).info["angles"]
    assert len({a for seed in own for a in seed}) == 12
    for shared in (make(fixed=True), make(pin=3)):
        found = shared.info["angles"]
        assert found[0] == found[1] == found[2] and len(set(found[0])) == 3
    assert make(seeds=(8,), pin=3).info["angles"] == [own[3]]
    assert make(seeds=(1,), n_tasks=2).info["angles"] == [own[1][:2]]


def test_angles_are_pinned_so_that_versions_agree() -> None:
    """Change VERSION with them."""
    angles = make(seeds=(0, 1), n_tasks=2).info["angles"]
    assert [[round(a, 4) for a in seed] for seed in angles] == [[1.717, 21.9], [75.7096, 151.2311]]


def test_a_quarter_turns_anticlockwise_and_no_turn_changes_nothing() -> None:
    x = data().x[data().train]
    assert torch.allclose(turned(90), x.rot90(1, (2, 3)), atol=1e-4)
    assert torch.allclose(turned(180), x.rot90(2, (2, 3)), atol=1e-4)
    first = read(make(angles="steps").tasks[0].train, 0)[0]
    assert torch.allclose(first, x, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 9, 9), (2, 6, 9), (1, 28, 28)])
@pytest.mark.parametrize("angle", [17.0, 90.0, 133.3])
def test_it_agrees_with_torchvision(shape: tuple[int, ...], angle: float) -> None:
    x = uniform(keys([1], "x"), 40, *shape)[0]
    x[0] = 0  # the darkest pixel is 0, with which torchvision fills
    expected = rotate(x[data().train], angle, InterpolationMode.BILINEAR)
    assert torch.allclose(turned(angle, x), expected, atol=1e-4)


def test_corners_that_turn_in_are_as_dark_as_the_darkest_pixel_of_their_channel() -> None:
    corner = turned(45)[:, :, 0, 0]  # outside of the image, whatever is in it
    assert torch.allclose(corner, data().x.amin((0, 2, 3)).expand_as(corner), atol=1e-6)


def test_rows_of_several_angles_in_one_batch_are_those_of_batches_of_one_angle() -> None:
    tasks = make().tasks
    both = union([tasks[0].train, tasks[2].train])
    for s in range(3):
        x = read(both, s)[0]
        assert torch.equal(x, torch.cat([read(tasks[i].train, s)[0] for i in (0, 2)]))


def test_the_digest_tells_streams_apart() -> None:
    other = replace(data(), digest="other")
    streams = [
        make(), make(seeds=(0, 1, 3)), make(n_tasks=2), make(fixed=True), make(angles="bands"), make(spread=90.0),
        make(scenario="task"), rotated(dataset=other, seeds=(0, 1, 2), n_tasks=3, fixed=False),
    ]  # fmt: skip
    assert len({s.hash for s in streams}) == len(streams)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n_tasks": 0}, r"tasks\.n_tasks=0"),
        ({"scenario": "x"}, "scenario=x"),
        ({"angles": "x"}, r"tasks\.angles=x: must be one of uniform, bands, steps"),
        ({"spread": 0.0}, r"tasks\.spread=0\.0"),
        ({"spread": 361.0}, r"tasks\.spread=361\.0"),
    ],
)
def test_what_cannot_be_rotated_is_refused_by_name(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**wrong)


def test_inputs_that_are_no_images_are_refused() -> None:
    flat = replace(data(), x=data().x.flatten(1))
    with pytest.raises(ValueError, match=r"toy has inputs of shape \[72\]; needs images"):
        rotated(dataset=flat, seeds=(0,), n_tasks=2, fixed=False)


def test_nearest_pixels_are_torchvisions() -> None:
    for angle in (0.0, 17.0, 63.5, 90.0, 171.0):
        stream = rotated(
            dataset=data(), seeds=(0,), n_tasks=2, fixed=False, angles="steps", spread=max(2 * angle, 1e-9),
            interpolation="nearest",
        )  # fmt: skip
        x, blank = data().x[:25], data().x.amin((0, 2, 3))[:, None, None]
        expected = rotate(x - blank, angle, InterpolationMode.NEAREST) + blank
        found = read(stream.tasks[1].train, 0)[0]
        assert torch.isclose(found, expected).float().mean() > 0.99, angle


def test_the_interpolation_is_part_of_what_the_stream_is() -> None:
    linear, nearest = make(), make(interpolation="nearest")
    assert linear.hash == make(interpolation="linear").hash != nearest.hash
    with pytest.raises(ValueError, match=r"tasks.interpolation=cubic: must be linear or nearest"):
        make(interpolation="cubic")
