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
from harness.types import Batch, Net, Out, Params, Source, Step, Task, cat
from harness.wording import warn

TARGETS = ("hard", "soft")
ACTIVE = 0.01  # variance of a latent mean over rows, above which it carries information (Burda et al. 2016)
LOOK = 500  # rows and dreams that are looked at when a task ends


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
    of training the VAE as well.

    L_vae is in nats a pixel: elbo is divided by the number of pixels, as in van de Ven's code. The VAE takes `steps`
    Adam steps in a task: one after each of the net's, on the same generated rows, and those that are left at the end of
    the task, on rows drawn anew. With steps=null it takes as many as the net.

    A VAE collapses if no latent dimension is active, that is if the mean of q(z|x) varies over the rows by less than
    0.01 in each (Burda, Grosse & Salakhutdinov 2016): every dream is then the same image. Too few steps and too many
    dimensions do that. At each boundary a warning says so, and if all dreams get one label.

    Near its start a VAE is a linear one, whose dimension is worth its KL if a principal component of the pixels has
    more variance than a pixel's noise, for Bernoulli p (1 - p) (after Lucas et al. 2019, for Gaussian noise). Of the
    digits' components 9 have more than their mean p (1 - p) of 0.144.

    Differences from the papers:
    * In van de Ven's code every past head answers every generated row, averaged; here the same in expectation.
    * The factor T² is in the papers; the current version of van de Ven's code omits it.
    * Shin et al. use a GAN, and optionally a weight other than 1/k.
    * The encoder's log-variance has a bias; in van de Ven's code it has none.
    * The VAE is always trained by Adam.
    """

    family = "replay"
    order = {"batch": APPEND, "end": ESTIMATE}
    transient = ("model",)
    grid = {"latent": (3, 9, 30, 100)}  # half orders of magnitude up to van de Ven et al.'s 100; steps are a budget

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
        steps: int | None,
    ) -> None:
        require.at_least(1, batch_size=batch_size)
        require.at_least(1, null="as many as the net takes", steps=steps)
        require.one_of(TARGETS, targets=targets)
        require.above(0, temperature=temperature, lr=lr)
        self.batch_size, self.targets, self.temperature, self.steps = batch_size, targets, temperature, steps
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

    def step(self, learner: Learner, step: Step) -> None:
        if self.steps is None or learner.steps <= self.steps:
            dreamt = step.batch.x[:, step.batch.extra["dreamt"][0]] if "dreamt" in step.batch.extra else None
            self.descend(learner, step.fresh.x, dreamt)

    def end(self, learner: Learner, task: Task) -> None:
        for _ in range(max(0, (self.steps or 0) - learner.planned)):
            x = self.rows(learner, task.train, min(learner.budget.batch_size, task.rows))
            dreamt = self.model.sample(self.dreamer, self.batch_size, self.random.key()) if task.index else None
            self.descend(learner, x, dreamt)
        tree.assign(self.dreamer, self.vae.params)
        tree.assign(self.teacher.params, learner.params)
        tree.assign(self.teacher.buffers, learner.buffers)
        if task.index + 1 < len(learner.stream.tasks):
            self.look(learner, task)

    @torch.enable_grad()
    def descend(self, learner: Learner, fresh: Tensor, dreamt: Tensor | None) -> None:
        """One Adam step on L_vae: fresh and dreamt rows [S, B, *shape]."""
        leaves = {p: v.detach().requires_grad_() for p, v in self.vae.params.items()}
        loss = -self.model.elbo(leaves, fresh, self.random.key()).mean(1)
        if dreamt is not None:
            k = learner.now + 1
            loss = loss / k - (1 - 1 / k) * self.model.elbo(leaves, dreamt, self.random.key()).mean(1)
        grads = torch.autograd.grad(loss.sum() / self.model.outputs, list(leaves.values()))
        self.vae.optimizer.update(self.vae.params, dict(zip(leaves, grads)))

    def rows(self, learner: Learner, source: Source, count: int) -> Tensor:
        """Random rows of a source, drawn with replacement: [S, count, *shape]."""
        return source.take(rng.integers(self.random.key(), source.size[:, None], count))[0]

    @torch.no_grad()
    def look(self, learner: Learner, task: Task) -> None:
        """Warn if the dreams of the next task have collapsed."""
        mean, _ = self.model.encode(self.dreamer, self.rows(learner, task.train, LOOK))
        dead = (mean.var(1) < ACTIVE).all(1)
        x = self.model.sample(self.dreamer, LOOK, self.random.key()).to(learner.dtype)
        t = torch.full(x.shape[:2], task.index if learner.stream.scenario == "task" else 0, device=x.device)
        label = mask_logits(self.teacher(x, t).logits, learner.stream.mask(t, task.index)).argmax(2)
        alike = (label == label[:, :1]).all(1)
        said = f"{int(dead.sum())} of {learner.S} VAEs have no active latent dimension: all their dreams are one image"
        if not dead.any():
            said = f"the dreams of {int(alike.sum())} of {learner.S} VAEs all have one label"
        if bool((dead | alike).any()):
            warn(f"task {task.index}: {self.name}: {said}; raise strategy.{self.name}.steps, or lower latent")
