"""Aljundi, Caccia, Belilovsky, Caccia, Lin, Charlin & Tuytelaars (2019), Online continual learning with maximally
interfered retrieval. NeurIPS. Authors' code: optimass/Maximally_Interfered_Retrieval.
"""

import torch
from torch import Tensor

from harness import tree
from harness.learner import Learner
from harness.strategy import APPEND, Strategy
from harness.toolbox import require
from harness.toolbox.memory import Memory, pick
from harness.types import Batch, Params, Step, cat


class MIR(Strategy):
    """MIR: replay the memory rows that the next step would harm most (Aljundi 2019).

        θ' = θ - lr ∇ mean_fresh(nll)                       a virtual step, lr as it is now
        L  = mean_fresh(nll) + mean_top(nll),   top = the batch_size rows of largest nll(θ') - nll(θ)

    among `candidates` rows drawn from a reservoir; each fresh batch enters it after its update. This is the paper's
    MI-1. Losses are compared in evaluation mode (no dropout, running statistics), under the current task's mask.

    Memory: capacity rows per seed. Time: one more gradient of the fresh rows, two forward passes of the candidates.

    Differences from the paper:
    * Candidates come from the whole memory, as in the paper's algorithm; the authors' code excludes the current
      task's rows, and replays nothing in the first task.
    * The virtual step is plain gradient descent, also with momentum or Adam, without penalties of other strategies.
    """

    family = "replay"
    order = {"batch": APPEND}

    def __init__(self, *, capacity: int, batch_size: int, candidates: int) -> None:
        require.at_least(1, capacity=capacity, batch_size=batch_size)
        if candidates < batch_size:
            raise ValueError(f"candidates={candidates}: must be at least batch_size={batch_size}")
        self.capacity, self.batch_size, self.candidates = capacity, batch_size, candidates

    def setup(self, learner: Learner) -> None:
        self.memory = Memory(self.capacity, "reservoir", self.random)

    def batch(self, learner: Learner, batch: Batch) -> Batch:
        if not len(self.memory):
            return batch
        rows = self.memory.sample(self.candidates)
        if rows["t"].shape[1] > self.batch_size:
            worst = self.interference(learner, batch, learner.make_batch(**rows)).topk(self.batch_size).indices
            rows = pick(rows, worst)
        return cat(batch, learner.make_batch(**rows)).batch

    def interference(self, learner: Learner, batch: Batch, rows: Batch) -> Tensor:
        """Increase of the loss of each of `rows` by the virtual step: [S, B]."""
        learner.set_lr()
        ahead = tree.add(learner.params, learner.task_grad(learner.params, batch), -learner.optimizer.lr)

        def nll(params: Params) -> Tensor:
            return learner.row_loss(learner.apply(params, learner.buffers, rows.x, rows.t).logits, rows)

        with torch.no_grad():
            return nll(ahead) - nll(learner.params)

    def step(self, learner: Learner, step: Step) -> None:
        self.memory.add(x=step.fresh.x, y=step.fresh.y, t=step.fresh.t)
