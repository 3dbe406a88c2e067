"""Buzzega, Boschini, Porrello, Abati & Calderara (2020), Dark experience for general continual learning: a strong,
simple baseline. NeurIPS. Authors' code: aimagelab/mammoth.
"""

from dataclasses import replace

from torch import Tensor

from harness.learner import Learner
from harness.strategy import APPEND, Strategy
from harness.toolbox import require
from harness.toolbox.memory import Memory
from harness.types import Batch, Out, Params, Step, cat


class DERpp(Strategy):
    """DER++: dark experience replay plus the labels of further memory rows (Buzzega 2020).

        L = mean_fresh(nll) + alpha mean_memory',c (f_c(x) - z_c)² + beta mean_memory''(nll)

    memory' and memory'' are two independent draws of batch_size rows. z are the outputs (before the softmax) of the
    row's own training step, before its update. The memory is a reservoir; each fresh batch enters it after its update.
    As in the authors' code, the square is averaged over all outputs, including those of other heads; labels compete
    under the current task's mask. Memory: capacity rows and outputs per seed.

    Differences from the paper:
    * Memory and fresh rows form one batch, with one batch norm; the authors' code uses two passes.
    * Inputs are stored as seen, not augmented again. In class streams the authors let all outputs compete
      (classes=all); with classes=seen the outputs of classes to come are held where they are untrained
      (see DER), but the replayed labels say that a row is none of them.
    """

    family = "replay"
    order = {"batch": APPEND}
    grid = {"alpha": (0.3, 1.0, 3.0, 10.0)}  # half orders of magnitude from the authors' 0.2 to 1 upwards

    def __init__(self, *, capacity: int, batch_size: int, alpha: float, beta: float) -> None:
        require.at_least(1, capacity=capacity, batch_size=batch_size)
        require.at_least(0, alpha=alpha, beta=beta)
        self.capacity, self.batch_size, self.alpha, self.beta = capacity, batch_size, alpha, beta

    def setup(self, learner: Learner) -> None:
        self.memory = Memory(self.capacity, "reservoir", self.random)

    def batch(self, learner: Learner, batch: Batch) -> Batch:
        if not len(self.memory):
            return batch
        dark, plain = self.memory.sample(self.batch_size), self.memory.sample(self.batch_size)
        z, _ = dark.pop("z"), plain.pop("z")
        compared, labelled = learner.make_batch(**dark), learner.make_batch(**plain)
        batch, rows = cat(batch, replace(compared, w=compared.w * 0))
        return cat(batch, replace(labelled, w=labelled.w * self.beta)).batch.carry(derpp=(rows, z))

    def loss(self, learner: Learner, params: Params, batch: Batch, out: Out) -> Tensor | float:
        if "derpp" not in batch.extra:
            return 0.0
        rows, z = batch.extra["derpp"]
        error: Tensor = out.logits[:, rows] - z
        return self.alpha * error.square().mean((1, 2))

    def step(self, learner: Learner, step: Step) -> None:
        fresh = step.fresh
        self.memory.add(x=fresh.x, y=fresh.y, t=fresh.t, z=step.out.logits[:, : fresh.w.shape[1]].detach())
