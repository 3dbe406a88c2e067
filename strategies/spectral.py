"""Lewandowski, Bortkiewicz, Kumar, György, Schuurmans, Ostaszewski & Machado (2024), Learning continually by spectral
regularization, arXiv 2406.06811 (ICLR 2025).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.learner import Learner
from harness.rng import fold, normal
from harness.strategy import Strategy
from harness.toolbox import require
from harness.types import Batch, Out, Params

WARMUP = 20  # power iterations before the first step
TINY = 1e-12


class Spectral(Strategy):
    """Spectral regularisation: keep every layer's largest singular value near 1 (Lewandowski 2024).

        penalty = strength Σ_layers [ (σ_l^k - 1)² + |b_l|^(2k) ] + strength Σ_norms [ (gain^k - 1)² + shift^(2k) ]

    σ_l = uᵀ W v, the largest singular value of the layer's weights (a convolution's as a matrix of outputs by the
    rest), with u and v from one step of power iteration before each update, treated as constants: the gradient of σ
    is u vᵀ. Norm gains and shifts count individually.

    Stores two vectors per layer; costs two matrix-vector products per layer.

    Differences from the paper:
    * A layer whose weights are all 0 keeps its u and v (normalised zeros would stay zero, as would the gradient).
    * In a sharpness-aware step, u and v are those of the unperturbed weights.
    * Parameters outside layers and norms are not penalised.
    """

    family = "plasticity"
    grid = {"strength": (1e-5, 1e-4, 1e-3, 1e-2)}  # the paper's search

    def __init__(self, *, strength: float, k: int) -> None:
        require.at_least(0, strength=strength)
        require.at_least(1, k=k)
        self.strength, self.k = strength, k

    def setup(self, learner: Learner) -> None:
        layers, units = learner.model.layers, learner.model.units
        if not layers:
            raise ValueError(f"{self.name}: {type(learner.model).__name__} declares no layers; use model=mlp")
        self.weights = [layer.weight for layer in layers]
        self.biases = [layer.bias for layer in layers if layer.bias is not None]
        norms = {s.name for unit in units for s in unit.norm if s.name in learner.params}
        self.norms = {
            n: float(learner.params[n].mean().round()) for n in sorted(norms)
        }  # gains start at 1, shifts at 0
        key = self.random.key()
        self.u, self.v = {}, {}
        for n in self.weights:
            w = learner.params[n].flatten(2)
            self.u[n] = F.normalize(normal(fold(key, n), w.shape[1], dtype=w.dtype), dim=1)
            self.v[n] = F.normalize(normal(fold(key, f"{n}/v"), w.shape[2], dtype=w.dtype), dim=1)
        for _ in range(WARMUP):
            self.iterate(learner.params)

    @torch.no_grad()
    def iterate(self, params: Params) -> None:
        """One step of power iteration: v = Wᵀu / |Wᵀu|, u = W v / |W v|."""
        for n in self.weights:
            w = params[n].flatten(2)
            self.v[n] = direction(w.mT, self.u[n], self.v[n])
            self.u[n] = direction(w, self.v[n], self.u[n])

    def batch(self, learner: Learner, batch: Batch) -> Batch:
        self.iterate(learner.params)
        return batch

    def loss(self, learner: Learner, params: Params, batch: Batch, out: Out) -> Tensor:
        read = {n: (params[n].flatten(2) @ self.v[n][:, :, None])[:, :, 0] for n in self.weights}  # W v
        sigma = [torch.linalg.vecdot(self.u[n], read[n]) for n in self.weights]
        parts = [(s**self.k - 1).square() for s in sigma]
        parts += [params[n].square().sum(1) ** self.k for n in self.biases]
        parts += [(params[n] ** self.k - start).square().sum(1) for n, start in self.norms.items()]
        return self.strength * torch.stack(parts).sum(0)


def direction(w: Tensor, x: Tensor, old: Tensor) -> Tensor:
    """w x of each seed scaled to length 1; `old` if it is 0."""
    y = (w @ x[:, :, None])[:, :, 0]
    length = torch.linalg.vector_norm(y, dim=1, keepdim=True)
    return torch.where(length > TINY, y / length, old)
