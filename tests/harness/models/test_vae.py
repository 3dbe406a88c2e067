"""The autoencoder against torch.distributions and, where it is linear and Gaussian, closed forms."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, MultivariateNormal, Normal, kl_divergence

from harness import rng
from harness.models.vae import VAE, vae_for
from harness.types import Params
from tests.strategies.by_hand import in_unit_range
from tests.toy import stream

KEY = rng.keys([3, 8], "vae")


def double(params: Params) -> Params:
    return {k: v.double() for k, v in params.items()}


def pixels(count: int, *shape: int) -> Tensor:
    return rng.uniform(rng.keys([1, 2], "x"), count, *shape, dtype=torch.float64)


def plain(params: Params, part: str, s: int, h: Tensor) -> Tensor:
    """One seed's encoder or decoder of two maps, in ordinary matrix products."""
    hidden = (h @ params[f"{part}.fc1.weight"][s].T + params[f"{part}.fc1.bias"][s]).clamp(min=0)
    return hidden @ params[f"{part}.fc2.weight"][s].T + params[f"{part}.fc2.bias"][s]


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_the_elbo_is_that_of_torch_distributions(likelihood: str) -> None:
    vae, x = VAE((1, 2, 3), 4, (5,), likelihood), pixels(7, 1, 2, 3)
    params = {k: 3 * v for k, v in double(vae.init(KEY)[0]).items()}
    found = vae.elbo(params, x, rng.fold(KEY, 1))
    noise = rng.normal(rng.fold(KEY, 1), 7, 4, dtype=torch.float64)
    for s in range(2):
        mean, logvar = plain(params, "encoder", s, x[s].flatten(1)).chunk(2, 1)
        q = Normal(mean, logvar.exp().sqrt())
        decoded = plain(params, "decoder", s, q.loc + q.scale * noise[s])
        if likelihood == "bernoulli":
            log_p = Bernoulli(logits=decoded, validate_args=False).log_prob(x[s].flatten(1)).sum(1)
        else:
            log_p = Normal(decoded, 1.0).log_prob(x[s].flatten(1)).sum(1)
        expected = log_p - kl_divergence(q, Normal(0.0, 1.0)).sum(1)
        torch.testing.assert_close(found[s], expected)


def linear(latent: int = 2, outputs: int = 3) -> tuple[VAE, Params, Tensor, Tensor]:
    """x = W z + b + noise: the evidence is N(b, W Wᵀ + I), the posterior Gaussian; W has orthogonal columns."""
    vae = VAE((outputs,), latent, (), "gaussian")
    params = double(vae.init(KEY)[0])
    w = torch.linalg.qr(torch.randn(2, outputs, outputs, generator=torch.Generator().manual_seed(0)).double()).Q
    w = w[:, :, :latent] * torch.tensor([1.5, 0.5]).double()
    params["decoder.fc1.weight"], b = w, params["decoder.fc1.bias"]
    precision = (w.square().sum(1) + 1)[:, :, None]  # diagonal, as q must be
    mean = w.mT / precision
    params["encoder.fc1.weight"] = torch.cat([mean, torch.zeros_like(mean)], 1)
    params["encoder.fc1.bias"] = torch.cat([-(mean @ b[:, :, None])[..., 0], -precision[..., 0].log()], 1)
    return vae, params, w, b


def evidence(w: Tensor, b: Tensor, x: Tensor) -> Tensor:
    cov = w @ w.mT + torch.eye(w.shape[1]).double()
    return torch.stack([MultivariateNormal(b[s], cov[s]).log_prob(x[s]) for s in range(2)])


def test_with_the_exact_posterior_one_sample_gives_the_exact_likelihood() -> None:
    vae, params, w, b = linear()
    x = 2 * pixels(6, 3) - 1
    for n in (1, 5):
        noise = rng.normal(KEY, n, 2, dtype=torch.float64)
        torch.testing.assert_close(vae.log_likelihood(params, x, noise), evidence(w, b, x))


@pytest.mark.nightly
def test_importance_sampling_finds_the_likelihood_with_a_wrong_posterior_too() -> None:
    vae, params, w, b = linear()
    params["encoder.fc1.weight"] = params["encoder.fc1.weight"] * 0.7  # a wrong mean, and a variance too large
    params["encoder.fc1.bias"] = params["encoder.fc1.bias"] + torch.tensor([0, 0, 0.5, 0.5]).double()
    x, exact = 2 * pixels(6, 3) - 1, evidence(w, b, 2 * pixels(6, 3) - 1)
    noise = rng.normal(KEY, 20000, 2, dtype=torch.float64)
    many = vae.log_likelihood(params, x, noise)
    torch.testing.assert_close(many, exact, atol=0.03, rtol=0)
    bounds = torch.stack([vae.elbo(params, x, rng.fold(KEY, i)) for i in range(2000)])
    assert (bounds.mean(0) < exact - 0.05).all()  # the bound of one sample is loose there


