"""Lines and planes through points in parameter space, averages on them, and barriers.

A path is [S, K]: a loss (or an error, 1 - accuracy) at K points alpha of a grid from 0 to 1. The three barrier
definitions answer different questions and are three functions (on a naive step of a continual learner Entezari's was
0.00 and Frankle's 1.65).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from harness import tree
from harness.rng import RandomStream, fold, integers, normal
from harness.types import Buffers, Net, Params, Task

if TYPE_CHECKING:
    from harness.learner import Learner


def grid(points: int) -> tuple[float, ...]:
    """`points` values of alpha, evenly from 0 to 1.

    >>> grid(5)
    (0.0, 0.25, 0.5, 0.75, 1.0)
    """
    if points < 3:
        raise ValueError(f"points={points}: must be at least 3, for two ends and a point between them")
    return tuple(i / (points - 1) for i in range(points))


@torch.no_grad()
def line(a: Params, b: Params, evaluate: Callable[[Params], Tensor], alphas: Sequence[float]) -> Tensor:
    """`evaluate` [S, ...] at (1 - alpha) a + alpha b for every alpha: [S, K, ...].

    `evaluate` gets only the parameters. Batch-norm statistics belong to one point of the line and are wrong at the
    others (variance collapse, Jordan et al. 2023): if a net has them, `evaluate` must recompute them (`refresh`).
    """
    return torch.stack([evaluate(tree.lerp(a, b, alpha)) for alpha in alphas], 1)


class Plane(NamedTuple):
    """origin + x u + y v, u and v orthogonal unless random. Each seed has its own; all share one grid of x and y."""

    origin: Params
    u: Params
    v: Params
    corners: Tensor  # [S, n, 2] x, y of the points that define it
    lengths: Tensor  # [S, 2] of u and v: x and y times these are distances


def plane(a: Params, b: Params, c: Params) -> Plane:
    """The plane through three points, by Gram-Schmidt: a at (0, 0), b at (1, 0), c at (p, 1), with p per seed.

        u = b - a,   v = (c - a) - p u,   p = <c - a, u> / |u|^2  (0 where b = a)

    As in Garipov et al. (2018), who take v from the second point. For three points on one line v is 0.

    >>> at = [{"w": torch.tensor([row])} for row in ([0.0, 0.0], [2.0, 0.0], [1.0, 3.0])]
    >>> found = plane(*at)
    >>> found.v, found.corners, found.lengths
    ({'w': tensor([[0., 3.]])}, tensor([[[0.0000, 0.0000],
             [1.0000, 0.0000],
             [0.5000, 1.0000]]]), tensor([[2., 3.]]))
    """
    u, w = tree.sub(b, a), tree.sub(c, a)
    square = tree.dot(u, u)
    p = torch.where(square == 0, 0, tree.dot(w, u) / square)
    v = tree.add(w, u, -p)
    zero, one = torch.zeros_like(p), torch.ones_like(p)
    corners = torch.stack([zero, zero, one, zero, p, one], 1).view(-1, 3, 2)
    return Plane(a, u, v, corners, torch.stack([tree.norm(u), tree.norm(v)], 1))


def random_plane(params: Params, key: Tensor) -> Plane:
    """The plane through `params` along two filter-normalised random directions, each seed's own (`key` [S])."""
    u, v = (filter_normalised(params, fold(key, name)) for name in "uv")
    corner = torch.zeros_like(tree.norm(params))[:, None, None].expand(-1, 1, 2)
    return Plane(params, u, v, corner, torch.stack([tree.norm(u), tree.norm(v)], 1))


def filter_normalised(params: Params, key: Tensor) -> Params:
    """A normal direction d with |d_f| = |w_f| for every filter f, 0 for biases and norms (Li et al. 2018).

    A filter writes one unit: a row of a linear map, [C, k, k] of a convolution. Parameters with one number per unit
    (bias, gain, shift) do not move, as in the authors' code (ignore='biasbn'). So 1 on an axis is the size of the
    weights, and rescaling a ReLU layer against the next does not change the picture. Two directions are only as
    orthogonal as random ones. A filter of zeros does not move.
    """

    def one(name: str, w: Tensor) -> Tensor:
        if w.dim() <= 2:
            return torch.zeros_like(w)
        d = normal(fold(key, name), *w.shape[1:], dtype=w.dtype)
        return d * (_filter_norm(w) / _filter_norm(d))

    return {k: one(k, v) for k, v in params.items()}


def _filter_norm(w: Tensor) -> Tensor:
    """[S, out, ...] -> norm of each filter [S, out, 1...]."""
    norms: Tensor = torch.linalg.vector_norm(w, dim=tuple(range(2, w.dim())), keepdim=True)
    return norms


