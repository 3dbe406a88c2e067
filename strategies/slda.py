"""Hayes & Kanan (2020), Lifelong machine learning with deep streaming linear discriminant analysis, CVPR workshops."""

import torch
from torch import Tensor

from harness.learner import Learner
from harness.strategy import HOLD, READOUT, Strategy
from harness.toolbox import class_means, fixed_features, require, solve
from harness.toolbox.fixed_features import FixedFeatures
from harness.toolbox.moments import SharedScatter
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
        return fixed_features.remarks(self.features, stream, model, self.name)

    def setup(self, learner: Learner) -> None:
        self.fixed = FixedFeatures(learner, self.features, self.name)
        self.moments = SharedScatter(learner.S, learner.stream.outputs, self.fixed.width, learner.device)

    def begin(self, learner: Learner, task: Task) -> Task:
        return self.fixed.begin(task)

    def end(self, learner: Learner, task: Task) -> None:
        self.fixed.end(learner, task)
        for batch in learner.scan(task.train):
            self.moments.add(self.fixed(batch.x, batch.t), batch.y, (batch.w > 0).double())

    @torch.no_grad()
    def deploy(self, learner: Learner, net: Net) -> Net:
        if not bool(self.moments.count.sum()):
            return net
        weight, bias = (v.to(learner.dtype) for v in self.discriminant())
        return self.fixed.readout(learner, net, lambda z: z @ weight.mT + bias[:, None], probabilistic=True)

    def discriminant(self) -> tuple[Tensor, Tensor]:
        """Weights [S, C, D] and biases [S, C]."""
        mean = self.moments.mean
        eye = torch.eye(mean.shape[2], dtype=mean.dtype, device=mean.device)
        shrunk = (1 - self.shrinkage) * self.moments.covariance + self.shrinkage * eye
        weight = solve.solve(shrunk, mean.mT).mT
        bias = -0.5 * (weight * mean).sum(2)
        return weight, bias.masked_fill(self.moments.count == 0, -class_means.FAR)
