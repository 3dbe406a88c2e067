"""A small float64 net with its dense Hessian by torch.func: what every curvature number is held against."""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from harness.landscape.curvature import flatten, unflatten
from harness.models.mlp import MLP
from harness.rng import keys
from harness.types import Loss, Params

F64 = torch.float64
# torch.func.hessian, forward over reverse, loads torch's own scripted decompositions, which torch 2.15 deprecates
SCRIPTED = "ignore:.torch.jit.script. is deprecated:FutureWarning"


def net(seeds: list[int], *, parts: int = 1, trained: int = 0) -> tuple[Loss, Params]:
    """A ReLU net of 244 parameters and its mean cross-entropy on 40 rows of each seed, in `parts` uneven batches.

    `trained` steps of gradient descent take it near a minimum, where its spectrum is that of a trained net.
    """
    model = MLP((8,), 4, (10, 10))
    params = {k: v.double() for k, v in model.init(keys(seeds, "init"))[0].items()}
    x = torch.stack([torch.randn(40, 8, dtype=F64, generator=torch.Generator().manual_seed(s)) for s in seeds])
    y = x[:, :, :4].argmax(2)
    cuts = [0, 3, 17, 40] if parts == 3 else [0, 40]

    def loss(p: Params) -> Tensor:
        total = torch.zeros(len(seeds), dtype=F64)
        for a, b in pairwise(cuts):
            logits = model(p, {}, x[:, a:b], y[:, a:b] * 0).logits
            total = total + torch.stack([cross_entropy(z, t, reduction="sum") for z, t in zip(logits, y[:, a:b])])
        return total / 40

    for _ in range(trained):
        leaves = {k: v.requires_grad_() for k, v in params.items()}
        grads = torch.autograd.grad(loss(leaves).sum(), list(leaves.values()))
        params = {k: (v - 0.5 * g).detach() for (k, v), g in zip(leaves.items(), grads)}
    return loss, params


def alone(loss: Loss, params: Params, s: int) -> Callable[[Tensor], Tensor]:
    """Loss of seed s as a function of its own parameters [P]."""
    flat = flatten(params)
    return lambda v: loss(unflatten(torch.cat([flat[:s], v[None], flat[s + 1 :]]), params))[s]


def dense(loss: Loss, params: Params, s: int) -> Tensor:
    """Hessian [P, P] of seed s, by torch.func."""
    return torch.func.hessian(alone(loss, params, s))(flatten(params)[s])


def rescaled(params: Params, factor: float = 5.0) -> Params:
    """The same function of a ReLU net with the first layer times `factor` and the second over it (Dinh et al. 2017)."""
    first = {name: params[name] * factor for name in ("fc1.weight", "fc1.bias")}
    return {**params, **first, "fc2.weight": params["fc2.weight"] / factor}


def relabelled(params: Params) -> Params:
    """The same function with the ten units of the first layer in another order."""
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    moved = {name: params[name][:, order] for name in ("fc1.weight", "fc1.bias")}
    return {**params, **moved, "fc2.weight": params["fc2.weight"][:, :, order]}
