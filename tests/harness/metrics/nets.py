"""Boundaries whose nets are relabelled, carry batch norm, or were not all kept; a seed's own loss, by itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from harness.boundary import Boundary
from harness.landscape.curvature import flatten, unflatten
from harness.models.maps import apart, batch_norm, together
from harness.types import Apply, Batch, Net, Out, Params


@dataclass
class Held:
    """What a boundary finds of earlier nets."""

    initial: Net
    of: Callable[[int], Net]
    tasks: tuple[int, ...]

    def __contains__(self, task: int) -> bool:
        return task in self.tasks

    def __getitem__(self, task: int) -> Net:
        assert task in self.tasks
        return self.of(task)


def holding(b: Boundary, nets: Mapping[int, Net]) -> Boundary:
    """The boundary with these earlier nets alone."""
    return replace(b, nets=Held(b.nets.initial, nets.__getitem__, tuple(nets)))


def relabelled(b: Boundary) -> Boundary:
    """The boundary with the units of the first layer in another order, in all its nets."""
    order = torch.tensor([3, 1, 4, 0, 5, 9, 2, 6, 8, 7])

    def moved(net: Net) -> Net:
        p = dict(net.params)
        p["fc1.weight"], p["fc1.bias"] = p["fc1.weight"][:, order], p["fc1.bias"][:, order]
        p["fc2.weight"] = p["fc2.weight"][:, :, order]
        return Net(p, {}, net.apply)

    nets = Held(moved(b.nets.initial), lambda i: moved(b.nets[i]), tuple(range(b.t)))
    return replace(b, trained=moved(b.trained), nets=nets)


def normed(b: Boundary) -> Boundary:
    """The boundary with a batch norm in its nets, whose running statistics moved from task to task."""

    def apply(p, buffers, x, t, *, train=False, key=None, record=False):  # type: ignore[no-untyped-def]
        h = (x.double() @ p["fc1.weight"].mT)[..., None, None]
        one = torch.ones_like(p["fc1.bias"])
        scaled, mean, var = batch_norm(apart(h), one, p["fc1.bias"], buffers["mean"], buffers["var"], train)
        h = together(scaled, len(h)).flatten(2).relu() @ p["fc2.weight"].mT
        return Out(h @ p["head.weight"].mT, {}, {"mean": mean, "var": var})

    def at(i: int) -> Params:
        return {"mean": torch.full((2, 10), 0.1 * i).double(), "var": torch.full((2, 10), 1.0 + 0.3 * i).double()}

    nets = Held(b.nets.initial, lambda i: Net(b.nets[i].params, at(i), apply), tuple(range(b.t)))
    return replace(b, trained=Net(b.trained.params, at(b.t), apply), nets=nets)


def seed_loss(
    apply: Apply, like: Params, batch: Batch, s: int, used: slice, buffers: Params
) -> Callable[[Tensor], Tensor]:
    """Seed s's mean cross-entropy over some outputs, as a function of its flat parameters [P]."""
    flat = flatten(like)

    def f(v: Tensor) -> Tensor:
        params = unflatten(torch.cat([flat[:s], v[None], flat[s + 1 :]]), like)
        return cross_entropy(apply(params, buffers, batch.x, batch.t).logits[s][:, used], batch.y[s] - used.start)

    return f
