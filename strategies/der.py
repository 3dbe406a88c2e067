"""Buzzega, Boschini, Porrello, Abati & Calderara (2020), Dark experience for general continual learning: a strong,
simple baseline. NeurIPS. Authors' code: aimagelab/mammoth.
"""

from dataclasses import replace

from torch import Tensor

from harness.learner import Learner
from harness.strategy import APPEND, Strategy
from harness.toolbox import require
from harness.toolbox.memory import Memory
from harness.types import Batch, Model, Out, Params, Step, Stream, cat

UNSEEN = (
    "classes=seen: it holds untrained outputs of classes to come where they are; use classes=all, as its authors do"
)


class DER(Strategy):
    """Dark experience replay: keep the outputs on memory rows as they were when seen (Buzzega 2020).

        L = mean_fresh(nll) + alpha mean_memory,c (f_c(x) - z_c)²

    z are the outputs (before the softmax) of the row's own training step, before its update. Labels are not replayed.
    The memory is a reservoir; each fresh batch enters it after its update. As in the authors' code, the square is
    averaged over all outputs, not summed as in their formula, and under scenario=task the outputs of all heads are
    compared. Memory: capacity rows and their outputs per seed.

    The squared error stands for the divergence between the softmaxes of z and f (equal for small differences, up to a
    shift), so it has a meaning on the outputs that z's softmax had. With classes=seen it did not have the classes to
    come: their z are what an untrained output happens to be, about 0, and are held there while the new classes learn to
    exceed them. Nothing in z says that the row is none of these classes; with classes=all their outputs are low,
    because they competed. To leave them out of the error does not help: they are then free, and on split digits DER
    falls to plain training. All outputs are therefore compared, and a warning names classes=all.

    Differences from the paper:
    * Memory and fresh rows form one batch, with one batch norm; the authors' code uses two passes.
    * Inputs are stored as the net saw them; the authors augment replayed images again.
    * In class streams the authors let all outputs compete from the start (classes=all here, not the default).
    """

    family = "replay"
    order = {"batch": APPEND}
    grid = {"alpha": (0.3, 1.0, 3.0, 10.0)}  # half orders of magnitude from the authors' 0.2 to 1 upwards

    def __init__(self, *, capacity: int, batch_size: int, alpha: float) -> None:
        require.at_least(1, capacity=capacity, batch_size=batch_size)
        require.at_least(0, alpha=alpha)
        self.capacity, self.batch_size, self.alpha = capacity, batch_size, alpha

    def remarks(self, stream: Stream, model: Model) -> list[str]:
        return [UNSEEN] if stream.scenario == "class" and stream.classes == "seen" else []

    def setup(self, learner: Learner) -> None:
        self.memory = Memory(self.capacity, "reservoir", self.random)

    def batch(self, learner: Learner, batch: Batch) -> Batch:
        if not len(self.memory):
            return batch
        fields = self.memory.sample(self.batch_size)
        z = fields.pop("z")
        held = learner.make_batch(**fields)
        batch, rows = cat(batch, replace(held, w=held.w * 0))
        return batch.carry(der=(rows, z))

    def loss(self, learner: Learner, params: Params, batch: Batch, out: Out) -> Tensor | float:
        if "der" not in batch.extra:
            return 0.0
        rows, z = batch.extra["der"]
        error: Tensor = out.logits[:, rows] - z
        return self.alpha * error.square().mean((1, 2))

    def step(self, learner: Learner, step: Step) -> None:
        fresh = step.fresh
        self.memory.add(x=fresh.x, y=fresh.y, t=fresh.t, z=step.out.logits[:, : fresh.w.shape[1]].detach())
