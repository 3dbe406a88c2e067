"""Dohare et al. (2024), Loss of plasticity in deep continual learning, Nature 632."""

from itertools import pairwise

import torch
from torch import Tensor

from harness.learner import Learner
from harness.rng import uniform
from harness.strategy import REPLACE, Strategy
from harness.toolbox import require, surgery
from harness.toolbox.surgery import Replacement
from harness.types import Params, Step

UTILITIES = ("contribution", "zero_contribution", "adaptable_contribution", "random")


class CBP(Strategy):
    """Continual backpropagation: reinitialise the least useful mature units, a few at every step (Dohare 2024).

    After each update, for every hidden unit i with outgoing weights w_out and incoming weights w_in:

        age_i += 1;  f_i <- decay f_i + (1 - decay) mean_batch(h_i)
        u_i <- decay u_i + (1 - decay) y_i,   u^_i = u_i / (1 - decay^age_i),  f^_i likewise
        y_i = mean|h_i| sum|w_out|                       utility=contribution (Nature, eq. 1)
            = mean|h_i - f^_i| sum|w_out|                zero_contribution
            = mean|h_i - f^_i| sum|w_out| / sum|w_in|    adaptable_contribution (the authors' MNIST runs)
            = 0                                          random: a control
        due += rate * (units older than maturity);  for each whole unit due: replace the mature unit of least u^

    A replaced unit gets fresh incoming weights, zero outgoing weights (for every reader), age, u and f of
    zero, and fresh optimizer state. With bias_transfer, w_out f^ is first added to its readers' biases.

    Activations are those of the step's forward pass (before the update, in training mode, including replayed
    rows), weights those after it. Means are over batch and space; output units are never replaced.

    Differences from the paper and its code:
    * Ties (dead units all have utility 0) are broken at random, not by index.
    * The optimizer state of a replaced unit is reset, including momentum and Adam's step counts.
    * All readers count for the utility and are zeroed, including skip and downsampling paths.
    * Fresh weights are consecutive rows of a newly initialised network: the model's own distribution.
    * bias_transfer=true is the mean correction of the 2021 preprint (arXiv 2108.06325). The authors' code
      transfers 0, because it clears f before using it: the default false gives their numbers.
    * Penalties of other strategies (EWC, L2-Init) still pull a new unit towards the old one's anchor.
    """

    family = "plasticity"
    order = {"step": REPLACE}
    transient = ("units", "spans", "deck")
    grid = {"rate": (1e-6, 1e-5, 1e-4, 1e-3)}  # the paper's search

    def __init__(self, *, rate: float, maturity: int, decay: float, utility: str, bias_transfer: bool) -> None:
        require.within("[0, 1]", rate=rate)
        require.at_least(0, maturity=maturity)
        require.within("[0, 1)", decay=decay)
        require.one_of(UTILITIES, utility=utility)
        self.rate, self.maturity, self.decay = rate, maturity, decay
        self.utility, self.bias_transfer = utility, bias_transfer
        self.count = 0  # optimizer steps

    def setup(self, learner: Learner) -> None:
        self.units = surgery.hidden(learner, self.name)
        ends = torch.tensor([0, *(u.size for u in self.units)]).cumsum(0).tolist()
        self.spans = [slice(a, b) for a, b in pairwise(ends)]  # of each layer in age and trace
        self.age = torch.zeros(learner.S, ends[-1], dtype=torch.int64, device=learner.device)
        self.trace = torch.zeros(learner.S, ends[-1], dtype=learner.dtype, device=learner.device)
        self.means = [self.trace.new_zeros(learner.S, surgery.copies(u) * u.size) for u in self.units]
        self.due = [0.0 for _ in self.units]
        self.young: list[list[int]] = [[] for _ in self.units]  # step at which each immature unit was replaced
        self.deck: Params | None = None  # a fresh network, whose rows are used one by one
        self.deck_key = self.random.key()
        self.dealt = [0 for _ in self.units]

    def step(self, learner: Learner, step: Step) -> None:
        self.count += 1
        self.age += 1
        if self.utility != "random":
            now = [self.contribution(learner, i, step.out.acts[u.act]) for i, u in enumerate(self.units)]
            self.trace.lerp_(torch.cat(now, 1), 1 - self.decay)
        replaced = [self.replace(learner, i) for i in range(len(self.units)) for _ in range(self.ripe(i))]
        if replaced:
            surgery.reset_units(learner, replaced)

    def contribution(self, learner: Learner, i: int, act: Tensor) -> Tensor:
        """y of layer i: [S, size]."""
        unit = self.units[i]
        if self.utility != "contribution" or self.bias_transfer:
            self.means[i].lerp_(surgery.channel_mean(act), 1 - self.decay)
        if self.utility != "contribution":
            act = act - self.corrected_mean(i).view(act.shape[0], 1, -1, *[1] * (act.dim() - 3))
        strength = surgery.channel_mean(act.abs())  # [S, copies * size]
        reach = [
            surgery.read(s, strength, unit.size) * surgery.weight_norm(s, learner.params[s.name], unit.size)
            for s in unit.consumers
        ]
        y = sum(reach[1:], reach[0])
        if self.utility == "adaptable_contribution":
            incoming = [surgery.weight_norm(s, learner.params[s.name], unit.size) for s in unit.producers if not s.bias]
            y = y / sum(incoming[1:], incoming[0]).clamp_min(torch.finfo(y.dtype).tiny)
        return y

    def corrected_mean(self, i: int) -> Tensor:
        age = self.age[:, self.spans[i]].clamp_min(1).repeat(1, self.means[i].shape[1] // self.units[i].size)
        return self.means[i] / (1 - self.decay ** age.to(self.trace.dtype))

    def ripe(self, i: int) -> int:
        """How many units of layer i to replace now.

        Which units are mature depends on the data, but their number does not: every seed has the same ages in
        a different order. It is counted on the host, without waiting for the device.
        """
        young = self.young[i]
        while young and self.count - young[0] > self.maturity:
            young.pop(0)
        mature = self.units[i].size - len(young) if self.count > self.maturity else 0
        self.due[i] += self.rate * mature
        n = min(int(self.due[i]), mature)
        self.due[i] -= n
        young += [self.count] * n
        return n

    def replace(self, learner: Learner, i: int) -> Replacement:
        """Reset the statistics of layer i's mature unit of least utility; its weights change later."""
        unit, age, trace = self.units[i], self.age[:, self.spans[i]], self.trace[:, self.spans[i]]
        mature = age > self.maturity
        utility = torch.where(mature, trace / (1 - self.decay ** age.to(trace.dtype)), torch.inf)
        lots = uniform(self.random.key(), unit.size)
        last = torch.where(utility <= utility.amin(1, keepdim=True), lots, -1.0).argmax(1, keepdim=True)
        where = torch.zeros_like(mature).scatter_(1, last, True)
        if self.bias_transfer:
            surgery.transfer_mean(learner, unit, where, self.corrected_mean(i))
        age.masked_fill_(where, 0)
        trace.masked_fill_(where, 0)
        self.means[i].masked_fill_(where.repeat(1, self.means[i].shape[1] // unit.size), 0)
        return Replacement(unit, where, self.deal(learner, i))

    def deal(self, learner: Learner, i: int) -> Params:
        """Fresh incoming values for one unit of layer i: the next row of the deck.

        Replacement is cheap, because a whole network is drawn only when a layer has used all its rows.
        """
        unit = self.units[i]
        if self.dealt[i] == unit.size:
            self.deck, self.deck_key, self.dealt = None, self.random.key(), [0 for _ in self.units]
        if self.deck is None:
            params, buffers = learner.fresh(self.deck_key)
            self.deck = {**params, **buffers}
        row, self.dealt[i] = self.dealt[i], self.dealt[i] + 1
        return {s.name: self.deck[s.name].narrow(s.axis, s.offset + row, 1) for s in (*unit.producers, *unit.norm)}
