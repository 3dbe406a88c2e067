"""Curvature of a loss at a point, for all seeds at once: Hessian products, eigenvalues, trace, worst rise nearby.

Everything here is a function of a `Loss`, so that what is differentiated (which rows, which mask, eval mode) is
decided by whoever builds the loss, in one place (`Learner.objective`). Seeds own disjoint parameters, hence the
Hessian of the sum of the seeds' losses is block diagonal, one block a seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from harness import tree, work
from harness.random import bits, fold, keys, normal
from harness.types import Loss, Params

Matvec = Callable[[Params], Params]  # v -> A v, each seed's own symmetric A


def value_and_grad(loss: Loss, params: Params) -> tuple[Tensor, Params]:
    """Loss of each seed [S] and its gradient; touches neither `params` nor their .grad."""
    work.done("gradients")
    with torch.enable_grad():
        leaves = {k: v.detach().requires_grad_() for k, v in params.items()}
        value = loss(leaves)
        grads = torch.autograd.grad(value.sum(), list(leaves.values()), materialize_grads=True, allow_unused=True)
    return value.detach(), dict(zip(leaves, grads))


class Hessian:
    """v -> H v of each seed's loss at `params`, by double backward (Pearlmutter 1994).

    The graph of the gradient is built once and kept as long as the object: a product costs two to four
    gradients less a forward pass, in memory one graph. `value` [S] and `gradient` come with it.

    >>> h = Hessian(lambda p: (p["w"] ** 3).sum(1), {"w": torch.tensor([[1.0, 2.0]])})
    >>> h({"w": torch.ones(1, 2)})
    {'w': tensor([[ 6., 12.]])}
    """

    def __init__(self, loss: Loss, params: Params) -> None:
        work.done("gradients")
        with torch.enable_grad():
            self.at = {k: v.detach().requires_grad_() for k, v in params.items()}
            value = loss(self.at)
            grads = torch.autograd.grad(
                value.sum(), list(self.at.values()), create_graph=True, materialize_grads=True, allow_unused=True
            )
        # backward(create_graph=True) would leave a cycle through .grad that is never freed
        self.value, self.gradient = value.detach(), dict(zip(self.at, grads))

    def __call__(self, v: Params) -> Params:
        work.done("hessian_products")
        curved = [k for k, g in self.gradient.items() if g.requires_grad]  # the loss may be linear in the others
        if not curved:
            return tree.zeros(self.at)
        products = torch.autograd.grad(
            [self.gradient[k] for k in curved],
            list(self.at.values()),
            [v[k] for k in curved],
            retain_graph=True,
            materialize_grads=True,
            allow_unused=True,
        )
        return dict(zip(self.at, products))


def flatten(p: Params) -> Tensor:
    """Params -> [S, P]."""
    return torch.cat([v.reshape(len(v), -1) for v in p.values()], 1)


def unflatten(x: Tensor, like: Params) -> Params:
    """[S, P] -> Params of the shapes of `like`."""
    parts = x.split_with_sizes([math.prod(v.shape[1:]) for v in like.values()], 1)
    return {k: part.reshape(v.shape) for (k, v), part in zip(like.items(), parts)}


def rowwise(decompose: Callable[[Tensor], Sequence[Tensor]], x: Tensor) -> list[Tensor]:
    """A batched decomposition of x [S, ...] in which a non-finite row yields NaN and touches no other row.

    The one place where diverged seeds are masked: LAPACK refuses the whole batch for one NaN.

    >>> rowwise(lambda a: (torch.linalg.svdvals(a),), torch.tensor([[[3.0]], [[torch.inf]]]))[0].tolist()
    [[3.0], [nan]]
    """
    sound = x.isfinite().flatten(1).all(1)  # [S]
    parts = decompose(torch.where(sound.view(-1, *[1] * (x.dim() - 1)), x, 0))
    return [torch.where(sound.view(-1, *[1] * (y.dim() - 1)), y, math.nan) for y in parts]


class Ritz(NamedTuple):
    """Approximate eigenpairs of each seed, largest (algebraically) first."""

    values: Tensor  # [S, m] float64
    residuals: Tensor  # [S, m] float64: ||A u - value u||, so that an eigenvalue lies within it
    vectors: Tensor | None = None  # [S, P, m] unit vectors, in the order of `flatten`


def _remove(w: Tensor, basis: Tensor) -> Tensor:
    """w [S, P] less its part in the rows of basis [S, j, P]; twice, as once loses orthogonality (Parlett 1980)."""
    row = w[:, None]  # a row, not a column: measured at P = 478,410, a quarter of the time
    for _ in range(2):
        row = row - row @ basis.mT @ basis
    return row[:, 0]


def signs(key: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """Rademacher vectors [S, width], 64 from each hash: a hash per entry costs as much as half a product."""
    packed = bits(key, -(-width // 64)).view(torch.uint8)  # [S, 8 * words]
    shifts = torch.arange(8, dtype=torch.uint8, device=key.device)
    return (packed[..., None] >> shifts & 1).flatten(1)[:, :width].to(dtype) * 2 - 1


def lanczos(matvec: Matvec, start: Params, steps: int, *, vectors: bool = False) -> Ritz:
    """Lanczos with full double re-orthogonalisation: `steps` products, or as many as there are parameters.

    The basis has the parameters' dtype (re-orthogonalised, a float32 one gave the converged values of a digits MLP
    to 3e-7 of the float64 ones); the tridiagonal matrix is float64. Where the Krylov space of a seed is exhausted
    (a multiple eigenvalue shows once in it) that seed goes on from a new vector, a fixed function of its `start`.
    Residual of pair j: |beta_m s_mj|, without the rounding of the products: in float32 the true one does not fall
    below about 1e-6 of the largest eigenvalue. A non-finite seed gets NaN and leaves the others as they are alone.
    """
    q = flatten(start)
    size, (seeds, width) = min(steps, q.shape[1]), q.shape
    exhausted = 100 * torch.finfo(q.dtype).eps  # relative to the largest entry so far
    basis = q.new_zeros(seeds, size, width)
    diagonal, off = (q.new_zeros(seeds, size, dtype=torch.float64) for _ in range(2))
    again, scale = keys([0] * seeds, "lanczos", q.device), q.new_zeros(seeds)
    q = q / q.norm(dim=1, keepdim=True)
    for j in range(size):
        basis[:, j] = q
        w = flatten(matvec(unflatten(q, start)))
        diagonal[:, j] = alpha = (w * q).sum(1)
        w = _remove(w, basis[:, : j + 1])
        off[:, j] = beta = w.norm(dim=1)
        scale = scale.maximum(alpha.abs()).maximum(beta)
        if j + 1 == size:
            break
        stuck = beta <= exhausted * scale
        if stuck.any():
            fresh = flatten(start) * signs(fold(again, j), width, q.dtype)
            fresh = fresh / fresh.norm(dim=1, keepdim=True)
            w = torch.where(stuck[:, None], _remove(fresh, basis[:, : j + 1]), w)
            off[:, j] = beta.masked_fill(stuck, 0)
        q = w / w.norm(dim=1, keepdim=True)
    side = torch.diag_embed(off[:, :-1], 1)
    values, s = rowwise(torch.linalg.eigh, torch.diag_embed(diagonal) + side + side.mT)
    values, s = values.flip(1), s.flip(2)
    ritz = Ritz(values, (off[:, -1:] * s[:, -1]).abs())
    return ritz._replace(vectors=basis.mT @ s.to(basis)) if vectors else ritz


def top_eigenvalues(
    loss: Loss, params: Params, key: Tensor, *, k: int = 5, steps: int = 20, vectors: bool = False
) -> Ritz:
    """The k largest eigenvalues of each seed's Hessian from `steps` products: values [S, k] with residuals.

    A lower bound that only counts as converged where the residual is small. ValueError if steps < k.
    """
    return top_of(Hessian(loss, params), params, key, k=k, steps=steps, vectors=vectors)


def top_of(matvec: Matvec, like: Params, key: Tensor, *, k: int, steps: int, vectors: bool = False) -> Ritz:
    """`top_eigenvalues` of any symmetric product; the start is normal, drawn from `key` [S]."""
    if steps < k:
        raise ValueError(f"steps={steps}: fewer than k={k} Lanczos steps cannot give {k} eigenvalues; raise steps")
    flat = flatten(like)
    start = unflatten(normal(key, flat.shape[1], dtype=flat.dtype), like)
    values, residuals, basis = lanczos(matvec, start, steps, vectors=vectors)
    return Ritz(values[:, :k], residuals[:, :k], None if basis is None else basis[:, :, :k])


def trace(loss: Loss, params: Params, key: Tensor, *, probes: int = 30) -> tuple[Tensor, Tensor]:
    """Trace of each seed's Hessian and its standard error: [S], [S]; see `hutchpp`."""
    return hutchpp(Hessian(loss, params), params, key, probes)


