"""Merges of task vectors, the differences τ_k = θ_k - θ_0 of nets from the base that they were trained from.

Parameters that a task never changed (another task's head) have τ = 0.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from harness import tree
from harness.landscape.curvature import flatten, rowwise, unflatten
from harness.merging.means import several
from harness.rng import fold, uniform
from harness.types import Params

SMALL = 1e-10  # singular values below this share of the largest count as 0


def task_vectors(base: Params, nets: Sequence[Params]) -> list[Params]:
    """τ_k = θ_k - θ_0 of every net. ValueError for fewer than two nets."""
    several([base, *nets])
    several(nets)
    return [tree.sub(net, base) for net in nets]


def task_arithmetic(base: Params, nets: Sequence[Params], *, alpha: float = 0.4) -> Params:
    """θ = θ_0 + alpha Σ_k τ_k.

    Ilharco et al. (2023), Editing models with task arithmetic, ICLR: alpha is chosen on validation rows from 0, 0.05
    ... 1; without these they advise 0.3 to 0.5. alpha = 1 / K is the plain mean. ValueError for alpha < 0 or fewer than
    two nets.

    >>> base, nets = {"w": torch.tensor([[1.0]])}, [{"w": torch.tensor([[2.0]])}, {"w": torch.tensor([[4.0]])}]
    >>> task_arithmetic(base, nets, alpha=0.5)
    {'w': tensor([[3.]])}
    """
    _scale("task_arithmetic", alpha=alpha)
    vectors = task_vectors(base, nets)
    return {k: v + alpha * torch.stack([tau[k] for tau in vectors]).sum(0) for k, v in base.items()}


def magmax(base: Params, nets: Sequence[Params], *, scale: float = 0.5) -> Params:
    """θ = θ_0 + scale τ with τ the entry of largest magnitude among the τ_k; the last of equal ones.

    Marczak, Twardowski, Trzciński & Cygert (2024), MagMax: leveraging model merging for seamless continual learning,
    ECCV, who fine-tune the nets one after the other. Their code chooses `scale` from 0.05, 0.1 ... 1. ValueError for
    scale < 0 or fewer than two nets.

    >>> nets = [{"w": torch.tensor([[-3.0, 1.0]])}, {"w": torch.tensor([[2.0, -1.0]])}]
    >>> magmax({"w": torch.tensor([[0.0, 0.0]])}, nets, scale=1)
    {'w': tensor([[-3., -1.]])}
    """
    _scale("magmax", scale=scale)
    first, *rest = task_vectors(base, nets)
    for tau in rest:
        first = larger(first, tau)
    return tree.add(base, first, scale)


def larger(a: Params, b: Params) -> Params:
    """The entry of larger magnitude, b's if they are equal.

    >>> larger({"w": torch.tensor([[1.0, -2.0, 3.0]])}, {"w": torch.tensor([[-1.0, 1.0, 4.0]])})
    {'w': tensor([[-1., -2.,  4.]])}
    """
    return {k: torch.where(b[k].abs() >= v.abs(), b[k], v) for k, v in a.items()}


def ties(base: Params, nets: Sequence[Params], *, density: float = 0.2, scale: float = 1.0) -> Params:
    """Trim, elect signs, merge: θ = θ_0 + scale τ.

        trim    keep the share `density` of the entries of each τ_k that are largest in magnitude, over the whole net
        elect   γ = sign Σ_k τ_k of the trimmed vectors, each entry for itself
        merge   τ = the mean of those trimmed entries that have the sign γ; 0 if there are none

    Yadav, Tam, Choshen, Raffel & Bansal (2023), TIES-merging: resolving interference when merging models, NeurIPS:
    density 0.2; scale 1, or chosen on validation rows. Where the sum is exactly 0 τ is 0; their code elects the sign
    that is more frequent in the whole net. ValueError for a density outside (0, 1], scale < 0, or fewer than two nets.

    >>> nets = [{"w": torch.tensor([[4.0, 2.0, 0.1]])}, {"w": torch.tensor([[2.0, -5.0, 0.1]])}]
    >>> ties({"w": torch.zeros(1, 3)}, nets, density=0.67, scale=1)  # two of three entries are kept
    {'w': tensor([[ 3., -5.,  0.]])}
    """
    _scale("ties", scale=scale)
    if not 0 < density <= 1:
        raise ValueError(f"ties: density={density}: must be in (0, 1]")
    stacked = torch.stack([_trimmed(flatten(tau), density) for tau in task_vectors(base, nets)])  # [K, S, P]
    agrees = stacked.sign() == stacked.sum(0).sign()
    mean = torch.where(agrees, stacked, 0).sum(0) / agrees.sum(0).clamp(min=1)
    return tree.add(base, unflatten(mean, base), scale)


def _trimmed(flat: Tensor, density: float) -> Tensor:
    """[S, P] with all but the round(density P) entries of largest magnitude set to 0; equal ones are kept."""
    keep = max(1, round(density * flat.shape[1]))
    least = flat.abs().kthvalue(flat.shape[1] - keep + 1, dim=1, keepdim=True).values
    return torch.where((flat.abs() >= least) | least.isnan(), flat, 0)


def dare(base: Params, nets: Sequence[Params], *, key: Tensor, rate: float = 0.5, alpha: float = 0.4) -> Params:
    """Drop and rescale, then add: θ = θ_0 + alpha Σ_k m_k τ_k / (1 - rate), m_k = 0 with probability `rate`, else 1.

    Yu, Yu, Yu, Huang & Li (2024), Language models are super Mario, ICML: each τ_k keeps its expectation. Their rates
    are 0.1 to 0.9 (and 0.99 for the largest nets), followed by task arithmetic or another merge. Row s of the masks is
    drawn from `key[s]`, a mask for each net and parameter. ValueError for a rate outside [0, 1), alpha < 0, or fewer
    than two nets.

    >>> from harness.rng import keys
    >>> nets = [{"w": torch.full((1, 6), 1.0)}, {"w": torch.full((1, 6), 10.0)}]
    >>> dare({"w": torch.zeros(1, 6)}, nets, key=keys([0], "merge"), rate=0.5, alpha=1)["w"] / 2
    tensor([[10.,  1., 10.,  0., 11.,  0.]])
    """
    _scale("dare", alpha=alpha)
    if not 0 <= rate < 1:
        raise ValueError(f"dare: rate={rate}: must be in [0, 1)")
    merged = dict(base)
    for i, tau in enumerate(task_vectors(base, nets)):
        for name, value in tau.items():
            drawn = uniform(fold(fold(key, i), name), *value.shape[1:], dtype=value.dtype)
            merged[name] = merged[name] + alpha / (1 - rate) * torch.where(drawn >= rate, value, 0)
    return merged


def opcm(base: Params, nets: Sequence[Params], names: Collection[str], *, share: float = 0.5) -> Params:
    """Orthogonal projection, one net after the other: θ = θ_0 + A_K · mean_k |τ_k| / |A_K|.

        A_1 = τ_1,   A_k = A_{k-1} + P(τ_k)       P removes from τ_k what A_{k-1} already uses (`apart`)

    Tang et al. (2025), Merging models on the fly without retraining: a sequential approach to scalable continual model
    merging, NeurIPS. The factor keeps the length of the merged vector at the mean length of the τ_k so far; their
    λ_k is its inverse, so λ_k times their merged vector is A_k. `names`: the matrices that are projected [S, o, i];
    all other parameters are added. It is meant for nets trained independently: in nets trained one after another the
    biases add up. `share` = 0.5 as theirs. ValueError for a share outside [0, 1], or fewer than two nets.

    >>> nets = [{"w": torch.tensor([[[4.0, 0.0], [0.0, 0.0]]])}, {"w": torch.tensor([[[9.0, 0.0], [3.0, 0.0]]])}]
    >>> found = opcm({"w": torch.zeros(1, 2, 2)}, nets, ["w"])["w"]
    >>> (found * 4 / found[0, 0, 0]).round()  # 9 has the place of 4, and is removed
    tensor([[[4., 0.],
             [3., 0.]]])
    """
    total, length = tree.zeros(base), torch.zeros(())
    for tau in task_vectors(base, nets):
        total, length = tree.add(total, apart(tau, total, names, share)), length + tree.norm(tau)
    return rescaled(base, total, length / len(nets))


def rescaled(base: Params, total: Params, length: Tensor) -> Params:
    """base + total, the latter with the length [S]; base where total is 0."""
    own = tree.norm(total)
    return tree.add(base, total, torch.where(own == 0, 0, length / own))


@torch.no_grad()
def apart(tau: Params, total: Params, names: Collection[str], share: float) -> Params:
    """The task vector without what lies along `total`, matrix by matrix of `names`; the rest is unchanged.

        total = U Σ Vᵀ,   M = Uᵀ τ V:   τ - Σ_ij u_i M_ij v_jᵀ   over all i = j with σ_i > 0, and over i, j <= r

    r: the largest number of singular values whose sum is at most `share` of their total. As the authors' code, whose
    bases of the null spaces are arbitrary: here directions with σ = 0 are not removed, so nothing is removed from the
    first vector. A non-finite seed is NaN. ValueError for a share outside [0, 1].

    >>> total = {"w": torch.tensor([[[3.0, 0.0], [0.0, 1.0]]])}
    >>> tau = {"w": torch.tensor([[[1.0, 2.0], [4.0, 8.0]]])}
    >>> apart(tau, total, ["w"], 0.5), apart(tau, total, ["w"], 1.0)
    ({'w': tensor([[[0., 2.],
             [4., 0.]]])}, {'w': tensor([[[0., 0.],
             [0., 0.]]])})
    """
    if not 0 <= share <= 1:
        raise ValueError(f"opcm: share={share}: must be in [0, 1]")
    found = dict(tau)
    for name in names:
        u, sigma, vh = rowwise(lambda a: torch.linalg.svd(a, full_matrices=False), total[name].double())
        used = sigma > SMALL * sigma[:, :1]
        top = (sigma.cumsum(1) <= (share + SMALL) * sigma.sum(1, keepdim=True)) & used  # [S, k]
        removed = (top[:, :, None] & top[:, None]) | torch.diag_embed(used)
        own = u.mT @ tau[name].double() @ vh.mT
        found[name] = (tau[name].double() - u @ torch.where(removed, own, 0) @ vh).to(tau[name])
    return found


def cosines(vectors: Sequence[Params]) -> Tensor:
    """Cosine of the angle between every two task vectors: [S, K, K]; NaN for a vector of length 0.

    >>> cosines([{"w": torch.tensor([[1.0, 0.0]])}, {"w": torch.tensor([[1.0, 1.0]])}])[0, 0].float()
    tensor([1.0000, 0.7071])
    """
    flat = torch.stack([flatten(tau) for tau in vectors], 1).double()  # [S, K, P]
    flat = flat / torch.linalg.vector_norm(flat, dim=2, keepdim=True)
    found: Tensor = flat @ flat.mT
    return found


def conflicts(a: Params, b: Params) -> Tensor:
    """Share, of the parameters that both vectors change, of those with opposite signs: [S]; NaN if there are none.

    >>> conflicts({"w": torch.tensor([[1.0, -1.0, 0.0]])}, {"w": torch.tensor([[2.0, 1.0, 1.0]])})
    tensor([0.5000])
    """
    product = flatten(a).sign() * flatten(b).sign()
    return (product < 0).sum(1) / (product != 0).sum(1)


def _scale(name: str, **given: float) -> None:
    for key, value in given.items():
        if not value >= 0:
            raise ValueError(f"{name}: {key}={value}: must be at least 0")
