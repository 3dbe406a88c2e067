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
    """ER-ACE: fresh rows do not push old classes down; replayed rows separate all classes (Caccia 2022).

        L = mean_fresh(nll over C_fresh) + mean_memory(nll over all that compete)
        C_fresh = classes in the fresh batch, and classes that no batch has shown yet

    Only classes seen before that are not in this batch are excluded. As in the authors' code the two means are summed,
    and in the first task no class is excluded and nothing is replayed. The memory is a reservoir; each fresh batch
    enters it after its update. For replayed rows the stream decides which outputs compete: classes=seen or all.

    Memory: capacity rows per seed. Each step trains on up to batch_size additional rows.

    Differences from the paper:
    * A class counts as unseen until it appears in a batch. The authors' code uses all classes from the highest seen
      number up. This is the same if classes arrive in numerical order, except that their highest seen class always
      competes.
    * Memory and fresh rows form one batch, with common batch-norm statistics.
    * Multi-epoch streams are allowed; the paper's streams show each row once.
    """

    name = "er_ace"
    family = "replay"
    needs_boundaries = True  # it replays from the second task on
    scenarios = ("class",)
    why = "fresh rows push old classes down only if new classes join the same softmax"
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
