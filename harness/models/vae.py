"""Variational autoencoder."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from harness import rng
from harness.models import layers
from harness.types import Buffers, Layer, Out, Params, Stream, Unit

LIKELIHOODS = ("bernoulli", "gaussian")


class VAE:
    """Fully connected variational autoencoder with a standard normal prior (Kingma & Welling 2014).

        q(z|x) = N(mean(x), diag exp(logvar(x))),   p(z) = N(0, I),   p(x|z) by decode(z)
        elbo(x) = log p(x|z) + log p(z) - log q(z|x) at one z ~ q(z|x), the last two by their expectation, -KL(q || p)

    Encoder and decoder have hidden layers of `widths` ReLU units, reversed in the decoder; () makes both linear.
    likelihood=bernoulli: independent pixels in 0..1 with mean sigmoid(decode(z)) (grey values count as
    frequencies, as usual); likelihood=gaussian: N(decode(z), I). All values are in nats, summed over pixels.
    Rows of parameters are independent: one per seed, or per seed and class.
    Raises ValueError for an option out of range.
    """

    units: tuple[Unit, ...] = ()
    layers: tuple[Layer, ...] = ()
    head: tuple[str, ...] = ()
    stochastic = False

    def __init__(
        self, shape: Sequence[int], latent: int, widths: Sequence[int] = (100, 100), likelihood: str = "bernoulli"
    ) -> None:
        if latent < 1:
            raise ValueError(f"latent={latent}: must be at least 1")
        if any(w < 1 for w in widths):
            raise ValueError(f"widths={list(widths)}: each must be at least 1")
        if likelihood not in LIKELIHOODS:
            raise ValueError(f"likelihood={likelihood}: choose one of {', '.join(LIKELIHOODS)}")
        self.shape, self.outputs, self.latent, self.likelihood = tuple(shape), math.prod(shape), latent, likelihood
        encoder, decoder = [self.outputs, *widths, 2 * latent], [latent, *reversed(widths), self.outputs]
        self.sizes = {
            f"{part}.fc{i + 1}": (out, fan_in)
            for part, chain in (("encoder", encoder), ("decoder", decoder))
            for i, (fan_in, out) in enumerate(itertools.pairwise(chain))
        }

    def init(self, key: Tensor) -> tuple[Params, Buffers]:
        """PyTorch's default initialisation, float32."""
        params: Params = {}
        for name, (out, fan_in) in self.sizes.items():
            params |= layers.draw_map(key, name, out, fan_in)
        return params, {}

    def _through(self, part: str, params: Params, h: Tensor) -> Tensor:
        names = [n for n in self.sizes if n.startswith(part)]
        for name in names:
            h = layers.linear(h, params[f"{name}.weight"], params[f"{name}.bias"])
            h = h if name == names[-1] else h.relu()
        return h

    def encode(self, params: Params, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(z|x): [S, B, latent] each."""
        flat = x.flatten(2).to(params["encoder.fc1.weight"].dtype)
        mean, logvar = self._through("encoder", params, flat).chunk(2, 2)
        return mean, logvar

    def decode(self, params: Params, z: Tensor) -> Tensor:
        """z [S, B, latent] -> logits (bernoulli) or means (gaussian) of the pixels: [S, B, pixels]."""
        return self._through("decoder", params, z)

    def pixels(self, decoded: Tensor) -> Tensor:
        """Means of the pixels, given what `decode` returns."""
        return decoded.sigmoid() if self.likelihood == "bernoulli" else decoded

    def log_pixels(self, decoded: Tensor, x: Tensor, gaussian: bool = False) -> Tensor:
        """log p(x|z) of each row [S, B], z given by its `decode`; `gaussian`: under N(mean, I) in any case."""
        flat = x.flatten(2).to(decoded.dtype)
        if self.likelihood == "bernoulli" and not gaussian:
            return -F.binary_cross_entropy_with_logits(decoded, flat, reduction="none").sum(2)
        return -0.5 * ((self.pixels(decoded) - flat).square().sum(2) + self.outputs * math.log(2 * math.pi))

    def elbo(self, params: Params, x: Tensor, key: Tensor) -> Tensor:
        """Evidence lower bound of each row [S, B], from one draw of z per row."""
        mean, logvar = self.encode(params, x)
        z = mean + (logvar / 2).exp() * rng.normal(key, *mean.shape[1:], dtype=mean.dtype)
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(2)
        return self.log_pixels(self.decode(params, z), x) - kl

    def sample(self, params: Params, count: int, key: Tensor) -> Tensor:
        """Means of the pixels at draws of z from the prior: [S, count, *shape]."""
        dtype = params["decoder.fc1.weight"].dtype
        pixels = self.pixels(self.decode(params, rng.normal(key, count, self.latent, dtype=dtype)))
        return pixels.view(*pixels.shape[:2], *self.shape)

    def log_likelihood(self, params: Params, x: Tensor, noise: Tensor, gaussian: bool = False) -> Tensor:
        """log mean_i p(x|z_i) p(z_i) / q(z_i|x) of each row [S, B], z_i ~ q(z|x): importance sampling.

        `noise` [S, n, latent] are the n standard normal draws, the same for all rows: the estimate for a row
        does not depend on the others. Its expectation is a lower bound that becomes tight as n grows
        (Burda, Grosse & Salakhutdinov 2016).
        """
        mean, logvar = self.encode(params, x)
        total = torch.full_like(mean[..., 0], -math.inf)
        for e in noise.unbind(1):  # one at a time: n times the pixels of a batch would not fit in memory
            z = mean + (logvar / 2).exp() * e[:, None]
            # log p(z) - log q(z|x): the normalising constants cancel
            ratio = 0.5 * (logvar + e[:, None].square() - z.square()).sum(2)
            total = torch.logaddexp(total, self.log_pixels(self.decode(params, z), x, gaussian) + ratio)
        return total - math.log(noise.shape[1])

    def __call__(self, params: Params, buffers: Buffers, x: Tensor, t: Tensor, **_: Any) -> Out:
        """The reconstruction from the mean of q(z|x)."""
        return Out(self.decode(params, self.encode(params, x)[0]), {}, buffers)


def vae_for(stream: Stream, latent: int, widths: Sequence[int], likelihood: str) -> VAE:
    """A VAE of the stream's inputs. Raises ValueError if its pixels are not frequencies."""
    vae, train = VAE(stream.shape, latent, widths, likelihood), stream.tasks[0].train
    count = min(1000, int(train.size.min()))  # the first rows suffice
    x = train.take(torch.arange(count, device=train.size.device).expand(len(train.size), -1))[0]
    low, high = float(x.min()), float(x.max())
    if likelihood == "bernoulli" and not 0 <= low <= high <= 1:
        raise ValueError(
            f"likelihood=bernoulli: inputs range over {low:.2g} ... {high:.2g}, not 0 ... 1; "
            "use dataset.normalise=unit or likelihood=gaussian"
        )
    return vae
