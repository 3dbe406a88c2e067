"""Soutif-Cormerais, Carta & van de Weijer (2023), Improving online continual learning performance and stability with
temporal ensembles, CoLLAs.
"""

from harness import tree
from harness.landscape import paths
from harness.learner import Learner
from harness.strategy import AVERAGE, WEIGHTS, Strategy
from harness.toolbox import require
from harness.types import Net, Step


class EMA(Strategy):
    """EMA: deploy a moving average of the weights; training does not use it (Soutif-Cormerais 2023).

        θ̄ <- d θ̄ + (1 - d) θ   after every update,  θ̄_0 = θ_0
        d = decay                                     warmup=false
          = min(decay, (1 + n) / (10 + n))            warmup=true, n updates so far (TensorFlow's num_updates)

    After n steps θ_0 still has weight decay^n, 5 % at 300 steps with 0.99; with warmup it vanishes at once.
    Batch-norm statistics are averaged too. The average continues across boundaries. Memory: one copy of the net.

    Differences from the paper:
    * The paper adds it to replay: `strategy=[replay,ema]`.
    * Integer buffers (counters) are copied; the authors' code averages them too.
    """

    family = "optimization-based"
    order = {"step": AVERAGE, "deploy": WEIGHTS}
    grid = {"decay": (0.9, 0.97, 0.99, 0.999)}  # averages over 10 to 1,000 updates

    def __init__(self, *, decay: float, warmup: bool) -> None:
        require.within("[0, 1)", decay=decay)
        self.decay, self.warmup = decay, warmup
        self.count = 0  # updates

    def setup(self, learner: Learner) -> None:
        self.params, self.buffers = tree.copy(learner.params), tree.copy(learner.buffers)

    def step(self, learner: Learner, step: Step) -> None:
        self.count += 1
        decay = min(self.decay, (1 + self.count) / (10 + self.count)) if self.warmup else self.decay
        paths.follow(self.params, learner.params, 1 - decay)
        paths.follow(self.buffers, learner.buffers, 1 - decay)

    def deploy(self, learner: Learner, net: Net) -> Net:
        return Net(self.params, self.buffers, net.apply)
