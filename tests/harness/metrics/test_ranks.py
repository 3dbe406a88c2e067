"""Ranks of known spectra, under their own names."""

import math

import numpy as np
import pytest
import torch

from harness.metrics.ranks import (
    COLUMNS,
    effective_rank,
    feature_ranks,
    participation_ratio,
    singular_values,
    srank,
    stable_rank,
)


def test_ranks_agree_with_the_formulas_on_a_known_spectrum() -> None:
    sigma = torch.tensor([[5.0, 3.0, 2.0, 0.05]], dtype=torch.float64)
    p = [s / 10.05 for s in (5, 3, 2, 0.05)]
    assert effective_rank(sigma).item() == pytest.approx(math.exp(-sum(q * math.log(q) for q in p)))
    assert srank(sigma, 0.99).item() == 3  # 8 / 10.05 = 0.796, 10 / 10.05 = 0.995
    assert stable_rank(sigma).item() == pytest.approx((25 + 9 + 4 + 0.0025) / 25)
    equal = torch.ones(1, 7, dtype=torch.float64)
    assert [effective_rank(equal).item(), stable_rank(equal).item()] == pytest.approx([7, 7])


def test_ranks_see_orthogonal_features_and_not_their_basis() -> None:
    g = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=g)).Q for n in (20, 6))
    spectrum = torch.tensor([4.0, 2.0, 1.0, 0.5, 0.1, 0.0], dtype=torch.float64)
    features = (left[:, :6] * spectrum) @ right
    torch.testing.assert_close(singular_values(features[None])[0], spectrum, rtol=1e-10, atol=1e-12)
    conv = features[None, :, :, None, None] + torch.tensor([1.0, -1.0], dtype=torch.float64)  # space averages out
    torch.testing.assert_close(singular_values(conv)[0], spectrum, rtol=1e-10, atol=1e-12)


def test_the_two_99_percent_ranks_are_of_values_and_of_their_squares() -> None:
    sigma = torch.tensor([[10.0, 1.0, 0.5, 0.1]], dtype=torch.float64)
    s = np.array([10.0, 1.0, 0.5, 0.1])
    for share, v in ((0.99, s), (0.99, s**2)):
        k = int(np.searchsorted(np.cumsum(v) / v.sum(), share)) + 1
        assert srank(torch.from_numpy(v)[None], share).item() == k
    assert [srank(sigma, 0.99).item(), srank(sigma.square(), 0.99).item()] == [3, 2]


def test_participation_ratio_is_of_the_covariance() -> None:
    rng = np.random.default_rng(0)
    for n, d in ((40, 6), (5, 9)):
        x = rng.normal(size=(n, d)) * np.arange(1, d + 1) + 3
        lam = np.linalg.eigvalsh(np.cov(x.T))
        true = lam.sum() ** 2 / (lam**2).sum()
        assert participation_ratio(torch.from_numpy(x)[None]).item() == pytest.approx(true, rel=1e-10)


def test_rotation_scale_and_rows_order_change_no_rank() -> None:
    g = torch.Generator().manual_seed(2)
    x = torch.randn(2, 30, 7, dtype=torch.float64, generator=g)
    turned = 3 * x[:, torch.randperm(30, generator=g)] @ torch.linalg.qr(x[0, :7])[0]
    before, after = feature_ranks(x), feature_ranks(turned)
    assert set(before) == set(COLUMNS)
    for name, v in before.items():
        torch.testing.assert_close(after[name], v, rtol=1e-9, atol=0, msg=name)
