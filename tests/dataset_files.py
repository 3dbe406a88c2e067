"""The files in conf/dataset of the data sets known by name, generated from tasks/datasets/table.py.

python -m tests.dataset_files      (writes them; a test fails if they differ)
"""

from __future__ import annotations

from pathlib import Path

from tasks.datasets.table import SPECS

CONF = Path(__file__).resolve().parent.parent / "conf" / "dataset"
TEMPLATE = """\
# {text}

_target_: tasks.datasets.load
# name of the data set
name: {name}
# {root}
root: null
# fraction of the training set held out for validation, stratified, the same for all seeds; 0 <= val < 1
val: 0.1
# scaling of each channel: standard (mean 0, std 1 over the training set), unit (0..1) or symmetric (-1..1){blank}
normalise: {normalise}
# black pixels to add on each side of an image; 2 turns 28x28 into 32x32
pad: 0
# side to resize images to; null: {size}
size: null
# pretrained network whose frozen features replace the images: efficientnet_lite0, a torchvision name such as resnet18,
# timm/NAME, {{net:NAME,weights:FILE}} or {{_target_:my_module.net}}; null: the images
features: null
# random augmentation of training rows: flip (left and right), crop (a shift); []: none
augment: []
"""
ROOT = "folder with the data in torchvision's layout; null: harness/data in the user's cache folder"
BLANK = """. With unit,
# as in the published permuted streams, a blank pixel is 0 and the weights it feeds get no gradient"""


def text(name: str) -> str:
    """One data set's file."""
    spec, own = SPECS[name], name == "digits"
    return TEMPLATE.format(
        text=spec.text,
        name=name,
        root="not used: the data ships with scikit-learn" if own else ROOT,
        blank=BLANK if own else "",
        normalise="unit" if own else "standard",
        size="the original size" if spec.uniform else f"{spec.shape[1]}, or 224 for features",
    )


def main() -> None:
    for name in SPECS:
        (CONF / f"{name}.yaml").write_text(text(name), encoding="utf-8")


if __name__ == "__main__":
    main()
