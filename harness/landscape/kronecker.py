"""Kronecker-factored Fisher information: a pair of small matrices per layer instead of its dense block.

Martens & Grosse (2015), Optimizing neural networks with Kronecker-factored approximate curvature, ICML; for
convolutions Grosse & Martens (2016), A Kronecker-factored approximate Fisher matrix for convolution layers, ICML.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from harness.landscape import fisher
from harness.learner import Learner
from harness.rng import RandomStream
from harness.toolbox.projection import outputs, vectors
from harness.types import Layer, Params, Source

Pair = tuple[Tensor, Tensor]  # A [S, i, i] of the inputs, G [S, o, o] of the outputs' gradients
_CHUNK = 2**24  # numbers in memory at once for the patches of a convolution


def matrix(params: Params, layer: Layer) -> Tensor:
    """Weight and bias as one matrix: [S, o, i]; with a bias, i includes the homogeneous coordinate."""
    weight = params[layer.weight].flatten(2)
    return torch.cat([weight, params[layer.bias][..., None]], 2) if layer.bias else weight


def zeros(learner: Learner) -> dict[str, Pair]:
    """A pair for each layer of the model, by the name of its weight."""
    found = {}
    for layer in learner.model.layers:
        like = matrix(learner.params, layer)
        o, i = like.shape[1:]
        found[layer.weight] = (like.new_zeros(len(like), i, i), like.new_zeros(len(like), o, o))
    return found


def factors(
    learner: Learner, source: Source, kind: str, random: RandomStream, *, samples: int | None = None, size: int = 500
) -> tuple[dict[str, Pair], Params]:
    """Fisher information of each layer as A ⊗ G, and its diagonal for all other parameters (norms).

        linear   A = mean_x a aᵀ            G = mean_x E_y δ δᵀ                  a = [input, 1], δ = ∂ log p / ∂ output
        shared   A = mean_x Σ_l a_l a_lᵀ    G = mean_x E_y (1/L) Σ_l δ_l δ_lᵀ    over the L positions

    A convolution, whose a_l is a patch, and a map of every position of a sequence share their weight. Exact for a
    linear layer if a and δ are independent, and so for one sample; a shared one also assumes uncorrelated positions.
    Rows, evaluation mode and `kind` as in `harness.landscape.fisher.diagonal`.
    """
    if kind not in fisher.KINDS:
        raise ValueError(f"fisher={kind}: choose one of {', '.join(fisher.KINDS)}")
    pairs = zeros(learner)
    of_layers = {name for layer in learner.model.layers for name in (layer.weight, layer.bias)}
    diagonal = {k: torch.zeros_like(v) for k, v in learner.params.items() if k not in of_layers}
    for batch in fisher.batches(learner, source, samples, random, size):
        back = fisher.backward(learner, batch)
        out, layers, rest = back.out, back.layers, back.rest(learner.params)
        root = batch.w.sqrt()
        for layer in layers:
            add_inputs(pairs[layer.weight][0], layer, out.inputs[layer.input].detach(), root, learner.params)
        vectors = list(fisher.cotangents(kind, learner.stream.loss, out.logits.detach(), batch, random))
        for v in vectors:
            deltas = back.pull(v)
            for layer, delta in zip(layers, deltas):
                flat = outputs(layer, delta).flatten(1, 2)  # [S, B L, o]
                pairs[layer.weight][1].add_(flat.mT @ flat, alpha=delta.shape[1] / flat.shape[1])
            back.add_scales(diagonal, deltas[len(layers) :], torch.square)
        if rest and vectors:
            fisher.add_rest(learner, diagonal, rest, batch, vectors)
    return pairs, diagonal


def add_inputs(total: Tensor, layer: Layer, x: Tensor, root: Tensor, params: Params) -> None:
    """Add Σ_b w_b Σ_l a a^T. x as a `Layer` records its input; root: √w [S, B]."""
    kernel = params[layer.weight].shape[3:]
    step = x.shape[1] if x.dim() == 3 else max(1, _CHUNK // (x[:, 0].numel() * kernel.numel()))
    for part, scale in zip(x.split(step, 1), root.split(step, 1)):
        a = vectors(layer, part, params[layer.weight], bias=True) * scale[..., None, None]
        flat = a.flatten(1, 2)
        total += flat.mT @ flat


def add(p: Pair, q: Pair) -> Pair:
    """The Kronecker product nearest to A_p ⊗ G_p + A_q ⊗ G_q in Frobenius norm (Van Loan & Pitsianis 1993).

    Rearranged, the sum is the matrix vec A_p (vec G_p)ᵀ + vec A_q (vec G_q)ᵀ, whose best approximation of rank one
    follows from a 2x2 eigenproblem. Both factors are non-negative combinations, and so positive semidefinite.

    >>> A, G = torch.eye(2)[None], torch.tensor([[[3.0]]])
    >>> a, g = add((A, G), (A, 2 * G))
    >>> torch.kron(a[0], g[0])
    tensor([[9., 0.],
            [0., 9.]])
    """
    inner = [torch.stack([torch.stack([(u * v).sum((1, 2)) for v in pair], 1) for u in pair], 1) for pair in zip(p, q)]
    a, g = inner  # Gram matrices [S, 2, 2]
    m = g @ a
    half = (m[:, 0, 0] - m[:, 1, 1]) / 2
    root = (half.square() + m[:, 0, 1] * m[:, 1, 0]).sqrt()
    # the sum of two multiples of the dominant eigenvector, at least one of which survives rounding
    c = torch.stack([m[:, 0, 1] + root + half, m[:, 1, 0] + root - half], 1)
    c = torch.where(c.sum(1, keepdim=True) > 0, c, 1)  # a double eigenvalue: any vector works
    c = c / c.sum(1, keepdim=True)
    d = (a @ c[..., None])[..., 0]
    norm = (c * d).sum(1)
    d = d / torch.where(norm > 0, norm, 1)[:, None]
    left, right = ([w[:, i, None, None] for i in range(2)] for w in (c, d))
    return left[0] * p[0] + left[1] * q[0], right[0] * p[1] + right[1] * q[1]


def quadratic_form(shift: Tensor, pair: Pair) -> Tensor:
    """vec(D)ᵀ (A ⊗ G) vec(D) = tr(G D A Dᵀ) of each seed [S], for D [S, o, i]; differentiable (once) in D."""
    value: Tensor = _Form.apply(shift, *pair)
    return value


class _Form(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, shift: Tensor, A: Tensor, G: Tensor) -> Tensor:
        pull = G @ shift @ A
        ctx.save_for_backward(pull)
        return (pull * shift).sum((1, 2))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        (pull,) = ctx.saved_tensors
        return 2 * g[:, None, None] * pull, None, None
