"""Mensink, Verbeek, Perronnin & Csurka (2013), Distance-based image classification: generalizing to new classes at
near-zero cost, TPAMI 35; as the read-out of a learned representation: Rebuffi et al. (2017), iCaRL, CVPR.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from harness import rows
from harness.learner import Learner
from harness.strategy import READOUT, Strategy
from harness.toolbox import class_means, require
from harness.toolbox.memory import Memory
from harness.types import Model, Net, Stream, Task

MEANS = ("memory", "running")


class NCM(Strategy):
    """Nearest class mean: train as usual, and predict the class with the nearest mean of features (Mensink 2013).

        logit_c = -|φ(x) - μ_c|²,   μ_c = mean of φ over rows of class c,   φ: input of the head

        means=memory    over the rows of a class-balanced memory, by the current net: always up to date
        means=running   over each task's training rows, by the net at the task's end; later rows of a class are
                        averaged in, old ones are not revisited: the means become outdated as the net changes

    With normalise, φ and μ_c are scaled to length 1, as in iCaRL. A class without a mean is predicted only if no
    other competes; before the first task the net's own head predicts. Other strategies in the list do the training:
    [replay, ncm] is replay with a different read-out.

    Memory: capacity rows (means=memory), or one mean per class.

    Differences from the paper:
    * The metric is Euclidean on learned features; the paper learns a linear metric on fixed ones.
    * With shared outputs (scenario=domain) each output has one mean, over all tasks.
    """

    family = "template-based"
    order = {"deploy": READOUT}

    def __init__(self, *, means: str, capacity: int, normalise: bool) -> None:
        require.one_of(MEANS, means=means)
        require.at_least(1, capacity=capacity)
        self.means, self.capacity, self.normalise = means, capacity, normalise

    def remarks(self, stream: Stream, model: Model) -> list[str]:
        return [class_means.BETWEEN.format("model.widths=[]")] if class_means.between(stream, model) else []

    def setup(self, learner: Learner) -> None:
        self.layer, width = class_means.head_layer(learner, self.name)
        self.memory = Memory(self.capacity, "class_balanced", self.random)
        held = learner.stream.outputs if self.means == "running" else 0
        self.sum = torch.zeros(learner.S, held, width, dtype=torch.float64, device=learner.device)
        self.count = self.sum.new_zeros(learner.S, held)

    def end(self, learner: Learner, task: Task) -> None:
        if self.means == "running":
            for batch in learner.scan(task.train):
                self.tally(learner.net, batch.x, batch.y, batch.t, batch.w > 0, self.sum, self.count)
        else:  # not at each step, which would add every row once per epoch
            for position in rows.order(self.random.key(), task.train.size, 0, task.rows).split(1000, 1):
                x, y, t = task.train.take(position)
                self.memory.add(x=x, y=y, t=t)

    def tally(self, net: Net, x: Tensor, y: Tensor, t: Tensor, w: Tensor, total: Tensor, count: Tensor) -> None:
        """Add the rows' features to the sums [S, C, D] and counts [S, C] of their classes, in place."""
        z = class_means.features(net, self.layer, x, t, unit=self.normalise).double()
        for old, new in zip((total, count), class_means.class_sums(z, y, w, total.shape[1])):
            old += new

    @torch.no_grad()
    def deploy(self, learner: Learner, net: Net) -> Net:
        total, count = self.sum, self.count
        if len(self.memory):
            total = total.new_zeros(learner.S, learner.stream.outputs, total.shape[2])
            count = total.new_zeros(total.shape[:2])
            for x, y, t in zip(*(v.split(1000, 1) for v in self.memory.rows().values())):
                self.tally(net, x, y, t, torch.ones_like(y, dtype=torch.bool), total, count)
        if not bool(count.sum()):
            return net
        mean = (total / count.clamp_min(1)[:, :, None]).to(learner.dtype)
        if self.normalise:
            mean = F.normalize(mean, dim=-1)
        scale = (lambda z: F.normalize(z, dim=-1)) if self.normalise else (lambda z: z)
        return class_means.readout(
            net, self.layer, lambda z: class_means.nearest(scale(z), mean, count > 0), probabilistic=False
        )