def hutchpp(matvec: Matvec, like: Params, key: Tensor, probes: int) -> tuple[Tensor, Tensor]:
    """Hutch++ (Meyer, Musco, Musco & Woodruff 2021): trace [S] and standard error [S] from `probes` products.

    With n = probes / 3 Rademacher vectors each: Q = orthonormal basis of A G,
        trace = tr(Q' A Q) + mean_i r_i,    r_i = g_i' (I - QQ') A (I - QQ') g_i
    unbiased for every Q. Only the mean over r_i is random once Q is given, so
        stderr = sqrt(sum_i (r_i - mean r)^2 / (n - 1) / n),
    on n - 1 degrees of freedom. ValueError unless probes is a multiple of 3 and at least 6.
    """
    if probes < 6 or probes % 3:
        raise ValueError(f"probes={probes}: Hutch++ needs a multiple of 3 that is at least 6")
    n, flat = probes // 3, flatten(like)

    def product(v: Tensor) -> Tensor:  # [S, P] -> [S, P]
        return flatten(matvec(unflatten(v, like)))

    def draw(purpose: str, i: int) -> Tensor:  # [S, P]
        return signs(fold(fold(key, purpose), i), flat.shape[1], flat.dtype)

    basis = flat.new_zeros(len(flat), n, flat.shape[1])  # Q', row by row: a batched QR costs several products
    low = []
    for i in range(n):
        w = product(draw("sketch", i))
        fresh = _remove(w, basis[:, :i])
        length = fresh.norm(dim=1, keepdim=True)
        # what is left of a sketch that the others span is rounding, hence no direction; NaN stays NaN
        spanned = length <= 100 * torch.finfo(flat.dtype).eps * w.norm(dim=1, keepdim=True)
        basis[:, i] = q = torch.where(spanned, 0, fresh / length)
        low.append((q * product(q)).sum(1))
    rest = [_remove(draw("residual", i), basis) for i in range(n)]
    r = torch.stack([(g * product(g)).sum(1) for g in rest], 1)  # [S, n]
    return torch.stack(low, 1).sum(1) + r.mean(1), r.std(1) / math.sqrt(n)


