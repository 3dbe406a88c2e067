"""Images: kept as bytes, augmented, cached, read by torchvision's classes, and turned into features."""

from __future__ import annotations

import bz2
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from harness import rng
from harness.learner import Budget, Learner
from harness.loop import prepare, train
from harness.models.mlp import MLP
from harness.optim import SGD
from harness.strategy import Chain
from harness.types import Stream
from tasks.datasets import DataError, arrays, cache, dataset, load
from tasks.datasets.backbones import body
from tasks.datasets.cache import cached
from tasks.datasets.features import extract
from tasks.datasets.images import Augment, Images, Scale
from tasks.permuted import permuted
from tasks.rotated import rotated
from tasks.split import split
from tests.even import even
from tests.observer import Blind


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")


# --- bytes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [split, permuted, rotated])
def test_images_kept_as_bytes_are_bit_for_bit_the_floats(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    floats = load("digits")
    monkeypatch.setattr(dataset, "FITS", 0)
    bytes_ = load("digits")
    assert isinstance(bytes_.x, Images) and bytes_.x.raw.dtype == torch.uint8
    assert (bytes_.digest, bytes_.shape) == (floats.digest, floats.shape)

    how: dict[str, Any] = {"seeds": [3, 4], "n_tasks": 2, "fixed": False}
    ours, plain = make(dataset=bytes_, **how), make(dataset=floats, **how)
    assert ours.hash == plain.hash
    for a, b in zip(ours.tasks, plain.tasks):
        position = torch.arange(20).expand(2, -1)
        for part in ("train", "test"):
            x, y = (getattr(task, part).take(position) for task in (a, b))
            assert all(torch.equal(u, v) for u, v in zip(x, y, strict=True))
            assert x[0].dtype == torch.float32


def test_a_training_on_bytes_is_a_training_on_floats(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for fits in (2**30, 0):
        monkeypatch.setattr(dataset, "FITS", fits)
        found.append(trained(split(dataset=load("digits"), seeds=[0], n_tasks=2, fixed=False)).params)
    assert all(torch.equal(found[0][k], found[1][k]) for k in found[0])


def test_bytes_answer_what_streams_ask_of_a_tensor() -> None:
    raw = torch.randint(0, 256, (7, 3, 4, 5), dtype=torch.uint8)
    data = Images(raw, Scale(255, (0.1, 0.2, 0.3), (1.0, 2.0, 4.0)))
    whole = data.scale(raw)
    assert torch.equal(data[2], whole[2]) and torch.equal(data[[1, 5]], whole[[1, 5]])
    assert torch.equal(data.amin((0, 2, 3)), whole.amin((0, 2, 3))) and data.shape == whole.shape
    assert data.to("meta").device.type == "meta"
    mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in ([0.1, 0.2, 0.3], [1.0, 2, 4]))
    expected = (raw.double() / 255 - mean) / std
    torch.testing.assert_close(whole.double(), expected, atol=1e-6, rtol=0)


def test_computed_constants_are_the_mean_and_deviation_of_the_pixels() -> None:
    x = np.random.default_rng(0).integers(0, 200, (40, 3, 5, 5)).astype(np.uint8)
    x[:, 2] = 9
    mean, std = dataset._pixels(x, 255)
    np.testing.assert_allclose(mean, (x / 255).mean((0, 2, 3)), atol=5.1e-5)
    np.testing.assert_allclose(std[:2], (x[:, :2] / 255).std((0, 2, 3)), atol=5.1e-5)
    assert std[2] == 1, "a channel of one value"


# --- augmentation -----------------------------------------------------------------------------------------


def test_a_crop_shifts_by_up_to_an_eighth_and_fills_with_black() -> None:
    """Every offset turns up; each image is a shift of the original, by hand."""
    x = torch.arange(1.0, 257).view(1, 1, 1, 16, 16).expand(2, 400, -1, -1, -1)
    black = torch.tensor([[[-7.0]]])
    out = Augment(flip=False, margin=True)(x, torch.tensor([5, 6]), black)

    padded = torch.full((20, 20), -7.0)
    padded[2:18, 2:18] = x[0, 0, 0]
    windows = {(i, j): padded[i : i + 16, j : j + 16] for i in range(5) for j in range(5)}
    for s in range(2):
        seen = [next(k for k, v in windows.items() if torch.equal(v, image)) for image in out[s, :, 0]]
        assert set(seen) == set(windows)
        counts = [seen.count(k) for k in windows]
        assert min(counts) > 3 and max(counts) < 35, "expected 16 of each"
    assert not torch.equal(out[0], out[1])


def test_a_flip_turns_half_of_the_images_left_to_right() -> None:
    x = torch.arange(12.0).view(1, 1, 1, 3, 4).expand(1, 1000, 2, -1, -1)
    out = Augment(flip=True, margin=False)(x, torch.tensor([5]), torch.zeros(2, 1, 1))
    turned = out[0, :, 0, 0, 0] == 3
    assert 440 < int(turned.sum()) < 560
    assert torch.equal(out[0, turned], x[0, turned].flip(-1)) and torch.equal(out[0, ~turned], x[0, ~turned])


def test_black_is_what_a_black_pixel_became() -> None:
    raw = torch.zeros(3, 2, 8, 8, dtype=torch.uint8)
    data = Images(raw, Scale(255, (0.5, 0.25), (0.5, 0.5)), Augment(False, True))
    x = torch.ones(1, 50, 2, 8, 8)
    out = data.drawn(x, torch.tensor([1]))
    assert {tuple(v) for v in out.flatten(3)[0].transpose(1, 2).reshape(-1, 2).tolist()} == {(1.0, 1.0), (-1.0, -0.5)}


def learner_of(stream: Stream, steps: int = 5) -> Learner:
    return Learner(MLP(stream.shape, stream.outputs, (8,)), stream, SGD(lr=0.1), Budget(steps=steps, batch_size=6))


def trained(stream: Stream) -> Learner:
    learner, chain = learner_of(stream), Chain([])
    prepare(learner, chain)
    train(learner, chain, Blind())
    return learner


def of(seeds: list[int], augment: list[str], make: Any = split) -> Stream:
    made: Stream = make(dataset=even(load("digits", augment=augment)), seeds=seeds, n_tasks=2, fixed=False)
    return made


def test_augmented_rows_are_for_training_alone_and_move_no_other_draw() -> None:
    plain, varied = (learner_of(of([1, 2], names)) for names in ([], ["flip", "crop"]))
    for learner in (plain, varied):
        learner.plan(learner.stream.tasks[0])
    task, other = plain.stream.tasks[0], varied.stream.tasks[0]
    moved = 0
    for a, b in zip(plain.batches(task), varied.batches(other)):
        assert torch.equal(a.y, b.y), "another order"
        moved += int((a.x != b.x).flatten(2).any(2).sum())
    assert moved > 40  # of 60
    assert torch.equal(plain.probe(task).x, varied.probe(other).x)
    for a, b in zip(plain.scan(task.test), varied.scan(other.test)):
        assert torch.equal(a.x, b.x)
    assert all(torch.equal(v, varied.params[k]) for k, v in plain.params.items())


def test_augmentation_is_a_seeds_own_and_repeats_with_it() -> None:
    def batches(seeds: list[int]) -> list[torch.Tensor]:
        learner = learner_of(of(seeds, ["flip", "crop"]))
        learner.plan(learner.stream.tasks[1])
        return [b.x for b in learner.batches(learner.stream.tasks[1])]

    both, alone, again = batches([1, 2]), batches([2]), batches([2])
    assert all(torch.equal(a[1], b[0]) and torch.equal(b, c) for a, b, c in zip(both, alone, again, strict=True))
    source = of([2], ["flip"]).tasks[1].train
    x = [source.take(torch.arange(6)[None], key)[0] for key in rng.fold(torch.tensor([3, 4]), "x").split(1)]  # type: ignore[call-arg]
    assert not torch.equal(*x)


def test_every_step_draws_anew() -> None:
    """One image throughout, so that a batch shows which of its rows were turned."""
    x = np.tile(np.arange(64, dtype=np.uint8).reshape(1, 8, 8), (40, 1, 1))
    data = arrays({"x": x, "y": np.arange(40) % 2}, "m", augment=["flip"])
    learner = learner_of(split(dataset=data, seeds=[0], n_tasks=1, fixed=False), steps=8)
    learner.plan(learner.stream.tasks[0])
    turned = {tuple(b.x[0, :, 0, 0, 0].tolist()) for b in learner.batches(learner.stream.tasks[0])}
    assert len(turned) > 3


def test_an_image_is_augmented_before_its_pixels_are_permuted() -> None:
    stream = of([1], ["flip"], permuted)
    source: Any = stream.tasks[1].train
    key, position = torch.tensor([9]), torch.arange(20)[None]
    permuted_ = source.take(position, key)[0]
    straight = replace(source, transform=None).take(position, key)[0]
    assert torch.equal(permuted_, source.transform(straight, source.transform_id))
    assert not torch.equal(permuted_, source.take(position)[0])


def test_augmentation_is_part_of_what_determines_the_numbers_and_off_by_default() -> None:
    plain, flip, crop = (load("digits", augment=names) for names in ([], ["flip"], ["flip", "crop"]))
    assert len({plain.digest, flip.digest, crop.digest}) == 3 and plain.digest == load("digits").digest
    assert isinstance(plain.x, torch.Tensor)
    for bad in (["turn"], "flip"):
        with pytest.raises(ValueError, match=r"dataset\.augment=.*: must be a list of flip, crop; \[\]: none"):
            load("digits", augment=bad)  # type: ignore[arg-type]


def test_the_command_line_refuses_augmentation_where_a_stream_makes_its_own_rows(tmp_path: Path) -> None:
    from hydra import compose, initialize_config_dir

    from harness.config.catalogue import CONF
    from harness.jobs.job import from_config

    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        cfg = compose("config", ["tasks=slowly_changing_regression", "dataset.augment=[flip]", f"results={tmp_path}"])
    with pytest.raises(
        ValueError, match=r"dataset\.augment=\['flip'\]: slowly_changing_regression generates its own examples"
    ):
        from_config(cfg, progress=False)


# --- the cache --------------------------------------------------------------------------------------------


def settled(file: Path, content: str = "a", when: int = 1_600_000_000) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content)
    os.utime(file, (when, when))
    return file


