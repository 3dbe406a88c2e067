"""Counter-based draws: against the published splitmix64 sequence, their distributions, and their independence."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from harness.rng import RandomStream, bits, fold, integers, keys, normal, permutation, rademacher, uniform

MASK = 2**64 - 1

GOLDEN = {
    "keys": [-6384440188393614703, -8112773900974392704],
    "fold": [-2128498611536826111, 1857801844732437492],
    "permutation": [[4, 3, 5, 7, 1, 2, 6, 0], [1, 0, 2, 7, 6, 5, 4, 3]],
    "integers": [[916, 616, 739, 145, 118, 156], [443, 115, 555, 907, 907, 762]],
    "rademacher": [[1, 1, 1, -1, -1, -1, 1, -1], [-1, -1, 1, 1, 1, 1, 1, 1]],
}


def splitmix64(state: int, n: int) -> list[int]:
    """Steele, Lea & Flood (2014) in Python's integers, as unsigned numbers."""
    out = []
    for _ in range(n):
        state = (state + 0x9E3779B97F4A7C15) & MASK
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        out.append(z ^ (z >> 31))
    return out


def unsigned(x: Tensor) -> list[int]:
    return [int(v) & MASK for v in x.flatten()]


def test_bits_are_the_published_splitmix64_sequence() -> None:
    # the first outputs for state 1234567, as published with the reference implementation
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert splitmix64(1234567, 5) == published
    assert unsigned(bits(torch.tensor([1234567]), 5)) == published
    for seed in (0, -1, 2**62, -(2**63)):
        assert unsigned(bits(torch.tensor([seed]), 2, 3)) == splitmix64(seed & MASK, 6)


def test_draws_are_pinned_so_that_versions_and_devices_agree() -> None:
    key = keys([0, 1], "order")
    assert key.tolist() == GOLDEN["keys"]
    assert fold(key, 3).tolist() == GOLDEN["fold"]
    assert permutation(key, 8).tolist() == GOLDEN["permutation"]
    assert integers(key, 1000, 6).tolist() == GOLDEN["integers"]
    assert rademacher(key, 8).tolist() == GOLDEN["rademacher"]


def test_a_row_is_the_same_whoever_runs_beside_it() -> None:
    together = keys([3, 8, 8, -5], "init")
    draws: tuple[Callable[[Tensor], Tensor], ...] = (
        lambda k: bits(k, 7),
        lambda k: uniform(k, 4, 3),
        lambda k: normal(k, 4, 3, dtype=torch.float64),
        lambda k: permutation(k, 11),
        lambda k: integers(k, 9, 5),
        lambda k: fold(fold(k, "a"), 12),
    )
    for draw in draws:
        for s, seed in enumerate([3, 8, 8, -5]):
            assert torch.equal(draw(together)[s], draw(keys([seed], "init"))[0])


def test_fold_takes_a_number_a_name_or_one_number_per_seed() -> None:
    key = keys([1, 2, 3], "x")
    for data in (0, 5, -7, 2**62, 2**63 - 1):
        assert torch.equal(fold(key, data), fold(key, torch.full((3,), data)))
    by_seed = fold(key, torch.tensor([4, 5, 6]))
    assert by_seed.tolist() == [fold(key, n)[i].item() for i, n in enumerate((4, 5, 6))]
    assert not torch.equal(fold(key, "order"), fold(key, "probe"))


def test_no_two_of_many_streams_share_a_number() -> None:
    """Folded keys of neighbouring seeds, purposes and counts: a shifted copy of a sequence would collide."""
    found = []
    for purpose in ("init", "order", "probe/1", "probe/2"):
        key = keys(range(20), purpose)
        found += [bits(fold(key, count), 50) for count in range(20)]
        found.append(bits(key, 50))
    everything = torch.cat([f.flatten() for f in found])
    assert len(everything) == 84_000
    assert len(everything.unique()) == len(everything)


def test_streams_of_different_purposes_and_seeds_are_uncorrelated() -> None:
    n = 20_000
    rows = torch.cat([uniform(keys(range(3), p), n, dtype=torch.float64) for p in ("init", "order", "probe")])
    off = torch.corrcoef(rows) - torch.eye(len(rows), dtype=torch.float64)
    assert off.abs().max() < 4 / math.sqrt(n)
    lagged = torch.corrcoef(torch.cat([rows[:, 1:], rows[:, :-1]]))[: len(rows), len(rows) :]
    assert lagged.abs().max() < 4 / math.sqrt(n)


