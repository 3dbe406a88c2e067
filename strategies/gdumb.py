"""Prabhu, Torr & Dokania (2020), GDumb: a simple approach that questions our progress in continual learning. ECCV."""

import math
from dataclasses import replace

import torch

from harness import rows, tree
from harness.learner import Learner
from harness.strategy import EDIT, Strategy
from harness.toolbox import require
from harness.toolbox.memory import Memory, pick
from harness.types import Task


class GDumb(Strategy):
    """GDumb: collect a class-balanced memory, and train a fresh network on it at each boundary (Prabhu 2020).

        θ_t = SGD from a new initialisation on  mean_memory(nll),   equal shares of the classes in the memory

    It takes no step during a task. Only the memory is carried over: a method that is no better gains nothing
    from its other means.

    Budget: at each boundary `epochs` passes over the memory in steps of batch_size rows (ceil(rows /
    batch_size) per pass), independent of train.epochs, with the run's optimizer (reset) and schedule.
    Memory: capacity rows per seed.

    Differences from the paper:
    * The run's optimizer instead of SGD with momentum, warm restarts (0.05 to 0.0005, T0 = 1, doubling) and early
      stopping; no CutMix or other augmentation, no weight decay, no gradient clipping.
    * Within a class every row seen is stored with the same probability; the greedy sampler keeps the first
      rows of a class until another class needs their room. Class counts are equal to within one row.
    * A task's rows enter the memory at its end, in random order, with the same result.
    * Classes are outputs: tasks that share their outputs share one quota.
    * Other strategies in the list do not see its steps.
    """

    family = "replay"
    order = {"end": EDIT}

    def __init__(self, *, capacity: int, epochs: int, batch_size: int) -> None:
        require.at_least(1, capacity=capacity, epochs=epochs, batch_size=batch_size)
        self.capacity, self.epochs, self.batch_size = capacity, epochs, batch_size

    def setup(self, learner: Learner) -> None:
        if learner.stream.loss == "mse":
            raise ValueError(f"{self.name}: regression has no classes to balance; use strategy=replay")
        self.memory = Memory(self.capacity, "class_balanced", self.random)

    def begin(self, learner: Learner, task: Task) -> Task:
        return replace(task, epoch=0)

    def end(self, learner: Learner, task: Task) -> None:
        for position in rows.order(self.random.key(), task.train.size, 0, task.rows).split(1000, 1):
            x, y, t = task.train.take(position)
            self.memory.add(x=x, y=y, t=t)
        params, buffers = learner.fresh(self.random.key())
        tree.assign(learner.params, params)
        learner.buffers = buffers
        learner.optimizer.reset()
        held = self.memory.rows()
        count = len(self.memory)
        size = min(self.batch_size, count)
        learner.steps, learner.planned = 0, self.epochs * math.ceil(count / size)
        order = rows.order(self.random.key(), torch.full_like(task.train.size, count), 0, learner.planned * size)
        keys = self.random if learner.model.stochastic else None
        batches = (learner.make_batch(**pick(held, position)) for position in order.split(size, 1))
        for _ in learner.descend(replace(b, key=keys.key()) if keys else b for b in batches):
            pass
        learner.planned = 0  # as after `begin`
