"""Constraints on gradients and updates: layer inputs as vectors, projected updates, a small QP."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad, unfold

from harness import tree
from harness.toolbox import solve
from harness.types import Layer, Params, Task

if TYPE_CHECKING:
    from harness.learner import Learner

RIDGE = 1e-6  # on a diagonal of 1: about the error of products of float32 gradients


def free(learner: Learner, method: str, *, bias: bool) -> Params:
    """An identity [S, d, d] for the weight of each layer; d is its fan in, plus one for a bias if `bias`.

    Raises ValueError for a model that declares no layers.
    """
    model, made = learner.model, {}
    if not model.layers:
        raise ValueError(f"{method}: {type(model).__name__} declares no layers; use one of ours, such as model=mlp")
    for m in model.layers:
        d = learner.params[m.weight][0, 0].numel() + (bias and m.bias is not None)
        made[m.weight] = torch.eye(d, dtype=learner.dtype, device=learner.device).repeat(learner.S, 1, 1)
    return made


def vectors(layer: Layer, a: Tensor, weight: Tensor, *, bias: bool = False) -> Tensor:
    """A layer's input as the vectors that its flattened weight multiplies: [S, B, L, fan in].

    L = 1 for a linear layer of one vector, otherwise the number of positions (of the output for a convolution). With
    `bias`, layers with a bias get a last entry of 1, whose weight is the bias.

    >>> layer = Layer("w", "b", "in", "out", {"stride": 1, "padding": 0})
    >>> vectors(layer, torch.arange(6.0).view(1, 1, 1, 2, 3), torch.zeros(1, 4, 1, 2, 2), bias=True)
    tensor([[[[0., 1., 3., 4., 1.],
              [1., 2., 4., 5., 1.]]]])
    """
    if layer.conv is None:
        found = a[:, :, None] if a.dim() == 3 else a.flatten(2, -2)
    else:
        patches = unfold(a.flatten(0, 1), weight.shape[-2:], **layer.conv)
        found = patches.view(*a.shape[:2], *patches.shape[1:]).mT
    return pad(found, (0, 1), value=1.0) if bias and layer.bias else found


def outputs(layer: Layer, z: Tensor) -> Tensor:
    """A layer's output, or the gradient by it, for each of the L `vectors`: [S, B, L, out]."""
    if layer.conv is None:
        return z[:, :, None] if z.dim() == 3 else z.flatten(2, -2)
    return z.flatten(3).mT


@torch.no_grad()
def layer_inputs(
    learner: Learner, task: Task, position: Tensor, size: int, *, bias: bool
) -> Iterator[dict[str, Tensor]]:
    """`vectors` of each weight at the training rows `position` [S, n], `size` rows at a time, in evaluation mode."""
    for part in position.split(size, 1):
        x, _, t = task.train.take(part)
        a = learner.apply(learner.params, learner.buffers, x, t, record=True).inputs
        yield {m.weight: vectors(m, a[m.input], learner.params[m.weight], bias=bias) for m in learner.model.layers}


@torch.no_grad()
def constrain(learner: Learner, before: Params, allowed: Params) -> None:
    """Replace the update U of each weight [out, d] by U allowed, allowed [S, d, d]; other parameters stay fixed.

    If `allowed` has one more row, U has the bias's update as its last column. It constrains the optimizer's
    update: neither momentum, nor Adam's scaling, nor weight decay can leave the allowed directions.
    With a head per task (scenario=task) the current task's outputs move freely and all others stay fixed:
    heads share no weight.
    """
    update = tree.sub(learner.params, before)
    kept = tree.zeros(update)
    for m in learner.model.layers:
        weight, Q = update[m.weight], allowed[m.weight]
        flat = weight.flatten(2)
        d = flat.shape[2]
        if m.bias and Q.shape[1] > d:
            flat = torch.cat([flat, update[m.bias][..., None]], 2)
            kept[m.bias] = (flat @ Q[..., d:])[..., 0]
        kept[m.weight] = (flat @ Q[..., :d]).view_as(weight)
    stream = learner.stream
    if stream.scenario == "task" and stream.masks is not None:
        own = stream.masks[:, learner.now]  # [S or 1, C]
        kept |= {k: update[k] * own.view(*own.shape, *[1] * (update[k].dim() - 2)) for k in learner.model.head}
    for k, v in learner.params.items():
        v.copy_(before[k] + kept[k])


def nonnegative_qp(P: Tensor, q: Tensor, *, ridge: float = RIDGE, rounds: int | None = None) -> Tensor:
    """argmin 1/2 uᵀ P u + qᵀ u subject to u >= 0, for each seed: P [S, k, k], q [S, k] -> [S, k], in float64.

    Block principal pivoting (Portugal, Judice & Vicente 1994; Kim & Park 2011): guess which u are positive,
    solve for these, exchange all with the wrong sign; one at a time (Murty 1974, finite) once exchanging
    all has failed three times. Exact once no sign is wrong, up to the `ridge` added to P's diagonal after
    scaling it to 1 (P may be singular). By default 2 k + 10 rounds, a number known without waiting for the
    device. Of 10,000 random problems with k up to 19 none needed more than 8, of 10,000 with strongly
    correlated rows none; with 19 rows of rank 9, 5 of 2,000 remained unfinished.

    >>> nonnegative_qp(torch.tensor([[[2.0, 0.0], [0.0, 2.0]]]), torch.tensor([[-4.0, 2.0]]), ridge=0)
    tensor([[2.0000, 0.0000]], dtype=torch.float64)
    """
    P, q = P.double(), q.double()
    k, tiny = q.shape[1], torch.finfo(torch.float64).tiny
    scale = P.diagonal(dim1=1, dim2=2).clamp_min(tiny).rsqrt()
    P = P * scale[:, :, None] * scale[:, None]
    eye = torch.eye(k, dtype=P.dtype, device=P.device)
    P, q = P + ridge * eye, q * scale
    size = q.abs().amax(1, keepdim=True).clamp_min(tiny)
    q = q / size
    positive = torch.zeros_like(q, dtype=torch.bool)
    fewest = torch.full_like(size, k + 1)  # wrong signs
    tries = torch.full_like(size, 3)
    place = torch.arange(k, device=P.device)
    for _ in range(2 * k + 10 if rounds is None else rounds):
        u, wrong = _pivot(P, q, positive, eye)
        if not P.is_cuda and not bool(wrong.any()):  # further rounds would not change it
            return u.clamp_min(0) * size * scale
        count = wrong.sum(1, keepdim=True)
        better = count < fewest
        tries = torch.where(better, 3, tries - 1)
        fewest = fewest.minimum(count)
        last = place == torch.where(wrong, place, -1).amax(1, keepdim=True)
        positive = positive ^ (wrong & ((tries > 0) | last))
    u, _ = _pivot(P, q, positive, eye)
    return u.clamp_min(0) * size * scale


def _pivot(P: Tensor, q: Tensor, positive: Tensor, eye: Tensor) -> tuple[Tensor, Tensor]:
    """u with P u + q = 0 at `positive` and u = 0 elsewhere, and whether u or P u + q has the wrong sign."""
    both = positive[:, :, None] & positive[:, None]
    u = solve.solve(torch.where(both, P, eye), torch.where(positive, -q, 0)[..., None])[..., 0]
    slack = (P @ u[..., None])[..., 0] + q
    return u, torch.where(positive, u, slack) < -1e-10
