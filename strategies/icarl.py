"""Rebuffi, Kolesnikov, Sperl & Lampert (2017), iCaRL: incremental classifier and representation learning, CVPR. A
variant: code of van de Ven, Tuytelaars & Tolias (2022), GMvandeVen/continual-learning, e6d795a.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from harness import tree
from harness.learner import Learner
from harness.rng import integers
from harness.strategy import APPEND, READOUT, Strategy
from harness.toolbox import class_means, require
from harness.toolbox.memory import pick_rows
from harness.types import Batch, Net, Out, Params, Task, cat

SHARES = ("seen", "all")


class ICaRL(Strategy):
    """iCaRL: exemplars chosen by herding, sigmoid distillation, nearest mean of exemplars (Rebuffi 2017).

        L = Σ_rows w Σ_{classes c seen} BCE(g_c(x), target_c),   g = sigmoid(logits)
        target_c = sigmoid(z_c(x) / temperature)        for classes of past tasks, fresh rows and exemplars alike;
                                                        z: logits of the net at the last boundary
                 = 1 if c is the row's class, else 0    for classes of this task
        answer: argmin_c |φ(x) - μ_c|,   μ_c = mean of φ over the exemplars of c,   φ: input of the head, length 1

    It replaces the task loss. After a task every class seen keeps the same number of exemplars: old classes the first
    of their list, new classes those whose running mean stays closest to the class mean
    (harness.toolbox.class_means.herd) under the current net. The old net is in evaluation mode.

        shares=seen   floor(capacity / classes seen) exemplars each       temperature=1     Rebuffi et al.
        shares=all    floor(capacity / classes of the stream) each        temperature=2     van de Ven et al. 2022

    Memory: capacity rows and one net. Each step trains on batch_size additional rows, and runs the old net forward
    on all rows.

    Differences from the paper:
    * It trains on the union of fresh rows and exemplars. Here each batch gets batch_size exemplars drawn with
      replacement, with weights that keep the mean loss: n / (n + e) for fresh rows and e / (n + e) for exemplars, of n
      rows and e exemplars.
    * The loss is summed over classes, as printed and in van de Ven's code; the authors' code averages over all 100
      outputs, with lr 2, which is lr 0.02 for the sum. It trains for 70 epochs a task: with few steps iCaRL is below
      what it can reach.
    * No mirrored images, in training or in the means.
    * A class with fewer rows than its share keeps all; the rest of the share stays empty.
    * In scenario=task, all classes compete in training, but only those of the row's task in the answer.
    """

    name = "icarl"
    family = "template-based"
    scenarios = ("task", "class")
    why = "its exemplars and means belong to classes, each in one task"
    order = {"batch": APPEND, "deploy": READOUT}

    def __init__(self, *, capacity: int, batch_size: int, shares: str, temperature: float) -> None:
        require.at_least(1, capacity=capacity, batch_size=batch_size)
        require.one_of(SHARES, shares=shares)
        require.above(0, temperature=temperature)
        self.capacity, self.batch_size, self.shares, self.temperature = capacity, batch_size, shares, temperature

    def setup(self, learner: Learner) -> None:
        self.layer, _ = class_means.head_layer(learner, self.name)
        stream, S = learner.stream, learner.S
        if stream.masks is None or bool((stream.masks.sum(1) > 1).any()):
            raise ValueError(f"{self.name}: classes of {stream.name} recur in later tasks; use tasks=split")
        if self.capacity < stream.outputs:
            raise ValueError(f"capacity={self.capacity}: must be at least {stream.outputs}, one row for each class")
        self.old = Net(tree.copy(learner.params), tree.copy(learner.buffers), learner.apply)
        self.x = torch.zeros(S, 0, *stream.shape, dtype=learner.dtype, device=learner.device)
        self.y = torch.zeros(S, 0, dtype=torch.int64, device=learner.device)
        self.t, self.rank = self.y, self.y  # task id, and place in the class's list
        self.size = self.y.new_zeros(S)  # exemplars; the rest is padding
        self.most = self.least = 0  # of any seed

    def batch(self, learner: Learner, batch: Batch) -> Batch:
        w = batch.w
        if self.least:
            index = integers(self.random.key(), self.size[:, None], self.batch_size)
            x, y, t = (pick_rows(v, index) for v in (self.x, self.y, self.t))
            held = (self.size / (self.size + learner.stream.tasks[learner.now].rows)).to(w.dtype)[:, None]
            batch = cat(batch, learner.make_batch(x, y, t)).batch
            w = torch.cat([w * (1 - held), held.expand(-1, self.batch_size) / self.batch_size], 1)
        target = F.one_hot(batch.y, learner.stream.outputs).to(w.dtype)
        before = self.classes(learner, 0, learner.now)
        if learner.now:
            with torch.no_grad():
                old = replace(self.old, apply=learner.apply)  # a later strategy may have wrapped it
                z = old(batch.x, batch.t).logits / self.temperature
                target = torch.where(before, z.sigmoid(), target)
        return replace(batch, w=torch.zeros_like(batch.w)).carry(icarl=(w, target))

    def classes(self, learner: Learner, first: int, last: int) -> Tensor:
        """Classes of the tasks first ... last - 1: [S or 1, 1, C]."""
        assert learner.stream.masks is not None
        return learner.stream.masks[:, first:last].any(1)[:, None]

    def loss(self, learner: Learner, params: Params, batch: Batch, out: Out) -> Tensor:
        w: Tensor
        w, target = batch.extra["icarl"]
        each = F.binary_cross_entropy_with_logits(out.logits[:, : w.shape[1]], target, reduction="none")
        return (w * torch.where(self.classes(learner, 0, learner.now + 1), each, 0).sum(2)).sum(1)

    @torch.no_grad()
    def end(self, learner: Learner, task: Task) -> None:
        seen = int(self.classes(learner, 0, task.index + 1).sum(2).max())
        m = self.capacity // (seen if self.shares == "seen" else learner.stream.outputs)
        position, rank = self.choose(learner, task, m)
        x, y, t = task.train.take(position)
        fields = [torch.cat([old, new.to(old.dtype)], 1) for old, new in
                  zip((self.x, self.y, self.t, self.rank), (x, y, t, rank))]  # fmt: skip
        kept = fields[3] < m
        kept[:, : self.y.shape[1]] &= torch.arange(self.y.shape[1], device=kept.device) < self.size[:, None]
        self.size = kept.sum(1)
        self.most, self.least = int(self.size.max()), int(self.size.min())
        front = (~kept).to(torch.uint8).argsort(dim=1, stable=True)[:, : self.most]
        self.x, self.y, self.t, self.rank = (pick_rows(v, front) for v in fields)
        self.old = Net(tree.copy(learner.params), tree.copy(learner.buffers), learner.apply)

    def choose(self, learner: Learner, task: Task, m: int) -> tuple[Tensor, Tensor]:
        """The new classes' first m rows by herding: positions [S, classes * m], ranks (capacity on padding)."""
        z = torch.cat([class_means.features(learner.net, self.layer, b.x, b.t, unit=True)
                       for b in learner.scan(task.train)], 1)  # fmt: skip
        label = task.train.labels()[:, : z.shape[1]]  # [S, n]
        new = self.classes(learner, task.index, task.index + 1)[:, 0].expand(learner.S, -1)
        of_class = label[:, None] == new.nonzero()[:, 1].view(learner.S, -1, 1)  # [S, classes, n]
        count = of_class.sum(2)
        rows = (~of_class).to(torch.uint8).argsort(dim=2, stable=True)[:, :, : int(count.max())]
        inside = torch.arange(rows.shape[2], device=rows.device) < count[:, :, None]
        place = class_means.herd(pick_rows(z, rows.flatten(1)).view(*rows.shape, -1), inside, min(m, rows.shape[2]))
        rank = torch.arange(place.shape[2], device=rows.device).expand_as(place)
        rank = torch.where(rank < count[:, :, None], rank, self.capacity)
        return rows.gather(2, place).flatten(1), rank.flatten(1)

    @torch.no_grad()
    def deploy(self, learner: Learner, net: Net) -> Net:
        if not self.most:
            return net
        used = (torch.arange(self.most, device=self.y.device) < self.size[:, None]).to(self.x.dtype)
        total = count = torch.zeros((), device=self.x.device, dtype=self.x.dtype)
        for x, y, t, w in zip(*(v.split(1000, 1) for v in (self.x, self.y, self.t, used))):
            z = class_means.features(net, self.layer, x, t, unit=True)
            part, n = class_means.class_sums(z, y, w, learner.stream.outputs)
            total, count = total + part, count + n
        mean, seen = F.normalize(total, dim=-1), count > 0
        return class_means.readout(
            net, self.layer, lambda z: class_means.nearest(F.normalize(z, dim=-1), mean, seen), probabilistic=False
        )