def chi_square(counts: Tensor) -> float:
    """Deviations of the statistic from its mean under equal probabilities, in standard deviations."""
    expected = counts.double().sum() / counts.numel()
    free = counts.numel() - 1
    return float(((counts - expected).square() / expected).sum() - free) / math.sqrt(2 * free)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_uniform_is_uniform(dtype: torch.dtype) -> None:
    u = uniform(keys([0, 1, 2], "u"), 40_000, dtype=dtype)
    assert u.dtype == dtype
    assert u.min() >= 0 and u.max() < 1
    for row in u.double():
        assert abs(chi_square(torch.histc(row, 64, 0, 1))) < 4
        assert abs(row.mean() - 0.5) < 4 / math.sqrt(12 * len(row))
        assert abs(row.var() - 1 / 12) < 4 * math.sqrt(1 / 180 / len(row))
    # every bit that the type can hold is used, and none is rounded: 1 is never drawn
    scaled = u * 2.0 ** (53 if dtype == torch.float64 else 24)
    assert torch.equal(scaled.round(), scaled)
    assert abs((scaled.long() % 2).double().mean() - 0.5) < 4 / math.sqrt(4 * scaled.numel())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normal_has_the_moments_of_a_standard_normal(dtype: torch.dtype) -> None:
    z = normal(keys([0, 1], "z"), 200, 200, dtype=dtype).flatten(1).double()
    n = z.shape[1]
    assert z.isfinite().all()
    for k, moment, spread in ((1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0)):
        assert ((z**k).mean(1) - moment).abs().max() < 4 * math.sqrt(spread / n)
    inside = (z.abs() < 1).double().mean(1)
    assert (inside - 0.6826895).abs().max() < 4 * math.sqrt(0.6826895 * 0.3173105 / n)
    assert (z.abs().amax(1) > 3.5).all()  # the tails are there


def test_normal_numbers_of_one_pair_are_independent() -> None:
    """The two halves share their radii, not their angles: neither they nor their squares go together."""
    n = 40_001
    z = normal(keys([0, 1, 2], "z"), n, dtype=torch.float64)
    half = (n + 1) // 2
    for row in z:
        for power in (1, 2):
            both = torch.stack([row[: n - half], row[half:]]) ** power
            assert abs(torch.corrcoef(both)[0, 1]) < 4 / math.sqrt(n - half)


def test_rademacher_is_a_fair_coin() -> None:
    r = rademacher(keys([0, 1, 2], "r"), 30_000)
    assert set(r.unique().tolist()) == {-1.0, 1.0}
    assert r.mean(1).abs().max() < 4 / math.sqrt(30_000)


def test_integers_are_uniform_below_a_bound_of_each_seed() -> None:
    high = torch.tensor([[7], [10]])
    i = integers(keys([0, 1], "i"), high, 30_000)
    for row, n in zip(i, (7, 10)):
        assert row.min() == 0 and row.max() == n - 1
        assert abs(chi_square(row.bincount(minlength=n))) < 4


def test_permutations_are_permutations_and_all_equally_likely() -> None:
    p = permutation(keys(range(6000), "p"), 4)
    assert torch.equal(p.sort(1).values, torch.arange(4).expand(6000, -1))
    code = (p * torch.tensor([64, 16, 4, 1])).sum(1)
    valid = [a * 64 + b * 16 + c * 4 + d for a, b, c, d in itertools.permutations(range(4))]
    assert abs(chi_square(torch.stack([(code == v).sum() for v in valid]))) < 4


def test_a_ragged_permutation_is_that_of_the_seed_s_own_size() -> None:
    key, size = keys([4, 5, 6], "ragged"), torch.tensor([3, 9, 1])
    p = permutation(key, 9, size)
    for s, n in enumerate(size.tolist()):
        assert torch.equal(p[s, :n], permutation(key[s : s + 1], n)[0])
    assert torch.equal(p.sort(1).values, torch.arange(9).expand(3, -1))  # padding keeps indices valid


def test_a_random_stream_is_its_key_and_a_count() -> None:
    base = keys([0, 1], "x")
    stream = RandomStream(base)
    first = [stream.key() for _ in range(3)]
    assert len(torch.stack(first).unique()) == 6
    again = RandomStream(base)
    again.load_state_dict(stream.state_dict())
    assert torch.equal(again.key(), stream.key())
    replayed = RandomStream(base)
    assert all(torch.equal(replayed.key(), k) for k in first)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_integer_draws_agree_on_cpu_and_cuda() -> None:
    here, there = keys([0, 1, 2], "order"), keys([0, 1, 2], "order", "cuda")
    size = torch.tensor([5, 100, 33])
    draws: tuple[Callable[[Tensor], Tensor], ...] = (
        lambda k: bits(k, 4, 5),
        lambda k: permutation(k, 100),
        lambda k: permutation(k, 100, size.to(k.device)),
        lambda k: integers(k, 17, 50),
        lambda k: uniform(k, 50),
        lambda k: uniform(k, 50, dtype=torch.float64),
    )
    for draw in draws:
        assert torch.equal(draw(here), draw(there).cpu())
    torch.testing.assert_close(normal(here, 1000), normal(there, 1000).cpu(), rtol=1e-5, atol=1e-5)