class Counter:
    def __init__(self) -> None:
        self.made = 0

    def __call__(self) -> dict[str, Any]:
        self.made += 1
        return {"x": np.arange(6, dtype=np.uint8).reshape(2, 3), "y": np.array([7, -8]), "none": np.zeros((0, 4))}


def test_what_was_decoded_is_read_back_as_it_was(tmp_path: Path) -> None:
    source, make = settled(tmp_path / "a.png"), Counter()
    first, second = (cached("name", [source], [1], make) for _ in range(2))

    assert make.made == 1
    for k, v in first.items():
        np.testing.assert_array_equal(second[k], v)
        assert second[k].dtype == v.dtype and second[k].shape == v.shape
    assert second["x"].flags.writeable
    assert [f.name[:5] for f in (cache.home() / "decoded").iterdir()] == ["name-"], "a temporary file was left"


def test_it_is_made_anew_under_other_sources_and_settings(tmp_path: Path) -> None:
    source, make = settled(tmp_path / "in" / "a.png"), Counter()
    cached("name", [tmp_path / "in"], [1], make)
    cached("name", [tmp_path / "in"], [2], make)
    assert make.made == 2
    settled(source, "b", 1_600_000_001)
    cached("name", [tmp_path / "in"], [1], make)
    assert make.made == 3
    settled(tmp_path / "in" / "deep" / "b.png")
    cached("name", [tmp_path / "in"], [1], make)
    cached("name", [tmp_path / "in"], [1], make)
    assert make.made == 4


