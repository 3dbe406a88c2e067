"""Lee, Kim, Jun, Ha & Zhang (2017), Overcoming catastrophic forgetting by incremental moment matching, NeurIPS."""

import torch

from harness import tree
from harness.landscape import paths
from harness.landscape.fisher import KINDS, diagonal
from harness.learner import Learner
from harness.strategy import ESTIMATE, WEIGHTS, Strategy
from harness.toolbox import require
from harness.types import Net, Task

MODES = ("mean", "mode")


class IMM(Strategy):
    """Incremental moment matching: deploy a mean of the nets after all tasks (Lee 2017).

        mode=mean   θ = Σ_k a_k θ_k                          the moments of a mixture of Gaussian posteriors
        mode=mode   θ = Σ_k a_k F_k θ_k / Σ_k a_k F_k        the mode of that mixture, F_k the diagonal Fisher at θ_k
        a_K = alpha of the newest of K tasks, (1 - alpha) / (K - 1) of each other;  alpha=null: 1 / K each

    Weight transfer: task k + 1 starts from θ_k, not from the merged net. All past posteriors are stored as two sums,
    A = Σ F_k and the mean m = Σ F_k θ_k / A; with the newest, θ = m + a_K F_K / (a A + a_K F_K) (θ_K - m), a of each
    other. Read-out rows that do not compete in a task have weight 0 there (separate heads are not averaged); if all
    weights are 0 the newest value is used. Batch-norm statistics are re-estimated on the task's rows. Memory: three
    copies of the net.

    Differences from the paper:
    * Without L2-transfer (a penalty on θ - θ_{k-1} in training) and drop-transfer (dropout of that difference): both
      only change how θ_k is trained.
    * F is per sample; the authors' code squares gradients of means over 1000 rows and adds 1e-8.
    * One alpha for the whole stream; the paper may tune one for each task.
    """

    family = "parameter regularization"
    order = {"end": ESTIMATE, "deploy": WEIGHTS}
    grid = {"alpha": (None, 0.2, 0.4, 0.6)}  # 1/K for each of K nets (the paper's untuned setting), and fixed weights

    def __init__(self, *, mode: str, alpha: float | None, fisher: str, samples: int | None) -> None:
        require.one_of(MODES, mode=mode)
        require.within("(0, 1]", null="equal shares", alpha=alpha)
        require.one_of(KINDS, fisher=fisher)
        require.at_least(1, null="all training rows", samples=samples)
        self.mode, self.alpha, self.fisher, self.samples = mode, alpha, fisher, samples
        self.count = 0  # tasks merged

    def setup(self, learner: Learner) -> None:
        self.mean, self.weight = tree.copy(learner.params), tree.zeros(learner.params)
        self.merged, self.buffers = tree.copy(learner.params), tree.copy(learner.buffers)

    @torch.no_grad()
    def end(self, learner: Learner, task: Task) -> None:
        if self.mode == "mode":
            new = diagonal(learner, task.train, self.fisher, self.random, samples=self.samples)
        else:
            new = {k: torch.ones_like(v) for k, v in learner.params.items()}
        for k, rows in paths.competing(learner).items():
            new[k] = new[k] * rows
        self.count += 1
        alpha = 1 / self.count if self.alpha is None else self.alpha
        other = (1 - alpha) / max(1, self.count - 1)
        for k, f in new.items():
            theta, mean, weight = learner.params[k], self.mean[k], self.weight[k]
            self.merged[k] = mean.lerp(theta, paths.share(alpha * f, other * weight))
            mean.lerp_(theta, paths.share(f, weight))
            weight.add_(f)
        self.buffers = tree.copy(paths.remeasure(learner, self.merged, task, self.random))

    def deploy(self, learner: Learner, net: Net) -> Net:
        return Net(self.merged, self.buffers, net.apply) if self.count else net