def test_what_is_said_of_a_row_does_not_depend_on_its_companions() -> None:
    vae, x = VAE((6,), 2, (5,)), pixels(9, 6)
    params, noise = double(vae.init(KEY)[0]), rng.normal(KEY, 4, 2, dtype=torch.float64)
    whole = vae.log_likelihood(params, x, noise)
    torch.testing.assert_close(vae.log_likelihood(params, x[:, 4:6], noise), whole[:, 4:6])


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_samples_are_decoded_draws_of_the_prior(likelihood: str) -> None:
    vae = VAE((1, 2, 3), 4, (5,), likelihood)
    params = double(vae.init(KEY)[0])
    made = vae.sample(params, 7, rng.fold(KEY, 1))
    assert made.shape == (2, 7, 1, 2, 3)
    z = rng.normal(rng.fold(KEY, 1), 7, 4, dtype=torch.float64)
    for s in range(2):
        decoded = plain(params, "decoder", s, z[s])
        expected = 1 / (1 + (-decoded).exp()) if likelihood == "bernoulli" else decoded
        torch.testing.assert_close(made[s].flatten(1), expected)


def test_it_is_a_model() -> None:
    vae = VAE((1, 2, 3), 4, (5, 8))
    params, buffers = vae.init(KEY)
    shapes = {k: tuple(v.shape[1:]) for k, v in params.items() if k.endswith("weight")}
    assert list(shapes.values()) == [(5, 6), (8, 5), (8, 8), (8, 4), (5, 8), (6, 5)]
    assert vae(params, buffers, torch.zeros(2, 3, 1, 2, 3), torch.zeros(2, 3)).logits.shape == (2, 3, 6)
    alone = vae.init(KEY[1:])[0]
    assert all(torch.equal(v[1:], alone[k]) for k, v in params.items())


def test_gradient_ascent_on_the_elbo_learns_a_distribution() -> None:
    # x = +-(2, -2) + noise: the best linear Gaussian model has variance 5 along one axis and 1 along the other
    from harness.optim import Adam

    sign = rng.rademacher(rng.keys([5, 6], "s"), 2000, dtype=torch.float64)[..., None]
    x = sign * torch.tensor([1.0, -1.0]).double() * math.sqrt(2) + rng.normal(KEY, 2000, 2, dtype=torch.float64)
    vae, optimizer = VAE((2,), 1, (), "gaussian"), Adam(lr=0.03)
    params = double(vae.init(KEY)[0])
    for i in range(600):
        leaves = {k: v.requires_grad_() for k, v in params.items()}
        loss = -vae.elbo(leaves, x, rng.fold(KEY, i)).mean(1)
        grads = dict(zip(leaves, torch.autograd.grad(loss.sum(), list(leaves.values()))))
        params = {k: v.detach() for k, v in params.items()}
        optimizer.update(params, grads)
    w = params["decoder.fc1.weight"]
    found = w @ w.mT + torch.eye(2).double()
    expected = torch.tensor([[3.0, -2.0], [-2.0, 3.0]]).double()
    assert (found - expected).abs().max() < 0.3


@pytest.mark.parametrize(
    ("changed", "said"),
    [({"latent": 0}, "latent=0"), ({"widths": (3, 0)}, "widths="), ({"likelihood": "poisson"}, "likelihood=poisson")],
)
def test_bad_values_are_named(changed: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        VAE(**{"shape": (4,), "latent": 2, **changed})  # type: ignore[arg-type]


def test_pixels_that_are_no_frequencies_are_refused() -> None:
    made = stream("domain", (0, 1))  # standardised
    with pytest.raises(ValueError, match=r"^likelihood=bernoulli: inputs range over -0\..* not 0 \.\.\. 1"):
        vae_for(made, 3, (4,), "bernoulli")
    assert vae_for(made, 3, (4,), "gaussian").likelihood == "gaussian"
    unit = replace(made, tasks=(in_unit_range(made.tasks[0]),))
    assert vae_for(unit, 3, (4,), "bernoulli").outputs == 64