@pytest.mark.parametrize("damage", ["bit", "cut", "longer", "head", "empty"])
def test_a_damaged_file_is_made_anew(tmp_path: Path, damage: str) -> None:
    source, make = settled(tmp_path / "a.png"), Counter()
    whole = cached("name", [source], [1], make)
    (file,) = (cache.home() / "decoded").iterdir()
    content = bytearray(file.read_bytes())
    if damage == "bit":
        content[-20] ^= 1
    changed = {"cut": content[:-1], "longer": content + b"a", "head": b"{" + content, "empty": b""}
    file.write_bytes(changed.get(damage, content))

    np.testing.assert_array_equal(cached("name", [source], [1], make)["x"], whole["x"])
    cached("name", [source], [1], make)
    assert make.made == 2


def test_a_file_written_just_now_is_not_trusted_to_show_another_change(tmp_path: Path) -> None:
    make, source = Counter(), tmp_path / "a.png"
    source.write_text("a")
    cached("name", [source], [1], make)
    cached("name", [source], [1], make)
    assert make.made == 2


def test_without_a_folder_to_write_to_everything_is_made_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "full").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "full"))
    make, source = Counter(), settled(tmp_path / "a.png")
    for _ in range(2):
        assert cached("name", [source], [1], make)["y"].tolist() == [7, -8]
    assert make.made == 2


