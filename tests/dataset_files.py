"""The files of conf/dataset for data sets that are known by name, made from tasks/datasets/table.py.

python -m tests.dataset_files      (writes them; a test says when they are not what this makes)
"""

from __future__ import annotations

from pathlib import Path

from tasks.datasets.table import SPECS

CONF = Path(__file__).resolve().parent.parent / "conf" / "dataset"
TEMPLATE = """\
# {text}

_target_: tasks.datasets.load
# the data set
name: {name}
# {root}
root: null
# fraction of the training set held out for validation: stratified, the same for every seed; 0 <= val < 1
val: 0.1
# inputs per channel: standard (mean 0, std 1 over the training set) or unit (0..1){blank}
normalise: {normalise}
# black pixels put around each image, on every side; 2 makes 32x32 of 28x28
pad: 0
# side that images are resized to; null: {size}
size: null
# a network of torchvision's, such as resnet18, whose frozen features stand in for the images; null: the images
features: null
# changes of training rows at random, as they are drawn: flip (left and right), crop (a shift); [] for none
augment: []
"""
ROOT = "folder that holds the data in torchvision's layout; null: harness/data in the user's cache folder"
BLANK = """. Under unit, as in the published
# permuted streams, a blank pixel is 0 and the weights that read it get no gradient"""


def text(name: str) -> str:
    """The file of one data set."""
    spec, own = SPECS[name], name == "digits"
    return TEMPLATE.format(
        text=spec.text,
        name=name,
        root="not used: the data ships inside scikit-learn" if own else ROOT,
        blank=BLANK if own else "",
        normalise="unit" if own else "standard",
        size="their own" if spec.uniform else f"{spec.shape[1]}, or 224 for features",
    )


def main() -> None:
    for name in SPECS:
        (CONF / f"{name}.yaml").write_text(text(name), encoding="utf-8")


if __name__ == "__main__":
    main()
