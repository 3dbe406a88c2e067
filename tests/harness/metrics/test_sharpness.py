"""Sharpness of a boundary: which net, which rows, which mask, and what it leaves behind."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from harness import tree
from harness.boundary import Boundary
from harness.landscape.curvature import flatten, unflatten
from harness.metrics import mixture, shares, spaced
from harness.metrics.sharpness import COLUMNS, sharpness
from harness.models.mlp import MLP
from harness.optim import Adam
from harness.rng import fold
from harness.types import Batch, Net, Reading

F64 = torch.float64
SETTINGS = {
    "probes": ["first", "current", "joint"], "size": 48, "tasks": 4, "k": 3, "lowest": 2, "steps": 80,
    "trace_probes": 9, "adaptive_steps": 30, "fisher": True, "edge_ratio": True,
}  # fmt: skip
CHEAP = {**SETTINGS, "probes": ["current"]}


def value(r: Tensor | Reading) -> Tensor:
    return r if isinstance(r, Tensor) else r.value


def dense_top(f: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """Largest eigenvalue of the Hessian of f at [P], reverse over reverse."""
    return torch.linalg.eigvalsh(torch.func.jacrev(torch.func.grad(f))(at))[-1]


def loss_of(b: Boundary, batches: list[Batch], s: int, columns: list[slice]) -> Callable[[Tensor], Tensor]:
    """Mean over the batches of seed s's cross-entropy over the given outputs only, as a function of [P]."""
    flat = flatten(b.trained.params)

    def f(v: Tensor) -> Tensor:
        params = unflatten(torch.cat([flat[:s], v[None], flat[s + 1 :]]), b.trained.params)
        total = torch.zeros((), dtype=v.dtype)
        for batch, used in zip(batches, columns):
            logits = b.trained.apply(params, {}, batch.x, batch.t).logits[s][:, used]
            total = total + cross_entropy(logits, batch.y[s] - used.start)
        return total / len(batches)

    return f


@pytest.mark.parametrize("scenario", ["domain", "task", "class"])
def test_eigenvalues_are_those_of_the_loss_over_the_outputs_that_compete(boundary, scenario: str) -> None:  # type: ignore[no-untyped-def]
    # a head mask that is forgotten gives the curvature of another loss (error 0.56 in the research note)
    b: Boundary = boundary(t=2, scenario=scenario)
    found = sharpness(b, **SETTINGS)
    used = {
        "domain": [slice(0, 2)] * 3,
        "task": [slice(0, 2), slice(2, 4), slice(4, 6)],
        "class": [slice(0, 6)] * 3,  # seen so far; the two outputs of task 3 do not compete yet
    }[scenario]
    third = [b.probe(i, 16) for i in range(3)]
    for s in range(2):
        at = flatten(b.trained.params)[s]
        for name, batches, columns in (
            ("first", [b.probe(0, 48)], used[:1]),
            ("current", [b.probe(2, 48)], used[2:]),
            ("joint", third, used),
        ):
            f = loss_of(b, batches, s, columns)
            torch.testing.assert_close(value(found[f"lambda_max_{name}"])[s], dense_top(f, at), rtol=1e-8, atol=0)
            torch.testing.assert_close(value(found[f"probe_loss_{name}"])[s], f(at), rtol=1e-10, atol=0)


def test_logit_norm_is_over_the_competing_outputs(boundary) -> None:  # type: ignore[no-untyped-def]
    b: Boundary = boundary(t=2, scenario="class")
    batch = b.probe(2, 48)
    true = b.trained(batch.x, batch.t).logits[:, :, :6].square().sum(2).sqrt().mean(1)
    torch.testing.assert_close(value(sharpness(b, **CHEAP)["logit_norm_current"]), true)


