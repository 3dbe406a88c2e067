"""SGD and Adam(W) over stacked parameters: elementwise, so equal to one optimizer per seed.

Equal to torch.optim's, but single entries can be reset: `reset(name, where)` zeroes their moments and
their step count, as a replaced unit needs (keeping the count makes Adam's next step 3.15 times too long,
zeroing it for the whole tensor makes all other steps too short).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from harness.types import Numbers, Params

SCHEDULES = ("constant", "step", "cosine", "task")


class Optimizer:
    """Settings, learning-rate schedule and state that all optimizers share.

    lr: learning rate at the start of a schedule; schedule: constant, step (times `gamma` at each
    fraction in `milestones`), cosine (to 0) or task (times `gamma` at each new task, in either scope);
    floor: the rate that a schedule never falls below; scope: span of a schedule, each task or the stream;
    reset: whether a new task starts with fresh state.
    """

    def __init__(
        self,
        *,
        lr: float,
        weight_decay: float = 0.0,
        reset: bool = False,
        schedule: str = "constant",
        scope: str = "task",
        milestones: Sequence[float] = (0.5, 0.75),
        gamma: float = 0.1,
        floor: float = 0.0,
    ) -> None:
        if not (isinstance(lr, (int, float)) and lr > 0 and math.isfinite(lr)):
            raise ValueError(f"optimizer.lr={lr}: must be a positive number")
        if weight_decay < 0:
            raise ValueError(f"optimizer.weight_decay={weight_decay}: must be at least 0")
        if schedule not in SCHEDULES:
            raise ValueError(f"optimizer.schedule={schedule}: must be one of {', '.join(SCHEDULES)}")
        if not 0 <= floor <= lr:
            raise ValueError(f"optimizer.floor={floor}: must be from 0 to optimizer.lr={lr}")
        if scope not in ("task", "stream"):
            raise ValueError(f"optimizer.scope={scope}: must be task or stream")
        self.base_lr, self.lr, self.weight_decay = float(lr), float(lr), weight_decay
        self.reset_each_task, self.schedule, self.scope = reset, schedule, scope
        self.milestones, self.gamma, self.floor = tuple(milestones), gamma, floor
        self.state: dict[str, Params] = {}  # slot -> name -> [S, *shape]

    def set_progress(self, done: float, task: int = 0) -> None:
        """Set the learning rate after the fraction `done` of the schedule's span, in task `task` (from 0)."""
        factor = 1.0
        if self.schedule == "cosine":
            factor = 0.5 * (1 + math.cos(math.pi * done))
        elif self.schedule == "step":
            factor = self.gamma ** sum(done >= m for m in self.milestones)
        elif self.schedule == "task":
            factor = self.gamma**task
        self.lr = max(self.base_lr * factor, self.floor)

    def slot(self, name: str, like: Params) -> list[Tensor]:
        """One state tensor for each parameter, created as zeros."""
        slot = self.state.setdefault(name, {})
        for k, v in like.items():
            if k not in slot:
                slot[k] = torch.zeros_like(v)
        return [slot[k] for k in like]

    def update(self, params: Params, grads: Params) -> None:
        """One step in place."""
        self.move(params, grads, self.numbers())

    def numbers(self) -> tuple[float, ...]:
        """Count a step, and return the numbers that `move` needs and that may change from step to step."""
        return (-self.lr,)

    def move(self, params: Params, grads: Params, numbers: Numbers) -> None:
        """One step in place: tensor arithmetic without bookkeeping, which can be compiled.

        `numbers` are then 0-dim tensors: a graph takes a Python number for a constant.
        """
        raise NotImplementedError

    def reset(self, name: str | None = None, where: Tensor | None = None) -> None:
        """Clear all state, or that of the entries `where` (bool, broadcastable) of one parameter."""
        if name is None or where is None:
            self.state = {}
            return
        for slot in self.state.values():
            if name in slot:
                slot[name].masked_fill_(where, 0)

    def state_dict(self) -> dict[str, Any]:
        return {"state": {s: dict(p) for s, p in self.state.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state = {s: {k: v.clone() for k, v in p.items()} for s, p in state["state"].items()}

    def to(self, device: torch.device) -> None:
        """Move the state; a checkpoint comes back on the CPU."""
        self.state = {s: {k: v.to(device) for k, v in p.items()} for s, p in self.state.items()}

    def settings(self) -> dict[str, Any]:
        """Settings for the edge-of-stability metrics: lr, momentum, betas."""
        return {"name": type(self).__name__.lower(), "lr": self.lr}


class SGD(Optimizer):
    """Stochastic gradient descent, with heavy-ball or Nesterov momentum and coupled weight decay."""

    def __init__(self, *, momentum: float = 0.0, nesterov: bool = False, **shared: Any) -> None:
        super().__init__(**shared)
        if not 0 <= momentum < 1:
            raise ValueError(f"optimizer.momentum={momentum}: must be in [0, 1)")
        if nesterov and momentum == 0:
            raise ValueError("optimizer.nesterov=true: needs optimizer.momentum above 0")
        self.momentum, self.nesterov = momentum, nesterov

    @torch.no_grad()
    def move(self, params: Params, grads: Params, numbers: Numbers) -> None:
        (down,), p, g = numbers, list(params.values()), [grads[k] for k in params]
        if self.weight_decay:
            g = list(torch._foreach_add(g, p, alpha=self.weight_decay))
        if self.momentum:
            velocity = self.slot("momentum", params)
            torch._foreach_mul_(velocity, self.momentum)
            torch._foreach_add_(velocity, g)
            g = list(torch._foreach_add(g, velocity, alpha=self.momentum)) if self.nesterov else velocity
        if isinstance(down, Tensor):
            torch._foreach_add_(p, torch._foreach_mul(g, down))
        else:
            torch._foreach_add_(p, g, alpha=down)

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "momentum": self.momentum, "nesterov": self.nesterov}


class Adam(Optimizer):
    """Adam (Kingma & Ba 2015); weight decay is added to the gradient."""

    decoupled = False

    def __init__(self, *, betas: Sequence[float] = (0.9, 0.999), eps: float = 1e-8, **shared: Any) -> None:
        super().__init__(**shared)
        self.betas, self.eps = (float(betas[0]), float(betas[1])), eps
        if not all(0 <= b < 1 for b in self.betas):
            raise ValueError(f"optimizer.betas={list(betas)}: each must be in [0, 1)")
        self.count = 0
        # beta^age of each entry, for parameters with reset entries only: elsewhere all entries are
        # `count` steps old
        self.powers: dict[str, tuple[Tensor, Tensor]] = {}

    def numbers(self) -> tuple[float, ...]:
        self.count += 1
        (b1, b2), lr = self.betas, self.lr
        c1, c2 = 1 - b1**self.count, 1 - b2**self.count
        return -lr, -lr / c1, math.sqrt(c2), 1 - lr * self.weight_decay

    @torch.no_grad()
    def move(self, params: Params, grads: Params, numbers: Numbers) -> None:
        (b1, b2), p, g = self.betas, list(params.values()), [grads[k] for k in params]
        down, unbiased, root, shrink = numbers
        if self.weight_decay and self.decoupled:
            torch._foreach_mul_(p, shrink)
        elif self.weight_decay:
            g = list(torch._foreach_add(g, p, alpha=self.weight_decay))
        m, v = self.slot("mean", params), self.slot("square", params)
        torch._foreach_lerp_(m, g, 1 - b1)
        torch._foreach_mul_(v, b2)
        torch._foreach_addcmul_(v, g, g, 1 - b2)
        whole = [i for i, k in enumerate(params) if k not in self.powers]
        if whole:  # torch refuses an empty list
            scale = torch._foreach_sqrt([v[i] for i in whole])
            torch._foreach_div_(scale, root)
            torch._foreach_add_(scale, self.eps)
            step = torch._foreach_mul([m[i] for i in whole], unbiased)  # addcdiv takes no tensor as its factor
            torch._foreach_addcdiv_([p[i] for i in whole], step, scale)
        for i, k in enumerate(params):
            if k in self.powers:
                p1, p2 = (power.mul_(b) for power, b in zip(self.powers[k], self.betas))
                p[i].add_(down * (m[i] / (1 - p1)) / ((v[i] / (1 - p2)).sqrt() + self.eps))

    def reset(self, name: str | None = None, where: Tensor | None = None) -> None:
        super().reset(name, where)
        if name is None or where is None:
            self.count, self.powers = 0, {}
        elif "mean" in self.state and name in self.state["mean"]:
            if name not in self.powers:
                like = self.state["mean"][name]
                b1, b2 = self.betas
                self.powers[name] = (
                    torch.full_like(like, b1**self.count),
                    torch.full_like(like, b2**self.count),
                )
            for power in self.powers[name]:
                power.masked_fill_(where, 1)

    def state_dict(self) -> dict[str, Any]:
        powers = {k: list(v) for k, v in self.powers.items()}
        return {**super().state_dict(), "count": self.count, "powers": powers}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.count = state["count"]
        self.powers = {k: (a.clone(), b.clone()) for k, (a, b) in state["powers"].items()}

    def to(self, device: torch.device) -> None:
        super().to(device)
        self.powers = {k: (a.to(device), b.to(device)) for k, (a, b) in self.powers.items()}

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "betas": list(self.betas), "eps": self.eps}


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019)."""

    decoupled = True
