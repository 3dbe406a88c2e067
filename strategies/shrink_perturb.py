"""Ash & Adams (2020), On warm-starting neural network training, NeurIPS; per step as in Dohare et al. (2024), Loss of
plasticity in deep continual learning, Nature 632.
"""

import torch

from harness import tree
from harness.learner import Learner
from harness.rng import fold, normal
from harness.strategy import RENEW, REPLACE, Strategy
from harness.toolbox import require
from harness.types import Params, Step, Task

MODES = ("boundary", "step")
NOISES = ("gaussian", "fresh_init", "initial")
SMALLEST_STEP_SHRINK = 0.9  # 0.6 is sensible per boundary; per step it leaves a network of zeros


class ShrinkPerturb(Strategy):
    """Shrink and perturb: θ <- shrink θ + sigma p, at each boundary (Ash & Adams 2020) or step (Dohare 2024).

        p ~ N(0, 1)                noise=gaussian
        p = a new initialisation   noise=fresh_init
        p = θ_0                    noise=initial: a pull towards the initialisation

    mode=boundary acts before every task but the first, mode=step after every update. These are different
    algorithms, each with its own random stream.

    Differences from the papers:
    * All parameters change, including biases and norm parameters; running statistics and the optimizer's
      state are unchanged.
    * mode=step: shrink is a decoupled weight decay. The paper's runs use SGD with weight decay wd, that
      is shrink = 1 - lr wd; use that, or shrink=1 and optimizer.weight_decay.
    * mode=step draws one random number per parameter and step, which costs more than the step itself for
      small batches (noise=initial draws none).
    """

    family = "plasticity"
    order = {"begin": RENEW, "step": REPLACE}
    grid = {"shrink": (0.2, 0.4, 0.6, 0.8)}  # Ash & Adams try 0 to 1

    def __init__(self, *, mode: str, shrink: float, sigma: float, noise: str) -> None:
        require.one_of(MODES, mode=mode)
        require.within("[0, 1]", shrink=shrink)
        if mode == "step" and shrink < SMALLEST_STEP_SHRINK:
            raise ValueError(f"shrink={shrink}: mode=step applies it at every step; try 0.9999")
        require.at_least(0, sigma=sigma)
        require.one_of(NOISES, noise=noise)
        self.mode, self.shrink, self.sigma, self.noise = mode, shrink, sigma, noise
        self.initial: Params = {}

    @property
    def purpose(self) -> str:
        return f"{type(self).__name__}[{self.mode}]"

    def setup(self, learner: Learner) -> None:
        if self.noise == "initial":
            self.initial = tree.copy(learner.params)

    @property
    def needs_boundaries(self) -> bool:
        return self.mode == "boundary"

    def begin(self, learner: Learner, task: Task) -> Task:
        if self.mode == "boundary" and task.index:
            self.perturb(learner)
        return task

    def step(self, learner: Learner, step: Step) -> None:
        if self.mode == "step":
            self.perturb(learner)

    @torch.no_grad()
    def perturb(self, learner: Learner) -> None:
        for name, noise in self.draw(learner).items():
            learner.params[name].mul_(self.shrink).add_(noise, alpha=self.sigma)

    def draw(self, learner: Learner) -> Params:
        if self.noise == "initial":
            return self.initial
        if self.noise == "fresh_init":
            return learner.fresh(self.random.key())[0]
        key = self.random.key()
        return {k: normal(fold(key, k), *v.shape[1:], dtype=v.dtype) for k, v in learner.params.items()}
