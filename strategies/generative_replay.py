"""Shin, Lee, Kim & Kim (2017), Continual learning with deep generative replay. NeurIPS. van de Ven & Tolias (2018),
Generative replay with feedback connections as a general strategy for continual learning. arXiv:1809.10635. van de
Ven, Siegelmann & Tolias (2020), Brain-inspired replay for continual learning with artificial neural networks.
Nature Communications 11:4069. Code: GMvandeVen/continual-learning.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from harness import rng, tree
from harness.learner import Learner, mask_logits
from harness.models.vae import VAE, vae_for
from harness.optim import Adam
from harness.strategy import APPEND, ESTIMATE, Strategy
from harness.toolbox import require
from harness.types import Batch, Net, Out, Params, Step, Task, cat

TARGETS = ("hard", "soft")


class GenerativeReplay(Strategy):
    """Generative replay: a VAE generates past inputs, the previous net labels them (Shin 2017; van de Ven 2018).

        L     = 1/k mean_fresh(nll)   + (1 - 1/k) mean_dreamt(loss on the previous net's answers)
        L_vae = 1/k mean_fresh(-elbo) + (1 - 1/k) mean_dreamt(-elbo),      in the k-th task

    At a boundary net and VAE are copied; the copies generate and label inputs during the next task.
    * targets=hard: nll of the previous net's most likely class (Shin; "DGR").
    * targets=soft: T² Σ_c -q_c log p_c, q and p the softmaxes at temperature T of the previous and the current net
      (van de Ven; "DGR+distill"). Classes that the previous net did not know have q = 0 but compete in p.

    The scenario decides which outputs compete: in domain all, in class those of the stream's mask; in task the
    head of a random past task answers each generated row. Memory: a copy of the net, a VAE and its copy. Time: that
    of training the VAE as well. The VAE learns from scratch and needs thousands of steps per task, as in the papers:
    after a few hundred its samples teach little.

    Differences from the papers:
    * In van de Ven's code every past head answers every generated row, averaged; here the same in expectation.
    * The factor T² is in the papers; the current version of van de Ven's code omits it.
    * Shin et al. use a GAN, and optionally a weight other than 1/k.
    * The VAE is trained after the net in each step, on the same generated rows, always by Adam.
    """

    family = "replay"
    order = {"batch": APPEND, "end": ESTIMATE}
    transient = ("model",)
    grid = {"lr": (1e-4, 3e-4, 1e-3, 3e-3)}  # van de Ven et al. have 1e-3

    def __init__(
        self,
        *,
        batch_size: int,
        targets: str,
        temperature: float,
        widths: Sequence[int],
        latent: int,
        likelihood: str,
        lr: float,
    ) -> None:
        require.at_least(1, batch_size=batch_size)
        require.one_of(TARGETS, targets=targets)
        require.above(0, temperature=temperature, lr=lr)
        self.batch_size, self.targets, self.temperature = batch_size, targets, temperature
        self.widths, self.latent, self.likelihood, self.lr = tuple(widths), latent, likelihood, lr
        VAE((1,), latent, self.widths, likelihood)  # refuses bad values before the run starts

    def setup(self, learner: Learner) -> None:
        if learner.stream.loss == "mse":
            raise ValueError(f"{self.name}: regression has no classes to label generated inputs with")
        self.model = vae_for(learner.stream, self.latent, self.widths, self.likelihood)
        self.vae = learner.sub("vae", self.model, Adam(lr=self.lr))
        self.dreamer = tree.copy(self.vae.params)
        self.teacher = Net(tree.copy(learner.params), tree.copy(learner.buffers), learner.apply)

    @torch.no_grad()
    def batch(self, learner: Learner, batch: Batch) -> Batch:
        if not learner.now:
            return batch
        k, n, key = learner.now + 1, self.batch_size, self.random.key()
        x = self.model.sample(self.dreamer, n, key).to(batch.x.dtype)
        t = torch.zeros(learner.S, n, dtype=torch.long, device=key.device)
        if learner.stream.scenario == "task":
            t = rng.integers(rng.fold(key, "head"), learner.now, n)
        known = learner.stream.mask(t, learner.now - 1)
        answer = mask_logits(self.teacher(x, t).logits, known)
        dreamt = learner.make_batch(x, answer.argmax(2), t)
        share = dreamt.w * (1 - 1 / k if self.targets == "hard" else 0)
        batch, rows = cat(replace(batch, w=batch.w / k), replace(dreamt, w=share))
        return batch.carry(dreamt=(rows, (answer / self.temperature).softmax(2)))

    def loss(self, learner: Learner, params: Params, batch: Batch, out: Out) -> Tensor | float:
        if self.targets == "hard" or "dreamt" not in batch.extra:
            return 0.0
        rows, q = batch.extra["dreamt"]
        log_p = (mask_logits(out.logits, batch.mask)[:, rows] / self.temperature).log_softmax(2)
        distance: Tensor = -(q * log_p.masked_fill(log_p.isneginf(), 0)).sum(2).mean(1)  # 0 log 0 = 0
        return (1 - 1 / (learner.now + 1)) * self.temperature**2 * distance

    @torch.enable_grad()
    def step(self, learner: Learner, step: Step) -> None:
        leaves = {p: v.detach().requires_grad_() for p, v in self.vae.params.items()}
        loss = -self.model.elbo(leaves, step.fresh.x, self.random.key()).mean(1)
        if "dreamt" in step.batch.extra:
            k, (rows, _) = learner.now + 1, step.batch.extra["dreamt"]
            dreamt = self.model.elbo(leaves, step.batch.x[:, rows], self.random.key())
            loss = loss / k - (1 - 1 / k) * dreamt.mean(1)
        grads = torch.autograd.grad(loss.sum(), list(leaves.values()))
        self.vae.optimizer.update(self.vae.params, dict(zip(leaves, grads)))

    def end(self, learner: Learner, task: Task) -> None:
        tree.assign(self.dreamer, self.vae.params)
        tree.assign(self.teacher.params, learner.params)
        tree.assign(self.teacher.buffers, learner.buffers)
