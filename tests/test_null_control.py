"""Where all tasks are the same nothing is forgotten and nothing gets harder; where they differ it is seen."""

import math

import numpy as np
import pytest
import torch

from harness.learner import Budget
from harness.metrics.transfer import backward_transfer, forgetting_of_tasks
from harness.models.mlp import MLP
from harness.optim import SGD
from harness.run import fresh_accuracy, run
from harness.stats import student
from strategies.naive import Naive
from strategies.reset import Reset
from tasks.datasets import load
from tasks.permuted import permuted
from tasks.same import same

SEEDS, TASKS = (0, 1, 2, 3, 4), 6
NOISE = math.sqrt(0.9 * 0.1 / 360)  # standard error of an accuracy of 0.9 on the 360 test rows of digits


def both(stream):
    """Accuracy matrix of naive training, that of a fresh net for each task, and the trainability gap [S, T]."""
    how = {"model": MLP(stream.shape, stream.outputs, (30,)), "budget": Budget(steps=60)}
    control = fresh_accuracy(run(stream, [Reset()], optimizer=SGD(lr=0.1), is_control=True, gap=False, **how).accuracy)
    naive = run(stream, [Naive()], optimizer=SGD(lr=0.1), control=control, **how).accuracy
    return naive, control, control - fresh_accuracy(naive)


@pytest.fixture(scope="module")
def null():
    return both(same(dataset=load("digits", normalise="standard"), seeds=SEEDS, n_tasks=TASKS))


@pytest.fixture(scope="module")
def different():
    return both(permuted(dataset=load("digits", normalise="standard"), seeds=SEEDS, n_tasks=TASKS, fixed=False))


def low_and_high(values):
    mean, half = student(values.numpy())
    return mean - half, mean + half


def test_nothing_is_forgotten_where_tasks_are_the_same(null, different):
    naive, _, _ = null
    assert low_and_high(forgetting_of_tasks(naive, TASKS - 1).mean(1))[0] < NOISE
    assert low_and_high(backward_transfer(naive, TASKS - 1))[1] > -NOISE
    elsewhere = forgetting_of_tasks(different[0], TASKS - 1).mean(1)
    assert low_and_high(elsewhere)[0] > 5 * NOISE
    for t in range(TASKS):  # equal tasks have equal scores, at every boundary
        assert torch.equal(naive[:, t + 1, : t + 1], naive[:, t + 1, :1].expand(-1, t + 1))


def test_a_fresh_net_finds_every_task_as_hard_as_the_first(null):
    """The slope of the reset curve over all tasks, each seed's own, is 0 within its interval and within noise."""
    _, control, _ = null
    slopes = torch.from_numpy(np.polyfit(np.arange(TASKS), control.numpy().T, 1)[0])
    low, high = low_and_high(slopes)
    assert low < 0 < high and max(-low, high) * (TASKS - 1) < 4 * NOISE


def test_there_is_no_trainability_gap_where_tasks_are_the_same(null):
    """A learner that goes on with what it knows is at least as good as a fresh one; at the first task it is that."""
    gap = null[2]
    assert torch.equal(gap[:, 0], torch.zeros_like(gap[:, 0]))
    for t in range(1, TASKS):
        assert low_and_high(gap[:, t])[0] < NOISE
    assert low_and_high(gap[:, 1:].mean(1))[1] < NOISE
