"""The options of `python -m harness merge`; importing them must not import torch."""

from __future__ import annotations

from dataclasses import dataclass

METHODS = ("average", "task_arithmetic", "ties", "magmax", "dare", "regmean", "fisher", "opcm", "rebasin")
HELP = {  # smallest value, meaning
    "rows": (1, "validation rows of a task, for choosing coefficients"),
    "size": (1, "probe rows of a task, for losses on lines, curvature and Fisher information"),
    "pairs": (2, "nets that are compared in pairs, spread evenly, with the first and the last"),
    "points": (3, "points of a line, including its ends"),
    "tested": (1, "test rows of a task for the merges of pairs; all are used for the merge of all nets"),
    "steps": (1, "Hessian products for the top eigenvalue"),
}
ABOUT = """\
One RUN: the nets after each of its tasks. Those of strategy=naive come one from another; those of strategy=opcm, or of
magmax with strategy.magmax.start=initial, are independent experts from one initialisation; those of strategy=reset come
from different ones. Several RUNs on one stream: their last nets. Whole nets are merged, heads too, and all are tested
under the mask of the last task. Task vectors are differences from the RUN's initial net; several RUNs have one only if
their initial nets are equal (pin.init=0). Coefficients are chosen for each seed on validation rows. Running statistics
of batch norm are recomputed on training rows. Nothing is trained."""


@dataclass(frozen=True)
class MergeOptions:
    """Resolution of what is measured around a merge."""

    rows: int = 500
    size: int = 256
    pairs: int = 6
    points: int = 11
    tested: int = 1000
    steps: int = 20

    def __post_init__(self) -> None:
        for key, (least, _) in HELP.items():
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"merge --{key} {value}: must be a whole number of at least {least}")


def methods_of(text: str) -> tuple[str, ...]:
    """The methods of `--with`, in the order typed. ValueError for an unknown one, or one named twice.

    >>> methods_of("ties,average")
    ('ties', 'average')
    """
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    for name in names:
        if name not in METHODS:
            raise ValueError(f"merge --with {name}: unknown; choose from {', '.join(METHODS)}")
        if names.count(name) > 1:
            raise ValueError(f"merge --with {name}: named twice")
    if not names:
        raise ValueError(f"merge --with: names no method; choose from {', '.join(METHODS)}")
    return names
