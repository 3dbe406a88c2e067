"""Features that no longer change, for methods that keep statistics of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from harness import tree
from harness.toolbox import class_means
from harness.types import Model, Net, Stream, Task

if TYPE_CHECKING:
    from harness.learner import Learner

SOURCES = ("input", "initial", "frozen")


class FixedFeatures:
    """z of every row, from a net that no longer changes.

        input     the flattened input, such as the features of `dataset.features`; no step at all
        initial   the input of the head in the net as the run starts with it; no step at all
        frozen    the input of the head in the net trained on the first task; later tasks take no step

    `width` is the number of features. Its state is the net, empty if the inputs are the features.
    """

    def __init__(self, learner: Learner, source: str, method: str) -> None:
        self.layer, self.width = class_means.head_layer(learner, method)
        if source == "input":
            self.layer, self.width = class_means.INPUT, math.prod(learner.stream.shape)
        self.source = source
        self.net = self._kept(learner)

    def _kept(self, learner: Learner) -> Net:
        if self.source == "input":
            return Net({}, {}, learner.apply)
        return Net(tree.copy(learner.params), tree.copy(learner.buffers), learner.apply)

    def begin(self, task: Task) -> Task:
        """The task without steps, except the first of `frozen`."""
        return task if self.source == "frozen" and task.index == 0 else replace(task, epoch=0)

    def end(self, learner: Learner, task: Task) -> None:
        """Keep the net trained on the first task."""
        if self.source == "frozen" and task.index == 0:
            self.net = self._kept(learner)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """Features in float64: x [S, B, *shape] -> [S, B, width]."""
        return class_means.features(self.net, self.layer, x, t).double()

    def readout(self, learner: Learner, net: Net, logits: Callable[[Tensor], Tensor], *, probabilistic: bool) -> Net:
        """The net that predicts with `logits` of the features, which come in the learner's precision."""
        net = net if self.source == "input" else replace(self.net, apply=learner.apply)
        return class_means.readout(net, self.layer, logits, probabilistic=probabilistic)

    def state_dict(self) -> dict[str, Any]:
        return {"params": self.net.params, "buffers": self.net.buffers}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.net = replace(
            self.net, params=_like(state["params"], self.net.params), buffers=_like(state["buffers"], self.net.buffers)
        )


def _like(values: dict[str, Tensor], present: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the devices of the present values."""
    return {k: v.to(present[k].device, copy=True) for k, v in values.items()}


def remarks(source: str, stream: Stream, model: Model, method: str) -> list[str]:
    """The remark for a net between inputs that are features already and the method."""
    if source == "input" or not class_means.between(stream, model):
        return []
    return [class_means.BETWEEN.format(f"strategy.{method}.features=input")]