# --- torchvision's classes --------------------------------------------------------------------------------


def satellite(root: Path, n: int = 5) -> list[str]:
    names = ["AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial", "Pasture", "PermanentCrop",
             "Residential", "River", "SeaLake"]  # fmt: skip
    for c, name in enumerate(names):
        for i in range(n):
            file = root / "eurosat" / "2750" / name / f"{name}_{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((64, 64, 3), 20 * c + i, np.uint8)).save(file)
    return names


def test_a_set_without_a_test_part_is_read_through_torchvision_and_split_by_us(tmp_path: Path) -> None:
    satellite(tmp_path)
    data = load("eurosat", tmp_path, normalise="none", val=0.25)

    assert data.shape == (3, 64, 64) and (len(data.train), len(data.val), len(data.test)) == (30, 10, 10)
    value = data.x[:, 0, 0, 0]
    assert torch.equal(value.long() // 20, data.y) and sorted(value.tolist()) == [
        20 * c + i for c in range(10) for i in range(5)
    ]
    assert torch.bincount(data.y[data.test]).tolist() == [1] * 10
    small = load("eurosat", tmp_path, normalise="none", size=8, pad=1)
    assert small.shape == (3, 10, 10) and torch.equal(small.x[:, 1, 4, 4], value) and small.x[:, :, 0].eq(0).all()


def test_one_corrupt_image_of_a_named_set_is_named(tmp_path: Path) -> None:
    satellite(tmp_path)
    bad = tmp_path / "eurosat" / "2750" / "River" / "River_2.png"
    bad.write_bytes(bad.read_bytes()[:60])
    with pytest.raises(DataError, match=r"River_2\.png: unreadable or corrupt data file .* replace it") as caught:
        load("eurosat", tmp_path)
    assert "\n" not in str(caught.value)


def test_images_of_many_sizes_become_squares_and_validation_rows_count_as_training(tmp_path: Path) -> None:
    """DTD: image lists in text files, a published validation part."""
    base = tmp_path / "dtd" / "dtd"
    draw = np.random.default_rng(0)
    lines: dict[str, list[str]] = {}
    for part in ("train", "val", "test"):
        for c in range(47):
            name = f"c{c:02d}/c{c:02d}_{part}.jpg"
            (base / "images" / name).parent.mkdir(parents=True, exist_ok=True)
            h, w = draw.integers(70, 90, 2)
            Image.fromarray(np.full((h, w, 3), 5 * c, np.uint8)).save(base / "images" / name, quality=95)
            lines.setdefault(part, []).append(name)
    (base / "labels").mkdir()
    for part, names in lines.items():
        (base / "labels" / f"{part}1.txt").write_text("\n".join(names) + "\n")

    data = load("dtd", tmp_path, normalise="none", val=0)
    assert data.shape == (3, 64, 64) and data.classes == 47 and (len(data.train), len(data.test)) == (94, 47)
    torch.testing.assert_close(data.x[:, 0, 30, 30], 5.0 * data.y, atol=2, rtol=0)
    assert load("dtd", tmp_path, size=16).shape == (3, 16, 16)


def test_usps_is_read_from_its_text_files(tmp_path: Path) -> None:
    for file, n in (("usps.bz2", 20), ("usps.t.bz2", 10)):
        rows = [f"{i % 10 + 1} " + " ".join(f"{j + 1}:{-1 + 2 * (i / 20)}" for j in range(256)) for i in range(n)]
        (tmp_path / file).write_bytes(bz2.compress(("\n".join(rows) + "\n").encode()))
    data = load("usps", tmp_path, normalise="unit", val=0)

    assert data.shape == (1, 16, 16) and data.y[:12].tolist() == [*range(10), 0, 1]
    torch.testing.assert_close(data.x[:20, 0, 3, 3], torch.arange(20) / 20, atol=1 / 255, rtol=0)


