"""Van de Ven, Tuytelaars & Tolias (2022), Three types of incremental learning, Nature Machine Intelligence 4."""

from typing import Unpack

import torch
from torch import Tensor

from harness import tree
from harness.learner import Learner
from harness.rng import fold
from harness.strategy import Strategy
from harness.types import Buffers, How, Net, Out, Params, Task


class Separate(Strategy):
    """Separate networks: one net per task, never changed by later tasks (van de Ven 2022).

        begin of task i:  θ <- a fresh initialisation θ_i, a fresh optimizer;   end:  keep θ_i
        deployed:         each row goes through its task's net, for a future task through its initialisation

    There is neither forgetting nor transfer. Cost: one net for each task of the stream, all allocated at the start.

    Differences from the paper:
    * In the paper each net is smaller, 100 instead of 400 units per layer (split MNIST), for an equal number of
      parameters. Here each is the whole model: set a smaller one (model.widths) for an equal total.
    """

    family = "context-dependent"
    scenarios = ("task",)
    why = "the task of a row selects its net"

    def setup(self, learner: Learner) -> None:
        key, apply = self.random.key(), learner.apply
        first = Net(tree.copy(learner.params), tree.copy(learner.buffers), apply)
        later = range(1, len(learner.stream.tasks))
        self.nets = [first, *(Net(*learner.fresh(fold(key, i)), apply) for i in later)]

    def begin(self, learner: Learner, task: Task) -> Task:
        if task.index:
            tree.assign(learner.params, self.nets[task.index].params)
            learner.buffers = tree.copy(self.nets[task.index].buffers)
            learner.optimizer.reset()
        return task

    def end(self, learner: Learner, task: Task) -> None:
        self.nets[task.index] = Net(tree.copy(learner.params), tree.copy(learner.buffers), learner.apply)

    def deploy(self, learner: Learner, net: Net) -> Net:
        now = learner.now

        def route(params: Params, buffers: Buffers, x: Tensor, t: Tensor, **how: Unpack[How]) -> Out:
            nets = {i: Net(params, buffers, net.apply) if i == now else self.nets[i] for i in t.unique().tolist()}
            outs = {i: own(x, t, record=how.get("record", False)) for i, own in nets.items()}  # usually one
            return next(iter(outs.values())) if len(outs) == 1 else _by_task(t, outs)

        return Net(net.params, net.buffers, route)


def _by_task(t: Tensor, outs: dict[int, Out]) -> Out:
    """Each row of its own task's output."""

    def pick(parts: dict[int, Tensor]) -> Tensor:
        whole = torch.zeros_like(next(iter(parts.values())))
        for i, part in parts.items():
            whole = torch.where((t == i).view(*t.shape, *[1] * (part.dim() - 2)), part, whole)
        return whole

    def each(name: str) -> dict[str, Tensor]:
        return {k: pick({i: getattr(out, name)[k] for i, out in outs.items()}) for k in getattr(first, name)}

    first = next(iter(outs.values()))
    logits = pick({i: out.logits for i, out in outs.items()})
    return Out(logits, each("acts"), first.buffers, each("inputs"), each("preacts"))