def axes(plane: Plane, points: int, margin: float = 0.2) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """`points` values of x and of y that cover the corners of all seeds and `margin` of their extent beyond.

    From -1 to 1 for a single corner, as in Li et al. Seeds that are not finite do not count.

    >>> at = [{"w": torch.tensor([row])} for row in ([0.0, 0.0], [2.0, 0.0], [1.0, 3.0])]
    >>> [[round(x, 6) for x in axis] for axis in axes(plane(*at), 3)]
    [[-0.2, 0.5, 1.2], [-0.2, 0.5, 1.2]]
    """
    corners = plane.corners.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).flatten(0, 1)
    low, high = corners.amin(0), corners.amax(0)
    reach = margin * (high - low) if plane.corners.shape[1] > 1 else 1.0
    low, high = low - reach, high + reach
    x, y = (tuple(a + (b - a) * alpha for alpha in grid(points)) for a, b in zip(low.tolist(), high.tolist()))
    return x, y


@torch.no_grad()
def surface(plane: Plane, evaluate: Callable[[Params], Tensor], x: Sequence[float], y: Sequence[float]) -> Tensor:
    """`evaluate` [S, ...] at every x and y of the plane: [S, X, Y, ...]; for batch norm see `line`.

    >>> flat = Plane({"w": torch.zeros(1, 2)}, {"w": torch.tensor([[1.0, 0.0]])}, {"w": torch.tensor([[0.0, 2.0]])},
    ...              torch.zeros(1, 1, 2), torch.tensor([[1.0, 2.0]]))
    >>> surface(flat, lambda p: p["w"].sum(1), (0, 1), (0, 1, 2))
    tensor([[[0., 2., 4.],
             [1., 3., 5.]]])
    """
    columns = []
    for i in x:
        base = tree.add(plane.origin, plane.u, i)
        columns.append(torch.stack([evaluate(tree.add(base, plane.v, j)) for j in y], 1))
    return torch.stack(columns, 1)


Inputs = tuple[Tensor, Tensor, Tensor | None]  # x [S, B, ...], t [S, B], key [S] of dropout


def refresh(net: Net, batches: Iterable[Inputs]) -> Net:
    """The net with running statistics replaced by their mean over the batches; unchanged if it has none.

    Treats every floating buffer as a moving average, new = (1 - m) old + m statistic, and solves for the statistic
    exactly from two forward passes in training mode (from old = 0 and old = 1), for any m. Counters, and buffers that
    training does not change, are kept. Not for nets with other kinds of buffers.
    """
    moving = {k for k, v in net.buffers.items() if v.is_floating_point()}
    total, count = {k: torch.zeros_like(net.buffers[k]) for k in moving}, 0
    for x, t, key in batches if moving else ():
        fixed = torch.zeros(len(x), dtype=torch.int64, device=x.device) if key is None else key

        zero, one = (_after(net, moving, old, x, t, fixed) for old in (0.0, 1.0))
        if not count:
            constant = {k for k in moving if bool((zero[k] == 0).all()) and bool((one[k] == 1).all())}
            moving -= constant
            if constant and moving:  # frozen weights, say: the statistics must see their own values
                zero, one = (_after(net, moving, old, x, t, fixed) for old in (0.0, 1.0))
        for k in moving:
            weight = 1 - (one[k] - zero[k])  # m
            total[k] = total[k] + torch.where(weight.abs() > 1e-6, zero[k] / weight, net.buffers[k])
        count += 1
        if not moving:
            break
    if not moving:
        return net
    return Net(net.params, {k: total[k] / count if k in moving else v for k, v in net.buffers.items()}, net.apply)


def _after(net: Net, moving: set[str], old: float, x: Tensor, t: Tensor, key: Tensor) -> Buffers:
    """Buffers after a forward pass in training mode, in which those `moving` started at `old`."""
    buffers = {k: torch.full_like(v, old) if k in moving else v for k, v in net.buffers.items()}
    return net.apply(net.params, buffers, x, t, train=True, key=key).buffers


@torch.no_grad()
def remeasure(learner: Learner, params: Params, task: Task, random: RandomStream, *, size: int = 256) -> Buffers:
    """Running statistics of `params` on random training rows of the task; draws nothing without buffers.

    Uses as many rows as the task has, at most 64 batches.
    """

    def batches() -> Iterator[Inputs]:
        for _ in range(min(64, math.ceil(task.rows / size))):
            position = integers(random.key(), task.train.size[:, None], size)
            x, _, t = task.train.take(position)
            yield x, t, random.key() if learner.model.stochastic else None

    return refresh(Net(params, learner.buffers, learner.apply), batches()).buffers


