"""Lee, Cho, Kim, Kim, Min, Choo & Lyle (2024), Slow and steady wins the race: maintaining plasticity with hare and
tortoise networks, ICML.
"""

from harness import tree
from harness.landscape import paths
from harness.learner import Learner
from harness.strategy import AVERAGE, WEIGHTS, Strategy
from harness.toolbox import require
from harness.types import Net, Step


class HareTortoise(Strategy):
    """Hare and tortoise: periodically reset a fast net to its slow moving average (Lee 2024).

        tortoise <- decay tortoise + (1 - decay) hare   after every update of the hare
        hare     <- tortoise                            every `period` epochs

    The optimizer trains the hare; the tortoise is deployed. Batch-norm statistics are averaged and reset too.
    Epochs are counted in steps, over the whole stream. Memory: one copy of the net.

    Differences from the paper:
    * A reset copies values. In the authors' code both nets share storage until the next update.
    * Their code counts epochs within a task from 0 and also resets after the first; here after `period` whole epochs.
    * The optimizer keeps its state at a reset, as in their code; reset_optimizer=true clears it.
    """

    family = "plasticity"
    needs_boundaries = True  # it counts passes over a task
    order = {"step": AVERAGE, "deploy": WEIGHTS}
    grid = {"decay": (0.99, 0.999), "period": (3, 10)}  # Lee et al.'s values, and faster ones

    def __init__(self, *, decay: float, period: int, reset_optimizer: bool) -> None:
        require.within("[0, 1)", decay=decay)
        require.at_least(1, period=period)
        self.decay, self.period, self.reset_optimizer = decay, period, reset_optimizer
        self.epochs = 0.0  # of the hare

    def setup(self, learner: Learner) -> None:
        self.params, self.buffers = tree.copy(learner.params), tree.copy(learner.buffers)

    def step(self, learner: Learner, step: Step) -> None:
        paths.follow(self.params, learner.params, 1 - self.decay)
        paths.follow(self.buffers, learner.buffers, 1 - self.decay)
        self.epochs += 1 / learner.epoch_steps
        if self.epochs > self.period - 1e-6:
            self.epochs = 0.0
            tree.assign(learner.params, self.params)
            learner.buffers = tree.copy(self.buffers)
            if self.reset_optimizer:
                learner.optimizer.reset()

    def deploy(self, learner: Learner, net: Net) -> Net:
        return Net(self.params, self.buffers, net.apply)
