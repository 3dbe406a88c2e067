"""Caccia, Aljundi, Asadi, Tuytelaars, Pineau & Belilovsky (2022), New insights on reducing abrupt representation
change in online continual learning. ICLR. Authors' code: pclucas14/AML.
"""

from dataclasses import replace

import torch

from harness.learner import Learner
from harness.strategy import APPEND, Strategy
from harness.toolbox import require
from harness.toolbox.memory import Memory
from harness.types import Batch, Step, cat


class ERACE(Strategy):
    """ER-ACE: fresh rows do not push old classes down; replayed rows tell all classes apart (Caccia 2022).

        L = mean_fresh(nll over C_fresh) + mean_memory(nll over all that compete)
        C_fresh = classes in the fresh batch, and classes that no batch has shown yet

    Only classes seen before, and not in this batch, are left out. As in the authors' code the two means are summed, and
    in the first task nothing is left out and nothing is replayed. The memory is a reservoir, offered each fresh batch
    after its update. What competes for replayed rows is the stream's: classes=seen or all.

    Memory: capacity rows per seed. Each step trains on up to batch_size rows more than naive does.

    Differences from the paper:
    * A class counts as unseen until a batch has shown it. The authors' code takes the classes from the highest seen
      number on, which is the same where classes come in the order of their numbers, but that it lets the highest one
      compete always.
    * Memory and fresh rows pass the net together, hence share the statistics of batch norm.
    * Multi-epoch streams are allowed; the paper's see each row once.
    """

    name = "er_ace"
    family = "replay"
    needs_boundaries = True  # it replays from the second task on
    scenarios = ("class",)
    why = "fresh rows push old classes down only where new classes join one softmax"
    order = {"batch": APPEND}

    def __init__(self, *, capacity: int, batch_size: int) -> None:
        require.at_least(1, capacity=capacity, batch_size=batch_size)
        self.capacity, self.batch_size = capacity, batch_size

    def setup(self, learner: Learner) -> None:
        self.memory = Memory(self.capacity, "reservoir", self.random)
        self.seen = torch.zeros(learner.S, learner.stream.outputs, dtype=torch.bool, device=learner.device)

    def batch(self, learner: Learner, batch: Batch) -> Batch:
        present = torch.zeros_like(self.seen).scatter_(1, batch.y, True)
        self.seen = self.seen | present
        if not learner.now:
            return batch
        mask = (present | ~self.seen)[:, None]
        fresh = replace(batch, mask=mask if batch.mask is None else mask & batch.mask)
        return cat(fresh, learner.make_batch(**self.memory.sample(self.batch_size))).batch

    def step(self, learner: Learner, step: Step) -> None:
        self.memory.add(x=step.fresh.x, y=step.fresh.y, t=step.fresh.t)
