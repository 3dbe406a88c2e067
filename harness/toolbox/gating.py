"""Gates on hidden units: a forward pass that multiplies every unit by a factor of the row's task."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Unpack

from torch import Tensor

from harness.types import Buffers, Gates, How, Out, Params

if TYPE_CHECKING:
    from harness.learner import Learner

Gating = Callable[[Params, Tensor, bool], Gates]  # parameters, task ids [S, B], train -> factors


class Gated:
    """A forward pass with gates; nested gates multiply."""

    def __init__(self, inner: Callable[..., Out], gating: Gating) -> None:
        self.inner, self.gating = inner, gating

    def __call__(
        self, params: Params, buffers: Buffers, x: Tensor, t: Tensor, *, gates: Gates | None = None, **how: Unpack[How]
    ) -> Out:
        own = self.gating(params, t, how.get("train", False))
        both = {k: v * gates[k] if gates and k in gates else v for k, v in own.items()}
        return self.inner(params, buffers, x, t, gates={**(gates or {}), **both}, **how)


def gate(learner: Learner, method: str, gating: Gating) -> None:
    """Gate the learner's hidden units. `Out.acts` and the next layer see the gated units.

    Raises ValueError for a model without hidden units, or one whose forward pass takes no gates.
    """
    name = type(learner.model).__name__
    if "gates" not in inspect.signature(learner.apply).parameters:
        raise ValueError(f"{method}: {name} does not support gates; use one of ours, such as model=mlp")
    if not learner.model.units:
        raise ValueError(f"{method}: {name} has no hidden units to gate; add a hidden layer")
    learner.apply = Gated(learner.apply, gating)
