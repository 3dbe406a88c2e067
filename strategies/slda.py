"""Hayes & Kanan (2020), Lifelong machine learning with deep streaming linear discriminant analysis, CVPR workshops."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from harness import tree
from harness.learner import Learner
from harness.strategy import HOLD, READOUT, Strategy
from harness.toolbox import class_means, require, solve
from harness.types import Model, Net, Stream, Task

FEATURES = ("frozen", "input")


class SLDA(Strategy):
    """SLDA: class means and one covariance of fixed features, updated row by row (Hayes & Kanan 2020).

        logit_c = w_c z + b_c,   w_c = Λ μ_c,   b_c = -½ μ_c Λ μ_c,   Λ = [(1 - shrinkage) Σ + shrinkage I]⁻¹

    μ_c is the running mean of class c, Σ the covariance within classes, shared by all of them. For a batch of
    n_c rows of class c with mean m_c and scatter s_c about it (Welford; Chan, Golub & LeVeque 1983)

        NΣ <- NΣ + Σ_c s_c + N_c n_c / (N_c + n_c) (m_c - μ_c)(m_c - μ_c)ᵀ,   then N_c, μ_c

    which is exactly the covariance of all rows seen, independent of batches and order.

        features=frozen   z: input of the head in the net trained on the first task; later tasks take no step
        features=input    z: the flattened input; no step at all

    Stores C means, a D x D matrix and one net for the features; solves a D x D system per evaluation. It passes over
    a task's rows once, at its end.

    With inputs that are features already, features=frozen puts a net between, trained on the first task alone: a
    warning names features=input. With few rows for each dimension a larger shrinkage than the paper's does better; its
    unit is that of a feature's variance.

    Differences from the paper:
    * The paper's features come from ImageNet; here from the first task (its base initialisation), or none.
    * Its update weighs a row by t / (t + 1), t all rows seen, and the first row of a class enters Σ in full;
      the exact weight is N_c / (N_c + 1), and a first row adds nothing.
    * An unseen class has a very low logit; the code leaves its mean at 0.
    """

    family = "template-based"
    order = {"begin": HOLD, "deploy": READOUT}
    grid = {"shrinkage": (1e-6, 1e-4, 1e-2, 1.0)}  # from nearly none, by the paper's 1e-4, to the nearest class mean

    def __init__(self, *, features: str, shrinkage: float) -> None:
        require.one_of(FEATURES, features=features)
        require.within("(0, 1]", shrinkage=shrinkage)
        self.features, self.shrinkage = features, shrinkage

    def remarks(self, stream: Stream, model: Model) -> list[str]:
        if self.features == "input" or not class_means.between(stream, model):
            return []
        return [class_means.BETWEEN.format("strategy.slda.features=input")]

    def setup(self, learner: Learner) -> None:
        self.layer, width = class_means.head_layer(learner, self.name)
        if self.features == "input":
            self.layer, width = class_means.INPUT, math.prod(learner.stream.shape)
        self.mean = torch.zeros(learner.S, learner.stream.outputs, width, dtype=torch.float64, device=learner.device)
        self.count = self.mean.new_zeros(self.mean.shape[:2])
        self.scatter = self.mean.new_zeros(learner.S, width, width)
        self.first = self.kept(learner)

    def begin(self, learner: Learner, task: Task) -> Task:
        return replace(task, epoch=0) if task.index or self.features == "input" else task

    def kept(self, learner: Learner) -> Net:
        """A copy of the learner's net; empty if features are the inputs."""
        if self.features == "input":
            return Net({}, {}, learner.apply)
        return Net(tree.copy(learner.params), tree.copy(learner.buffers), learner.apply)

    def end(self, learner: Learner, task: Task) -> None:
        self.first = self.kept(learner) if task.index == 0 else self.first
        for batch in learner.scan(task.train):
            z = class_means.features(self.first, self.layer, batch.x, batch.t)
            self.update(z.double(), batch.y, (batch.w > 0).double())

    def update(self, z: Tensor, y: Tensor, w: Tensor) -> None:
        """Add rows z [S, B, D] of classes y [S, B]; w [S, B] is 0 on padding, else 1."""
        total, n = class_means.class_sums(z, y, w, self.mean.shape[1])
        mean = total / n.clamp_min(1)[:, :, None]
        inside = (z - mean.gather(1, y[:, :, None].expand_as(z))) * w[:, :, None]
        away = (mean - self.mean) * (self.count * n / (self.count + n).clamp_min(1)).sqrt()[:, :, None]
        self.scatter += inside.mT @ inside + away.mT @ away
        self.count += n
        self.mean += (mean - self.mean) * (n / self.count.clamp_min(1))[:, :, None]

    @torch.no_grad()
    def deploy(self, learner: Learner, net: Net) -> Net:
        if not bool(self.count.sum()):
            return net
        weight, bias = (v.to(learner.dtype) for v in self.discriminant())
        net = net if self.features == "input" else replace(self.first, apply=learner.apply)
        return class_means.readout(net, self.layer, lambda z: z @ weight.mT + bias[:, None])

    def discriminant(self) -> tuple[Tensor, Tensor]:
        """Weights [S, C, D] and biases [S, C]."""
        eye = torch.eye(self.mean.shape[2], dtype=self.mean.dtype, device=self.mean.device)
        covariance = self.scatter / self.count.sum(1).clamp_min(1)[:, None, None]
        shrunk = (1 - self.shrinkage) * covariance + self.shrinkage * eye
        weight = solve.solve(shrunk, self.mean.mT).mT
        bias = -0.5 * (weight * self.mean).sum(2)
        return weight, bias.masked_fill(self.count == 0, -class_means.FAR)
