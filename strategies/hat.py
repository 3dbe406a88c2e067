"""Serrà, Surís, Miron & Karatzoglou (2018), Overcoming catastrophic forgetting with hard attention to the task,
ICML.
"""

import torch
from torch import Tensor

from harness.learner import Learner
from harness.rng import normal
from harness.strategy import CONSTRAIN, RESCALE, Strategy
from harness.toolbox import require
from harness.toolbox.gating import gate
from harness.toolbox.surgery import spread
from harness.types import BEFORE, Aux, Batch, Gates, GradFn, Out, Params, Step, Task

ANNEALINGS = ("epoch", "task")
LIMIT = 6.0  # bound of |e|, thres_emb in the authors' code
COSH = 50.0  # bound of |s e| in cosh, thres_cosh in the authors' code


class HAT(Strategy):
    """HAT: each task learns which hidden units it uses; units of past tasks are frozen (Serrà 2018).

        h_l <- a_l,t h_l,   a_l,t = σ(s e_l,t)       e: a learned embedding of task t for each unit, from N(0, 1)
        s = 1 / s_max + (s_max - 1 / s_max) b / B    at batch b = 0 ... B - 1 of each epoch; s_max in evaluation
        loss += strength Σ_l,i a_l,i (1 - c_l,i) / Σ_l,i (1 - c_l,i)         c: maximum of the past tasks' a
        de *= s_max / s (cosh(s e) + 1) / (cosh(e) + 1);  |e| <= 6 after each update
        Δw_ij *= 1 - min(c_l,i, c_l-1,j),  Δb_i *= 1 - c_l,i                 after each update

    Inputs, and read-out rows of past tasks, count as units with c = 1. Only the current task's e moves. The constraint
    is on the update: it holds under momentum, Adam and weight decay. For nets without norms: statistics or gains
    shared by the tasks would change the outputs of past tasks.
    Cost: a copy of the parameters for c and one for the update, an e for each task and unit. It must be listed first.

    The copy that measures the trainability gap trains without HAT, through the new task's initial gates at s_max.

    Differences from the paper:
    * If a step budget ends within an epoch, so does the annealing; anneal=task spans the task's steps instead.
    * The gate precedes dropout; in the code it follows. Gradient norms are not clipped (at 10000 in the code).
    * The run sets the learning rate and its decay.
    """

    family = "context-dependent"
    scenarios = ("task",)
    why = "each task has its own attention"
    needs = frozenset({BEFORE})
    order = {"grad": RESCALE, "step": CONSTRAIN}
    grid = {"strength": (0.1, 0.25, 0.75, 2.5)}  # factors of three around Serrà et al.'s 0.75

    def __init__(self, *, strength: float, s_max: float, anneal: str) -> None:
        require.at_least(0, strength=strength)
        require.at_least(1, s_max=s_max)
        require.one_of(ANNEALINGS, anneal=anneal)
        self.strength, self.s_max, self.anneal = strength, s_max, anneal

    def setup(self, learner: Learner) -> None:
        model, like = learner.model, next(iter(learner.params.values()))
        if any(u.norm for u in model.units) or learner.buffers or not model.head:
            kind = type(model).__name__
            raise ValueError(
                f"{self.name}: {kind} has norms or no declared head; use model=mlp or cnn without layer_norm"
            )
        gate(learner, self.name, self.gating)
        self.rows = torch.arange(learner.S, device=learner.device)[:, None]
        # tensors: a compiled step takes numbers for constants
        self.s = torch.full((), 1 / self.s_max, dtype=torch.float64, device=learner.device)
        self.now = torch.zeros((), dtype=torch.int64, device=learner.device)
        self.used = like.new_zeros(learner.S, model.outputs)
        self.past = {u.act: like.new_zeros(learner.S, u.size) for u in model.units}
        self.frozen = {k: torch.zeros_like(v) for k, v in learner.params.items()}
        for u in model.units:
            e = normal(self.random.key(), len(learner.stream.tasks), u.size, dtype=learner.dtype)
            learner.params[f"hat.{u.act}"] = e  # [S, T, H]

    def gating(self, params: Params, t: Tensor, train: bool) -> Gates:
        s = self.s if train else self.s_max
        return {act: torch.sigmoid(s * params[f"hat.{act}"][self.rows, t]) for act in self.past}

    def batch(self, learner: Learner, batch: Batch) -> Batch:
        steps = min(learner.planned, learner.epoch_steps) if self.anneal == "epoch" else learner.planned
        self.now.fill_(learner.now)
        self.s.fill_(1 / self.s_max + (self.s_max - 1 / self.s_max) * (learner.steps % steps) / steps)
        return batch

    def loss(self, learner: Learner, params: Params, batch: Batch, out: Out) -> Tensor:
        attention = {act: torch.sigmoid(self.s * params[f"hat.{act}"][:, self.now]) for act in self.past}
        free = sum(((1 - c).sum(1) for c in self.past.values()), self.used.new_zeros(learner.S))
        new = torch.stack([(attention[act] * (1 - c)).sum(1) for act, c in self.past.items()]).sum(0)
        return self.strength * new / free.clamp(min=1e-9)

    def grad(self, learner: Learner, inner: GradFn) -> GradFn:
        def compensated(params: Params, batch: Batch) -> tuple[Params, Aux]:
            grads, aux = inner(params, batch)
            for name in (f"hat.{act}" for act in self.past):
                e = params[name]
                ratio = ((self.s * e).clamp(-COSH, COSH).cosh() + 1) / (e.cosh() + 1)
                grads[name] = grads[name] * (self.s_max / self.s) * ratio
            return grads, aux

        return compensated

    def step(self, learner: Learner, step: Step) -> None:
        for k, v in self.frozen.items():
            learner.params[k].lerp_(step.before[k], v)
        for name in (f"hat.{act}" for act in self.past):
            new = learner.params[name][:, learner.now].clamp(-LIMIT, LIMIT)
            learner.params[name].copy_(step.before[name])
            learner.params[name][:, learner.now] = new

    @torch.no_grad()
    def end(self, learner: Learner, task: Task) -> None:
        for act, c in self.past.items():
            self.past[act] = c.maximum(torch.sigmoid(self.s_max * learner.params[f"hat.{act}"][:, task.index]))
        own = learner.competing()
        self.used = torch.ones_like(self.used) if own is None else self.used.maximum(own.to(self.used))
        self.freeze(learner)

    def freeze(self, learner: Learner) -> None:
        """min(c of the unit that a weight writes, c of the unit that it reads); 1 if that is not a unit."""
        written: Params = {
            k: self.used.view(*self.used.shape, *[1] * (learner.params[k].dim() - 2)) for k in learner.model.head
        }
        read: Params = {}
        for u in learner.model.units:
            c = self.past[u.act]
            written |= {s.name: spread(s, c, learner.params[s.name]) for s in u.producers}
            for s in u.consumers:  # the copies of a CReLU are two blocks of one weight
                read[s.name] = read.get(s.name, torch.zeros_like(c[0, 0])) + spread(s, c, learner.params[s.name])
        for k, v in self.frozen.items():
            one = v.new_ones(())
            v.copy_(written.get(k, one).minimum(read.get(k, one)))
