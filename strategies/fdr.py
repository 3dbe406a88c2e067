"""Benjamin, Rolnick & Kording (2019), Measuring and regularizing networks in function space, ICLR."""

import torch
from torch import Tensor

from harness import rng, rows
from harness.learner import Learner, mask_logits
from harness.strategy import APPEND, ESTIMATE, Strategy
from harness.toolbox import require
from harness.types import Batch, Out, Params, Task, cat


class FDR(Strategy):
    """Function distance regularisation: keep the outputs on memory inputs (Benjamin 2019).

        penalty = strength mean_memory |p(x) - p*(x)|        squared=true: |p(x) - p*(x)|²

    p is the softmax over the outputs that compete for the row (for regression the outputs themselves), p* its value
    at the end of the row's own task, in evaluation mode. Each past task has capacity // tasks random rows in the
    memory; labels are not stored. Memory rows join the batch with weight 0 in the task loss.

    Memory: capacity rows with their outputs per seed. Each step uses batch_size additional rows.

    Differences from the paper:
    * Each step uses a random batch of the memory, as in Mammoth's code, not all of it; it is one step on the sum of
      both losses, two steps in Mammoth's code.
    * Outputs of later classes have p* = 0.
    """

    family = "functional regularization"
    order = {"batch": APPEND, "end": ESTIMATE}
    grid = {"strength": (1.0, 3.0, 10.0, 30.0)}  # half orders of magnitude from Mammoth's 1 upwards

    def __init__(self, *, strength: float, capacity: int, batch_size: int, squared: bool) -> None:
        require.at_least(0, strength=strength)
        require.at_least(1, capacity=capacity, batch_size=batch_size)
        self.strength, self.capacity, self.batch_size, self.squared = strength, capacity, batch_size, squared
        self.share = 0  # stored rows per task

    def setup(self, learner: Learner) -> None:
        tasks = len(learner.stream.tasks)
        if self.capacity < tasks:
            raise ValueError(f"capacity={self.capacity}: must be at least {tasks}, one row for each task")
        S, n, like = learner.S, self.capacity, learner.params[learner.model.head[0]]
        x, _, t = learner.stream.tasks[0].train.take(torch.zeros(S, 1, dtype=torch.int64, device=learner.device))
        self.x, self.t = x.new_zeros(S, n, *x.shape[2:]), t.new_zeros(S, n)
        self.p = like.new_zeros(S, n, learner.stream.outputs)

    def batch(self, learner: Learner, batch: Batch) -> Batch:
        held = self.share * learner.now
        if not held:
            return batch
        pick = rng.permutation(self.random.key(), held)[:, : self.batch_size]
        x, t, p = (take(v, pick) for v in (self.x, self.t, self.p))
        y = p if learner.stream.loss == "mse" else p.argmax(-1)  # weight 0 times a class that competes
        old = learner.make_batch(x, y, t, torch.zeros_like(p[..., 0]))
        batch, where = cat(batch, old)
        return batch.carry(fdr=(where, p, old.mask))

    def loss(self, learner: Learner, params: Params, batch: Batch, out: Out) -> Tensor | float:
        if "fdr" not in batch.extra:
            return 0.0
        where, old, mask = batch.extra["fdr"]
        shift = outputs(learner, out.logits[:, where], mask) - old
        # the gradient of the norm at 0 is 0, that of a square root of a sum would be NaN
        row = shift.square().sum(-1) if self.squared else torch.linalg.vector_norm(shift, dim=-1)
        penalty: Tensor = self.strength * row.mean(1)
        return penalty

    @torch.no_grad()
    def end(self, learner: Learner, task: Task) -> None:
        done, old, share = learner.now, self.share, self.capacity // (learner.now + 1)
        kept = torch.arange(done * old, device=learner.device).view(done, old)[:, :share].flatten()
        x, _, t = task.train.take(rows.order(self.random.key(), task.train.size, 0, share))
        p = outputs(learner, learner.net(x, t).logits, learner.stream.mask(t, learner.now))
        for held, new in ((self.x, x), (self.t, t), (self.p, p)):
            held[:, : done * share] = held[:, kept]
            held[:, done * share : (done + 1) * share] = new
        self.share = share


def outputs(learner: Learner, logits: Tensor, mask: Tensor | None) -> Tensor:
    """Class probabilities, or the outputs of a regression."""
    return logits if learner.stream.loss == "mse" else mask_logits(logits, mask).softmax(-1)


def take(v: Tensor, index: Tensor) -> Tensor:
    """Rows `index` [S, k] of v [S, n, ...]."""
    return v.gather(1, index.view(*index.shape, *[1] * (v.dim() - 2)).expand(*index.shape, *v.shape[2:]))
