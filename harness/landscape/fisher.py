"""Diagonal Fisher information and sensitivity: means over samples of squared or absolute gradients, never of a mean.

With the gradients δ of the layer outputs and the layer inputs a, a linear layer needs only Σ_n (δ_n ⊗ a_n)² =
(δ²)ᵀ a², one matrix product per batch: 47 times faster than a loop over samples and labels. Absolute values likewise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from harness import counting, rows, tree
from harness.learner import Learner, mask_logits
from harness.rng import RandomStream, normal, uniform
from harness.toolbox.projection import outputs, vectors
from harness.types import Batch, Layer, Out, Params, Scale, Source

Pull = Callable[[Tensor], tuple[Tensor, ...]]
KINDS = ("exact", "sampled", "empirical", "weighted")
_CHUNK = 2**24  # numbers in memory at once for the per-sample gradients of a weight that positions share


def diagonal(
    learner: Learner,
    source: Source,
    kind: str,
    random: RandomStream,
    *,
    samples: int | None = None,
    size: int = 500,
) -> Params:
    """Diagonal of the Fisher information of each seed at its parameters, in evaluation mode.

    F_i = mean_x E_y (∂ log p(y|x) / ∂θ_i)² with p the softmax under the current task's mask, and y

    * exact: every label, weighted by p(y|x): the Fisher information
    * sampled: one label drawn from p(y|x): an unbiased estimate of it
    * empirical: the label of the data: not the Fisher information (Kunstner, Hennig & Balles 2019)
    * weighted: that label, weighted by p(y|x): the term of the exact sum that Buzzega et al. (2020) keep in their code;
      it vanishes as (1 - p)² where a row is fitted, the exact sum as 1 - p

    For mean squared error over C outputs p is the Gaussian whose negative log-likelihood is that loss, up to a
    constant: variance C / 2. The mean is over the source's rows, or over `samples` of them drawn without replacement.
    The model's layers and scales have a closed form; all other parameters (norms of a convolutional net, those added by
    a strategy) use vmap. Assumes that a layer's weight is used only by that layer. Returns one tensor per parameter,
    shaped like it. Raises ValueError for an unknown kind.
    """
    if kind not in KINDS:
        raise ValueError(f"fisher={kind}: choose one of {', '.join(KINDS)}")
    return diagonal_on(learner, batches(learner, source, samples, random, size), kind, random)


def diagonal_on(learner: Learner, weighted: Iterable[Batch], kind: str, random: RandomStream) -> Params:
    """`diagonal` over given batches, under their own masks and weights, which sum to 1."""
    total = tree.zeros(learner.params)
    for batch in weighted:
        back = backward(learner, batch)
        vectors = list(cotangents(kind, learner.stream.loss, back.out.logits.detach(), batch, random))
        _accumulate(learner, batch, back, vectors, torch.square, total)
    return total


def sensitivity(
    learner: Learner, source: Source, random: RandomStream, *, samples: int | None = None, size: int = 500
) -> Params:
    """Mean over rows of |∂ ‖z‖² / ∂θ| for each seed, in evaluation mode; z are the competing logits of the row.

    Rows, closed forms and shapes as in `diagonal`.
    """
    total = tree.zeros(learner.params)
    for batch in batches(learner, source, samples, random, size):
        back = backward(learner, batch)
        z = back.out.logits.detach()
        vector = 2 * batch.w[..., None] * (z if batch.mask is None else z.masked_fill(~batch.mask, 0))
        _accumulate(learner, batch, back, [vector], torch.abs, total)
    return total


def batches(learner: Learner, source: Source, samples: int | None, random: RandomStream, size: int) -> Iterator[Batch]:
    """Batches with weights that make sums over all batches means; weight 0 is padding."""
    if samples is None:
        yield from learner.scan(source, size)
        return
    count = source.size.clamp(max=samples)
    position = rows.order(random.key(), source.size, 0, samples)  # one pass without replacement, then padding
    for start in range(0, samples, size):
        part = position[:, start : start + size]
        inside = torch.arange(start, start + part.shape[1], device=part.device) < count[:, None]
        yield learner.make_batch(*source.take(part), inside.to(learner.dtype) / count[:, None])


class Backward(NamedTuple):
    """A forward pass in evaluation mode, and the way back from cotangents of its logits."""

    out: Out
    layers: list[Layer]
    scales: list[Scale]
    pull: Pull  # of a cotangent: those of the outputs of the layers, then of the scales

    def rest(self, params: Params) -> Params:
        """The parameters of no layer and no scale."""
        closed = {name for m in self.layers for name in (m.weight, m.bias)}
        closed |= {name for m in self.scales for name in (m.gain, m.shift)}
        return {k: v for k, v in params.items() if k not in closed}

    def add_scales(self, total: Params, deltas: Sequence[Tensor], power: Callable[[Tensor], Tensor]) -> None:
        """Add Σ_b power(a row's gradient) of each scale, of the cotangents of their outputs."""
        for m, delta in zip(self.scales, deltas, strict=True):
            given = [(m.gain, delta * self.out.inputs[m.input].detach())] if m.gain else []
            for name, of_row in (*given, *([(m.shift, delta)] if m.shift else [])):
                shared = of_row.dim() > 1 + total[name].dim()  # one vector for all positions
                total[name] += power(of_row.sum(2) if shared else of_row).sum(1)


def backward(learner: Learner, batch: Batch) -> Backward:
    """A forward pass of these rows, ready for cotangents."""
    params = {k: v.detach().requires_grad_() for k, v in learner.params.items()}
    with torch.enable_grad():
        out = learner.apply(params, learner.buffers, batch.x, batch.t, record=True)
    layers = [m for m in learner.model.layers if m.preact in out.preacts]
    scales = [m for m in getattr(learner.model, "scales", ()) if m.preact in out.preacts]
    preacts = [out.preacts[m.preact] for m in (*layers, *scales)]
    # rows do not mix in evaluation mode, so the gradient of each row's output is its own
    # a user's own module may declare no layers
    pull = (lambda v: torch.autograd.grad(out.logits, preacts, v, retain_graph=True)) if preacts else (lambda v: ())
    return Backward(out, layers, scales, pull)


def _accumulate(
    learner: Learner,
    batch: Batch,
    back: Backward,
    vectors: list[Tensor],
    power: Callable[[Tensor], Tensor],
    total: Params,
) -> None:
    """Add Σ_v Σ_b power((∂z_b / ∂θ)ᵀ v_b); a power of a product is the product of the powers."""
    out, layers = back.out, back.layers
    rest = back.rest(learner.params)
    sums: list[Tensor | None] = [None for _ in layers]  # Σ power(δ) of linear layers over the vectors: [S, B, O]
    for v in vectors:
        counting.count("gradients")
        deltas = back.pull(v)
        for i, (layer, delta) in enumerate(zip(layers, deltas)):
            if delta.dim() == 3:
                sums[i] = _added(sums[i], delta, power)
            else:
                _add_shared(total, layer, out.inputs[layer.input].detach(), delta, power)
        back.add_scales(total, deltas[len(layers) :], power)
    for layer, q in zip(layers, sums):
        if q is not None:
            total[layer.weight].baddbmm_(q.mT, power(out.inputs[layer.input].detach()))
            if layer.bias:
                total[layer.bias] += q.sum(1)
    if rest and vectors:
        add_rest(learner, total, rest, batch, vectors, power)


def _added(q: Tensor | None, delta: Tensor, power: Callable[[Tensor], Tensor]) -> Tensor:
    """q + power(δ), in place: a square in one pass."""
    if q is None:
        return power(delta)
    return q.addcmul_(delta, delta) if power is torch.square else q.add_(power(delta))


def _add_shared(total: Params, layer: Layer, a: Tensor, delta: Tensor, power: Callable[[Tensor], Tensor]) -> None:
    """Positions share the weight: their sum is inside the power. a and delta as a `Layer` records them."""
    weight = total[layer.weight]
    delta = outputs(layer, delta)  # [S, B, L, O]
    numbers = len(a) * (weight[0].numel() + delta.shape[2] * weight[0, 0].numel())  # gradient and inputs of one row
    step = max(1, _CHUNK // numbers)
    for rows_a, rows_d in zip(a.split(step, 1), delta.split(step, 1)):
        grads = rows_d.mT @ vectors(layer, rows_a, weight)
        weight += power(grads.view(len(a), -1, *weight.shape[1:])).sum(1)
    if layer.bias:
        total[layer.bias] += power(delta.sum(2)).sum(1)


def add_rest(
    learner: Learner,
    total: Params,
    rest: Params,
    batch: Batch,
    vectors: list[Tensor],
    power: Callable[[Tensor], Tensor] = torch.square,
) -> None:
    """Add Σ_v Σ_b power((∂z_b / ∂θ)ᵀ v_b) of any parameters; costs a gradient per row and vector."""
    fixed = {k: w for k, w in learner.params.items() if k not in rest}

    def powers(x: Tensor, t: Tensor, vectors: Tensor) -> Params:
        def logits(some: Params) -> Tensor:
            return learner.apply({**fixed, **some}, learner.buffers, x[:, None], t[:, None]).logits[:, 0]

        pull = torch.func.vjp(logits, rest)[1]
        found = tree.zeros(rest)
        for v in vectors:
            found = {k: found[k] + power(g) for k, g in pull(v)[0].items()}
        return found

    chunk = max(1, min(64, _CHUNK // sum(w.numel() for w in rest.values())))
    each = torch.func.vmap(powers, in_dims=(1, 1, 2), chunk_size=chunk)
    for name, found in each(batch.x, batch.t, torch.stack(vectors)).items():
        total[name] += found.sum(0)


def cotangents(kind: str, loss: str, logits: Tensor, batch: Batch, random: RandomStream) -> Iterator[Tensor]:
    """Vectors v [S, B, C] at the logits z with F = Σ_v Σ_b ((∂z_b / ∂θ)ᵀ v_b)²: √(weight) ∂ log p / ∂z.

    exact: one for each label y, √p_y (1_y - p), would do, but the columns of the Cholesky factor of their sum
    Σ_v v vᵀ = diag p - p pᵀ are one fewer (Tanabe & Sagae 1992): each label c against those after it,
    √(p_c r_c+1 / r_c) (1_c - p_>c / r_c+1) with r_c = Σ_{y>=c} p_y. If two labels compete, one backward pass does.
    """
    B, C = logits.shape[1:]
    root = batch.w.sqrt()[..., None]
    if loss == "mse":
        if kind == "weighted":
            raise ValueError("fisher=weighted: needs classes, not regression targets; use empirical")
        if kind == "exact":
            for c in range(C):
                unit = torch.zeros_like(logits)
                unit[..., c] = 1
                yield root * math.sqrt(2 / C) * unit
        elif kind == "sampled":
            yield root * math.sqrt(2 / C) * normal(random.key(), B, C, dtype=logits.dtype)
        else:
            yield root * (2 / C) * (batch.y - logits)
        return
    p = mask_logits(logits, batch.mask).softmax(-1)
    if kind == "exact":
        # labels that compete in no row have probability 0: multi-head nets need the passes of one head only
        labels = range(C) if batch.mask is None else batch.mask.flatten(0, 1).any(0).nonzero().flatten().tolist()
        tail = p.flip(-1).cumsum(-1).flip(-1).clamp_min(torch.finfo(p.dtype).tiny)  # probability of c and all after it
        for c in labels[:-1]:
            after = tail[..., c + 1, None]
            versus = torch.zeros_like(p)
            versus[..., c] = 1
            versus[..., c + 1 :] = -p[..., c + 1 :] / after
            yield root * (p[..., c, None] * after / tail[..., c, None]).sqrt() * versus
        return
    if kind == "sampled":
        cdf = p.cumsum(-1)
        y = (cdf <= uniform(random.key(), B, 1, dtype=p.dtype) * cdf[..., -1:]).sum(-1).clamp(max=C - 1)
    else:
        y = batch.y
    if kind == "weighted":
        root = root * p.gather(-1, y[..., None]).sqrt()
    yield root * (one_hot(y, C) - p)
