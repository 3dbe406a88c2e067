"""Curvature of a loss at a point, for all seeds at once: Hessian products, eigenvalues, trace, spectrum.

Everything here is a function of a `Loss`, so the rows, the mask and evaluation mode are decided in one place, where the
loss is built (`Learner.objective`). Seeds own disjoint parameters, so the Hessian of the sum of the seeds' losses is
block diagonal, one block per seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from harness import counting, tree
from harness.rng import bits, fold, keys
from harness.types import Loss, Params

Matvec = Callable[[Params], Params]  # v -> A v, each seed's own symmetric A


def value_and_grad(loss: Loss, params: Params) -> tuple[Tensor, Params]:
    """Loss of each seed [S] and its gradient; changes neither `params` nor their .grad."""
    counting.count("gradients")
    with torch.enable_grad():
        leaves = {k: v.detach().requires_grad_() for k, v in params.items()}
        value = loss(leaves)
        grads = torch.autograd.grad(value.sum(), list(leaves.values()), materialize_grads=True, allow_unused=True)
    return value.detach(), dict(zip(leaves, grads))


class Hessian:
    """v -> H v of each seed's loss at `params`, by double backward (Pearlmutter 1994).

    The graph of the gradient is built once and kept as long as the object: a product costs two to four gradients minus
    a forward pass, and the memory of one graph. `value` [S] and `gradient` are by-products.

    >>> h = Hessian(lambda p: (p["w"] ** 3).sum(1), {"w": torch.tensor([[1.0, 2.0]])})
    >>> h({"w": torch.ones(1, 2)})
    {'w': tensor([[ 6., 12.]])}
    """

    def __init__(self, loss: Loss, params: Params) -> None:
        counting.count("gradients")
        with torch.enable_grad():
            self.at = {k: v.detach().requires_grad_() for k, v in params.items()}
            value = loss(self.at)
            grads = torch.autograd.grad(
                value.sum(), list(self.at.values()), create_graph=True, materialize_grads=True, allow_unused=True
            )
        # backward(create_graph=True) would leave a cycle through .grad that is never freed
        self.value, self.gradient = value.detach(), dict(zip(self.at, grads))

    def __call__(self, v: Params) -> Params:
        counting.count("hessian_products")
        curved = [k for k, g in self.gradient.items() if g.requires_grad]  # the loss may be linear in the rest
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
    """A batched decomposition of x [S, ...] in which a non-finite row yields NaN and does not affect other rows.

    The only place that masks diverged seeds: LAPACK rejects the whole batch for one NaN.

    >>> rowwise(lambda a: (torch.linalg.svdvals(a),), torch.tensor([[[3.0]], [[torch.inf]]]))[0].tolist()
    [[3.0], [nan]]
    """
    sound = x.isfinite().flatten(1).all(1)  # [S]
    parts = decompose(torch.where(sound.view(-1, *[1] * (x.dim() - 1)), x, 0))
    return [torch.where(sound.view(-1, *[1] * (y.dim() - 1)), y, math.nan) for y in parts]


class Ritz(NamedTuple):
    """Approximate eigenpairs of each seed, largest (algebraically) first."""

    values: Tensor  # [S, m] float64
    residuals: Tensor  # [S, m] float64: ||A u - value u||; an eigenvalue is within this distance
    vectors: Tensor | None = None  # [S, P, m] unit vectors, in the order of `flatten`
    share: Tensor | None = None  # [S, m] of the start's squared length along each; sums to 1


class Krylov(NamedTuple):
    """A symmetric matrix on the space of some Lanczos steps: A basis' = basis' T + off_m q e_m', T tridiagonal."""

    basis: Tensor  # [S, m, P] orthonormal rows; the first is the start
    diagonal: Tensor  # [S, m] float64, of T
    off: Tensor  # [S, m] float64: off-diagonal of T; the last one leads out of the space


def _remove(w: Tensor, basis: Tensor, times: int = 2) -> Tensor:
    """w [S, P] minus its part in the rows of basis [S, j, P]; twice, as once loses orthogonality (Parlett 1980)."""
    row = w[:, None]  # a row takes a quarter of the time of a column (measured at P = 478,410)
    for _ in range(times):
        row = row - row @ basis.mT @ basis
    return row[:, 0]


