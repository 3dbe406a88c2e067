"""Means and scatters: those of all rows at once by numpy, for any division into batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from harness.toolbox.moments import ClassScatter, SharedScatter

S, N, D, C = 2, 30, 4, 3


@pytest.mark.parametrize("batches", [[1] * N, [N], [7, 1, 20, 2]])
@pytest.mark.parametrize("kind", [SharedScatter, ClassScatter])
def test_any_division_into_batches_gives_numpys_moments(kind: type, batches: list[int]) -> None:
    draw = np.random.default_rng(0)
    z, y = 1000 + draw.normal(size=(S, N, D)), draw.integers(0, C - 1, (S, N))  # the last class has no row
    held = kind(S, C, D, "cpu")
    for a, b in zip(torch.tensor(z).split(batches, 1), torch.tensor(y).split(batches, 1)):
        held.add(a, b, torch.ones(b.shape).double())
        held.add(a + 9, b, torch.zeros(b.shape).double())  # padding
    again = kind(S, C, D, "cpu")
    again.load_state_dict(held.state_dict())
    for made in (held, again):
        for s in range(S):
            rows = [z[s][y[s] == c] for c in range(C - 1)]
            assert made.count[s].tolist() == [len(r) for r in rows] + [0]
            np.testing.assert_allclose(made.mean[s, : C - 1], [r.mean(0) for r in rows], rtol=1e-12)
            if kind is ClassScatter:
                for c, r in enumerate(rows):
                    np.testing.assert_allclose(made.covariance(c)[s], np.cov(r.T), atol=1e-9)
                assert not made.covariance(C - 1).any()
            else:
                inside = sum(np.cov(r.T, bias=True) * len(r) for r in rows) / N
                np.testing.assert_allclose(made.covariance[s], inside, atol=1e-9)