def test_joint_loss_weighs_the_current_task_by_one_in_all_seen(boundary) -> None:  # type: ignore[no-untyped-def]
    b: Boundary = boundary(t=3)
    batch = mixture(b, spaced(3, 2), 20)  # tasks 0 and 3 stand for 0 ... 3
    weight = torch.cat([torch.full((10,), 0.75 / 10, dtype=F64), torch.full((10,), 0.25 / 10, dtype=F64)])
    torch.testing.assert_close(batch.w, weight.expand(2, -1))
    assert batch.x.shape[1] == 20 and sum(shares((0, 4, 9), 9)) == pytest.approx(1)


def test_tasks_measured_are_few_distinct_and_hold_the_first_and_the_current() -> None:
    for t in range(40):
        for limit in range(2, 9):
            tasks = spaced(t, limit)
            assert len(tasks) == len(set(tasks)) == min(limit, t + 1)
            assert tasks[0] == 0 and tasks[-1] == t
            gaps = [b - a for a, b in pairwise(tasks)] or [0]
            assert max(gaps) - min(gaps) <= 1
    with pytest.raises(ValueError, match="at least 2"):
        spaced(3, 1)


def test_every_column_is_declared_and_filled(boundary) -> None:  # type: ignore[no-untyped-def]
    found = sharpness(boundary(), **SETTINGS)
    assert set(found) == set(COLUMNS)
    top, traced, low = (found[f"{n}_joint"] for n in ("lambda_top", "trace", "lambda_bottom"))
    assert isinstance(top, Reading) and top.axis == "k" and list(top.coords) == [1, 2, 3] and top.value.shape == (2, 3)
    assert isinstance(traced, Reading) and traced.stderr is not None and traced.value.shape == (2,)
    assert isinstance(low, Reading) and low.value.shape == (2, 2) and (low.value[:, 0] <= low.value[:, 1]).all()
    assert torch.equal(low.value[:, 0], value(found["lambda_min_joint"]))
    assert sharpness(boundary(phase="start"), **SETTINGS) == {}
    with pytest.raises(ValueError, match=r"metrics\.sharpness\.probes=last"):
        sharpness(boundary(), **{**SETTINGS, "probes": ["last"]})


def test_after_the_first_task_the_three_probes_are_one(boundary) -> None:  # type: ignore[no-untyped-def]
    found = sharpness(boundary(t=0), **SETTINGS)
    for name in {n.rsplit("_", 1)[0] for n in COLUMNS} - {"eos"}:
        assert torch.equal(value(found[f"{name}_first"]), value(found[f"{name}_joint"])), name


def test_row_s_is_seed_s_alone(boundary) -> None:  # type: ignore[no-untyped-def]
    together = sharpness(boundary((3, 5, 8)), **SETTINGS)
    alone = sharpness(boundary((5,)), **SETTINGS)
    for name, r in together.items():
        torch.testing.assert_close(value(r)[1:2], value(alone[name]), rtol=1e-8, atol=1e-10, msg=name)


def test_diverged_seed_is_nan_and_leaves_the_other_alone(boundary) -> None:  # type: ignore[no-untyped-def]
    sound = sharpness(boundary(), **CHEAP)
    b: Boundary = boundary()
    b.trained.params["head.bias"][0, 0] = torch.nan
    for name, r in sharpness(b, **CHEAP).items():
        assert value(r)[0].isnan().all(), name
        assert torch.equal(value(r)[1], value(sound[name])[1]), name
    stopped = sharpness(replace(boundary(), alive=torch.tensor([False, True])), **CHEAP)
    traced = stopped["trace_current"]
    assert isinstance(traced, Reading) and traced.stderr is not None and traced.stderr.isnan().tolist() == [True, False]
    assert all(value(r)[0].isnan().all() and value(r)[1].isfinite().all() for r in stopped.values())


def hessian_of(b: Boundary, s: int) -> Tensor:
    """Dense Hessian of the current task's loss."""
    f = loss_of(b, [b.probe(b.t, 48)], s, [slice(0, 2)])
    return torch.func.jacrev(torch.func.grad(f))(flatten(b.trained.params)[s])


