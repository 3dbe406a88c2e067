"""Sokar et al. (2023), The dormant neuron phenomenon in deep reinforcement learning, ICML."""

import torch

from harness.learner import Learner
from harness.rng import integers
from harness.strategy import REPLACE, Strategy
from harness.toolbox import require, surgery
from harness.toolbox.surgery import Replacement
from harness.types import Step


class ReDo(Strategy):
    """ReDo: reinitialise dormant units every `period` steps (Sokar 2023).

        score_i = E|h_i| / mean_{j in layer} E|h_j|,   dormant iff score_i <= tau

    E is over `samples` rows drawn from the current task's training data, in evaluation mode, after the
    update. A dormant unit gets fresh incoming weights, zero outgoing weights and fresh optimizer state.
    All layers are scored before any is changed. In a net without layer norm, tau=0 does not change the outputs
    on these rows.

    Differences from the paper:
    * The rows come from the current task instead of a reinforcement learner's buffer.
    * Adam's step counts of the recycled entries restart too (the authors' code keeps them, which makes
      the first updates of a new weight 3.15 times too long).
    * All hidden layers are recycled; in the authors' residual nets only some.
    * Penalties of other strategies (EWC, L2-Init) still pull a new unit towards the old one's anchor.
    """

    name = "redo"
    family = "plasticity"
    needs_boundaries = True  # it scores units on rows of the current task
    order = {"step": REPLACE}
    grid = {"tau": (0.0, 0.025, 0.1), "period": (250, 1000)}  # thresholds of the paper and of its code

    def __init__(self, *, period: int, tau: float, samples: int) -> None:
        require.at_least(1, period=period)
        require.at_least(0, tau=tau)
        require.at_least(1, samples=samples)
        self.period, self.tau, self.samples = period, tau, samples
        self.count = 0  # optimizer steps

    def setup(self, learner: Learner) -> None:
        surgery.hidden(learner, self.name)

    def step(self, learner: Learner, step: Step) -> None:
        self.count += 1
        if self.count % self.period:
            return
        rows = learner.stream.tasks[learner.now].train
        batch = learner.make_batch(*rows.take(integers(self.random.key(), rows.size[:, None], self.samples)))
        acts = learner.net(batch.x, batch.t).acts
        params, buffers = learner.fresh(self.random.key())
        replaced = []
        for unit in learner.model.units:
            size = surgery.magnitude(unit, acts[unit.act])
            score = size / size.mean(1, keepdim=True).clamp_min(torch.finfo(size.dtype).tiny)
            replaced.append(Replacement(unit, score <= self.tau, {**params, **buffers}))
        surgery.reset_units(learner, replaced)
