"""van de Ven, Li & Tolias (2021), Class-incremental learning with generative classifiers. CVPR Workshops. Code:
GMvandeVen/continual-learning.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from harness import rng
from harness.learner import Learner
from harness.models.vae import VAE, vae_for
from harness.optim import Adam
from harness.strategy import Strategy
from harness.toolbox import require
from harness.types import Buffers, Net, Out, Params, Task

ANSWERS = ("trained", "gaussian")
UNSEEN = -1e6  # log-likelihood under a class without a VAE: finite, to avoid NaN losses


class GenerativeClassifier(Strategy):
    """Generative classifier: one VAE per class; predict the class with the highest likelihood (van de Ven 2021).

        y^ = argmax_c log p_c(x),   p_c(x) = mean_i p_c(x|z_i) p(z_i) / q_c(z_i|x),   z_i ~ q_c(z|x)

        answer=trained     p_c(x|z): the likelihood of the training
        answer=gaussian    p_c(x|z) = N(x; mean pixels of the decoder at z, I), as in van de Ven's code, which trains
                           with Bernoulli pixels on MNIST and classifies with this

    The estimates log p_c(x) are the deployed net's logits; its softmax is the posterior under equal priors.
    Classes share no parameters, so nothing is forgotten. The run's model is not trained; its curvature and paths
    do not describe this method.

    Budget: at each boundary `steps` Adam steps for every class of the task, on batch_size of its rows drawn with
    replacement; no step during the task. Memory: one VAE per class. Time of a prediction: classes times samples
    decoder passes.

    Differences from the paper:
    * The importance draws z_i use the same `samples` standard normal numbers for all rows and classes: a
      prediction does not depend on the other rows.
    * Equal class priors in training and testing.
    * Batches are drawn with replacement. A class that recurs continues from its VAE.
    """

    family = "template-based"
    scenarios = ("class",)
    why = "each class has its own model, belongs to one task and competes with all others"
    alone = True  # it deploys its own model, without the run's parameters
    transient = ("model",)
    grid = {"lr": (3e-4, 1e-3, 3e-3, 1e-2)}  # half orders of magnitude around van de Ven et al.'s 1e-3

    def __init__(
        self,
        *,
        steps: int,
        batch_size: int,
        samples: int,
        widths: Sequence[int],
        latent: int,
        likelihood: str,
        answer: str,
        lr: float,
    ) -> None:
        require.one_of(ANSWERS, answer=answer)
        require.at_least(1, steps=steps, batch_size=batch_size, samples=samples)
        require.above(0, lr=lr)
        self.steps, self.batch_size, self.samples, self.lr = steps, batch_size, samples, lr
        self.widths, self.latent, self.likelihood, self.answer = tuple(widths), latent, likelihood, answer
        VAE((1,), latent, self.widths, likelihood)  # refuses bad values before the run starts

    def setup(self, learner: Learner) -> None:
        if learner.stream.loss == "mse":
            raise ValueError(f"{self.name}: regression has no classes to model")
        S, K = learner.S, learner.stream.outputs
        self.model = vae_for(learner.stream, self.latent, self.widths, self.likelihood)
        shapes = self.model.init(self.random.base)[0]
        zero = torch.zeros((), dtype=learner.dtype, device=learner.device)
        self.bank = {k: zero.repeat(S, K, *v.shape[1:]) for k, v in shapes.items()}
        self.seen = torch.zeros(S, K, dtype=torch.bool, device=learner.device)
        self.noise = rng.normal(self.random.key(), self.samples, self.latent, dtype=learner.dtype)

    def begin(self, learner: Learner, task: Task) -> Task:
        return replace(task, epoch=0)

    def end(self, learner: Learner, task: Task) -> None:
        S, label = learner.S, task.train.labels()
        count = torch.zeros(self.seen.shape, dtype=torch.long, device=label.device)
        count.scatter_add_(1, label.clamp(min=0), (label >= 0).long())
        width = int((count > 0).sum(1).max())  # classes of the task
        classes = (count > 0).to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :width]  # [S, width]
        flat = (classes + torch.arange(S, device=label.device)[:, None] * count.shape[1]).flatten()
        # every class of every seed is a row of stacked parameters, with separate draws
        key = rng.fold(self.random.key()[:, None], classes).flatten()
        old, known = {k: v.flatten(0, 1)[flat] for k, v in self.bank.items()}, self.seen.flatten()[flat]
        fresh = {k: v.to(learner.dtype) for k, v in self.model.init(key)[0].items()}
        params = {k: torch.where(known.view(-1, *[1] * (v.dim() - 1)), old[k], v) for k, v in fresh.items()}
        order = label.argsort(dim=1, stable=True)  # padding, then class by class
        first = (label[:, None] < classes[..., None]).sum(2).view(-1, 1)
        many = count.flatten()[flat][:, None]
        optimizer = Adam(lr=self.lr)
        for i in range(self.steps):
            place = first + rng.integers(rng.fold(key, 2 * i), many, self.batch_size)
            place = place.clamp(max=label.shape[1] - 1)  # for seeds with fewer classes: discarded below
            x = task.train.take(order.gather(1, place.view(S, -1)))[0]
            self.ascend(params, x.view(len(flat), self.batch_size, *x.shape[2:]), rng.fold(key, 2 * i + 1), optimizer)
        for k, v in params.items():
            kept = torch.where((many > 0).view(-1, *[1] * (v.dim() - 1)), v, old[k])
            self.bank[k].flatten(0, 1).index_copy_(0, flat, kept)
        self.seen = self.seen | (count > 0)

    @torch.enable_grad()
    def ascend(self, params: Params, x: Tensor, key: Tensor, optimizer: Adam) -> None:
        """One ascent step on the mean evidence lower bound of each row of parameters."""
        leaves = {k: v.detach().requires_grad_() for k, v in params.items()}
        loss = -self.model.elbo(leaves, x, key).mean(1).sum()
        optimizer.update(params, dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())))))

    def deploy(self, learner: Learner, net: Net) -> Net:
        return Net(self.bank, {"noise": self.noise, "seen": self.seen}, self.classify)

    def classify(self, params: Params, buffers: Buffers, x: Tensor, t: Tensor, **_: Any) -> Out:
        """log p_c(x) of every class as logits: [S, B, K]."""
        gaussian = self.answer == "gaussian"
        each = [
            self.model.log_likelihood({k: v[:, c] for k, v in params.items()}, x, buffers["noise"], gaussian)
            for c in range(buffers["seen"].shape[1])
        ]
        return Out(torch.stack(each, 2).masked_fill(~buffers["seen"][:, None], UNSEEN), {}, buffers)
