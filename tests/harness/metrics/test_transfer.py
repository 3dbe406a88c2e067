"""Every definition on one matrix, worked by hand."""

import math

import pytest
import torch
from torch import Tensor

from harness.metrics import transfer
from harness.types import Reading

#                 task 0   1    2
R = torch.tensor([[0.10, 0.20, 0.30],  # initialisation
                  [0.90, 0.25, 0.20],  # after task 0
                  [0.95, 0.80, 0.40],  # after task 1: task 0 got better
                  [0.50, 0.85, 0.70]], dtype=torch.float64)[None]  # fmt: skip
NAN = math.nan


def forgetting(r: Tensor, t: int) -> Tensor:
    return transfer.forgetting_of_tasks(r, t).mean(1)


@pytest.mark.parametrize(
    ("measure", "expected"),
    [
        (transfer.average_accuracy, [0.9, (0.95 + 0.8) / 2, (0.5 + 0.85 + 0.7) / 3]),
        (transfer.learning_accuracy, [0.9, 0.8, 0.7]),
        # after task 2: task 0 fell from its best 0.95 (not 0.90), task 1 rose by 0.05
        (forgetting, [NAN, 0.9 - 0.95, ((0.95 - 0.5) + (0.8 - 0.85)) / 2]),
        (transfer.backward_transfer, [NAN, 0.95 - 0.9, ((0.5 - 0.9) + (0.85 - 0.8)) / 2]),
        # just before task 1: 0.25 against 0.20 untrained; before task 2: 0.40 against 0.30
        (transfer.forward_transfer, [NAN, 0.05, (0.05 + 0.1) / 2]),
    ],
)
def test_worked_numbers(measure, expected: list[float]) -> None:  # type: ignore[no-untyped-def]
    found = [measure(R, t).item() for t in range(3)]
    assert found == pytest.approx(expected, nan_ok=True)


def test_forgetting_takes_the_best_since_the_task_was_learnt_not_before() -> None:
    r = R.clone()
    r[0, 0, 1] = r[0, 1, 1] = 1.0  # before task 1 was trained
    assert transfer.forgetting_of_tasks(r, 2)[0].tolist() == pytest.approx([0.45, -0.05])


@pytest.mark.parametrize(
    ("entry", "hit"),
    [
        ((0, 3, 0), {"average_accuracy", "forgetting", "backward_transfer"}),
        ((0, 1, 0), {"forgetting", "backward_transfer"}),
        ((0, 2, 0), {"forgetting"}),
        ((0, 1, 1), {"forward_transfer"}),
        ((0, 0, 2), {"forward_transfer"}),
        ((0, 0, 0), set()),
        ((0, 1, 2), set()),
        ((0, 3, 2), {"average_accuracy", "learning_accuracy"}),
    ],
)
def test_what_needs_an_unmeasured_entry_is_nan_and_nothing_else(entry: tuple[int, int, int], hit: set[str]) -> None:
    r = R.clone()
    r[entry] = NAN
    names = ["average_accuracy", "learning_accuracy", "backward_transfer", "forward_transfer"]
    measures = {"forgetting": forgetting, **{n: getattr(transfer, n) for n in names}}
    assert {n for n, measure in measures.items() if measure(r, 2).isnan().item()} == hit


def test_rows_are_seeds_and_none_is_mixed_with_another() -> None:
    both = torch.cat([R, R.flip(1)])
    names = ("average_accuracy", "learning_accuracy", "backward_transfer", "forward_transfer")
    for measure in (forgetting, *(getattr(transfer, name) for name in names)):
        assert torch.equal(measure(both, 2), torch.cat([measure(R, 2), measure(R.flip(1), 2)]))


def test_boundary_gives_every_column_after_a_task_and_none_before(boundary) -> None:  # type: ignore[no-untyped-def]
    b = boundary(t=2, accuracy=R, online=torch.tensor([[0.0, 0.5, 1.0, 0.1]], dtype=torch.float64), seeds=(3,))
    found = transfer.transfer(b)
    assert set(found) == set(transfer.COLUMNS)
    per_task = found["forgetting_task"]
    assert isinstance(per_task, Reading) and per_task.axis == "task" and list(per_task.coords) == [0, 1]
    assert per_task.value.tolist() == [pytest.approx([0.45, -0.05])]
    online = found["online_accuracy"]
    assert isinstance(online, Tensor) and online.tolist() == pytest.approx([0.4])
    assert transfer.transfer(boundary(t=2, phase="start")) == {}
    first = transfer.transfer(boundary(t=0, accuracy=R, seeds=(3,), online=torch.zeros(1, 0)))
    assert set(transfer.COLUMNS) - set(first) == {"forgetting_task"}  # there is no old task
    for name in ("forgetting", "backward_transfer", "forward_transfer", "online_accuracy"):
        alone = first[name]
        assert isinstance(alone, Tensor) and alone.isnan().all()


@pytest.mark.parametrize("window", [1, 3, 9])
def test_forgetting_by_its_definition_where_only_the_last_tasks_are_tested(window: int) -> None:
    """Each entry by its formula; entries outside the window, and two inside it for one seed, are not measured."""
    T = 9
    r = torch.rand(2, T + 1, T, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for i in range(T):
        r[:, i + 1, : max(0, i + 1 - window)] = NAN
    r[1, 8, 7] = r[1, 9, T - window] = NAN
    for t in range(T):
        found = transfer.forgetting_of_tasks(r, t)
        assert found.shape == (2, t)
        for s in range(2):
            for j in range(t):
                scores = [float(r[s, i + 1, j]) for i in range(j, t + 1)]
                unknown = any(map(math.isnan, scores))
                expected = NAN if unknown else max(scores[:-1]) - scores[-1]
                assert float(found[s, j]) == pytest.approx(expected, nan_ok=True), (s, t, j)