@pytest.mark.parametrize("seeds", [(3,), (3, 5, 8)])
def test_every_number_is_that_of_the_dense_hessian(boundary, seeds) -> None:  # type: ignore[no-untyped-def]
    b: Boundary = boundary(seeds)
    found = {n.removesuffix("_current"): r for n, r in sharpness(b, **{**CHEAP, "steps": 400}).items()}
    for s in range(len(seeds)):
        h, w = hessian_of(b, s), flatten(b.trained.params)[s]
        true = torch.linalg.eigvalsh(h)
        torch.testing.assert_close(value(found["lambda_top"])[s], true.flip(0)[:3], rtol=1e-8, atol=0)
        torch.testing.assert_close(value(found["lambda_bottom"])[s], true[:2], rtol=1e-8, atol=0)
        adaptive = torch.linalg.eigvalsh(w.abs()[:, None] * h * w.abs())[-1]
        torch.testing.assert_close(value(found["lambda_max_adaptive"])[s], adaptive, rtol=1e-8, atol=0)
        # the Krylov space is the whole space, which leaves nothing to chance
        torch.testing.assert_close(value(found["trace"])[s], true.sum(), rtol=1e-8, atol=0)
        rank = true.square().sum() / true[-1].square()
        torch.testing.assert_close(value(found["stable_rank_hessian"])[s], rank, rtol=1e-8, atol=0)
        torch.testing.assert_close(value(found["eos_ratio"])[s], 0.1 * true[-1] / 2, rtol=1e-8, atol=0)


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
@pytest.mark.parametrize("scenario", ["domain", "class"])
def test_fisher_trace_is_that_of_the_gauss_newton_matrix(boundary, loss: str, scenario: str) -> None:  # type: ignore[no-untyped-def]
    if (loss, scenario) == ("mse", "class"):
        pytest.skip("regression has no classes")
    b: Boundary = boundary(t=1, loss=loss, scenario=scenario)
    found = value(sharpness(b, **{**CHEAP, "probes": ["joint"]})["fisher_trace_joint"])
    batch, used = mixture(b, (0, 1), 48), 2 if scenario == "domain" else 4
    for s in range(2):
        flat = flatten(b.trained.params)

        def logits(v: Tensor, s: int = s, flat: Tensor = flat) -> Tensor:
            params = unflatten(torch.cat([flat[:s], v[None], flat[s + 1 :]]), b.trained.params)
            return b.trained.apply(params, {}, batch.x, batch.t).logits[s, :, :used]

        j, p = torch.func.jacrev(logits)(flat[s]), logits(flat[s]).softmax(-1)  # [B, C, P], [B, C]
        middle = torch.eye(2, dtype=F64).expand(48, 2, 2)  # 2 / C of the mean square over 2 outputs
        if loss == "cross_entropy":
            middle = torch.diag_embed(p) - p[:, :, None] * p[:, None]
        true = torch.einsum("b,bcp,bcd,bdp->", batch.w[s], j, middle, j)
        torch.testing.assert_close(found[s], true, rtol=1e-9, atol=0)


def test_what_is_switched_off_leaves_no_column_and_does_not_move_the_others(boundary) -> None:  # type: ignore[no-untyped-def]
    whole = sharpness(boundary(), **CHEAP)
    off = {"lowest": 0, "trace_probes": 0, "adaptive_steps": 0, "fisher": False, "edge_ratio": False}
    parts = {
        "lowest": ["lambda_min", "lambda_bottom", "lambda_bottom_residual"],
        "trace_probes": ["trace", "stable_rank_hessian"],
        "adaptive_steps": ["lambda_max_adaptive"],
        "fisher": ["fisher_trace"],
        "edge_ratio": ["eos_ratio"],
    }
    for key, names in parts.items():
        found = sharpness(boundary(), **{**CHEAP, key: off[key]})
        assert set(whole) - set(found) == {n if n == "eos_ratio" else f"{n}_current" for n in names}
        assert all(torch.equal(value(r), value(whole[n])) for n, r in found.items())
    assert "eos_ratio" not in sharpness(boundary(), **{**CHEAP, "probes": ["joint"]})


