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
    """GDumb: collect a class-balanced memory, and train a fresh network on it alone when asked (Prabhu 2020).

        θ_t = SGD from a new initialisation on  mean_memory(nll),   equal shares of the classes in the memory

    It learns nothing from the stream: no step is taken during a task. Nothing but the memory is carried over,
    so that a method which is no better has used its other means in vain.

    Budget: at each boundary `epochs` passes over the memory in steps of batch_size rows (ceil(rows /
    batch_size) a pass), whatever the run's train.epochs, by the run's optimizer, started afresh, and its
    schedule. Memory: capacity rows per seed.

    Differences from the paper:
    * The run's optimizer in place of SGD with momentum, warm restarts (0.05 to 0.0005, T0 = 1, doubling) and early
      stopping; neither CutMix nor other augmentation, nor weight decay, nor clipped gradients.
    * Inside a class every row seen is held with the same probability; the greedy sampler keeps the first
      rows of a class until another class needs their room. The counts of the classes are equal to within one row.
    * A task's rows are offered at its end, in random order: the memory is the same function of them.
    * Classes are outputs: tasks that share their outputs share one quota.
    * Strategies beside it in the list do not see its steps.
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
        return replace(task, nominal=0)

    def end(self, learner: Learner, task: Task) -> None:
        for position in rows.order(self.random.key(), task.train.size, 0, task.nominal).split(1000, 1):
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
        learner.planned = 0  # as `begin` had it
