"""Merges that are means of the nets: plain, Fisher-weighted, by regression, and after matching units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from harness.landscape.alignment import match_weights, permute
from harness.landscape.kronecker import add_inputs, matrix
from harness.toolbox.solve import solve
from harness.types import Batch, Layer, Net, Params, Unit

ROUNDS = 20  # upper limit of `matched`
RIDGE = 1e-9  # of `regmean`, as a share of the mean entry on the diagonal


def several(nets: Sequence[Params]) -> None:
    """ValueError for fewer than two nets, or nets with different parameters."""
    if len(nets) < 2:
        raise ValueError(f"merging: needs at least 2 nets, not {len(nets)}")
    first = {k: v.shape for k, v in nets[0].items()}
    for net in nets[1:]:
        if {k: v.shape for k, v in net.items()} != first:
            raise ValueError("merging: the nets have different parameters; merge nets of one model and number of seeds")


def average(nets: Sequence[Params]) -> Params:
    """The mean of the parameters: θ = Σ_k θ_k / K.

    Utans (1996), Weight averaging for neural networks and local resampling schemes, AAAI workshop; of finely tuned nets
    Wortsman et al. (2022), Model soups, ICML (their uniform soup). ValueError for fewer than two nets.

    >>> average([{"w": torch.tensor([[1.0, 4.0]])}, {"w": torch.tensor([[3.0, 0.0]])}])
    {'w': tensor([[2., 2.]])}
    """
    several(nets)
    return {k: torch.stack([net[k] for net in nets]).mean(0) for k in nets[0]}


def fisher(nets: Sequence[Params], information: Sequence[Params], *, floor: float = 1e-6) -> Params:
    """The mean weighted by diagonal Fisher information: θ = Σ_k F_k θ_k / Σ_k F_k, elementwise.

    Matena & Raffel (2022), Merging models with Fisher-weighted averaging, NeurIPS: the minimum of
    Σ_k (θ - θ_k)ᵀ diag(F_k) (θ - θ_k). `information`: F_k, shaped like the nets. F_k below `floor` counts as `floor`
    (1e-6 in their code), so a parameter that matters to no net becomes the plain mean. ValueError for fewer than two
    nets, or floor <= 0.

    >>> nets = [{"w": torch.tensor([[0.0, 0.0]])}, {"w": torch.tensor([[4.0, 4.0]])}]
    >>> fisher(nets, [{"w": torch.tensor([[3.0, 0.0]])}, {"w": torch.tensor([[1.0, 0.0]])}])
    {'w': tensor([[1., 2.]])}
    """
    several(nets)
    if len(information) != len(nets):
        raise ValueError(f"fisher: {len(information)} informations for {len(nets)} nets")
    if not floor > 0:
        raise ValueError(f"fisher: floor={floor}: must be above 0")
    merged = {}
    for k in nets[0]:
        weight = torch.stack([f[k] for f in information]).clamp(min=floor)
        merged[k] = (weight * torch.stack([net[k] for net in nets])).sum(0) / weight.sum(0)
    return merged


@torch.no_grad()
def grams(net: Net, layers: Sequence[Layer], batches: Sequence[Batch]) -> dict[str, Tensor]:
    """For each layer, by the name of its weight, the second moment of its input: A = Σ_b w_b a_b a_bᵀ [S, i, i].

    a is the layer's input with a last entry of 1 if the layer has a bias; of a convolution the patches, summed over
    positions. In evaluation mode; float64. The weights w of all batches together should sum to 1.
    """
    found: dict[str, Tensor] = {}
    for batch in batches:
        inputs = net(batch.x, batch.t, record=True).inputs
        for layer in layers:
            if layer.weight not in found:
                (S, _, i), name = matrix(net.params, layer).shape, layer.weight
                found[name] = batch.w.new_zeros(S, i, i, dtype=torch.float64)
            add_inputs(found[layer.weight], layer, inputs[layer.input].double(), batch.w.double().sqrt(), net.params)
    return found


def regmean(
    nets: Sequence[Params], moments: Sequence[Mapping[str, Tensor]], layers: Sequence[Layer], *, keep: float = 0.9
) -> Params:
    """Regression mean: each layer has the least mean squared distance of its outputs to those of the nets.

        W = argmin Σ_k E_k |W a - W_k a|²  =  (Σ_k W_k A_k) (Σ_k A_k)⁻¹,   A_k = E_k a aᵀ over net k's own inputs

    Jin, Ren, Preotiuc-Pietro & Cheng (2023), Dataless knowledge fusion by merging weights of language models, ICLR.
    `moments`: A_k of each net (see `grams`). Entries of A_k off the diagonal are multiplied by `keep`, in [0, 1]: at 1
    W is that minimum; 0.9 is the paper's for most models, 0.1 for one. A ridge of `RIDGE` towards the plain mean
    decides where Σ A_k is singular (a pixel that is always the same). Parameters outside layers (norms) get the plain
    mean. ValueError for fewer than two nets, or `keep` out of range. NaN for a seed whose moments are not finite.

    Differs from the paper: the bias is part of W, with an input of 1; theirs is averaged.

    >>> layer = Layer("w", None, "in", "out")
    >>> nets = [{"w": torch.tensor([[[1.0]]])}, {"w": torch.tensor([[[5.0]]])}]
    >>> regmean(nets, [{"w": torch.tensor([[[3.0]]])}, {"w": torch.tensor([[[1.0]]])}], [layer])
    {'w': tensor([[[2.]]])}
    """
    several(nets)
    if len(moments) != len(nets):
        raise ValueError(f"regmean: {len(moments)} moments for {len(nets)} nets")
    if not 0 <= keep <= 1:
        raise ValueError(f"regmean: keep={keep}: must be in [0, 1]")
    merged = average(nets)
    for layer in layers:
        mean, total, right = matrix(merged, layer).double(), torch.zeros(()), torch.zeros(())
        for net, of in zip(nets, moments):
            a = of[layer.weight].double()
            a = keep * a + (1 - keep) * torch.diag_embed(a.diagonal(dim1=1, dim2=2))
            total, right = total + a, right + (matrix(net, layer).double() - mean) @ a
        ridge = (RIDGE * total.diagonal(dim1=1, dim2=2).mean(1)).clamp(min=torch.finfo(total.dtype).tiny)
        total.diagonal(dim1=1, dim2=2).add_(ridge[:, None])
        w = (mean + solve(total, right.mT).mT).to(merged[layer.weight])
        if layer.bias:
            w, merged[layer.bias] = w[..., :-1], w[..., -1]
        merged[layer.weight] = w.reshape(merged[layer.weight].shape)
    return merged


def matched(nets: Sequence[Params], units: Sequence[Unit]) -> list[Params]:
    """The nets with their hidden units reordered to be near each other; their functions are unchanged.

    MergeMany of Ainsworth, Hayase & Srinivasa (2023), Git Re-Basin, ICLR: each net in turn is matched by weights to the
    mean of the others, until no unit moves. The first net is matched last in a round, and a local optimum is found.
    Here nets are visited in a fixed order, not a random one. ValueError for fewer than two nets, or without units.
    """
    several(nets)
    moved = [dict(net) for net in nets]
    for _ in range(ROUNDS):
        still = True
        for i in (*range(1, len(moved)), 0):
            others = [net for j, net in enumerate(moved) if j != i]
            mean = average(others) if len(others) > 1 else others[0]
            orders = match_weights(mean, moved[i], units)
            if any(bool((o != torch.arange(o.shape[1], device=o.device)).any()) for o in orders.values()):
                moved[i], still = permute(moved[i], units, orders), False
        if still:
            break
    return moved


def rebasin(nets: Sequence[Params], units: Sequence[Unit]) -> Params:
    """The mean of the nets after `matched` has reordered their units (Ainsworth, Hayase & Srinivasa 2023).

    >>> from harness.types import Slice
    >>> unit = Unit("h", 2, (Slice("w", 1),), (Slice("v", 2),))
    >>> a = {"w": torch.tensor([[[1.0], [5.0]]]), "v": torch.tensor([[[2.0, 3.0]]])}
    >>> b = {"w": torch.tensor([[[5.0], [1.0]]]), "v": torch.tensor([[[3.0, 2.0]]])}
    >>> rebasin([a, b], [unit])
    {'w': tensor([[[1.],
             [5.]]]), 'v': tensor([[[2., 3.]]])}
    """
    return average(matched(nets, units))
