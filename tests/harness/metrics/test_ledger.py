"""The forgetting ledger: exact on a quadratic loss, dense Hessians elsewhere, which mask, which statistics."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from harness import tree
from harness.boundary import Boundary
from harness.landscape.curvature import flatten
from harness.metrics.ledger import COLUMNS, account, ledger
from harness.models.mlp import MLP
from harness.types import Net, Reading
from tests.harness.metrics.nets import holding, normed, relabelled, seed_loss

F64 = torch.float64
CHEAP: dict[str, Any] = {"size": 48, "tasks": 5, "steps": 1, "k": 3}
WHOLE = {**CHEAP, "steps": 400}  # more than there are parameters


def value(r: Tensor | Reading) -> Tensor:
    return r if isinstance(r, Tensor) else r.value


@pytest.mark.parametrize("steps", [1, 400])
def test_on_a_quadratic_loss_the_account_is_what_happened(boundary, steps: int) -> None:  # type: ignore[no-untyped-def]
    b: Boundary = boundary((3, 5, 8), loss="mse", model=lambda s: MLP(s.shape, s.outputs, ()))
    found = ledger(b, **{**CHEAP, "steps": steps})
    assert value(found["ledger_loss"]).abs().min() > 1e-3 and value(found["ledger_first"]).abs().min() > 1e-3
    foretold = value(found["ledger_first"]) + value(found["ledger_second"])
    torch.testing.assert_close(foretold, value(found["ledger_loss"]), rtol=0, atol=1e-10)
    assert value(found["ledger_residual"]).abs().max() < 1e-10
    assert "ledger_accuracy" not in found
    if steps > 1:
        assert (value(found["ledger_bound"]) >= value(found["ledger_second"])).all()


@pytest.mark.parametrize("seeds", [(5,), (3, 5, 8)])
@pytest.mark.parametrize("scenario", ["domain", "task", "class"])
def test_every_term_is_that_of_the_dense_hessian_at_the_old_net(
    boundary, scenario: str, seeds: tuple[int, ...]
) -> None:  # type: ignore[no-untyped-def]
    b: Boundary = boundary(seeds, t=2, scenario=scenario)
    found = {n: value(r) for n, r in ledger(b, **WHOLE).items()}
    for i in (0, 1):
        batch, then = b.probe(i, 48), b.nets[i].params
        used = {"domain": slice(0, 2), "task": slice(2 * i, 2 * i + 2), "class": slice(0, 6)}[scenario]
        for s in range(len(seeds)):
            f = seed_loss(b.trained.apply, then, batch, s, used, {})
            at, now = flatten(then)[s], flatten(b.trained.params)[s]
            g, h, d = torch.func.grad(f)(at), torch.func.jacrev(torch.func.grad(f))(at), now - at
            values, vectors = torch.linalg.eigh(h)
            first, second = g @ d, d @ h @ d / 2
            true = {
                "loss": f(now) - f(at),
                "first": first,
                "second": second,
                "residual": f(now) - f(at) - first - second,
                "distance": d.norm(),
                "gradient": g.norm(),
                "lambda_max": values[-1],
                "bound": values[-1] * (d @ d) / 2,
                "share": (vectors[:, -3:].mT @ d).square().sum() / (d @ d),
            }
            for name, number in true.items():
                torch.testing.assert_close(found[f"ledger_{name}"][s, i], number, rtol=1e-7, atol=1e-10, msg=name)
            assert 0 < found["ledger_share"][s, i] < 1
    cheap = ledger(b, **CHEAP)
    assert set(found) - set(cheap) == {f"ledger_{n}" for n in ("lambda_max", "lambda_residual", "bound", "share")}
    for name, r in cheap.items():
        torch.testing.assert_close(value(r), found[name], rtol=1e-9, atol=1e-12, msg=name)


def test_accuracy_and_what_new_classes_alone_cost(boundary) -> None:  # type: ignore[no-untyped-def]
    b: Boundary = boundary(t=2, scenario="class")
    found = ledger(b, **CHEAP)
    for i in (0, 1):
        batch = b.probe(i, 48)
        then, now = (n(batch.x, batch.t).logits for n in (b.nets[i], b.trained))
        right = [(z[..., :6].argmax(2) == batch.y).double().mean(1) for z in (then, now)]
        torch.testing.assert_close(value(found["ledger_accuracy"])[:, i], right[1] - right[0])
        wide, own = (-then[..., :n].log_softmax(2).gather(2, batch.y[..., None]).mean((1, 2)) for n in (6, 2 * i + 2))
        torch.testing.assert_close(value(found["ledger_mask"])[:, i], wide - own)
    assert (value(found["ledger_mask"]) > 0).all()
    assert not {"ledger_mask", "ledger_statistics"} & set(ledger(boundary(), **CHEAP))
    assert "ledger_mask" not in ledger(boundary(scenario="task"), **CHEAP)


def test_local_terms_keep_the_old_statistics_and_the_rest_is_named(boundary) -> None:  # type: ignore[no-untyped-def]
    b = normed(boundary(t=2))
    found = {n: value(r) for n, r in ledger(b, **CHEAP).items()}
    for i in (0, 1):
        batch, then, now = b.probe(i, 48), b.nets[i], b.trained
        for s in range(2):
            old, new = (seed_loss(now.apply, then.params, batch, s, slice(0, 2), n.buffers) for n in (then, now))
            at, to = flatten(then.params)[s], flatten(now.params)[s]
            assert (new(to) - old(to)).abs() > 1e-3
            torch.testing.assert_close(found["ledger_loss"][s, i], new(to) - old(at))
            torch.testing.assert_close(found["ledger_statistics"][s, i], new(to) - old(to))
            torch.testing.assert_close(found["ledger_first"][s, i], torch.func.grad(old)(at) @ (to - at))


def test_relabelled_units_and_a_split_batch_change_nothing(boundary) -> None:  # type: ignore[no-untyped-def]
    b: Boundary = boundary()
    before, after = (ledger(c, **{**CHEAP, "steps": 25}) for c in (b, relabelled(b)))
    for name, r in after.items():
        torch.testing.assert_close(value(r), value(before[name]), rtol=1e-7, atol=1e-9, msg=name)

    whole, at = b.probe(0, 48), b.nets[0].params
    halves = [replace(whole, **{n: getattr(whole, n)[:, part] for n in ("x", "y", "t")}, w=2 * whole.w[:, part])
              for part in (slice(0, 24), slice(24, 48))]  # fmt: skip
    d = tree.sub(b.trained.params, at)
    one, two = (account(b.learner.objective(rows, b.stream, b.t), at, d, 12, 3) for rows in ([whole], halves))
    for name, v in one.items():
        torch.testing.assert_close(two[name], v, rtol=1e-8, atol=1e-10, msg=name)


def test_row_s_is_seed_s_alone(boundary) -> None:  # type: ignore[no-untyped-def]
    together, alone = (ledger(boundary(seeds), **{**CHEAP, "steps": 12}) for seeds in ((3, 5, 8), (5,)))
    for name, r in together.items():
        torch.testing.assert_close(value(r)[1:2], value(alone[name]), rtol=1e-8, atol=1e-10, msg=name)


def test_diverged_seed_is_nan_and_leaves_the_other_alone(boundary) -> None:  # type: ignore[no-untyped-def]
    settings = {**CHEAP, "steps": 12}
    sound = ledger(boundary(), **settings)
    b: Boundary = boundary()
    b.trained.params["fc2.bias"][0, 0] = torch.inf
    for name, r in ledger(b, **settings).items():
        assert value(r)[0].isnan().all(), name
        assert torch.equal(value(r)[1], value(sound[name])[1]), name


def test_a_net_that_was_not_kept_is_nan_and_one_that_did_not_move_has_no_share(boundary) -> None:  # type: ignore[no-untyped-def]
    b: Boundary = boundary()

    still = {k: torch.cat([v[:1], b.trained.params[k][1:]]) for k, v in b.nets[1].params.items()}
    few = holding(b, {1: Net(still, {}, b.trained.apply)})
    found = ledger(few, **{**CHEAP, "steps": 12})
    whole = ledger(b, **{**CHEAP, "steps": 12})
    for name, r in found.items():
        assert value(r)[:, [0, 2]].isnan().all(), name
        assert torch.equal(value(r)[0, 1], value(whole[name])[0, 1]), name
    for name in ("loss", "accuracy", "first", "second", "residual", "distance", "bound"):
        assert value(found[f"ledger_{name}"])[1, 1] == 0, name
    assert value(found["ledger_share"])[1, 1].isnan() and value(found["ledger_lambda_max"])[1, 1].isnan()

    assert ledger(holding(b, {}), **CHEAP) == {}


def test_tasks_coords_columns_and_refusals(boundary) -> None:  # type: ignore[no-untyped-def]
    b: Boundary = boundary(scenario="class")
    found = {**ledger(b, **WHOLE), **ledger(normed(boundary()), **CHEAP)}
    assert set(found) == set(COLUMNS)
    few = ledger(b, **{**CHEAP, "tasks": 3})["ledger_loss"]
    assert isinstance(few, Reading) and few.axis == "task" and list(few.coords) == [0, 1] and few.value.shape == (2, 2)
    assert ledger(boundary(t=0), **CHEAP) == {} and ledger(boundary(phase="start"), **CHEAP) == {}
    for steps in (0, 2, 3):
        with pytest.raises(ValueError, match=rf"metrics\.ledger\.steps={steps}: must be 1, or above k=3"):
            ledger(b, **{**CHEAP, "steps": steps})


def test_dropout_is_off_and_nothing_is_changed(boundary) -> None:  # type: ignore[no-untyped-def]
    plain = ledger(boundary(), **CHEAP)
    b: Boundary = boundary(model=lambda s: MLP(s.shape, s.outputs, (10, 6), dropout=0.5))
    normal = normed(boundary())
    kept = [tree.copy(p) for p in (b.trained.params, normal.trained.buffers)]
    rng, count, state = torch.get_rng_state(), b.random.count, {k: s.count for k, s in b.learner.streams.items()}
    noisy = ledger(b, **CHEAP)
    assert all(torch.equal(value(r), value(noisy[name])) for name, r in plain.items())
    assert not any(value(r).requires_grad for r in noisy.values())
    ledger(normal, **{**CHEAP, "steps": 12})
    for now, then in zip((b.trained.params, normal.trained.buffers), kept):
        assert all(torch.equal(v, then[k]) and v.grad is None and not v.requires_grad for k, v in now.items())
    assert torch.equal(torch.get_rng_state(), rng) and b.random.count == count
    assert {k: s.count for k, s in b.learner.streams.items()} == state