def signs(key: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """Rademacher vectors [S, width], 64 entries per hash: a hash per entry would cost half a product."""
    packed = bits(key, -(-width // 64)).view(torch.uint8)  # [S, 8 * words]
    shifts = torch.arange(8, dtype=torch.uint8, device=key.device)
    return (packed[..., None] >> shifts & 1).flatten(1)[:, :width].to(dtype) * 2 - 1


def _norm(w: Tensor) -> Tensor:
    """Length of each seed's vector, summed in float64: [S, P] -> [S]."""
    length: Tensor = torch.linalg.vector_norm(w, dim=1, dtype=torch.float64)
    return length


def _unit(w: Tensor, length: Tensor) -> Tensor:
    return w / length.to(w)[:, None]


def krylov(matvec: Matvec, start: Params, steps: int) -> Krylov:
    """Lanczos with full re-orthogonalisation: `steps` products, or as many as there are parameters.

    The basis has the parameters' dtype; T and all its inner products are float64 (with float32 the eigenvalues of a net
    of 90,000 parameters were off by 1e-6, mostly because vectors were not of length 1). Every new vector is
    orthogonalised against the last two and then against all: in exact arithmetic the first suffices, so the second acts
    as a re-orthogonalisation at half the cost. If the Krylov space of a seed is exhausted (it contains a multiple
    eigenvalue once), that seed continues from a new vector, a fixed function of its `start`. A non-finite seed does not
    affect the others.
    """
    q = flatten(start)
    size, (seeds, width) = min(steps, q.shape[1]), q.shape
    exhausted = 100 * torch.finfo(q.dtype).eps  # relative to the largest entry so far
    basis = q.new_zeros(seeds, size, width)
    diagonal, off = (q.new_zeros(seeds, size, dtype=torch.float64) for _ in range(2))
    restart = keys([0] * seeds, "lanczos", q.device)
    scale = beta = q.new_zeros(seeds, dtype=torch.float64)
    q = _unit(q, _norm(q))
    for j in range(size):
        basis[:, j] = q
        w = flatten(matvec(unflatten(q, start)))
        diagonal[:, j] = alpha = (w * q).sum(1, dtype=torch.float64)
        w = w - alpha.to(w)[:, None] * q - beta.to(w)[:, None] * basis[:, j - 1]  # at j = 0 beta is 0
        w = _remove(w, basis[:, : j + 1], times=1)
        off[:, j] = beta = _norm(w)
        scale = scale.maximum(alpha.abs()).maximum(beta)
        if j + 1 == size:
            break
        stuck = beta <= exhausted * scale
        if stuck.any():
            fresh = flatten(start) * signs(fold(restart, j), width, q.dtype)
            w = torch.where(stuck[:, None], _remove(_unit(fresh, _norm(fresh)), basis[:, : j + 1]), w)
            off[:, j] = beta = beta.masked_fill(stuck, 0)
        q = _unit(w, _norm(w))
    return Krylov(basis, diagonal, off)


def _eigen(diagonal: Tensor, off: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues [S, m] of T, largest first, and its unit eigenvectors [S, m, m] as columns; NaN if it diverged."""
    side = torch.diag_embed(off[:, :-1], 1)
    values, s = rowwise(torch.linalg.eigh, torch.diag_embed(diagonal) + side + side.mT)
    return values.flip(1), s.flip(2)


def lanczos(matvec: Matvec, start: Params, steps: int, *, vectors: bool = False) -> Ritz:
    """Eigenpairs of each seed's matrix on the Krylov space of `start`; see `krylov` and `ritz`."""
    return ritz(krylov(matvec, start, steps), vectors=vectors)


def ritz(space: Krylov, *, vectors: bool = False) -> Ritz:
    """Eigenpairs on a space; those at both ends of the spectrum converge first.

    Residual of pair j: |beta_m s_mj|, without rounding errors of the products: in float32 the true residual does not
    fall below about 1e-6 of the largest eigenvalue.
    """
    values, s = _eigen(space.diagonal, space.off)
    pairs = Ritz(values, (space.off[:, -1:] * s[:, -1]).abs(), share=s[:, 0].square())
    return pairs._replace(vectors=space.basis.mT @ s.to(space.basis)) if vectors else pairs


def top_of(matvec: Matvec, like: Params, key: Tensor, *, k: int, steps: int, vectors: bool = False) -> Ritz:
    """The k largest eigenvalues of each seed's matrix from `steps` products: values [S, k] with residuals.

    Lower bounds, converged only where the residual is small. The start is a Rademacher vector drawn from `key` [S].
    ValueError if steps < k.
    """
    if steps < k:
        raise ValueError(f"steps={steps}: fewer than k={k} Lanczos steps cannot give {k} eigenvalues; raise steps")
    values, residuals, basis, _ = lanczos(matvec, random_signs(key, like), steps, vectors=vectors)
    return Ritz(values[:, :k], residuals[:, :k], None if basis is None else basis[:, :, :k])


def random_signs(key: Tensor, like: Params) -> Params:
    """A Rademacher vector shaped like the parameters, row s from `key[s]`; a normal one costs two products."""
    flat = flatten(like)
    return unflatten(signs(key, flat.shape[1], flat.dtype), like)


def scaled(matvec: Matvec, by: Params) -> Matvec:
    """v -> D A D v with D = diag(by): |w| for invariance to rescaled ReLU layers, P^-1/2 for a preconditioner."""
    return lambda v: tree.mul(by, matvec(tree.mul(by, v)))


class Moments(NamedTuple):
    """Unbiased estimates of tr A and tr A^2 with their standard errors, [S] float64 each."""

    trace: Tensor
    trace_error: Tensor
    square: Tensor
    square_error: Tensor


def moments(matvec: Matvec, space: Krylov, like: Params, key: Tensor, probes: int) -> Moments:
    """tr A and tr A^2, exact on a Krylov space, by `probes` Rademacher vectors outside it; one product each.

    With Q the orthonormal basis of the space and g_i = (I - QQ') z_i, z_i Rademacher,
        tr A   = tr T + mean_i g_i' A g_i                      (Hutchinson 1989, deflated as in Meyer et al. 2021)
        tr A^2 = |T|_F^2 + off_m^2 + mean_i |A g_i|^2          since A Q = Q T + off_m q e_m'
    both unbiased for every Q. The space of a Lanczos run is free if eigenvalues are computed anyway, and contains the
    top of the spectrum (Chen & Hallman 2023): 12 steps and 6 probes gave the trace of a Fashion-MNIST MLP to 2-5 %,
    Hutch++ alone with 24 products to 4 %. The standard error is that of the mean over the probes, with probes - 1
    degrees of freedom. ValueError for fewer than 2 probes, which give no standard error.
    """
    if probes < 2:
        raise ValueError(f"trace_probes={probes}: must be at least 2, for a standard error, or 0 to omit the trace")
    width = space.basis.shape[2]
    first, second = [], []
    for i in range(probes):
        g = _remove(signs(fold(key, i), width, space.basis.dtype), space.basis, times=1)
        product = flatten(matvec(unflatten(g, like)))
        first.append((g * product).sum(1))
        second.append(product.square().sum(1))
    within = space.diagonal.square().sum(1) + space.off.square().sum(1) + space.off[:, :-1].square().sum(1)
    r, r2 = torch.stack(first, 1).double(), torch.stack(second, 1).double()  # [S, probes]
    root = math.sqrt(probes)
    return Moments(space.diagonal.sum(1) + r.mean(1), r.std(1) / root, within + r2.mean(1), r2.std(1) / root)


class Quadrature(NamedTuple):
    """A spectrum as weighted points: tr f(A) / P is about the mean over V of sum_j weights f(nodes)."""

    nodes: Tensor  # [S, V, m] float64
    weights: Tensor  # [S, V, m] float64, sum to 1 over m
    size: int  # P, number of eigenvalues


def quadrature(matvec: Matvec, like: Params, key: Tensor, *, vectors: int, steps: int) -> Quadrature:
    """Stochastic Lanczos quadrature (Ubaru, Chen & Saad 2017): `vectors` Rademacher starts of `steps` products each.

    The nodes of a start are the eigenvalues of its T, the weights the squared first components of T's eigenvectors.
    Without re-orthogonalisation converged eigenvalues reappear, with the weight shared among their copies; integrals
    remain correct (Chen, Trogdon & Ubaru 2021), and memory does not grow with `steps`. ValueError for fewer than 2
    vectors, which give no standard error.
    """
    if vectors < 2 or steps < 1:
        raise ValueError(f"vectors={vectors}, steps={steps}: quadrature needs at least 2 vectors and 1 step")
    runs = []
    for i in range(vectors):
        values, s = _eigen(*_recurrence(matvec, random_signs(fold(key, i), like), steps))
        runs.append((values, s[:, 0].square()))
    nodes, weights = (torch.stack(part, 1) for part in zip(*runs))
    return Quadrature(nodes, weights, flatten(like).shape[1])


def _recurrence(matvec: Matvec, start: Params, steps: int) -> tuple[Tensor, Tensor]:
    """Lanczos by its three-term recurrence: diagonal and off [S, m] of T. After an early end, nodes have weight 0."""
    q = flatten(start)
    size = min(steps, q.shape[1])
    diagonal, off = (q.new_zeros(len(q), size, dtype=torch.float64) for _ in range(2))
    q, before = _unit(q, _norm(q)), torch.zeros_like(q)
    scale = beta = q.new_zeros(len(q), dtype=torch.float64)
    for j in range(size):
        w = flatten(matvec(unflatten(q, start))) - beta.to(q)[:, None] * before
        diagonal[:, j] = alpha = (w * q).sum(1, dtype=torch.float64)
        w = w - alpha.to(q)[:, None] * q
        beta = _norm(w)
        scale = scale.maximum(alpha.abs()).maximum(beta)
        over = beta <= 100 * torch.finfo(q.dtype).eps * scale
        off[:, j] = beta = beta.masked_fill(over, 0)
        before, q = q, torch.where(over[:, None], q, _unit(w, beta))
    return diagonal, off


def density(q: Quadrature, grid: Tensor, width: float) -> tuple[Tensor, Tensor]:
    """Spectral density at grid [K] x radius, for eigenvalues in units of the radius: [S, K], and the radius [S].

    Every node is a normal of standard deviation `width`; radius = largest |node|. The integral over the whole line is
    1. NaN for the zero matrix.

    >>> q = Quadrature(torch.tensor([[[4.0, 0.0]]]), torch.tensor([[[0.25, 0.75]]]), 8)
    >>> value, radius = density(q, torch.tensor([0.0, 0.5, 1.0]), 0.1)
    >>> (value * 0.1 * math.sqrt(2 * math.pi)).round(decimals=3).tolist(), radius.tolist()
    ([[0.75, 0.0, 0.25]], [4.0])
    """
    radius = q.nodes.abs().amax((1, 2))
    nodes, weights = (part.flatten(1)[:, :, None] for part in (q.nodes / radius[:, None, None], q.weights))
    bumps = (-((grid - nodes) / width).square() / 2).exp() / (width * math.sqrt(2 * math.pi))
    return (weights * bumps).sum(1) / q.nodes.shape[1], radius


def negative_mass(q: Quadrature) -> tuple[Tensor, Tensor]:
    """sum of |lambda| over the negative eigenvalues / sum of |lambda|, and its standard error: [S], [S].

    In [0, 1]; invariant to the scale of the loss (Alain, Le Roux & Manzagol 2019). A ratio of two means over the start
    vectors, with the standard error of its linearisation. NaN for the zero matrix. Few steps overstate it: small
    negative eigenvalues are the last to be separated from 0. No quadrature resolves their number.

    >>> q = Quadrature(torch.tensor([[[3.0, -1.0]] * 2]), torch.tensor([[[0.5, 0.5]] * 2]), 8)
    >>> negative_mass(q)
    (tensor([0.2500]), tensor([0.]))
    """
    part = (q.weights * (-q.nodes).clamp(min=0)).sum(2)  # [S, V]
    whole = (q.weights * q.nodes.abs()).sum(2)
    share = part.sum(1) / whole.sum(1)
    spread = (part - share[:, None] * whole).std(1) / whole.mean(1)
    return share, spread / math.sqrt(part.shape[1])


def curvature_rank(q: Quadrature, thresholds: Sequence[float]) -> Tensor:
    """Number of eigenvalues above threshold x lambda_1: [S, K].

    In [0, P]; an estimate, P times the weight above the threshold. NaN if lambda_1 <= 0.

    Without a standard error: the spread over the start vectors leaves out the bias of the quadrature, whose nodes near
    the threshold stand for many eigenvalues on both sides of it. More vectors do not reduce it, more steps do. Against
    dense float64 Hessians of trained nets with 244 and 1,210 parameters, 80 steps and 10 vectors were off by at most 4
    % at thresholds 0.1 and 0.01, within half of that spread; at 0.001 by 3 to 6 % either way, 1 to 2 times the spread.
    20 steps were off by +68 % there, 7 times the spread.

    >>> q = Quadrature(torch.tensor([[[3.0, 0.1, -1.0]] * 2]), torch.tensor([[[0.25, 0.5, 0.25]] * 2]), 8)
    >>> curvature_rank(q, [0.1, 0.01]).tolist()
    [[2.0, 6.0]]
    """
    top = q.nodes.amax((1, 2))
    top = top.masked_fill(top <= 0, math.nan)[:, None, None]
    counts = torch.stack([q.size * (q.weights * (q.nodes > c * top)).sum(2) for c in thresholds], 2)  # [S, V, K]
    return counts.masked_fill(top.isnan(), math.nan).mean(1)
