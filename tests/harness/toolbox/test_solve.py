"""Systems of several seeds have one answer, whatever the number of threads."""

import re
from pathlib import Path

import pytest
import torch

import harness
from harness.toolbox.solve import solve

ROOT = Path(harness.__file__).resolve().parent.parent


@pytest.mark.parametrize("threads", [1, 2])
def test_large_systems_of_several_seeds_are_solved_on_any_number_of_threads(threads: int) -> None:
    generator, before = torch.Generator().manual_seed(0), torch.get_num_threads()
    x = torch.randn(5, 450, 400, dtype=torch.float64, generator=generator)
    a, b = x.mT @ x / 450, torch.randn(5, 400, 3, dtype=torch.float64, generator=generator)
    a.diagonal(dim1=1, dim2=2).add_(0.1)
    torch.set_num_threads(threads)
    try:
        residual = a @ solve(a, b) - b
    finally:
        torch.set_num_threads(before)
    assert residual.abs().amax() < 1e-10


def test_a_seed_that_is_not_finite_takes_no_other_down() -> None:
    a = torch.eye(3, dtype=torch.float64).expand(3, 3, 3).clone()
    a[1, 0, 0] = torch.nan
    found = solve(a, torch.ones(3, 3, 1, dtype=torch.float64))
    assert (found[[0, 2]] == 1).all() and found[1].isnan().all()


def test_nothing_else_solves_systems_of_several_seeds() -> None:
    wrong = re.compile(r"linalg\.(solve|solve_ex|inv|inv_ex|lu\w*|det|slogdet)\(")
    files = [f for folder in ("harness", "strategies", "tasks") for f in (ROOT / folder).rglob("*.py")]
    assert len(files) > 100 and [str(f) for f in files if wrong.search(f.read_text())] == []