@torch.no_grad()
def follow(slow: Params, fast: Params, weight: float) -> None:
    """slow <- slow + weight (fast - slow), in place; other than floating-point tensors are copied."""
    moving = [k for k, v in slow.items() if v.is_floating_point()]
    if moving:
        torch._foreach_lerp_([slow[k] for k in moving], [fast[k] for k in moving], weight)
    for k in slow.keys() - moving:
        slow[k].copy_(fast[k])


def share(new: Tensor, old: Tensor) -> Tensor:
    """Weight of the new one in a weighted mean of two: new / (new + old), and 1 if both are 0.

    >>> share(torch.tensor([3.0, 0.0, 0.0]), torch.tensor([1.0, 2.0, 0.0]))
    tensor([0.7500, 0.0000, 1.0000])
    """
    total = new + old
    return torch.where(total > 0, new / total, 1.0)


def competing(learner: Learner) -> dict[str, Tensor]:
    """Rows of the head that the current task trains: name -> bool [S or 1, C, 1...]; empty: all rows.

    The other rows are unchanged, so an average over tasks must not count them.
    """
    rows = learner.competing()
    if rows is None:
        return {}
    return {k: rows.view(*rows.shape, *[1] * (learner.params[k].dim() - 2)) for k in learner.model.head}


def _ends(path: Tensor, alphas: Sequence[float]) -> tuple[Tensor, Tensor]:
    if len(alphas) != path.shape[1] or alphas[0] != 0 or alphas[-1] != 1:
        raise ValueError(f"alphas={tuple(alphas)}: expected {path.shape[1]} values from 0 to 1, one per point")
    return path[:, :1], path[:, -1:]


def entezari(path: Tensor, alphas: Sequence[float]) -> Tensor:
    """max over alpha of L(alpha) - [(1 - alpha) L(0) + alpha L(1)]: [S], at least 0 (Entezari et al. 2022).

    Measures only non-convexity: 0 on every convex loss, even if the ends differ.

    >>> path = torch.tensor([[1.0, 3.0, 2.0], [0.0, 1.0, 4.0]])
    >>> entezari(path, (0, 0.5, 1)), frankle(path, (0, 0.5, 1)), excess(path, (0, 0.5, 1))
    (tensor([1.5000, 0.0000]), tensor([1.5000, 2.0000]), tensor([1., 0.]))
    """
    a, b = _ends(path, alphas)
    alpha = torch.tensor(alphas, dtype=path.dtype, device=path.device)
    return (path - ((1 - alpha) * a + alpha * b)).amax(1)


def frankle(path: Tensor, alphas: Sequence[float]) -> Tensor:
    """max over alpha of L(alpha) - [L(0) + L(1)] / 2: [S], at least 0 (linear instability, Frankle et al. 2020).

    Between unequal ends it is at least half their difference, even on a monotone slide, which has no barrier.
    """
    a, b = _ends(path, alphas)
    return path.amax(1) - ((a + b) / 2)[:, 0]


def excess(path: Tensor, alphas: Sequence[float]) -> Tensor:
    """max over alpha of L(alpha) - max(L(0), L(1)): [S], at least 0; a hill higher than both ends."""
    a, b = _ends(path, alphas)
    return path.amax(1) - a.maximum(b)[:, 0]


def lowest(path: Tensor, alphas: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Position of the lowest point, and its depth below the better end: alpha* [S], gain [S] at least 0; NaN with NaN.

    The gain is what averaging the two ends could give for free.

    >>> lowest(torch.tensor([[4.0, 0.5, 2.0], [1.0, 2.0, 3.0]]), (0, 0.5, 1))
    (tensor([0.5000, 0.0000]), tensor([1.5000, 0.0000]))
    """
    a, b = _ends(path, alphas)
    value, index = path.min(1)
    alpha = torch.tensor(alphas, dtype=path.dtype, device=path.device)[index]
    return alpha.masked_fill(value.isnan(), math.nan), a.minimum(b)[:, 0] - value


def area(path: Tensor, alphas: Sequence[float]) -> Tensor:
    """Integral over alpha of L(alpha) - min(L(0), L(1)), by trapezoids: [S]; negative in a valley.

    >>> area(torch.tensor([[1.0, 3.0, 2.0]]), (0, 0.5, 1))
    tensor([1.2500])
    """
    a, b = _ends(path, alphas)
    alpha = torch.tensor(alphas, dtype=path.dtype, device=path.device)
    return torch.trapezoid(path - a.minimum(b), alpha, dim=1)