class Rise(NamedTuple):
    """How much the loss rises within a ball around the point."""

    one_step: Tensor  # [S] at the end of the gradient step of length rho; may be negative
    worst: Tensor  # [S] largest value found by the ascent; never negative


def worst_rise(loss: Loss, params: Params, rho: float, steps: int, *, adaptive: bool = False) -> Rise:
    """max of L(w + e) - L(w) over ||e / T|| <= rho, by projected gradient ascent: `steps` + 1 gradients.

    T = 1 (Foret et al. 2021) or, with `adaptive`, T = |w| for every parameter (Kwon et al. 2021 with eta = 0
    and biases included, so that rescaling a ReLU unit changes nothing; a weight of exactly 0 does not move).
    With u = e / T the step is u <- project(u + step T g / ||T g||), from the best point so far; step = 2 rho,
    halved for a seed whenever it found nothing better. The first step is SAM's own, e = rho T^2 g / ||T g||.
    A lower bound of the maximum; at a stationary point the ascent has no direction and both values are 0.
    """
    if rho <= 0 or steps < 1:
        raise ValueError(f"rho={rho}, steps={steps}: the worst rise needs rho > 0 and at least 1 step")
    size = {k: v.detach().abs() for k, v in params.items()}

    def stretch(v: Params) -> Params:
        return tree.mul(size, v) if adaptive else v

    u = tree.zeros(params)
    base, grads = value_and_grad(loss, params)
    tiny = torch.finfo(base.dtype).tiny
    best, one_step, step = base, base, torch.full_like(base, 2 * rho)
    for i in range(steps):
        uphill = stretch(grads)
        tried = tree.add(u, uphill, step / tree.norm(uphill).clamp(min=tiny))
        tried = tree.scale(tried, (rho / tree.norm(tried).clamp(min=tiny)).clamp(max=1))
        value, there = value_and_grad(loss, tree.add(params, stretch(tried)))
        one_step = value if i == 0 else one_step
        up = value.isfinite() & (value > best)
        best, step = torch.where(up, value, best), torch.where(up, step, step / 2)
        u, grads = _choose(up, tried, u), _choose(up, there, grads)
    return Rise(one_step - base, best - base)


def _choose(where: Tensor, a: Params, b: Params) -> Params:
    """Seed by seed, `a` where `where` [S] and `b` elsewhere."""
    if where.all():
        return a
    return {k: torch.where(where.view(-1, *[1] * (v.dim() - 1)), v, b[k]) for k, v in a.items()}
