"""Masse, Grant & Freedman (2018), Alleviating catastrophic forgetting using context-dependent gating and synaptic
stabilization, PNAS 115.
"""

import torch
from torch import Tensor

from harness.learner import Learner
from harness.rng import uniform
from harness.strategy import Strategy
from harness.toolbox import require
from harness.toolbox.gating import gate
from harness.types import Gates, Params


class XdG(Strategy):
    """XdG: each task silences a fixed random share of the hidden units (Masse 2018).

        h_l <- g_l,t h_l,   g_l,t in {0, 1}: floor(share n) of layer l's n units are 0, drawn once for each task t

    Gates act in training and evaluation, by the task id of each row. A silenced unit has neither output nor gradient
    for that row. Units shared by tasks are not protected; the paper therefore uses `strategy=[xdg,si]`.
    State: one bit per task and unit.

    Differences from the paper:
    * Exactly floor(share n) units of each layer are silent, as in van de Ven et al. (2022); in the authors' code each
      unit is silent with probability `share`.
    * All hidden units are gated, including channels of convolutions; in the paper only fully connected ones. A channel
      of a residual stream is silent in its whole stage.
    * Batch-norm statistics are shared by the tasks.
    """

    name = "xdg"
    family = "context-dependent"
    scenarios = ("task",)
    why = "the task of a row selects its gates"
    transient = ("gates",)
    grid = {"share": (0.4, 0.6, 0.8, 0.9)}  # around Masse et al.'s 0.8

    def __init__(self, *, share: float) -> None:
        require.within("[0, 1)", share=share)
        self.share = share

    def setup(self, learner: Learner) -> None:
        tasks, self.gates = len(learner.stream.tasks), dict[str, Tensor]()
        rows = torch.arange(learner.S, device=learner.device)[:, None]
        for unit in learner.model.units:
            rank = uniform(self.random.key(), tasks, unit.size).argsort(-1).argsort(-1)
            self.gates[unit.act] = (rank >= int(self.share * unit.size)).to(learner.dtype)  # [S, T, H]

        def gating(params: Params, t: Tensor, train: bool) -> Gates:
            return {act: g[rows, t] for act, g in self.gates.items()}

        gate(learner, self.name, gating)
