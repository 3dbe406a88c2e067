"""Hu, Shen, Wallis, Allen-Zhu, Li, Wang, Wang & Chen (2022), LoRA: low-rank adaptation of large language models,
ICLR.
"""

from collections.abc import Callable
from typing import Unpack

import torch
from torch import Tensor

from harness import rng, tree
from harness.learner import Learner
from harness.strategy import EDIT, HOLD, Strategy
from harness.toolbox import require
from harness.types import Buffers, How, Out, Params, Step, Task

ADAPTERS = ("merged", "shared")


class LoRA(Strategy):
    """LoRA: after the first task, weights move only by products of two thin matrices (Hu 2022).

        W + (alpha / rank) B A     A [rank, fan in] from U(-a, a), a = 1 / sqrt(fan in);  B [outputs, rank] = 0

    The first task trains the whole net, in the place of a pretrained one; a run that starts from another (`start=RUN`)
    may skip that with first=adapters. From then on the weights of all layers but the read-out, biases and norms stay
    fixed, and A, B and the read-out train. A convolution's fan in is C k k.

        adapter=merged   after each task W takes the product, A is drawn anew, B is 0: an adapter a task
        adapter=shared   one adapter for all tasks

    Memory: rank (fan in + outputs) for each layer, and a copy of the fixed weights. It must be listed first.

    Differences from the paper:
    * It adapts the query and value maps of a transformer; here every map is adapted, and the read-out trains, since a
      new task has new classes.
    * Dropout of the adapter's input is left out, and weight decay also acts on A and B.
    """

    name = "lora"
    family = "optimization-based"
    order = {"step": HOLD, "end": EDIT}
    grid = {"rank": (2, 4, 8, 16)}  # around those of Hu et al.

    def __init__(self, *, rank: int, alpha: float, adapter: str, first: str) -> None:
        require.at_least(1, rank=rank)
        require.at_least(0, alpha=alpha)
        require.one_of(ADAPTERS, adapter=adapter)
        require.one_of(("whole", "adapters"), first=first)
        self.rank, self.scale, self.adapter, self.first = rank, alpha / rank, adapter, first

    def setup(self, learner: Learner) -> None:
        self.adapted = [m.weight for m in learner.model.layers if m.weight not in learner.model.head]
        if not self.adapted:
            raise ValueError(f"{self.name}: {type(learner.model).__name__} has no layer before its read-out to adapt")
        learner.params |= self.fresh(learner)
        learner.apply = Adapted(learner.apply, self.weights)
        self.fixed = {k: v.clone() for k, v in learner.params.items() if k not in learner.model.head}

    def fresh(self, learner: Learner) -> Params:
        """New adapters, whose product is 0."""
        key, made = self.random.key(), {}
        for name in self.adapted:
            outputs, fan_in = (w := learner.params[name].flatten(2)).shape[1:]
            drawn = rng.uniform(rng.fold(key, name), self.rank, fan_in, dtype=w.dtype)
            made[f"lora.{name}.a"] = (2 * drawn - 1) * fan_in**-0.5
            made[f"lora.{name}.b"] = w.new_zeros(len(w), outputs, self.rank)
        return made

    def weights(self, params: Params) -> Params:
        """The adapted weights."""
        found = {}
        for name in self.adapted:
            product = params[f"lora.{name}.b"] @ params[f"lora.{name}.a"]
            found[name] = params[name] + self.scale * product.view_as(params[name])
        return found

    def step(self, learner: Learner, step: Step) -> None:
        whole = learner.now == 0 and self.first == "whole"
        held = {k: v for k, v in self.fixed.items() if k.startswith("lora.") == whole}
        tree.assign(learner.params, held)

    @torch.no_grad()
    def end(self, learner: Learner, task: Task) -> None:
        if self.adapter == "merged":
            renewed = {**self.weights(learner.params), **self.fresh(learner)}
            tree.assign(learner.params, renewed)
            for name in renewed:
                learner.optimizer.reset(name, torch.ones_like(learner.params[name], dtype=torch.bool))
        tree.assign(self.fixed, {k: learner.params[k] for k in self.fixed})


class Adapted:
    """A forward pass with adapted weights."""

    def __init__(self, inner: Callable[..., Out], weights: Callable[[Params], Params]) -> None:
        self.inner, self.weights = inner, weights

    def __call__(self, params: Params, buffers: Buffers, x: Tensor, t: Tensor, **how: Unpack[How]) -> Out:
        return self.inner({**params, **self.weights(params)}, buffers, x, t, **how)
