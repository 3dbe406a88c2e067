"""The edge of stability: where the optimizers themselves begin to diverge."""

import pytest
import torch

from harness import tree
from harness.landscape import edge_of_stability
from harness.landscape.curvature import flatten
from harness.learner import Budget
from harness.models.mlp import MLP
from harness.optim import SGD, Adam, Optimizer
from harness.rng import keys, normal
from tests.harness.dense import SCRIPTED, dense, net
from tests.toy import gaussian

F64 = torch.float64
H = torch.tensor([[3.0, 1.0], [1.0, 0.5]], dtype=F64)
SQUARE = torch.tensor([[4.0, 0.25]], dtype=F64)


def settled(optimizer: Optimizer) -> Optimizer:
    """With Adam, a preconditioner that no step moves: an old and slow running mean."""
    if isinstance(optimizer, Adam):
        optimizer.state = {"mean": {"w": torch.zeros(1, 2, dtype=F64)}, "square": {"w": SQUARE.clone()}}
        optimizer.count = 10**14
    return optimizer


@pytest.mark.parametrize(
    "make",
    [
        lambda lr: SGD(lr=lr),
        lambda lr: SGD(lr=lr, momentum=0.9),
        lambda lr: SGD(lr=lr, momentum=0.6, nesterov=True),
        lambda lr: Adam(lr=lr, betas=(0.9, 1 - 1e-12)),
        lambda lr: Adam(lr=lr, betas=(0.3, 1 - 1e-12)),
    ],
    ids=["gradient descent", "heavy ball", "nesterov", "adam", "adam with another beta"],
)
def test_the_optimizer_diverges_exactly_where_the_ratio_is_above_1(make) -> None:  # type: ignore[no-untyped-def]
    p = SQUARE[0].sqrt() + 1e-8 if isinstance(make(1.0), Adam) else torch.ones(2, dtype=F64)
    lam = torch.linalg.eigvals(H / p[:, None]).real.max()[None]
    at_one = 1 / edge_of_stability.ratio(make(1.0), 1.0, lam).item()
    for lr, grows in ((0.99 * at_one, False), (1.01 * at_one, True)):
        optimizer, params = settled(make(lr)), {"w": torch.ones(1, 2, dtype=F64)}
        for _ in range(4000):
            optimizer.update(params, {"w": params["w"] @ H})
            if params["w"].norm() > 1e3:  # far beyond, Adam's running mean would move after all
                break
        assert (params["w"].norm() > 1e3) == grows and (grows or params["w"].norm() < 1e-3)


def test_another_optimizer_has_no_known_edge() -> None:
    class Sign(Optimizer):
        pass

    assert edge_of_stability.ratio(Sign(lr=0.1), 0.1, torch.ones(2)).isnan().all()


def test_inverse_root_is_what_adam_divided_its_mean_gradient_by() -> None:
    optimizer, params = Adam(lr=0.01), {k: normal(keys([0, 1], k), 6, dtype=F64) for k in "wb"}
    assert edge_of_stability.inverse_root(optimizer, params) is None
    reset = torch.tensor([False, True, False, False, True, False])
    for step in range(7):
        before = tree.copy(params)
        optimizer.update(params, {k: normal(keys([2, 3], f"{k}{step}"), 6, dtype=F64) for k in "wb"})
        root = edge_of_stability.inverse_root(optimizer, params)
        assert root is not None
        for k in "wb":
            moved = (before[k] - params[k]) / 0.01
            torch.testing.assert_close(optimizer.state["mean"][k] * root[k].square(), moved, rtol=1e-9, atol=0)
        if step == 3:
            optimizer.reset("w", reset)
            root = edge_of_stability.inverse_root(optimizer, params)
            assert root is not None and ((root["w"] == 0) == reset).all()


@pytest.mark.filterwarnings(SCRIPTED)
def test_ratio_of_a_net_under_adam_is_that_of_its_dense_preconditioned_hessian() -> None:
    loss, params = net([4, 1, 7])
    learner = gaussian(lambda s: MLP(s.shape, s.outputs, (3,)), Adam(lr=0.02))
    square = {k: torch.rand(v.shape, dtype=F64, generator=torch.Generator().manual_seed(1)) for k, v in params.items()}
    learner.optimizer.state, learner.optimizer.count = {"mean": tree.zeros(params), "square": square}, 5  # type: ignore[attr-defined]
    lam, key = torch.full((3,), 9.0, dtype=F64), keys([4, 1, 7], "test")
    found = edge_of_stability.edge_ratio(learner, 0.02, loss, params, lam, key, 60)
    for s in range(3):
        p = (1 - 0.9**5) * ((flatten(square)[s] / (1 - 0.999**5)).sqrt() + 1e-8)
        true = torch.linalg.eigvals(dense(loss, params, s) / p[:, None]).real.max()
        torch.testing.assert_close(found[s], 0.02 * true * 0.1 / (2 * 1.9), rtol=1e-7, atol=0)
    learner.optimizer = SGD(lr=0.02)
    torch.testing.assert_close(edge_of_stability.edge_ratio(learner, 0.02, loss, params, lam, key, 60), 0.01 * lam)


def test_rate_is_that_of_the_step_in_the_schedule_and_leaves_it_alone() -> None:
    optimizer = SGD(lr=0.1, schedule="cosine")
    learner = gaussian(lambda s: MLP(s.shape, s.outputs, (3,)), optimizer, tasks=2)
    learner.budget = Budget(steps=10, batch_size=8)
    learner.enter(learner.stream.tasks[1])
    learner.plan(learner.stream.tasks[1])
    used = []
    for _ in learner.descend(learner.batches(learner.stream.tasks[1])):
        used.append(optimizer.lr)
    assert [edge_of_stability.rate(learner, step) for step in range(10)] == used and used[0] == 0.1 > used[9] > 0
    assert optimizer.lr == used[9] and learner.optimizer is optimizer and learner.steps == 10
    constant = gaussian(lambda s: MLP(s.shape, s.outputs, (3,)), SGD(lr=0.1))
    constant.optimizer.lr = 0.03  # as a strategy may have set it
    assert edge_of_stability.rate(constant, 0) == 0.03
