"""Random labels: which they are, what training on them is, and that nothing of the run moves."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from harness import rng, tree
from harness.boundary import Boundary
from harness.metrics.trainability import COLUMNS, random_labels, shuffled
from harness.models.mlp import MLP
from harness.optim import SGD, Adam
from harness.types import Net, Reading

SETTINGS = {"size": 30, "steps": 6, "batch_size": 64}


def value(r: Tensor | Reading) -> Tensor:
    return r if isinstance(r, Tensor) else r.value


def labels(b: Boundary) -> Tensor:
    key = rng.fold(rng.fold(b.random.base, "random_labels"), b.t)
    return shuffled(b.probe(b.t, 30), rng.fold(key, "labels")).y


def by_hand(b: Boundary, net: Net, s: int, outputs: slice, steps: int = 6) -> tuple[float, float]:
    """Whole-batch gradient descent in plain torch on the columns that compete."""
    p = {k: v[s].clone().requires_grad_() for k, v in net.params.items()}
    x, y = b.probe(b.t, 30).x[s].double(), labels(b)[s] - outputs.start
    sgd = torch.optim.SGD(p.values(), lr=0.1)

    def logits() -> Tensor:
        h = (x @ p["fc1.weight"].T + p["fc1.bias"]).relu()
        h = (h @ p["fc2.weight"].T + p["fc2.bias"]).relu()
        return (h @ p["head.weight"].T + p["head.bias"])[:, outputs]

    for _ in range(steps):
        sgd.zero_grad()
        torch.nn.functional.cross_entropy(logits(), y).backward()
        sgd.step()
    with torch.no_grad():
        z = logits()
        return torch.nn.functional.cross_entropy(z, y).item(), (z.argmax(1) == y).double().mean().item()


@pytest.mark.parametrize(("scenario", "outputs"), [("domain", slice(0, 2)), ("task", slice(4, 6))])
def test_it_is_plain_training_on_these_labels_from_both_nets(boundary, scenario: str, outputs: slice) -> None:  # type: ignore[no-untyped-def]
    b: Boundary = boundary(t=2, scenario=scenario)
    found = random_labels(b, **SETTINGS)
    assert set(found) == set(COLUMNS)
    for s in range(2):
        loss, accuracy = by_hand(b, b.trained, s, outputs)
        fresh_loss, fresh_accuracy = by_hand(b, b.nets.initial, s, outputs)
        expected = {
            "random_label_loss": loss,
            "random_label_accuracy": accuracy,
            "random_label_loss_gap": loss - fresh_loss,
            "random_label_accuracy_gap": fresh_accuracy - accuracy,
        }
        for name, true in expected.items():
            assert value(found[name])[s].item() == pytest.approx(true, rel=1e-9, abs=1e-12), name


def test_labels_are_the_tasks_own_in_another_order_of_each_seed(boundary) -> None:  # type: ignore[no-untyped-def]
    b: Boundary = boundary(t=2, scenario="class")
    old, new = b.probe(2, 30).y, labels(b)
    assert torch.equal(old.sort(1).values, new.sort(1).values)
    assert not torch.equal(old, new)
    batch = b.probe(2, 30)
    numbered = replace(batch, y=torch.arange(30).expand(2, 30), w=torch.rand(2, 30))
    found = shuffled(numbered, rng.fold(b.random.base, "labels"))
    assert all(torch.equal(row.sort().values, torch.arange(30)) for row in found.y)
    assert not torch.equal(found.y[0], found.y[1])
    assert torch.equal(found.x, batch.x) and (found.w == 1 / 30).all()


def test_the_learning_rates_schedule_spans_these_steps_wherever_the_run_is(boundary) -> None:  # type: ignore[no-untyped-def]
    b: Boundary = boundary(t=2, scenario="class")
    b.learner.optimizer = SGD(lr=0.1, schedule="step", milestones=(0.5,), gamma=1e-15)
    b.learner.now, b.learner.steps, b.learner.planned = 0, 8, 9
    found = random_labels(b, **SETTINGS)
    for s in range(2):
        loss, _ = by_hand(b, b.trained, s, slice(0, 6), steps=3)
        assert value(found["random_label_loss"])[s].item() == pytest.approx(loss, rel=1e-9)


def test_every_step_drops_units_of_its_own_and_no_score_does(boundary) -> None:  # type: ignore[no-untyped-def]
    b: Boundary = boundary()
    seen: list[tuple[bool, Tensor | None]] = []

    def watched(params, buffers, x, t, *, train=False, key=None, record=False):  # type: ignore[no-untyped-def]
        seen.append((train, key))
        return b.trained.apply(params, buffers, x, t, train=train, key=key, record=record)

    random_labels(replace(b, trained=Net(b.trained.params, {}, watched)), **SETTINGS)
    assert [train for train, _ in seen] == [True] * 6 + [False]
    for s in range(2):
        assert len({int(key[s]) for _, key in seen[:6] if key is not None}) == 6


def test_small_batches_go_through_all_rows_and_learn_them(boundary) -> None:  # type: ignore[no-untyped-def]
    b: Boundary = boundary(t=1, model=lambda s: MLP(s.shape, s.outputs, (64,)))
    b.learner.optimizer = Adam(lr=0.01)
    found = random_labels(b, size=30, steps=400, batch_size=10)
    assert value(found["random_label_accuracy"]).tolist() == [1, 1]
    assert (value(found["random_label_loss"]) < 0.1).all()


def test_a_net_that_cannot_move_shows_and_the_initialisation_has_no_gap(boundary) -> None:  # type: ignore[no-untyped-def]
    b: Boundary = boundary()
    dead = {k: v.clone() for k, v in b.nets.initial.params.items()}
    dead["fc1.bias"] -= 100
    stuck = random_labels(replace(b, trained=Net(dead, {}, b.trained.apply)), size=30, steps=200, batch_size=30)
    assert (value(stuck["random_label_accuracy_gap"]) > 0.1).all()
    assert (value(stuck["random_label_loss_gap"]) > 0.05).all()
    same = random_labels(replace(b, trained=b.nets.initial), **SETTINGS)
    assert value(same["random_label_loss_gap"]).tolist() == [0, 0]


def test_the_optimizers_state_is_afresh_and_the_runs_own_stays(boundary) -> None:  # type: ignore[no-untyped-def]
    b: Boundary = boundary()
    b.learner.optimizer = SGD(lr=0.1, momentum=0.9)
    clean = random_labels(b, **SETTINGS)
    moving = {k: torch.ones_like(v) for k, v in b.learner.params.items()}
    b.learner.optimizer.update(tree.copy(b.learner.params), moving)
    kept = tree.copy(b.learner.optimizer.state["momentum"])
    again = random_labels(b, **SETTINGS)
    assert all(torch.equal(value(clean[n]), value(again[n])) for n in clean)
    assert all(torch.equal(v, kept[k]) for k, v in b.learner.optimizer.state["momentum"].items())


def test_a_copy_that_diverges_is_nan_and_leaves_the_other_alone(boundary) -> None:  # type: ignore[no-untyped-def]
    sound = random_labels(boundary(), **SETTINGS)
    b: Boundary = boundary()
    b.trained.params["head.weight"][0] *= 1e200
    found = random_labels(b, **SETTINGS)
    for name, r in found.items():
        assert value(r)[0].isnan(), name
        assert torch.equal(value(r)[1], value(sound[name])[1]), name


def test_regression_has_a_loss_only_and_a_start_has_nothing(boundary) -> None:  # type: ignore[no-untyped-def]
    found = random_labels(boundary(loss="mse"), **SETTINGS)
    assert set(found) == {"random_label_loss", "random_label_loss_gap"}
    assert all(value(r).isfinite().all() for r in found.values())
    assert random_labels(boundary(phase="start"), **SETTINGS) == {}
