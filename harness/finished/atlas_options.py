"""The options of `python -m harness atlas`; importing them must not import torch."""

from __future__ import annotations

from dataclasses import dataclass

HELP = {  # smallest value, meaning
    "tasks": (2, "anchor tasks, spread evenly over the stream, with the first and the last"),
    "points": (3, "points of a line, including its ends"),
    "grid": (3, "points along each axis of a plane"),
    "size": (1, "probe rows of a task"),
    "vectors": (2, "start vectors of a spectrum"),
    "steps": (1, "Hessian products for each start vector"),
}


@dataclass(frozen=True)
class AtlasOptions:
    """Resolution of an atlas. The defaults take about a minute for five seeds of 64-100-100-10 on ten digit tasks."""

    tasks: int = 10
    points: int = 11
    grid: int = 21
    size: int = 512
    vectors: int = 8
    steps: int = 60

    def __post_init__(self) -> None:
        for key, (least, _) in HELP.items():
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"atlas --{key} {value}: must be a whole number of at least {least}")