# --- features ---------------------------------------------------------------------------------------------


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Weights of our own under the name of the published ones, which are not here."""
    from torchvision import models

    torch.manual_seed(0)
    file = tmp_path / "torch" / "hub" / "checkpoints" / "squeeze.pth"
    file = file.with_name(models.get_model_weights("resnet18").DEFAULT.url.rpartition("/")[2])
    file.parent.mkdir(parents=True)
    torch.save(models.resnet18().state_dict(), file)
    return file


def test_features_are_the_input_of_the_last_layer_on_prepared_images(weights: Path, tmp_path: Path) -> None:
    from torchvision import models

    x = np.random.default_rng(0).integers(0, 256, (8, 1, 12, 12)).astype(np.uint8)
    y = np.arange(8) % 2
    data = arrays(
        {"x_train": x[:6], "y_train": y[:6], "x_test": x[6:], "y_test": y[6:]},
        "m",
        features="resnet18",
        normalise="none",
    )
    assert data.shape == (512,) and data.classes == 2

    net = models.resnet18().eval()
    net.load_state_dict(torch.load(weights, weights_only=True))
    seen = []
    net.fc.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    prepare = models.ResNet18_Weights.IMAGENET1K_V1.transforms()
    pictures = [prepare(Image.fromarray(image[0]).convert("RGB")) for image in x]
    with torch.no_grad():
        net(torch.stack(pictures))
    torch.testing.assert_close(data.x[:], seen[0], atol=2e-2, rtol=1e-2)  # PIL rounds to bytes after resizing
    assert (data.x[:] - seen[0]).abs().mean() < 2e-3


def test_features_are_computed_once_and_again_for_other_weights_or_images(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks.datasets import backbones

    made: list[str] = []
    pool = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    monkeypatch.setattr(backbones, "body", lambda *a: (made.append("x"), pool)[1])
    x = np.random.default_rng(0).integers(0, 256, (3, 3, 8, 8)).astype(np.uint8)
    os.utime(weights, (1_600_000_000, 1_600_000_000))
    first, _ = extract("resnet18", x, "m")
    np.testing.assert_array_equal(extract("resnet18", x, "m")[0], first)
    assert len(made) == 1
    extract("resnet18", 255 - x, "m")
    os.utime(weights, (1_600_000_001, 1_600_000_001))
    extract("resnet18", x, "m")
    assert len(made) == 3


def test_a_network_sees_images_that_reach_from_0_to_255(monkeypatch: pytest.MonkeyPatch) -> None:
    """Digits are stored as 0 ... 16."""
    from tasks.datasets import features

    seen: list[Any] = []

    def stand_in(network: str, x: Any, name: str) -> Any:
        seen.append(x)
        return x.reshape(len(x), -1).astype(np.float32), "a stand-in"

    monkeypatch.setattr(features, "extract", stand_in)
    data = load("digits", features="resnet18", normalise="none")
    assert (seen[0].min(), seen[0].max()) == (0, 255)
    assert torch.equal((data.x[:] * 16 / 255).round(), load("digits", normalise="none").x[:].flatten(1))


def test_missing_or_wrong_weights_and_networks_are_said_in_a_line(weights: Path) -> None:
    with pytest.raises(
        DataError, match=r"dataset\.features=resnet34: weights not found at .*resnet34-\w+\.pth; download "
    ):
        load("digits", features="resnet34")
    with pytest.raises(ValueError, match=r"dataset\.features=resnet19: unknown network; did you mean resnet\d+\?"):
        load("digits", features="resnet19")
    weights.write_bytes(b"no weights")
    with pytest.raises(
        DataError, match=r"resnet18-\w+\.pth: not weights of resnet18 .*; delete it and download it again"
    ):
        load("digits", features="resnet18")
    torch.save({"fc.weight": torch.zeros(2)}, weights)
    with pytest.raises(DataError, match=r"not weights of resnet18 \(Error\(s\) in loading state_dict") as caught:
        load("digits", features="resnet18")
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"augment=\[flip\]: cannot be combined with dataset\.features"):
        load("digits", features="resnet18", augment=["flip"])
    with pytest.raises(ValueError, match="are not images"):
        arrays({"x": np.eye(12), "y": np.arange(12) % 2}, "m", features="resnet18")


@pytest.mark.parametrize(("name", "width"), [("resnet18", 512), ("mobilenet_v3_small", 1024), ("squeezenet1_0", 0)])
def test_the_last_linear_layer_of_a_network_is_taken_off(tmp_path: Path, name: str, width: int) -> None:
    from torchvision import models

    file = tmp_path / "own.pth"
    torch.save(models.get_model(name).state_dict(), file)
    if not width:
        with pytest.raises(ValueError, match=r"dataset\.features=squeezenet1_0: has no linear layer"):
            body(name, file)
        return
    with torch.no_grad():
        assert body(name, file)(torch.zeros(1, 3, 64, 64)).shape == (1, width)