def test_settings_that_cannot_give_the_numbers_are_refused(boundary) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=r"metrics\.sharpness\.steps=20: lambda_min needs at least 40"):
        sharpness(boundary(), **{**CHEAP, "steps": 20})
    with pytest.raises(ValueError, match=r"metrics\.sharpness\.k=5, steps=4"):
        sharpness(boundary(), **{**CHEAP, "steps": 4, "k": 5, "lowest": 0})


def test_adam_is_held_against_its_own_preconditioner(boundary) -> None:  # type: ignore[no-untyped-def]
    b: Boundary = boundary()
    b.learner.optimizer = Adam(lr=0.003)
    assert value(sharpness(b, **CHEAP)["eos_ratio"]).isnan().all()  # before its first step
    for i in range(4):
        b.learner.optimizer.update(tree.copy(b.trained.params), b.learner.fresh(fold(b.learner.key("g"), i))[0])
    kept = {k: tree.copy(v) for k, v in b.learner.optimizer.state.items()}
    found = value(sharpness(b, **CHEAP)["eos_ratio"])
    square = flatten(kept["square"])
    for s in range(2):
        p = (1 - 0.9**4) * ((square[s] / (1 - 0.999**4)).sqrt() + 1e-8)
        lam = torch.linalg.eigvals(hessian_of(b, s) / p[:, None]).real.max()
        torch.testing.assert_close(found[s], 0.003 * lam * 0.1 / 1.9 / 2, rtol=1e-6, atol=0)
    assert all(tree.dot(tree.sub(v, kept[k]), v).tolist() == [0, 0] for k, v in b.learner.optimizer.state.items())


def test_dropout_is_off_inside_the_hessian(boundary) -> None:  # type: ignore[no-untyped-def]
    # hessian-eigenthings reports 3.44 for 1.38, "converged", when the net is left in training mode
    plain = sharpness(boundary(), **CHEAP)
    noisy = sharpness(boundary(model=lambda s: MLP(s.shape, s.outputs, (10, 6), dropout=0.5)), **CHEAP)
    assert all(torch.equal(value(r), value(noisy[name])) for name, r in plain.items())


def test_scaling_the_logits_shows_in_the_columns_beside(boundary) -> None:  # type: ignore[no-untyped-def]
    b: Boundary = boundary()
    sharper = {k: v * 4 if k.startswith("head") else v for k, v in b.trained.params.items()}
    found = [sharpness(c, **CHEAP) for c in (b, replace(b, trained=Net(sharper, {}, b.trained.apply)))]
    norm, lam = ([value(f[n]) for f in found] for n in ("logit_norm_current", "lambda_max_current"))
    torch.testing.assert_close(norm[1], 4 * norm[0])
    assert (lam[1] / lam[0] - 1).abs().min() > 0.1


def test_nothing_is_changed_and_a_second_call_says_the_same(boundary) -> None:  # type: ignore[no-untyped-def]
    b: Boundary = boundary(dtype=torch.float32)
    kept, rng, count = tree.copy(b.trained.params), torch.get_rng_state(), b.random.count
    state = {k: s.count for k, s in b.learner.streams.items()}
    first = sharpness(b, **SETTINGS)
    second = sharpness(b, **SETTINGS)
    assert all(torch.equal(value(first[n]), value(second[n])) for n in first)
    assert all(torch.equal(v, kept[k]) and v.grad is None and not v.requires_grad for k, v in b.trained.params.items())
    assert torch.equal(torch.get_rng_state(), rng) and b.random.count == count
    assert {k: s.count for k, s in b.learner.streams.items()} == state
